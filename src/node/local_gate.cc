#include "node/local_gate.h"

#include <utility>

#include "base/log.h"
#include "base/strings.h"
#include "wire/local_frame.h"

namespace holo::node {

class LocalGate::Session final : public LocalSession {
 public:
  Session(std::shared_ptr<env::LocalConnection> connection, wire::Hello hello)
      : connection_(std::move(connection)), peer_(connection_->peer()), hello_(std::move(hello)) {}

  SessionId id() const override { return connection_->id(); }
  uid_t uid() const override { return peer_.uid; }
  pid_t pid() const override { return peer_.pid; }
  const wire::Hello& hello() const override { return hello_; }
  Task<Result<LocalReply>> call(LocalRequest request, Instant deadline) override {
    return connection_->call(std::move(request), deadline);
  }
  void notify(LocalRequest message) override {
    auto sent = connection_->notify(std::move(message));
    if (sent || sent.error().code == Errc::unavailable) return;
    // It does not read: what it would miss cannot be told later, so it loses the connection rather than a message.
    log_warn("node", "process ", peer_.pid, " is disconnected: ", sent.error().message);
    connection_->close();
  }
  void close() override { connection_->close(); }

 private:
  std::shared_ptr<env::LocalConnection> connection_;
  env::LocalPeer peer_;
  wire::Hello hello_;
};

struct LocalGate::Shared {
  env::LocalServer& server;
  LocalApi& api;
  std::function<wire::HelloReply(const LocalSession&)> describe;
  std::map<SessionId, std::shared_ptr<Session>> sessions;

  Result<LocalReply> hello(const std::shared_ptr<env::LocalConnection>& connection, const LocalRequest& request) {
    wire::Hello hello;
    if (!hello.ParseFromString(request.header)) return fail(Errc::malformed, "a Hello that does not decode");
    if (hello.protocol() != wire::kLocalProtocol) {
      return fail(Errc::wrong_version,
                  str("the program speaks local protocol ", hello.protocol(), ", this agent ", wire::kLocalProtocol),
                  "link the program with the libholo of this agent's version");
    }
    if (sessions.contains(connection->id())) return fail(Errc::refused, "a second Hello on one connection");
    auto session = std::make_shared<Session>(connection, std::move(hello));
    for (const auto& observer : api.hello_observers()) {
      if (auto accepted = observer(*session); !accepted) return std::unexpected(accepted.error());
    }
    sessions.emplace(session->id(), session);
    auto answer = describe(*session);
    answer.set_session(session->id().value);
    answer.set_protocol(wire::kLocalProtocol);
    LocalReply reply;
    reply.header = answer.SerializeAsString();
    return reply;
  }

  void closed(SessionId id) {
    const auto it = sessions.find(id);
    if (it == sessions.end()) return;
    const auto session = std::move(it->second);
    sessions.erase(it);
    for (const auto& observer : api.closed_observers()) observer(*session);
  }
};

namespace {

Task<Result<LocalReply>> answered(Result<LocalReply> reply) { co_return reply; }

}  // namespace

LocalGate::LocalGate(env::LocalServer& server, LocalApi& api,
                     std::function<wire::HelloReply(const LocalSession&)> describe)
    : shared_(std::make_shared<Shared>(server, api, std::move(describe))) {}

LocalGate::~LocalGate() = default;

void LocalGate::open() {
  // The server may outlive the gate by a callback: it sees a table that is gone, not a dangling one.
  const std::weak_ptr<Shared> weak = shared_;
  shared_->server.on_closed([weak](std::shared_ptr<env::LocalConnection> connection) {
    if (auto shared = weak.lock()) shared->closed(connection->id());
  });
  shared_->server.serve(wire::HELLO, [weak](std::shared_ptr<env::LocalConnection> connection, LocalRequest request) {
    auto shared = weak.lock();
    if (!shared) return answered(fail(Errc::cancelled, "the agent is stopping"));
    return answered(shared->hello(connection, request));
  });
  for (int type = wire::LocalMessage_MIN; type <= wire::LocalMessage_MAX; ++type) {
    const auto number = static_cast<std::uint16_t>(type);
    if (!shared_->api.find(number)) continue;
    shared_->server.serve(number, [weak](std::shared_ptr<env::LocalConnection> connection, LocalRequest request) {
      auto shared = weak.lock();
      if (!shared) return answered(fail(Errc::cancelled, "the agent is stopping"));
      const auto it = shared->sessions.find(connection->id());
      if (it == shared->sessions.end()) return answered(fail(Errc::refused, "a request before Hello"));
      const auto* handler = shared->api.find(request.type);
      return (*handler)(it->second, std::move(request));
    });
  }
}

std::size_t LocalGate::sessions() const { return shared_->sessions.size(); }

}  // namespace holo::node
