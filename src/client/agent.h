// Typed calls to this machine's agent.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "base/bytes.h"
#include "base/result.h"
#include "driver/posix/local_client.h"
#include "wire/local.pb.h"

namespace holo::client {

/// What may go with a call. Not inside Agent: clang takes no default argument made of a class that is not complete yet.
struct Extra {
  std::span<const ByteSpan> payload = {};
  std::span<const int> fds = {};
  Duration timeout = seconds(30);
  MutableByteSpan into = {};
};

/// A connection after its Hello; copies share it. Thread: any.
class Agent {
 public:
  explicit Agent(std::shared_ptr<driver::LocalClient> socket) : socket_(std::move(socket)) {}

  /// Sends `request`, waits, and decodes the answer. Errors: those of LocalClient::call; `malformed`.
  template <class Answer, class Request>
  Result<Answer> call(wire::LocalMessage type, const Request& request, Extra extra = {},
                      driver::LocalClient::Reply* rest = nullptr) {
    HOLO_ASSIGN(reply, send(type, request.SerializeAsString(), extra));
    Answer answer;
    if (!answer.ParseFromString(reply.header)) return fail(Errc::malformed, "the agent's answer does not decode");
    if (rest) *rest = std::move(reply);
    return answer;
  }
  template <class Message>
  Status notify(wire::LocalMessage type, const Message& message) {
    const std::string header = message.SerializeAsString();
    return socket_->notify({.type = static_cast<std::uint16_t>(type), .header = header});
  }
  [[nodiscard]] driver::LocalClient& socket() { return *socket_; }
  [[nodiscard]] bool connected() const { return socket_->connected(); }

 private:
  Result<driver::LocalClient::Reply> send(wire::LocalMessage type, const std::string& header, const Extra& extra) {
    return socket_->call({.type = static_cast<std::uint16_t>(type),
                          .header = header,
                          .payload = extra.payload,
                          .fds = extra.fds,
                          .timeout = extra.timeout,
                          .into = extra.into});
  }
  std::shared_ptr<driver::LocalClient> socket_;
};

/// Reads bytes of a region at a snapshot (none: the newest), seeing what `txn` has staged when it is not null. Any
/// length.
Status read_region(Agent& agent, std::uint64_t region, std::optional<std::uint64_t> snapshot, const wire::Txn* txn,
                   std::uint64_t offset, MutableByteSpan out);
/// Stages whole pages; `bytes`: page after page. Names the transaction in `txn` when it has none yet.
Status stage_pages(Agent& agent, wire::Txn& txn, std::uint64_t region, std::uint64_t base,
                   std::span<const std::uint64_t> pages, ByteSpan bytes);
/// Stages a byte range, at most limits::kMaxPayloadBytes.
Status stage_bytes(Agent& agent, wire::Txn& txn, std::uint64_t region, std::uint64_t base, std::uint64_t offset,
                   ByteSpan bytes);

}  // namespace holo::client
