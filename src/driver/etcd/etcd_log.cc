#include "driver/etcd/etcd_log.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>

#include "base/limits.h"
#include "base/log.h"
#include "base/strings.h"
#include "crypto/hash.h"
#include "driver/etcd/entry.h"
#include "driver/etcd/lane.h"
#include "env/held_command_log.h"

namespace holo::driver {
namespace {

using etcd::Client;
using etcd::decode;
using etcd::encode;
using etcd::Entry;
using etcd::Keys;
using etcd::number;
using nlohmann::json;

constexpr Duration kRequest = milliseconds(2000);
constexpr Duration kUpload = seconds(10);
constexpr Duration kTick = milliseconds(200);
constexpr Duration kLook = seconds(1);      // Even when no watch tells that something has changed.
constexpr Duration kNotAgain = seconds(2);  // Who handed over lets another one lead.
constexpr Duration kOnItsWay = seconds(3);  // No entry is longer, from its author to all: kRequest, and a look.
constexpr auto kRewatch = std::chrono::milliseconds(200);
constexpr int kEntriesAtOnce = 32;
constexpr std::size_t kCommandsAtOnce = 256;

json get(const std::string& key) { return {{"request_range", {{"key", encode(key)}}}}; }
json get_range(const std::string& first, const std::string& end, int limit = 0) {
  json range = {{"key", encode(first)}, {"range_end", encode(end)}};
  if (limit != 0) range["limit"] = limit;
  return {{"request_range", range}};
}
json put(const std::string& key, ByteSpan value) {
  return {{"request_put", {{"key", encode(key)}, {"value", encode(value)}}}};
}
json erase_range(const std::string& first, const std::string& end) {
  return {{"request_delete_range", {{"key", encode(first)}, {"range_end", encode(end)}}}};
}
json is_absent(const std::string& key) {
  return {{"key", encode(key)}, {"target", "CREATE"}, {"result", "EQUAL"}, {"create_revision", "0"}};
}
json has_value(const std::string& key, const std::string& value) {
  return {{"key", encode(key)}, {"target", "VALUE"}, {"result", "EQUAL"}, {"value", encode(value)}};
}
Result<json> transact(Client& client, json compare, json then, json otherwise, Duration timeout = kRequest) {
  return client.call("/v3/kv/txn",
                     {{"compare", std::move(compare)}, {"success", std::move(then)}, {"failure", std::move(otherwise)}},
                     timeout);
}
bool succeeded(const json& answer) { return answer.contains("succeeded") && answer["succeeded"] == true; }

/// What range number `i` of a transaction has found; an empty array: nothing.
json found(const json& answer, std::size_t i) {
  if (!answer.contains("responses") || answer["responses"].size() <= i) return json::array();
  const json& response = answer["responses"][i];
  if (!response.contains("response_range") || !response["response_range"].contains("kvs")) return json::array();
  return response["response_range"]["kvs"];
}

std::uint64_t parse(std::string_view text) {
  std::uint64_t out = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return 0;
    out = out * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return out;
}

struct Meta {
  bool exists = false;
  std::uint64_t head = 0;
  NodeId leader;
  std::uint64_t term = 0;
  std::map<NodeId, bool> members;  ///< true: it votes.
  std::uint64_t snapshot = 0;
  std::string snapshot_text;
};
struct Fetched {
  Meta meta;
  std::vector<std::pair<std::uint64_t, Entry>> entries;
  std::optional<std::pair<std::uint64_t, Bytes>> snapshot;  ///< When the entries that are wanted are gone.
  std::int64_t snapshot_wall = 0;
};

Result<Meta> read_meta(const json& kvs, const Keys& keys) {
  Meta out;
  for (const json& kv : kvs) {
    HOLO_ASSIGN(key_bytes, decode(kv, "key"));
    HOLO_ASSIGN(value_bytes, decode(kv, "value"));
    const std::string key(as_text(key_bytes)), value(as_text(value_bytes));
    if (key == keys.head()) {
      out.exists = true;
      out.head = parse(value);
    }
    if (key == keys.leader()) {
      out.leader = NodeId{std::strtoull(value.c_str(), nullptr, 16)};
      out.term = number(kv, "create_revision");
    }
    if (key == keys.snapshot()) {
      out.snapshot_text = value;
      out.snapshot = number(json::parse(value, nullptr, false), "index");
    }
    if (key.starts_with(keys.members())) {
      const NodeId node{std::strtoull(key.c_str() + keys.members().size(), nullptr, 16)};
      if (node) out.members[node] = value == "voter";
    }
  }
  return out;
}

Result<Bytes> read_parts(Client& client, const std::function<std::string(std::uint32_t)>& key, std::uint32_t parts) {
  Bytes out;
  for (std::uint32_t i = 0; i < parts; ++i) {
    HOLO_ASSIGN(answer, transact(client, json::array(), json::array({get(key(i))}), json::array(), kUpload));
    const json kvs = found(answer, 0);
    if (kvs.empty()) return fail(Errc::unavailable, str("a part of what was written to etcd is gone: ", key(i)));
    HOLO_ASSIGN(part, decode(kvs[0], "value"));
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

Status write_parts(Client& client, const std::function<std::string(std::uint32_t)>& key, ByteSpan bytes) {
  for (std::uint32_t i = 0; std::size_t{i} * etcd::kMaxValue < bytes.size(); ++i) {
    const std::size_t at = std::size_t{i} * etcd::kMaxValue;
    const ByteSpan part = bytes.subspan(at, std::min(etcd::kMaxValue, bytes.size() - at));
    HOLO_TRY(transact(client, json::array(), json::array({put(key(i), part)}), json::array(), kUpload));
  }
  return {};
}

std::uint32_t parts_of(std::size_t bytes) {
  return static_cast<std::uint32_t>((bytes + etcd::kMaxValue - 1) / etcd::kMaxValue);
}

Error no_log(const Keys& keys) {
  return {.code = Errc::unavailable,
          .message = str("etcd has no cluster under ", keys.meta()),
          .hint = "control_endpoints and control_prefix have to be those of the other nodes",
          .retryable = true};
}

/// Everything that a node needs to go on from `from`, as of one revision of etcd.
Result<Fetched> fetch(Client& client, const Keys& keys, std::uint64_t from) {
  HOLO_ASSIGN(answer, transact(client, json::array(),
                               json::array({get_range(keys.meta(), Keys::after(keys.meta())),
                                            get_range(keys.entry(from), Keys::after(keys.entries()), kEntriesAtOnce)}),
                               json::array(), kUpload));
  Fetched out;
  HOLO_ASSIGN(meta, read_meta(found(answer, 0), keys));
  if (!meta.exists) return std::unexpected(no_log(keys));
  out.meta = std::move(meta);
  for (const json& kv : found(answer, 1)) {
    HOLO_ASSIGN(key, decode(kv, "key"));
    HOLO_ASSIGN(value, decode(kv, "value"));
    const std::uint64_t index = parse(as_text(key).substr(keys.entries().size()));
    if (index != from + out.entries.size()) break;
    auto entry = etcd::decode_entry(value);
    if (!entry) {
      return fail(Errc::corrupt, str("entry ", index, " of the log in etcd does not decode"),
                  "etcdctl get --prefix holo/ shows it; restore a snapshot into a new cluster");
    }
    if (entry->chunks != 0) {
      const Entry e = *entry;
      HOLO_ASSIGN(command,
                  read_parts(client, [&](std::uint32_t i) { return keys.chunk(e.chunk_at, e.chunk_id, i); }, e.chunks));
      entry->commands.push_back(std::move(command));
    }
    out.entries.emplace_back(index, std::move(*entry));
  }
  if (!out.entries.empty() || from > out.meta.head || out.meta.snapshot < from) return out;
  const json s = json::parse(out.meta.snapshot_text, nullptr, false);
  const std::uint64_t id = number(s, "id");
  HOLO_ASSIGN(state, read_parts(
                         client, [&](std::uint32_t i) { return keys.snapshot_part(out.meta.snapshot, id, i); },
                         static_cast<std::uint32_t>(std::min<std::uint64_t>(number(s, "parts"), 1 << 16))));
  HOLO_ASSIGN(digest, decode(s, "digest"));
  if (!std::ranges::equal(crypto::blake3(state), digest))
    return fail(Errc::corrupt, "the snapshot in etcd was altered");
  out.snapshot_wall = static_cast<std::int64_t>(number(s, "wall"));
  out.snapshot.emplace(out.meta.snapshot, std::move(state));
  return out;
}

std::unexpected<Error> cancelled() { return fail(Errc::cancelled, "the agent is stopping"); }

/// How etcd's troubles look to whoever waits for the cluster.
Error as_log_error(Error e) {
  if (e.code == Errc::unavailable) e.code = Errc::no_quorum;
  return e;
}

}  // namespace

class EtcdLog final : public env::CommandLog, public std::enable_shared_from_this<EtcdLog> {
 public:
  using Self = std::shared_ptr<EtcdLog>;
  using IndexShot = std::shared_ptr<OneShot<Result<LogIndex>>>;
  using DoneShot = std::shared_ptr<OneShot<Result<bool>>>;

  EtcdLog(EtcdLogPorts ports, env::StateMachine& machine, EtcdLogOptions options)
      : ports_(ports),
        machine_(machine),
        options_(std::move(options)),
        keys_(options_.prefix),
        writes_(std::make_unique<etcd::Lane>(*ports_.loop, options_.endpoints)),
        reads_(std::make_unique<etcd::Lane>(*ports_.loop, options_.endpoints)),
        leases_(std::make_unique<etcd::Lane>(*ports_.loop, options_.endpoints)),
        watcher_(std::make_shared<Client>(options_.endpoints)) {}

  ~EtcdLog() override {
    end_lanes();
    if (watch_.joinable()) watch_.join();
  }

  /// Nothing is asked, applied or told any more; who waits hears `cancelled`.
  void shut() {
    if (std::exchange(closed_, true)) return;
    changed_ = nullptr;
    end_lanes();
    for (auto& [index, f] : std::exchange(until_applied_, {})) f(cancelled());
    for (Pending& p : std::exchange(queue_, {})) p.shot->set(cancelled());
    for (const DoneShot& s : std::exchange(barriers_, {})) s->set(cancelled());
  }

  void begin() {
    watch_ = std::thread([weak = weak_from_this(), client = watcher_, stop = stop_, loop = ports_.loop, keys = keys_] {
      const json body = {
          {"create_request", {{"key", encode(keys.meta())}, {"range_end", encode(Keys::after(keys.meta()))}}}};
      const auto tell = [&](const std::string&) {
        loop->post([weak] {
          if (const Self me = weak.lock()) me->look();
        });
      };
      while (!*stop) {
        (void)client->stream("/v3/watch", body, tell);
        for (int i = 0; i < 4 && !*stop; ++i) std::this_thread::sleep_for(kRewatch / 4);
      }
    });
    read_ = ports_.loop->now();
    ports_.loop->spawn(keep(shared_from_this()));
    look();
  }

  // ---- env::CommandLog

  Task<Result<LogIndex>> append(Buffer command, Instant deadline) override {
    return append(shared_from_this(), std::move(command), deadline);
  }
  Task<Status> barrier(Instant deadline) override { return barrier(shared_from_this(), deadline); }

  env::LogStatus status() const override {
    env::LogStatus s;
    s.leader = meta_.leader;
    s.term = term_;
    s.applied = LogIndex{applied_};
    s.committed = LogIndex{std::max(meta_.head, applied_)};
    s.last = s.committed;
    s.snapshot = LogIndex{meta_.snapshot};
    const auto me = meta_.members.find(options_.self);
    const bool votes = me != meta_.members.end() && me->second;
    s.role = leads() ? env::LogRole::leader : votes ? env::LogRole::follower : env::LogRole::learner;
    if (s.leader == options_.self && !leads()) s.leader = {};
    if (blind()) {
      s.leader = {};
      s.trouble = last_error_;
    }
    return s;
  }

  WallTime now() const override {
    return WallTime{std::max(last_wall_, clock_wall_ + (ports_.loop->now() - clock_began_).millis())};
  }

  std::vector<env::LogMember> members() const override {
    std::vector<env::LogMember> out;
    for (const auto& [node, voter] : meta_.members) out.push_back({.node = node, .voter = voter});
    return out;
  }

  Task<Status> add_learner(NodeId node, Instant deadline) override {
    const auto at = meta_.members.find(node);
    return change(shared_from_this(), node, at != meta_.members.end() && at->second ? "voter" : "learner", deadline);
  }
  Task<Status> set_voter(NodeId node, bool voter, Instant deadline) override {
    return change(shared_from_this(), node, voter ? "voter" : "learner", deadline);
  }
  Task<Status> remove(NodeId node, Instant deadline) override { return change(shared_from_this(), node, "", deadline); }
  Task<Status> hand_over(NodeId, Instant deadline) override { return hand_over(shared_from_this(), deadline); }
  void on_change(std::function<void()> f) override { changed_ = std::move(f); }
  Task<void> close() override { return close(shared_from_this()); }

 private:
  struct Pending {
    Bytes command;
    IndexShot shot;
  };

  [[nodiscard]] bool leads() const {
    return meta_.leader == options_.self && lease_ != 0 && ports_.loop->now() < lease_until_;
  }
  /// What was read last says nothing of now: not even the lease of a leader that was there can be taken for granted.
  [[nodiscard]] bool blind() const { return ports_.loop->now() - read_ > options_.leader_ttl; }
  [[nodiscard]] bool votes() const {
    const auto me = meta_.members.find(options_.self);
    return me != meta_.members.end() && me->second;
  }

  // ---- Writing

  static Task<Result<LogIndex>> append(Self me, Buffer command, Instant deadline) {
    if (me->closed_) co_return cancelled();
    if (command.size() > limits::kMaxCommandBytes) {
      co_return fail(Errc::over_limit, str("a command of ", command.size(), " bytes"));
    }
    if (me->queue_.size() >= limits::kMaxPendingCommands) {
      co_return std::unexpected(Error{.code = Errc::overloaded,
                                      .message = str(me->queue_.size(), " commands wait for etcd already"),
                                      .retryable = true});
    }
    auto shot = std::make_shared<OneShot<Result<LogIndex>>>();
    const ByteSpan bytes = command.span();
    me->queue_.push_back({.command = Bytes(bytes.begin(), bytes.end()), .shot = shot});
    if (!std::exchange(me->writing_, true)) me->ports_.loop->spawn(write(me));
    auto waiting = env::await_until(*me->ports_.loop, shot, deadline, "etcd");
    co_return co_await waiting;
  }

  /// As many of the queue as one value takes.
  std::vector<Pending> next_batch() {
    std::vector<Pending> out;
    std::size_t bytes = 16;
    while (!queue_.empty() && out.size() < kCommandsAtOnce) {
      const std::size_t one = etcd::entry_bytes(queue_.front().command.size());
      if (!out.empty() && bytes + one > etcd::kMaxValue) break;
      bytes += one;
      out.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
    return out;
  }

  static Task<void> write(Self me) {
    while (!me->queue_.empty() && !me->closed_) {
      std::vector<Pending> batch = me->next_batch();
      auto entry = std::make_shared<Entry>();
      for (Pending& p : batch) entry->commands.push_back(std::move(p.command));
      auto writing = write_entry(me, std::move(entry));
      const Result<LogIndex> done = co_await writing;
      for (Pending& p : batch) me->resolve_applied(p.shot, done);
    }
    for (Pending& p : std::exchange(me->queue_, {})) p.shot->set(cancelled());
    me->writing_ = false;
  }

  static Task<Result<LogIndex>> write_entry(Self me, std::shared_ptr<const Entry> entry) {
    auto value = std::make_shared<Entry>(*entry);
    if (etcd::entry_bytes(entry->commands.front().size()) + 16 > etcd::kMaxValue) {
      value->commands.clear();
      value->chunk_at = me->meta_.head + 1;
      value->chunk_id = me->ports_.entropy->u64();
      value->chunks = parts_of(entry->commands.front().size());
      auto uploading = me->writes_->run<bool>([keys = me->keys_, entry, value](Client& client) -> Result<bool> {
        HOLO_TRY(write_parts(
            client, [&](std::uint32_t i) { return keys.chunk(value->chunk_at, value->chunk_id, i); },
            entry->commands.front()));
        return true;
      });
      const auto uploaded = co_await *uploading;
      if (!uploaded) co_return std::unexpected(as_log_error(uploaded.error()));
    }
    std::uint64_t after = std::max(me->meta_.head, me->applied_);
    for (;;) {
      if (me->closed_) co_return cancelled();
      value->wall_ms = me->now().ms;
      // 0: written; otherwise: what the head was instead.
      auto appending =
          me->writes_->run<std::uint64_t>([keys = me->keys_, value, after](Client& client) -> Result<std::uint64_t> {
            HOLO_ASSIGN(
                answer,
                transact(client,
                         json::array({has_value(keys.head(), std::to_string(after)), is_absent(keys.entry(after + 1))}),
                         json::array({put(keys.entry(after + 1), etcd::encode_entry(*value)),
                                      put(keys.head(), as_bytes(std::to_string(after + 1)))}),
                         json::array({get(keys.head())})));
            if (succeeded(answer)) return 0;
            const json kvs = found(answer, 0);
            if (kvs.empty()) return std::unexpected(no_log(keys));
            HOLO_ASSIGN(head, decode(kvs[0], "value"));
            return std::max<std::uint64_t>(parse(as_text(head)), 1);
          });
      const auto head = co_await *appending;
      if (!head) co_return std::unexpected(as_log_error(head.error()));
      if (*head == 0) break;
      if (*head == after) co_return fail(Errc::internal, "the log in etcd has an entry beyond its head");
      after = *head;  // Another node was faster.
    }
    me->meta_.head = std::max(me->meta_.head, after + 1);
    if (me->applied_ == after && !me->closed_) {
      me->apply(after + 1, value->wall_ms, entry->commands);
    } else {
      me->look();
    }
    co_return LogIndex{after + 1};
  }

  /// Success is told once it is applied here.
  void resolve_applied(const IndexShot& shot, const Result<LogIndex>& done) {
    if (!done || done->value <= applied_) {
      shot->set(done);
    } else {
      until_applied_.emplace(done->value, [shot, done](const Status& s) {
        shot->set(s ? done : Result<LogIndex>(std::unexpected(s.error())));
      });
    }
  }

  // ---- Reading

  /// Something may have changed in etcd.
  void look() {
    look_again_ = true;
    if (closed_ || std::exchange(looking_, true)) return;
    ports_.loop->spawn(read(shared_from_this()));
  }

  static Task<void> read(Self me) {
    while (std::exchange(me->look_again_, false) && !me->closed_) {
      const std::uint64_t from = me->applied_ + 1;
      auto reading = me->reads_->run<Fetched>(
          [keys = me->keys_, from](Client& client) -> Result<Fetched> { return fetch(client, keys, from); });
      auto got = co_await *reading;
      if (me->closed_) break;
      me->looked_ = me->ports_.loop->now();
      if (!got) {
        if (std::exchange(me->last_error_, got.error().message) != got.error().message) {
          log_warn("control", "the log in etcd cannot be read: ", got.error().to_string());
        }
        break;  // The next look tries again.
      }
      me->last_error_.clear();
      me->read_ = me->looked_;
      me->take(std::move(*got));
      if (me->applied_ < me->meta_.head && me->applied_ + 1 > from) me->look_again_ = true;
    }
    me->looking_ = false;
  }

  void take(Fetched got) {
    const std::uint64_t head = meta_.head;
    const bool different =
        got.meta.leader != meta_.leader || got.meta.members != meta_.members || got.meta.term != meta_.term;
    meta_ = std::move(got.meta);
    meta_.head = std::max(meta_.head, head);
    if (meta_.term != 0) term_ = meta_.term;
    if (got.snapshot && got.snapshot->first > applied_) {
      const Status restored = machine_.restore(LogIndex{got.snapshot->first}, got.snapshot->second);
      if (!restored) {
        log_error("control", "the snapshot in etcd is not taken: ", restored.error().to_string());
        return;
      }
      applied_ = got.snapshot->first;
      last_wall_ = std::max(last_wall_, got.snapshot_wall);
      look_again_ = true;  // What is above it.
      tell_applied();
    }
    for (const auto& [index, entry] : got.entries) {
      if (index == applied_ + 1) apply(index, entry.wall_ms, entry.commands);
    }
    if (leads() && clock_term_ != term_) {
      clock_term_ = term_;
      set_clock(std::max(now().ms, ports_.loop->wall_now().ms));
    }
    if (different && changed_) changed_();
  }

  void apply(std::uint64_t index, std::int64_t wall_ms, const std::vector<Bytes>& commands) {
    last_wall_ = std::max(last_wall_, wall_ms);
    follow_clock();
    for (const Bytes& command : commands) machine_.apply(LogIndex{index}, WallTime{last_wall_}, command);
    applied_ = index;
    tell_applied();
    if (leads() && applied_ >= meta_.snapshot + options_.snapshot_every && !std::exchange(snapshotting_, true)) {
      ports_.loop->spawn(snapshot(shared_from_this()));
    }
  }

  void set_clock(std::int64_t wall_ms) {
    clock_wall_ = wall_ms;
    clock_began_ = ports_.loop->now();
  }

  /// Every node's clock goes on from the latest time that it saw in the log, so that what anybody writes (a lease) has
  /// its whole time, however long nobody wrote. Too far apart, either this node or the author did not know the time.
  void follow_clock() {
    const std::int64_t ahead = now().ms - last_wall_;
    if (ahead == 0 || ahead > kOnItsWay.millis()) set_clock(last_wall_);
  }

  void tell_applied() {
    std::vector<std::function<void(const Status&)>> ready;
    while (!until_applied_.empty() && until_applied_.begin()->first <= applied_) {
      ready.push_back(std::move(until_applied_.begin()->second));
      until_applied_.erase(until_applied_.begin());
    }
    if (ready.empty()) return;
    // Later: whoever waits must not run in the middle of an apply.
    ports_.loop->post([ready = std::move(ready)] {
      for (const auto& f : ready) f(Status{});
    });
  }

  static Task<Status> barrier(Self me, Instant deadline) {
    if (me->closed_) co_return cancelled();
    auto shot = std::make_shared<OneShot<Result<bool>>>();
    me->barriers_.push_back(shot);
    if (!std::exchange(me->asking_, true)) me->ports_.loop->spawn(ask(me));
    auto waiting = env::await_until(*me->ports_.loop, shot, deadline, "etcd");
    const auto done = co_await waiting;
    if (!done) co_return std::unexpected(done.error());
    co_return Status{};
  }

  /// One question for all who came before it was asked.
  static Task<void> ask(Self me) {
    while (!me->barriers_.empty() && !me->closed_) {
      const std::vector<DoneShot> group = std::exchange(me->barriers_, {});
      auto asking = me->reads_->run<std::uint64_t>([keys = me->keys_](Client& client) -> Result<std::uint64_t> {
        HOLO_ASSIGN(answer, transact(client, json::array(), json::array({get(keys.head())}), json::array()));
        const json kvs = found(answer, 0);
        if (kvs.empty()) return std::unexpected(no_log(keys));
        HOLO_ASSIGN(head, decode(kvs[0], "value"));
        return parse(as_text(head));
      });
      const auto head = co_await *asking;
      if (!head) {
        for (const DoneShot& s : group) s->set(std::unexpected(as_log_error(head.error())));
        continue;
      }
      me->meta_.head = std::max(me->meta_.head, *head);
      if (me->applied_ < *head) me->look();
      for (const DoneShot& s : group) {
        if (me->applied_ >= *head) {
          s->set(true);
        } else {
          me->until_applied_.emplace(*head, [s](const Status& done) {
            s->set(done ? Result<bool>(true) : Result<bool>(std::unexpected(done.error())));
          });
        }
      }
    }
    for (const DoneShot& s : std::exchange(me->barriers_, {})) s->set(cancelled());
    me->asking_ = false;
  }

  // ---- Leading: a key that goes with a lease

  static Task<void> keep(Self me) {
    Instant kept{};
    for (;;) {
      const bool going_on = co_await env::sleep_for(*me->ports_.loop, kTick);
      if (!going_on || me->closed_) co_return;
      const Instant now = me->ports_.loop->now();
      if (now - me->looked_ > kLook) me->look();
      const bool led = std::exchange(me->led_, me->leads());
      const bool was_blind = std::exchange(me->blind_, me->blind());
      if ((led != me->led_ || was_blind != me->blind_) && me->changed_) me->changed_();
      if (me->lease_ != 0 && now - kept >= Duration{me->options_.leader_ttl.ns / 3}) {
        auto keeping = keep_lease(me);
        const bool held = co_await keeping;
        if (held) kept = now;
      } else if (me->lease_ == 0 && !me->meta_.leader && me->votes() && now >= me->not_before_) {
        auto campaigning = campaign(me);
        const bool won = co_await campaigning;
        if (won) kept = now;
      }
      if (me->closed_) co_return;
    }
  }

  static Task<bool> keep_lease(Self me) {
    const Instant asked = me->ports_.loop->now();
    auto keeping = me->leases_->run<std::uint64_t>([id = me->lease_](Client& client) -> Result<std::uint64_t> {
      HOLO_ASSIGN(answer, client.call("/v3/lease/keepalive", {{"ID", std::to_string(id)}}, kRequest));
      return answer.contains("result") ? number(answer["result"], "TTL") : 0;
    });
    const auto left = co_await *keeping;
    if (left && *left > 0) {
      me->lease_until_ = asked + me->options_.leader_ttl;
      co_return true;
    }
    // It has ended, or nobody could be asked until it must have.
    if (left || me->ports_.loop->now() >= me->lease_until_) {
      me->lease_ = 0;
      me->look();
    }
    co_return false;
  }

  static Task<bool> campaign(Self me) {
    const Instant asked = me->ports_.loop->now();
    auto campaigning =
        me->leases_->run<std::uint64_t>([keys = me->keys_, self = me->options_.self,
                                         ttl = me->options_.leader_ttl](Client& client) -> Result<std::uint64_t> {
          HOLO_ASSIGN(granted,
                      client.call("/v3/lease/grant", {{"TTL", std::to_string(ttl.millis() / 1000)}}, kRequest));
          const std::uint64_t lease = number(granted, "ID");
          json candidate = put(keys.leader(), as_bytes(to_hex(self.value)));
          candidate["request_put"]["lease"] = std::to_string(lease);
          // Only who votes still.
          const auto answer =
              transact(client, json::array({is_absent(keys.leader()), has_value(keys.member(self.value), "voter")}),
                       json::array({candidate}), json::array());
          if (answer && succeeded(*answer)) return lease;
          (void)client.call("/v3/lease/revoke", {{"ID", std::to_string(lease)}}, kRequest);
          if (!answer) return std::unexpected(answer.error());
          return 0;
        });
    const auto lease = co_await *campaigning;
    me->look();
    if (!lease || *lease == 0) co_return false;
    me->lease_ = *lease;
    me->lease_until_ = asked + me->options_.leader_ttl;
    co_return true;
  }

  static Task<Status> hand_over(Self me, Instant deadline) {
    const auto other = [&](const auto& m) { return m.second && m.first != me->options_.self; };
    if (!me->leads() || std::ranges::none_of(me->meta_.members, other)) co_return Status{};
    me->not_before_ = me->ports_.loop->now() + kNotAgain;
    auto revoking = me->leases_->run<bool>([id = me->lease_](Client& client) -> Result<bool> {
      HOLO_TRY(client.call("/v3/lease/revoke", {{"ID", std::to_string(id)}}, kRequest));
      return true;
    });
    me->lease_ = 0;
    auto waiting = env::await_until(*me->ports_.loop, revoking, deadline, "etcd");
    const auto revoked = co_await waiting;
    me->look();
    if (!revoked) co_return std::unexpected(as_log_error(revoked.error()));
    co_return Status{};
  }

  // ---- Members

  static Task<Status> change(Self me, NodeId node, std::string role, Instant deadline) {
    if (!me->leads()) co_return fail(Errc::not_leader, "this node does not lead");
    auto changing = me->leases_->run<bool>(
        [keys = me->keys_, node, role, self = me->options_.self](Client& client) -> Result<bool> {
          const std::string key = keys.member(node.value);
          const json what =
              role.empty() ? json{{"request_delete_range", {{"key", encode(key)}}}} : put(key, as_bytes(role));
          HOLO_ASSIGN(answer, transact(client, json::array({has_value(keys.leader(), to_hex(self.value))}),
                                       json::array({what}), json::array()));
          if (!succeeded(answer)) return fail(Errc::not_leader, "this node does not lead any more");
          return true;
        });
    auto waiting = env::await_until(*me->ports_.loop, changing, deadline, "etcd");
    const auto done = co_await waiting;
    if (!done) co_return std::unexpected(as_log_error(done.error()));
    if (role.empty()) {
      me->meta_.members.erase(node);
    } else {
      me->meta_.members[node] = role == "voter";
    }
    me->look();
    if (me->changed_) me->changed_();
    co_return Status{};
  }

  // ---- Snapshots

  static Task<void> snapshot(Self me) {
    const std::uint64_t index = me->applied_;
    const std::uint64_t id = me->ports_.entropy->u64();
    auto state = std::make_shared<const Bytes>(me->machine_.snapshot());
    const std::int64_t wall = me->last_wall_;
    const std::uint64_t keep_from = index - std::min(index, me->options_.trailing) + 1;
    auto storing = me->writes_->run<std::string>([keys = me->keys_, index, id, state, wall,
                                                  keep_from](Client& client) -> Result<std::string> {
      HOLO_TRY(write_parts(client, [&](std::uint32_t i) { return keys.snapshot_part(index, id, i); }, *state));
      const json head = {{"index", std::to_string(index)},
                         {"id", std::to_string(id)},
                         {"parts", std::to_string(parts_of(state->size()))},
                         {"wall", std::to_string(wall)},
                         {"digest", encode(ByteSpan(crypto::blake3(*state)))}};
      const std::string text = head.dump();
      HOLO_TRY(transact(client, json::array(), json::array({put(keys.snapshot(), as_bytes(text))}), json::array()));
      // What it replaces. Parts of this one come after all those of smaller indexes.
      HOLO_TRY(transact(client, json::array(),
                        json::array({erase_range(keys.entries(), keys.entry(keep_from)),
                                     erase_range(keys.snapshots(), keys.snapshot_part(index, 0, 0))}),
                        json::array(), kUpload));
      const std::uint64_t margin = std::min<std::uint64_t>(keep_from - 1, 1024);  // Chunks may carry a smaller index.
      HOLO_TRY(transact(client, json::array(),
                        json::array({erase_range(keys.chunks(), keys.chunk(keep_from - margin, 0, 0))}), json::array(),
                        kUpload));
      return text;
    });
    const auto done = co_await *storing;
    if (done) {
      me->meta_.snapshot = std::max(me->meta_.snapshot, index);
    } else if (!me->closed_) {
      log_warn("control", "a snapshot is not kept in etcd: ", done.error().to_string());
    }
    me->snapshotting_ = false;
  }

  // ---- The end

  void end_lanes() {
    *stop_ = true;
    watcher_->abort();
    for (etcd::Lane* lane : {writes_.get(), reads_.get(), leases_.get()}) lane->end();
  }

  static Task<void> close(Self me) {
    me->shut();
    co_return;
  }

  EtcdLogPorts ports_;
  env::StateMachine& machine_;
  EtcdLogOptions options_;
  Keys keys_;
  std::function<void()> changed_;
  bool closed_ = false;

  Meta meta_;
  std::uint64_t term_ = 0;  ///< Of the leader that is, or was last.
  std::uint64_t applied_ = 0;
  std::int64_t last_wall_ = 0;
  std::multimap<std::uint64_t, std::function<void(const Status&)>> until_applied_;

  std::deque<Pending> queue_;
  bool writing_ = false;
  bool looking_ = false, look_again_ = false;
  Instant looked_, read_;  ///< When something was read last, whatever came of it; when it could be.
  std::string last_error_;
  std::vector<DoneShot> barriers_;
  bool asking_ = false;
  bool snapshotting_ = false;

  std::uint64_t lease_ = 0;  ///< Of the key that says that this node leads; 0: it does not.
  Instant lease_until_;      ///< Counted from before it was asked for.
  Instant not_before_;
  bool led_ = false, blind_ = false;
  std::uint64_t clock_term_ = 0;
  std::int64_t clock_wall_ = 0;  ///< The log's time at clock_began_, as far as this node knows.
  Instant clock_began_;

  std::unique_ptr<etcd::Lane> writes_, reads_, leases_;
  std::shared_ptr<Client> watcher_;
  std::shared_ptr<std::atomic<bool>> stop_ = std::make_shared<std::atomic<bool>>(false);
  std::thread watch_;
};

namespace {

Status bootstrap(const EtcdLogOptions& options) {
  Client client(options.endpoints);
  const Keys keys(options.prefix);
  HOLO_ASSIGN(
      answer,
      transact(client, json::array({is_absent(keys.head())}),
               json::array({put(keys.head(), as_bytes("0")), put(keys.member(options.self.value), as_bytes("voter"))}),
               json::array()));
  if (succeeded(answer)) return {};
  return fail(Errc::refused, str("etcd has the state of a cluster under ", keys.meta(), " already"),
              "choose another control_prefix, or remove it: etcdctl del --prefix");
}

Status look_for(const EtcdLogOptions& options) {
  Client client(options.endpoints);
  const Keys keys(options.prefix);
  HOLO_ASSIGN(answer, transact(client, json::array(), json::array({get(keys.head())}), json::array()));
  if (!found(answer, 0).empty()) return {};
  Error none = no_log(keys);
  none.code = Errc::refused;
  return std::unexpected(std::move(none));
}

}  // namespace

Result<std::unique_ptr<env::CommandLog>> open_etcd_log(EtcdLogPorts ports, env::StateMachine& machine,
                                                       EtcdLogOptions options) {
  if (options.endpoints.urls.empty()) {
    return fail(Errc::invalid_argument, "control_store is etcd, and no endpoint is given",
                "--control-endpoints http://HOST:2379");
  }
  if (options.bootstrap) HOLO_TRY(bootstrap(options));
  if (options.joining) HOLO_TRY(look_for(options));
  auto log = std::make_shared<EtcdLog>(ports, machine, std::move(options));
  log->begin();
  return std::make_unique<env::HeldCommandLog<EtcdLog, &EtcdLog::shut>>(std::move(log));
}

}  // namespace holo::driver
