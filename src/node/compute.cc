#include "node/compute.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "node/binary_cache.h"
#include "node/compute_wire.h"
#include "node/coordinator.h"
#include "node/executor.h"
#include "wire/compute.pb.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

constexpr Duration kOrderDeadline = seconds(5);
constexpr Duration kReportDeadline = seconds(30);  // A report waits while the program is slow to take results.
constexpr Duration kStopOrder = milliseconds(300);
constexpr std::uint64_t kBinaryPart = 4 << 20;

class Service final : public ComputeService, private control::StateObserver {
 public:
  Service(Ports ports, ComputeConfig config)
      : ports_(std::move(ports)),
        binaries_(ports_.loop, config.state_dir + "/binaries", config.binary_cache_bytes),
        executor_(ports_, config, binaries_,
                  {.done = [this](NodeId to, wire::TaskDone d,
                                  Buffer r) { return send_done(to, std::move(d), std::move(r)); },
                   .output = [this](NodeId to, wire::WorkerOutput o) { return send_output(to, std::move(o)); },
                   .binary = [this](NodeId to, std::string h, std::uint64_t o) { return fetch(to, std::move(h), o); }}),
        coordinator_(ports_, config, binaries_,
                     {.run = [this](NodeId to, wire::TaskBatch b) { return send_batch(to, std::move(b)); },
                      .cancel = [this](NodeId to, wire::TaskCancel c) { return send_cancel(to, std::move(c)); },
                      .end = [this](NodeId to, wire::ProgramEnd e) { return send_end(to, std::move(e)); }}) {
    serve_peers();
    ports_.observe(this);
  }

  void serve_local(LocalApi& api) override {
    api.on_hello([this](LocalSession& session) -> Status {
      if (session.hello().role() == wire::Hello::WORKER) return executor_.on_worker_hello(session);
      if (session.hello().role() == wire::Hello::PROGRAM) coordinator_.on_program_hello(session);
      return {};
    });
    api.on_closed([this](LocalSession& session) {
      executor_.on_session_closed(session);
      coordinator_.on_session_closed(session);
    });
    api.serve(wire::JOB_START, [this](std::shared_ptr<LocalSession> session, LocalRequest request) {
      return coordinator_.job_start(std::move(session), std::move(request));
    });
    api.serve(wire::JOB_CANCEL, [this](std::shared_ptr<LocalSession> session, LocalRequest request) {
      return coordinator_.job_cancel(std::move(session), std::move(request));
    });
  }

  std::uint32_t nodes_for(const wire::Hello& hello) const override { return coordinator_.nodes_for(hello); }

  Task<void> stop() override {
    stopping_ = true;
    co_await coordinator_.stop();
    co_await executor_.stop();
  }

  ComputeStatus status() const override {
    ComputeStatus out;
    out.jobs = coordinator_.jobs();
    executor_.count(out);
    return out;
  }

 private:
  // ---- To a node, which may be this one.

  template <class Message>
  Task<Status> send(NodeId to, wire::PeerMessage type, Message message, Buffer payload, env::StreamClass klass,
                    Duration patience) {
    env::Request request;
    request.type = static_cast<std::uint16_t>(type);
    request.header = message.SerializeAsString();
    if (!payload.empty()) request.payload.push_back(std::move(payload));
    const env::CallOptions options{.klass = klass, .deadline = ports_.loop.now() + patience};
    auto reply = co_await ports_.transport.call(to, std::move(request), options);
    if (!reply) co_return std::unexpected(reply.error());
    co_return Status{};
  }
  [[nodiscard]] Duration order_patience() const { return stopping_ ? kStopOrder : kOrderDeadline; }

  Task<Status> send_batch(NodeId to, wire::TaskBatch batch) {
    if (to == ports_.self) co_return executor_.accept(batch);
    co_return co_await send(to, wire::PeerMessage::task_run, std::move(batch), Buffer(), env::StreamClass::control,
                            order_patience());
  }
  Task<Status> send_cancel(NodeId to, wire::TaskCancel cancel) {
    if (to == ports_.self) {
      executor_.cancel(ProgramKey::of(cancel.program()), cancel.job());
      co_return Status{};
    }
    co_return co_await send(to, wire::PeerMessage::task_cancel, std::move(cancel), Buffer(), env::StreamClass::control,
                            order_patience());
  }
  Task<Status> send_end(NodeId to, wire::ProgramEnd end) {
    if (to == ports_.self) {
      executor_.end_program(ProgramKey::of(end.program()));
      co_return Status{};
    }
    co_return co_await send(to, wire::PeerMessage::program_end, std::move(end), Buffer(), env::StreamClass::control,
                            order_patience());
  }
  Task<Status> send_done(NodeId to, wire::TaskDone done, Buffer result) {
    if (to == ports_.self) co_return co_await coordinator_.on_task_done(to, std::move(done), std::move(result));
    co_return co_await send(to, wire::PeerMessage::task_done, std::move(done), std::move(result),
                            env::StreamClass::data, kReportDeadline);
  }
  Task<Status> send_output(NodeId to, wire::WorkerOutput output) {
    if (to == ports_.self) {
      coordinator_.on_output(to, output);
      co_return Status{};
    }
    co_return co_await send(to, wire::PeerMessage::worker_output, std::move(output), Buffer(), env::StreamClass::data,
                            order_patience());
  }
  Task<Result<Bytes>> fetch(NodeId from, std::string hash, std::uint64_t offset) {
    if (from == ports_.self) co_return co_await binaries_.read(std::move(hash), offset, kBinaryPart);
    wire::BinaryFetch message;
    message.set_hash(std::move(hash));
    message.set_offset(offset);
    message.set_length(kBinaryPart);
    env::Request request;
    request.type = static_cast<std::uint16_t>(wire::PeerMessage::binary_fetch);
    request.header = message.SerializeAsString();
    const env::CallOptions options{.klass = env::StreamClass::bulk, .deadline = ports_.loop.now() + kReportDeadline};
    auto reply = co_await ports_.transport.call(from, std::move(request), options);
    if (!reply) co_return std::unexpected(reply.error());
    Bytes out;
    for (const Buffer& b : reply->payload) out.insert(out.end(), b.span().begin(), b.span().end());
    co_return out;
  }

