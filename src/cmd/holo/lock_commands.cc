// holo lock, holo locks, holo lease: who may, until when, and with which token.
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <iostream>
#include <mutex>

#include "base/limits.h"
#include "base/strings.h"
#include "client/held_lock.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/child.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/table.h"
#include "wire/kv.pb.h"

namespace holo::cmd {
namespace {

constexpr Duration kCall = seconds(30);

struct LockOptions {
  TargetOptions target;
  std::string name, owner;
  double ttl = 10, wait = -1;
  std::uint64_t lease = 0;
  bool json = false;
  CLI::App* app = nullptr;
};

std::uint64_t milliseconds_of(double seconds) { return static_cast<std::uint64_t>(seconds * 1000); }

Result<wire::LeaseInfo> grant(AgentLink& link, const LockOptions& o) {
  wire::LeaseGrant ask;
  ask.set_ttl_ms(milliseconds_of(o.ttl));
  ask.set_owner(o.owner.empty() ? client::default_owner() : o.owner);
  return link.call_for<wire::LeaseInfo>(wire::LEASE_GRANT, ask, kCall);
}

/// Ends the command that runs under a lock once that is lost: it is asked to, and after a while not asked.
class Ender {
 public:
  /// Waits for over(), up to the grace.
  void lost() {
    std::unique_lock lock(mutex_);
    signal_child(SIGTERM);
    if (!wake_.wait_for(lock, kGrace, [this] { return over_; })) signal_child(SIGKILL);
  }
  /// The command has ended.
  void over() {
    {
      const std::scoped_lock lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool over_ = false;
};

Outcome<int> lock(const LockOptions& o) {
  auto arguments = o.app->remaining();
  if (!arguments.empty() && arguments.front() == kDashDash) arguments.erase(arguments.begin());
  std::ranges::replace(arguments, std::string(kDashDash), std::string("--"));
  if (arguments.empty()) return usage("a command is needed", "holo lock NAME -- command");
  if (arguments.front().starts_with('-')) {
    return usage(str("unknown flag ", arguments.front(), " of holo lock"), "holo lock --help shows an example");
  }
  const auto program = find_program(arguments.front());
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  Ender ender;
  holo::LockOptions wanted;
  wanted.ttl = std::chrono::milliseconds(milliseconds_of(o.ttl));
  if (o.wait >= 0) wanted.wait = std::chrono::milliseconds(milliseconds_of(o.wait));
  wanted.owner = o.owner;
  wanted.on_lost = [&ender] { ender.lost(); };
  HOLO_ASSIGN(held, client::hold_lock(link.socket(), o.name, std::move(wanted)));
  // The command inherits it: when we are killed, the agent takes the holder for gone once all of the command has gone.
  HOLO_ASSIGN(inherited, link.socket()->inheritable());
  ::setenv("HOLO_LOCK", o.name.c_str(), 1);
  ::setenv("HOLO_LOCK_TOKEN", std::to_string(held->token()).c_str(), 1);
  ::setenv("HOLO_LEASE", std::to_string(held->lease()).c_str(), 1);
  auto status = run_child(program, arguments);
  ender.over();
  const bool lost_meanwhile = held->lost();
  (void)held->release();  // Where the agent has gone meanwhile, the lease ends by itself.
  if (!status) return status;
  if (lost_meanwhile) {
    return fail(Errc::unavailable, str("lock ", o.name, " was lost: its lease could not be kept for ", o.ttl, " s"),
                str("the command was ended; its token ", held->token(), " is not valid any more"));
  }
  if (held->lost()) {
    return fail(Errc::unavailable, str("lock ", o.name, " was lost while the command ran: its lease had ended"),
                "somebody else may have had the lock at the same time");
  }
  return status;
}

nlohmann::json to_json(const wire::LeaseInfo& l) {
  return {{"lease", l.lease()}, {"ttl_ms", l.ttl_ms()}, {"left_ms", l.left_ms()},
          {"owner", l.owner()}, {"keys", l.keys()},     {"locks", l.locks()}};
}

void print(const nlohmann::json& object) { std::cout << object.dump(2) << "\n"; }

Outcome<int> locks(const LockOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(list, link.call_for<wire::LockList>(wire::LOCK_LIST, wire::Empty(), kCall));
  if (o.json) {
    nlohmann::json all = nlohmann::json::array();
    for (const auto& l : list.locks()) {
      nlohmann::json waiting = nlohmann::json::array();
      for (const auto& p : l.places()) waiting.push_back({{"lease", p.lease()}, {"owner", p.owner()}});
      nlohmann::json holder = waiting.front();
      waiting.erase(waiting.begin());
      all.push_back({{"name", l.name()}, {"token", l.token()}, {"holder", holder}, {"waiting", waiting}});
    }
    print(all);
    return kDone;
  }
  Table table({"LOCK", "TOKEN", "HELD BY", "WAITING"});
  for (const auto& l : list.locks()) {
    table.row({l.name(), std::to_string(l.token()), l.places(0).owner(), std::to_string(l.places_size() - 1)});
  }
  std::cout << table.text();
  return kDone;
}

Outcome<int> lease_grant(const LockOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(lease, grant(link, o));
  if (o.json) {
    print(to_json(lease));
  } else {
    std::cout << lease.lease() << "\n";
  }
  return kDone;
}

Outcome<int> lease_keep(const LockOptions& o) {
  wire::LeaseKeep ask;
  ask.set_lease(o.lease);
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(lease, link.call_for<wire::LeaseInfo>(wire::LEASE_KEEP, ask, kCall));
  if (o.json) print(to_json(lease));
  return kDone;
}

Outcome<int> lease_end(const LockOptions& o) {
  wire::LeaseEnd ask;
  ask.set_lease(o.lease);
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_TRY(link.call(wire::LEASE_END, ask, kCall));
  return kDone;
}

Outcome<int> lease_list(const LockOptions& o) {
  HOLO_ASSIGN(link, AgentLink::connect(o.target));
  HOLO_ASSIGN(list, link.call_for<wire::LeaseList>(wire::LEASE_LIST, wire::Empty(), kCall));
  if (o.json) {
    nlohmann::json all = nlohmann::json::array();
    for (const auto& l : list.leases()) all.push_back(to_json(l));
    print(all);
    return kDone;
  }
  Table table({"LEASE", "OWNER", "TIME TO LIVE", "LEFT", "KEYS", "LOCKS"});
  const auto in_seconds = [](std::uint64_t ms) { return str(ms / 1000, ".", ms % 1000 / 100, " s"); };
  for (const auto& l : list.leases()) {
    table.row({std::to_string(l.lease()), l.owner(), in_seconds(l.ttl_ms()), in_seconds(l.left_ms()),
               std::to_string(l.keys()), std::to_string(l.locks())});
  }
  std::cout << table.text();
  return kDone;
}

}  // namespace

void add_lock_commands(CommandLine& line) {
  const auto add = [&](CLI::App& parent, const char* name, const char* help, const char* example,
                       Outcome<int> (*run)(const LockOptions&), auto options) {
    auto o = std::make_shared<LockOptions>();
    auto& app = line.add(parent, name, help, example, [o, run] { return run(*o); });
    o->app = &app;
    options(app, *o);
    add_target_options(app, o->target);
  };
  const auto ttl = [](CLI::App& app, LockOptions& o) {
    app.add_option("--ttl", o.ttl, "Seconds for which it lasts without being kept")
        ->check(CLI::Range(static_cast<double>(limits::kMinLeaseMs) / 1000,
                           static_cast<double>(limits::kMaxLeaseMs) / 1000))
        ->capture_default_str();
    app.add_option("--owner", o.owner, "What others are shown (default: process and machine)");
  };
  const auto json = [](CLI::App& app, LockOptions& o, const char* help) { app.add_flag("--json", o.json, help); };
  const auto lease = [](CLI::App& app, LockOptions& o) {
    app.add_option("LEASE", o.lease, "As holo lease grant printed it")->required()->check(above_zero());
  };

  add(line.root(), "lock", "Run a command while holding a lock; its token is in HOLO_LOCK_TOKEN",
      "holo lock backup --ttl 10 -- sh -c 'holo kv put --fence $HOLO_LOCK:$HOLO_LOCK_TOKEN last \"$(date)\"'", lock,
      [&](CLI::App& app, LockOptions& o) {
        app.add_option("NAME", o.name, "1 to 128 of A-Z a-z 0-9 . _ / -")->required();
        ttl(app, o);
        app.add_option("--wait", o.wait, "Seconds to wait in line; 0: not at all (default: as long as it takes)")
            ->check(CLI::Range(0.0, 1e6));
        starts_program(app, "-- COMMAND [ARGUMENTS...]");
        app.footer(
            "Ended by a signal, or because the lock was lost, the command goes with all that it started, and the lock "
            "is\n"
            "given back after that. What it leaves in the background when it ends by itself runs on without the "
            "lock.\n" +
            app.get_footer());
      });
  add(line.root(), "locks", "Who has which lock, and how many wait for it", "holo locks --json", locks,
      [&](CLI::App& app, LockOptions& o) { json(app, o, "A JSON array, with the whole line of each"); });

  auto& group = line.add(line.root(), "lease", "Times to live, for keys that go when nobody keeps them",
                         "id=$(holo lease grant --ttl 30) && holo kv put --lease $id here yes", {});
  group.require_subcommand(1);
  add(group, "grant", "A new lease; prints its number", "holo lease grant --ttl 30", lease_grant,
      [&](CLI::App& app, LockOptions& o) {
        ttl(app, o);
        json(app, o, "One JSON object");
      });
  add(group, "keep", "Its time begins anew", "holo lease keep 7", lease_keep, [&](CLI::App& app, LockOptions& o) {
    lease(app, o);
    json(app, o, "One JSON object");
  });
  add(group, "end", "End it now, and delete its keys", "holo lease end 7", lease_end,
      [&](CLI::App& app, LockOptions& o) { lease(app, o); });
  add(group, "list", "The leases of the cluster", "holo lease list", lease_list,
      [&](CLI::App& app, LockOptions& o) { json(app, o, "A JSON array"); });
}

}  // namespace holo::cmd
