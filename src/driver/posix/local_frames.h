// Local frames in and out of a Unix stream socket, with descriptors: what the agent's side and the client's side share.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "env/fd.h"
#include "wire/local_frame.h"

namespace holo::driver {

struct LocalMessage {
  wire::LocalFrame frame;
  std::string header;
  Buffer payload;  ///< Empty when the bytes went elsewhere (Place).
  std::vector<env::Fd> fds;
};

/// Takes frames out of a socket. Large parts are received straight into their place. Thread: one.
class LocalReceiver {
 public:
  /// Where the payload of this frame goes (exactly payload_bytes long); nullopt: into a buffer of its own.
  using Place = std::function<std::optional<MutableByteSpan>(const wire::LocalFrame&)>;
  explicit LocalReceiver(Place place = {});

  enum class Got : std::uint8_t { bytes, nothing_yet, end };
  /// One recvmsg(2) with `flags`. Errors: `unavailable` (the socket broke), `malformed` (too many descriptors).
  Result<Got> receive(int socket, int flags);
  /// The next whole message, if there is one. Error: `malformed`; then the connection must be closed.
  Result<std::optional<LocalMessage>> next();

 private:
  enum class Stage : std::uint8_t { frame, header, payload };
  void take(MutableByteSpan into, std::size_t& filled);
  Status begin_message();
  MutableByteSpan wanted();

  Place place_;
  std::unique_ptr<std::array<std::byte, 16 << 10>> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  Stage stage_ = Stage::frame;
  std::array<std::byte, wire::kLocalFrameBytes> frame_bytes_;
  std::size_t filled_ = 0;  // of the part that stage_ names
  LocalMessage message_;
  MutableByteSpan payload_place_;
  std::vector<env::Fd> fds_;  // arrived, not yet claimed by a frame
};

/// One frame on its way out. Holds what it sends until it is sent.
class LocalOutgoing {
 public:
  LocalOutgoing(wire::LocalFrame frame, std::string_view header, std::vector<Buffer> payload, std::vector<env::Fd> fds);
  /// Over borrowed bytes and descriptors, which outlive this object.
  LocalOutgoing(wire::LocalFrame frame, std::string_view header, std::span<const ByteSpan> payload,
                std::span<const int> fds);

  [[nodiscard]] std::size_t left() const { return left_; }
  [[nodiscard]] bool begun() const { return begun_; }
  /// One sendmsg(2) with `flags` | MSG_NOSIGNAL. Returns errno's value, 0 when something was sent.
  int send(int socket, int flags);

 private:
  std::string head_;  // the frame and its header
  std::vector<Buffer> owned_;
  std::vector<ByteSpan> parts_;
  std::vector<env::Fd> owned_fds_;
  std::vector<int> fds_;
  std::size_t part_ = 0;
  std::size_t offset_ = 0;  // within parts_[part_]
  std::size_t left_ = 0;
  bool begun_ = false;
};

/// Checks the limits of a message before it becomes a frame. Error: `invalid_argument`.
Status check_local_limits(std::size_t header_bytes, std::size_t payload_bytes, std::size_t fds);
std::size_t total_bytes(const std::vector<Buffer>& parts);

}  // namespace holo::driver