  // ---- From a node.

  template <class Message>
  void serve(wire::PeerMessage type, Task<Result<env::Reply>> (Service::*handler)(NodeId, Message, Buffer)) {
    ports_.transport.serve(static_cast<std::uint16_t>(type),
                           [this, handler](NodeId from, env::Request request) -> Task<Result<env::Reply>> {
                             Message message;
                             if (!message.ParseFromString(request.header)) return malformed();
                             Buffer payload = request.payload.empty() ? Buffer() : request.payload.front();
                             return (this->*handler)(from, std::move(message), std::move(payload));
                           });
  }
  static Task<Result<env::Reply>> malformed() { co_return fail(Errc::malformed, "a message that does not decode"); }

  void serve_peers() {
    serve(wire::PeerMessage::task_run, &Service::on_task_run);
    serve(wire::PeerMessage::task_done, &Service::on_task_done);
    serve(wire::PeerMessage::task_cancel, &Service::on_task_cancel);
    serve(wire::PeerMessage::binary_fetch, &Service::on_binary_fetch);
    serve(wire::PeerMessage::worker_output, &Service::on_worker_output);
    serve(wire::PeerMessage::program_end, &Service::on_program_end);
  }
  /// Orders come from the program's coordinator and from nobody else.
  static Status check(NodeId from, const wire::Program& program) {
    if (program.coordinator() == from.value) return {};
    return fail(Errc::refused, "an order for another node's program");
  }
  Task<Result<env::Reply>> on_task_run(NodeId from, wire::TaskBatch batch, Buffer) {
    HOLO_CO_TRY(check(from, batch.program()));
    HOLO_CO_TRY(executor_.accept(batch));
    co_return env::Reply{};
  }
  Task<Result<env::Reply>> on_task_done(NodeId from, wire::TaskDone done, Buffer result) {
    const Status taken = co_await coordinator_.on_task_done(from, std::move(done), std::move(result));
    if (!taken) co_return std::unexpected(taken.error());
    co_return env::Reply{};
  }
  Task<Result<env::Reply>> on_task_cancel(NodeId from, wire::TaskCancel cancel, Buffer) {
    HOLO_CO_TRY(check(from, cancel.program()));
    executor_.cancel(ProgramKey::of(cancel.program()), cancel.job());
    co_return env::Reply{};
  }
  Task<Result<env::Reply>> on_program_end(NodeId from, wire::ProgramEnd end, Buffer) {
    HOLO_CO_TRY(check(from, end.program()));
    executor_.end_program(ProgramKey::of(end.program()));
    co_return env::Reply{};
  }
  Task<Result<env::Reply>> on_worker_output(NodeId from, wire::WorkerOutput output, Buffer) {
    coordinator_.on_output(from, output);
    co_return env::Reply{};
  }
  Task<Result<env::Reply>> on_binary_fetch(NodeId, wire::BinaryFetch request, Buffer) {
    std::string hash = request.hash();
    wire::BinaryFetchReply answer;
    answer.set_total(binaries_.size(hash));
    auto bytes = co_await binaries_.read(std::move(hash), request.offset(), std::min(request.length(), kBinaryPart));
    if (!bytes) co_return std::unexpected(bytes.error());
    env::Reply reply;
    reply.header = answer.SerializeAsString();
    if (!bytes->empty()) reply.payload.emplace_back(std::move(*bytes));
    co_return reply;
  }

  // ---- The control state. What changes is looked at after the entry has been applied everywhere on this node.

  void on_commit(RegionId, Version, TxnId, std::span<const control::PageRange>) override {}
  void on_region_created(RegionId) override {}
  void on_placement_changed(RegionId) override {}
  void on_region_freed(RegionId region) override {
    ports_.loop.post([this, region] { coordinator_.on_region_freed(region); });
  }
  void on_nodes_changed(Epoch, NodeId) override { look_again(); }
  void on_restored() override { look_again(); }
  void look_again() {
    ports_.loop.post([this] {
      coordinator_.on_nodes_changed();
      executor_.check_coordinators();
    });
  }

  Ports ports_;
  BinaryCache binaries_;
  Executor executor_;
  Coordinator coordinator_;
  bool stopping_ = false;
};

}  // namespace

std::unique_ptr<ComputeService> ComputeService::make(Ports ports, ComputeConfig config) {
  return std::make_unique<Service>(std::move(ports), std::move(config));
}

}  // namespace holo::node
