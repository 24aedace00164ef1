// holo lock, holo locks, holo lease: who may, until when, and with which token.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <thread>

#include "base/limits.h"
#include "base/strings.h"
#include "base/utf8.h"
#include "cmd/holo/agent_link.h"
#include "cmd/holo/child.h"
#include "cmd/holo/command_line.h"
#include "cmd/holo/table.h"
#include "wire/kv.pb.h"

namespace holo::cmd {
namespace {

using Clock = std::chrono::steady_clock;

constexpr Duration kCall = seconds(30);
constexpr std::uint32_t kWaitMs = 20'000;         // Of one request for the lock; then it is asked again.
constexpr auto kGrace = std::chrono::seconds(5);  // From SIGTERM to SIGKILL, once the lock is lost.

struct LockOptions {
  TargetOptions target;
  std::string name, owner;
  double ttl = 10, wait = -1;
  std::uint64_t lease = 0;
  bool json = false;
  CLI::App* app = nullptr;
};

std::uint64_t milliseconds_of(double seconds) { return static_cast<std::uint64_t>(seconds * 1000); }

std::string default_owner() {
  char host[256] = "";
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '\0';
  return to_utf8(str("process ", ::getpid(), " on ", host));
}

Result<wire::LeaseInfo> grant(AgentLink& link, const LockOptions& o, bool session) {
  wire::LeaseGrant ask;
  ask.set_ttl_ms(milliseconds_of(o.ttl));
  ask.set_owner(o.owner.empty() ? default_owner() : o.owner);
  ask.set_session(session);
  return link.call_for<wire::LeaseInfo>(wire::LEASE_GRANT, ask, kCall);
}

/// Keeps a lease on a thread of its own while it lives; when that fails for the lease's whole time, or the cluster says
/// that the lease has ended, it is lost, and the program with it. Counted from before each request was sent, so that
/// this side gives up before the cluster does.
class Keeper {
 public:
  Keeper(AgentLink& link, std::uint64_t lease, std::chrono::milliseconds ttl)
      : link_(link), lease_(lease), ttl_(ttl), thread_([this] { run(); }) {}
  ~Keeper() {
    {
      const std::scoped_lock lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  [[nodiscard]] bool lost() const { return lost_; }

 private:
  void run() {
    auto kept = Clock::now();
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, ttl_ / 3, [this] { return done_; })) {
      lock.unlock();
      const auto asked = Clock::now();
      wire::LeaseKeep ask;
      ask.set_lease(lease_);
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(kept + ttl_ - asked).count();
      bool ended = left <= 0;
      if (!ended) {
        const auto answer = link_.call(wire::LEASE_KEEP, ask, milliseconds(left));
        if (answer) kept = asked;
        ended = !answer && (answer.error().code == Errc::not_found || Clock::now() >= kept + ttl_);
      }
      lock.lock();
      if (ended) {
        lost_ = true;
        signal_child(SIGTERM);
        if (!wake_.wait_for(lock, kGrace, [this] { return done_; })) signal_child(SIGKILL);
        return;
      }
    }
  }

  AgentLink& link_;
  const std::uint64_t lease_;
  const std::chrono::milliseconds ttl_;
  std::atomic<bool> lost_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  std::thread thread_;  // Last: it uses the others.
};

/// The token, once the lock is held.
Outcome<std::uint64_t> acquire(AgentLink& link, const LockOptions& o, std::uint64_t lease) {
  const bool forever = o.wait < 0;
  const auto until = Clock::now() + std::chrono::milliseconds(forever ? 0 : milliseconds_of(o.wait));
  wire::LockAcquire ask;
  ask.set_name(o.name);
  ask.set_lease(lease);
  ask.set_queue(o.wait != 0);
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    ask.set_wait_ms(forever ? kWaitMs : static_cast<std::uint32_t>(std::clamp<std::int64_t>(left, 0, kWaitMs)));
    auto place = link.call_for<wire::LockPlace>(wire::LOCK_ACQUIRE, ask, milliseconds(kWaitMs) + kCall);
    if (place && place->token() != 0) return place->token();
    // While there is no leader nobody gets it; that passes.
    if (!place && (forever || left > 0) && place.error().code == Errc::no_quorum) continue;
    if (!place) return std::unexpected(Failure(place.error()));
    if (!forever && left <= 0) {
      return fail(Errc::deadline_exceeded,
                  str("lock ", o.name, " was not to be had in ", o.wait, " s: ", place->ahead(), " ahead in the line"),
                  "holo locks shows who has it");
    }
  }
}

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
  HOLO_ASSIGN(lease, grant(link, o, true));
  int status = kDone;
  {
    const Keeper keeper(link, lease.lease(), std::chrono::milliseconds(lease.ttl_ms()));
    HOLO_ASSIGN(token, acquire(link, o, lease.lease()));
    ::setenv("HOLO_LOCK", o.name.c_str(), 1);
    ::setenv("HOLO_LOCK_TOKEN", std::to_string(token).c_str(), 1);
    ::setenv("HOLO_LEASE", std::to_string(lease.lease()).c_str(), 1);
    HOLO_ASSIGN(ended, run_child(program, arguments));
    status = ended;
    if (keeper.lost()) {
      return fail(Errc::unavailable, str("lock ", o.name, " was lost: its lease could not be kept for ", o.ttl, " s"),
                  str("the command was ended; its token ", token, " is not valid any more"));
    }
  }
  wire::LeaseEnd end;
  end.set_lease(lease.lease());
  // Where the agent has gone meanwhile, the lease ends by itself.
  if (auto ended = link.call(wire::LEASE_END, end, kCall); !ended && ended.error().code == Errc::not_found) {
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
  HOLO_ASSIGN(lease, grant(link, o, false));
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
    app.add_option("LEASE", o.lease, "As holo lease grant printed it")->required()->check(CLI::PositiveNumber);
  };

  add(line.root(), "lock", "Run a command while holding a lock; its token is in HOLO_LOCK_TOKEN",
      "holo lock backup --ttl 10 -- sh -c 'holo kv put --fence $HOLO_LOCK:$HOLO_LOCK_TOKEN last \"$(date)\"'", lock,
      [&](CLI::App& app, LockOptions& o) {
        app.add_option("NAME", o.name, "1 to 128 of A-Z a-z 0-9 . _ / -")->required();
        ttl(app, o);
        app.add_option("--wait", o.wait, "Seconds to wait in line; 0: not at all (default: as long as it takes)")
            ->check(CLI::Range(0.0, 1e6));
        app.prefix_command();
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
