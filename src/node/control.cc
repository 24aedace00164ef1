// Life of the control service, proposals to the log, and waiting for what others proposed.
#include "node/control.h"

#include <algorithm>

#include "base/limits.h"
#include "base/log.h"
#include "base/strings.h"
#include "core/control/results.h"
#include "node/control_impl.h"

namespace holo::node {
namespace {

constexpr const char* kIncarnationKey = "incarnation";
constexpr const char* kClusterKey = "cluster";
constexpr Duration kAppendDeadline =
    seconds(3);  // one attempt; then the result is looked up and the command sent again
constexpr Duration kRetryPause = milliseconds(50);
constexpr Duration kHandOverDeadline = milliseconds(300);

Buffer to_buffer(const std::string& s) { return Buffer::copy(as_bytes(s)); }

/// Failures of an attempt after which the same command may still be tried: it acts once.
bool may_retry(Errc code) {
  switch (code) {
    case Errc::not_leader:
    case Errc::no_quorum:
    case Errc::unavailable:
    case Errc::deadline_exceeded:
    case Errc::overloaded: return true;
    default: return false;
  }
}

}  // namespace

ControlService::ControlService(Ports ports, NodeIdentity self) : identity_(std::move(self)) {
  impl_ = std::make_unique<Impl>(*this, std::move(ports));
  state_.add_observer(impl_.get());
  impl_->serve_peers();
}

ControlService::~ControlService() = default;

// ---------------------------------------------------------------------------------------------------------------- life

Result<bool> ControlService::has_cluster() {
  HOLO_ASSIGN(value, impl_->ports.store->get(kClusterKey));
  return value.has_value() && !value->empty();
}

Status ControlService::Impl::bump_incarnation() {
  HOLO_ASSIGN(stored, ports.store->get(kIncarnationKey));
  std::uint64_t last = 0;
  if (stored && stored->size() == sizeof(last)) std::memcpy(&last, stored->data(), sizeof(last));
  self.incarnation_ = last + 1;
  return ports.store->put(kIncarnationKey, std::as_bytes(std::span(&self.incarnation_, 1)));
}

Status ControlService::Impl::open_log(bool bootstrap) {
  HOLO_ASSIGN(opened, ports.open_log(*this, LogOptions{.self = self.identity_.id, .bootstrap = bootstrap}));
  log = std::move(opened);
  log->on_change([this] { wake_waiters(); });
  return {};
}

Status ControlService::Impl::remember_cluster(bool member) {
  const std::uint64_t id = self.state_.cluster().value;
  const ByteSpan bytes = std::as_bytes(std::span(&id, 1));
  return ports.store->put(kClusterKey, member ? bytes : ByteSpan());
}

Task<Status> ControlService::init(std::string cluster_name, Instant deadline) {
  HOLO_CO_ASSIGN(member, has_cluster());
  if (member) co_return fail(Errc::refused, "this node is in a cluster already", "holo leave, or another --state-dir");
  HOLO_CO_TRY(impl_->bump_incarnation());
  HOLO_CO_TRY(impl_->open_log(true));
  impl_->start_loops();
  wire::CommandBody body;
  auto* init = body.mutable_cluster_init();
  init->set_cluster(std::max<std::uint64_t>(impl_->ports.entropy->u64(), 1));
  init->set_name(cluster_name);
  *init->mutable_node() = impl_->info();
  HOLO_CO_TRY(co_await propose(std::move(body), deadline));
  co_return impl_->remember_cluster(true);
}

Task<Status> ControlService::join(std::string seed, Instant deadline) {
  HOLO_CO_ASSIGN(member, has_cluster());
  if (member) co_return fail(Errc::refused, "this node is in a cluster already", "holo leave, or another --state-dir");
  HOLO_CO_TRY(impl_->bump_incarnation());
  HOLO_CO_TRY(impl_->open_log(false));
  HOLO_CO_ASSIGN(reply, co_await impl_->ask_to_join(std::move(seed), deadline));
  for (const auto& node : reply.nodes()) {
    if (NodeId(node.id()) == self()) continue;
    impl_->ports.transport->set_addresses(NodeId(node.id()), {node.addresses().begin(), node.addresses().end()});
  }
  impl_->start_loops();
  std::string what = "the cluster's log";
  HOLO_CO_TRY(co_await impl_->wait_until([this] { return ready(); }, deadline, std::move(what)));
  co_return impl_->remember_cluster(true);
}

Status ControlService::resume() {
  HOLO_TRY(impl_->bump_incarnation());
  HOLO_TRY(impl_->open_log(false));
  impl_->on_restored();  // Addresses, out of the state that the log brought back.
  impl_->start_loops();
  return {};
}

Task<void> ControlService::stop() {
  if (std::exchange(impl_->stopping, true)) co_return;
  if (impl_->log) {
    const Instant deadline = impl_->ports.loop->now() + kHandOverDeadline;
    if (is_leader()) (void)co_await impl_->log->hand_over(deadline);
    co_await impl_->log->close();
  }
  impl_->wake_waiters();
}

// ------------------------------------------------------------------------------------------------------------- queries

NodeId ControlService::leader() const { return impl_->log ? impl_->log->status().leader : NodeId(); }
bool ControlService::is_leader() const { return impl_->log && impl_->log->status().role == env::LogRole::leader; }
bool ControlService::ready() const { return state_.alive(identity_.id, incarnation_); }
env::LogStatus ControlService::log_status() const { return impl_->log ? impl_->log->status() : env::LogStatus{}; }

Version ControlService::floor(RegionId region) const {
  auto it = impl_->floors.find(region);
  return it == impl_->floors.end() ? Version() : it->second;
}
std::uint64_t ControlService::frames_used(NodeId node) const {
  auto it = impl_->usage.find(node);
  return it == impl_->usage.end() ? 0 : it->second;
}

wire::NodeInfo ControlService::Impl::info() const {
  wire::NodeInfo out;
  out.set_id(self.identity_.id.value);
  out.set_name(self.identity_.name);
  for (const auto& a : self.identity_.addresses) out.add_addresses(a);
  out.set_cores(self.identity_.cores);
  out.set_memory_bytes(self.identity_.memory_bytes);
  out.set_speed(self.identity_.speed);
  out.set_version(self.identity_.version);
  out.set_incarnation(self.incarnation_);
  return out;
}

// ------------------------------------------------------------------------------------------------------- state machine

void ControlService::Impl::apply(LogIndex index, WallTime when, ByteSpan command) {
  self.state_.apply(index, when, command);
  wake_waiters();
}

Status ControlService::Impl::restore(LogIndex index, ByteSpan snapshot) {
  HOLO_TRY(self.state_.restore(index, snapshot));
  wake_waiters();
  return {};
}

// ----------------------------------------------------------------------------------------------------------- proposals

Task<Result<wire::CommandResult>> ControlService::propose(wire::CommandBody body, Instant deadline) {
  Impl& i = *impl_;
  if (i.stopping || !i.log) co_return fail(Errc::cancelled, "the agent is stopping");
  if (i.outstanding.size() >= limits::kMaxPendingCommands) {
    co_return fail(Errc::overloaded, "too many commands are waiting for the log", "retry in a moment");
  }
  const std::uint64_t sequence = i.next_sequence++;
  i.outstanding.insert(sequence);
  wire::Command command;
  command.set_client(identity_.id.value);
  command.set_incarnation(incarnation_);
  command.set_sequence(sequence);
  *command.mutable_body() = std::move(body);

  Result<wire::CommandResult> result = fail(Errc::deadline_exceeded, "the cluster did not answer in time");
  for (;;) {
    command.set_outstanding(*i.outstanding.begin());
    const Buffer bytes = to_buffer(command.SerializeAsString());
    if (bytes.size() > limits::kMaxCommandBytes) {
      result = fail(Errc::over_limit,
                    str("a command of ", bytes.size(), " bytes is over the limit of ", limits::kMaxCommandBytes));
      break;
    }
    const Instant attempt = std::min(deadline, i.ports.loop->now() + kAppendDeadline);
    auto appended = co_await i.log->append(bytes, attempt);
    // Also after an error: an earlier attempt may have been committed.
    if (auto known = state_.result_of(identity_.id, incarnation_, sequence)) {
      result = std::move(*known);
      break;
    }
    if (appended) {
      result = fail(Errc::internal, "a command was applied without a result");
      break;
    }
    result = std::unexpected(appended.error());
    if (!may_retry(appended.error().code) || i.stopping) break;
    const Instant again = i.ports.loop->now() + kRetryPause;
    if (again >= deadline) break;
    const bool awake = co_await env::sleep_until(*i.ports.loop, again);
    if (!awake) {
      result = fail(Errc::cancelled, "the agent is stopping");
      break;
    }
  }
  i.outstanding.erase(sequence);
  if (result) HOLO_CO_TRY(control::status_of(result->error()));
  co_return result;
}

// ------------------------------------------------------------------------------------------------------------- waiting

void ControlService::Impl::wake_waiters() {
  std::vector<std::shared_ptr<OneShot<Result<bool>>>> done;
  std::erase_if(waiters, [&](Waiter& w) {
    if (!stopping && !w.ready()) return false;
    done.push_back(w.shot);
    return true;
  });
  // Posted, not called: a waiter that goes on may propose, and this runs inside the log.
  for (auto& shot : done) {
    ports.loop->post([shot, stopped = stopping] {
      if (stopped) {
        shot->set(fail(Errc::cancelled, "the agent is stopping"));
      } else {
        shot->set(true);
      }
    });
  }
}

Task<Status> ControlService::Impl::wait_until(std::function<bool()> ready, Instant deadline, std::string what) {
  if (ready()) co_return Status{};
  if (stopping) co_return fail(Errc::cancelled, "the agent is stopping");
  auto shot = std::make_shared<OneShot<Result<bool>>>();
  waiters.push_back({std::move(ready), shot});
  auto result = co_await env::await_until<bool>(*ports.loop, shot, deadline, std::move(what));
  std::erase_if(waiters, [&](const Waiter& w) { return w.shot == shot; });
  if (!result) co_return std::unexpected(result.error());
  co_return Status{};
}

Task<Status> ControlService::wait_applied(LogIndex index, Instant deadline) {
  std::string what = str("entry ", index, " of the log");
  co_return co_await impl_->wait_until([this, index] { return state_.applied() >= index; }, deadline, std::move(what));
}

Task<Status> ControlService::wait_version(RegionId region, Version version, Instant deadline) {
  std::string what = str("version ", version, " of region ", region);
  auto reached = [this, region, version] {
    const auto* r = state_.region(region);
    return r == nullptr || r->version >= version;
  };
  HOLO_CO_TRY(co_await impl_->wait_until(std::move(reached), deadline, std::move(what)));
  if (state_.region(region) == nullptr) co_return fail(Errc::not_found, str("region ", region, " was freed"));
  co_return Status{};
}

Task<Status> ControlService::barrier(Instant deadline) {
  if (!impl_->log) co_return fail(Errc::unavailable, "this node is in no cluster");
  co_return co_await impl_->log->barrier(deadline);
}

}  // namespace holo::node
