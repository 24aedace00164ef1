// The port to other nodes: authenticated, encrypted calls. TCP carries it today, QUIC next, the simulator in tests;
// nothing above this line can tell. One request is one bidirectional stream; one connection serves a pair of nodes,
// whoever dialled.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/task.h"
#include "base/time.h"

namespace holo::env {

/// Control always goes first on the wire; bulk never delays the other two by more than one frame.
enum class StreamClass : std::uint8_t { control, data, bulk };

/// Where the payload of one message goes, straight from the wire: places one after the other, as their bytes arrive.
/// They are the message's alone until end(), or until the last that holds this lets go. Thread: loop.
class Landing {
 public:
  struct Place {
    MutableByteSpan bytes;
    std::shared_ptr<const void> owner;  ///< Keeps them. null: they last as long as this Landing is not over.
  };
  Landing() = default;
  virtual ~Landing() = default;
  Landing(const Landing&) = delete;
  Landing& operator=(const Landing&) = delete;

  /// Of all places in sum.
  [[nodiscard]] virtual std::uint64_t size() const = 0;
  /// Whether a message with that header brings `payload_bytes` for these places; asked once, when its payload begins.
  /// Then size() is that.
  virtual bool takes(const std::string& /*header*/, std::uint64_t payload_bytes) { return size() == payload_bytes; }
  /// The next of them, never empty; asked when the first byte for it is here, and at most until size() is reached.
  virtual Place next() = 0;

  /// Nothing is written any more.
  void end() { over_ = true; }
  [[nodiscard]] bool over() const { return over_; }

 private:
  bool over_ = false;
};

/// A single place, of the caller's. Empty: none.
class OnePlace final : public Landing {
 public:
  explicit OnePlace(MutableByteSpan bytes) : bytes_(bytes) {}
  [[nodiscard]] std::uint64_t size() const override { return bytes_.size(); }
  Place next() override { return {.bytes = bytes_, .owner = nullptr}; }

 private:
  MutableByteSpan bytes_;
};

/// `type` selects the handler; `header` is an encoded protobuf message; `payload` are raw bytes (pages), gathered on
/// send and delivered as one contiguous buffer, or as one for each place of a Landing. Limits: limits::kMaxHeaderBytes,
/// limits::kMaxPayloadBytes in sum.
struct Request {
  std::uint16_t type = 0;
  std::string header;
  std::vector<Buffer> payload;
  /// Of the caller only, for the answer. What it takes may be put there. Its owner ends it when the call has ended;
  /// what an answer that fails has left there is undefined.
  std::shared_ptr<Landing> landing = {};
};
struct Reply {
  std::string header;
  std::vector<Buffer> payload;
};

/// For transports that have the whole payload at once.
inline void land(const std::shared_ptr<Landing>& landing, const std::string& header, std::vector<Buffer>& payload) {
  if (!landing || landing->over() || payload.size() != 1 || !landing->takes(header, payload[0].size())) return;
  ByteSpan left = payload[0].span();
  std::vector<Buffer> landed;
  while (!left.empty()) {
    Landing::Place place = landing->next();
    std::ranges::copy(left.first(place.bytes.size()), place.bytes.begin());
    left = left.subspan(place.bytes.size());
    landed.emplace_back(place.bytes, std::move(place.owner));
  }
  payload = std::move(landed);
}

struct CallOptions {
  StreamClass klass = StreamClass::control;
  Instant deadline;  ///< Mandatory. What is left of it travels with the request.
};

/// What a handshake proved about the other side.
struct PeerIdentity {
  NodeId node;
  std::string address;  ///< As dialled, or as seen: "host:port".
};

/// Refusals since start, as `holo status` shows them.
struct RefusedCounters {
  std::uint64_t wrong_key = 0;
  std::uint64_t wrong_version = 0;
  std::uint64_t garbage = 0;
  std::uint64_t unknown_identity = 0;
  std::uint64_t changed_key = 0;
  std::uint64_t revoked = 0;
};

/// Decides who is served what, beyond whom handshakes let in. Thread: loop.
class MemberGate {
 public:
  virtual ~MemberGate() = default;
  [[nodiscard]] virtual bool is_member(NodeId node) const = 0;
  /// Whether `from` may send requests of `type`, as far as is known here. Cost: a lookup.
  [[nodiscard]] virtual bool admits(NodeId from, std::uint16_t type) const = 0;
  /// When admits() says no: finds out whether what is known here is too old, within a second or so. Error:
  /// `permission_denied`, for the one who asks.
  virtual Task<Status> inquire(NodeId from, std::uint16_t type) = 0;
};

class Transport {
 public:
  /// Serves one request. `from` is authenticated. An error travels back as it is (code, message, hint, node).
  using Handler = std::function<Task<Result<Reply>>(NodeId from, Request request)>;
  /// Where the payload of a request of `from`, which that node may send, is to go: exactly `payload_bytes`. Called once
  /// its header is here; `announced` has no payload yet. null: into a buffer. Must not suspend or block.
  using Placer =
      std::function<std::shared_ptr<Landing>(NodeId from, const Request& announced, std::uint64_t payload_bytes)>;

  virtual ~Transport() = default;

  /// Sends `request` to `peer` and waits for its answer, dialling first when there is no connection.
  /// Errors: `unavailable` (not reachable, or the connection broke; the effect is unknown), `deadline_exceeded`,
  /// `overloaded`, `wrong_key`, `wrong_version`, `cancelled` (shutdown), or whatever the handler returned. Thread:
  /// loop.
  virtual Task<Result<Reply>> call(NodeId peer, Request request, CallOptions options) = 0;

  /// Registers the handler of one request type. Unknown types are answered `unsupported`. Thread: loop, before
  /// listening.
  virtual void serve(std::uint16_t type, Handler handler) = 0;
  /// Where the payloads of these requests go. A transport may do without. Thread: loop, before listening.
  virtual void set_placer(std::uint16_t /*type*/, Placer /*placer*/) {}

  /// Every request of another node passes it before its handler sees it. Without one everybody is served. Thread: loop,
  /// before listening.
  virtual void set_gate(std::shared_ptr<MemberGate> gate) = 0;

  /// Where `peer` can be dialled. Replaces what was known. Thread: loop.
  virtual void set_addresses(NodeId peer, std::vector<std::string> addresses) = 0;

  /// Dials an address whose node is not known yet (join). Thread: loop.
  virtual Task<Result<PeerIdentity>> connect(std::string address, Instant deadline) = 0;

  /// Closes the connection to `peer` (left or dead); outstanding calls fail with `unavailable`. Thread: loop.
  virtual void disconnect(NodeId peer) = 0;

  virtual RefusedCounters refused() const = 0;
};

}  // namespace holo::env
