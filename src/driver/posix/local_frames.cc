#include "driver/posix/local_frames.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/strings.h"
#include "driver/posix/errno_text.h"

namespace holo::driver {
namespace {

constexpr std::size_t kControlBytes = CMSG_SPACE(wire::kMaxLocalFrameFds * sizeof(int));

/// Takes over every descriptor in `message`, so that none leaks whatever is wrong with it.
void take_fds(msghdr& message, std::vector<env::Fd>& out) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < n; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      out.emplace_back(fd);
    }
  }
}

}  // namespace

LocalReceiver::LocalReceiver(Place place)
    : place_(std::move(place)), buffer_(std::make_unique<std::array<std::byte, 16 << 10>>()) {}

MutableByteSpan LocalReceiver::wanted() {
  switch (stage_) {
    case Stage::frame: return MutableByteSpan(frame_bytes_);
    case Stage::header: return std::as_writable_bytes(std::span(message_.header));
    case Stage::payload: return payload_place_;
  }
  return {};
}

Result<LocalReceiver::Got> LocalReceiver::receive(int socket, int flags) {
  // What is left of the current part comes straight into its place; what follows it goes into the buffer. One system
  // call.
  HOLO_ASSERT(begin_ == end_, "next() has taken all it could");
  begin_ = end_ = 0;
  const MutableByteSpan direct = wanted().subspan(filled_);
  std::array<iovec, 2> parts{iovec{direct.data(), direct.size()}, iovec{buffer_->data(), buffer_->size()}};
  alignas(cmsghdr) std::array<char, kControlBytes> control;
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t n = 0;
  do {
    n = ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Got::nothing_yet;
  if (n < 0) return fail(Errc::unavailable, str("the local connection broke: ", errno_text(errno)));
  take_fds(message, fds_);
  if ((message.msg_flags & MSG_CTRUNC) != 0)
    return fail(Errc::malformed, "more descriptors in one message than allowed");
  if (n == 0) return Got::end;
  const std::size_t into_place = std::min(static_cast<std::size_t>(n), direct.size());
  filled_ += into_place;
  end_ = static_cast<std::size_t>(n) - into_place;
  return Got::bytes;
}

void LocalReceiver::take(MutableByteSpan into, std::size_t& filled) {
  const std::size_t n = std::min(into.size() - filled, end_ - begin_);
  if (n != 0) std::memcpy(into.data() + filled, buffer_->data() + begin_, n);
  filled += n;
  begin_ += n;
}

Status LocalReceiver::begin_message() {
  HOLO_ASSIGN(frame, wire::decode_local_frame(frame_bytes_));
  if (frame.fds > fds_.size()) return fail(Errc::malformed, "a frame announces descriptors that did not come");
  message_ = LocalMessage{.frame = frame, .header = std::string(frame.header_bytes, '\0'), .payload = {}, .fds = {}};
  std::move(fds_.begin(), fds_.begin() + frame.fds, std::back_inserter(message_.fds));
  fds_.erase(fds_.begin(), fds_.begin() + frame.fds);
  payload_place_ = {};
  if (frame.payload_bytes == 0) return {};
  if (auto placed = place_ ? place_(frame) : std::nullopt) {
    HOLO_ASSERT(placed->size() == frame.payload_bytes);
    payload_place_ = *placed;
    return {};
  }
  auto bytes = std::make_shared_for_overwrite<std::byte[]>(frame.payload_bytes);
  payload_place_ = MutableByteSpan(bytes.get(), frame.payload_bytes);
  message_.payload = Buffer(payload_place_, std::shared_ptr<const void>(bytes, bytes.get()));
  return {};
}

Result<std::optional<LocalMessage>> LocalReceiver::next() {
  while (true) {
    const MutableByteSpan part = wanted();
    take(part, filled_);
    if (filled_ < part.size()) {
      // Descriptors come with a frame's first byte: none can be waiting for a frame that has not begun, and few for one
      // that has.
      if (fds_.size() > wire::kMaxLocalFrameFds) return fail(Errc::malformed, "descriptors that no frame announces");
      return std::optional<LocalMessage>();
    }
    filled_ = 0;
    switch (stage_) {
      case Stage::frame:
        HOLO_TRY(begin_message());
        stage_ = Stage::header;
        break;
      case Stage::header: stage_ = Stage::payload; break;
      case Stage::payload: stage_ = Stage::frame; return std::optional<LocalMessage>(std::move(message_));
    }
  }
}

LocalOutgoing::LocalOutgoing(wire::LocalFrame frame, std::string_view header, std::vector<Buffer> payload,
                             std::vector<env::Fd> fds)
    : owned_(std::move(payload)), owned_fds_(std::move(fds)) {
  frame.header_bytes = static_cast<std::uint32_t>(header.size());
  frame.payload_bytes = static_cast<std::uint32_t>(total_bytes(owned_));
  frame.fds = static_cast<std::uint8_t>(owned_fds_.size());
  head_.resize(wire::kLocalFrameBytes);
  wire::encode_local_frame(frame, std::as_writable_bytes(std::span(head_)));
  head_.append(header);
  parts_.emplace_back();  // head_, whose address is not final before the object is
  for (const auto& b : owned_) parts_.push_back(b.span());
  for (const auto& fd : owned_fds_) fds_.push_back(fd.get());
  left_ = head_.size() + frame.payload_bytes;
}

LocalOutgoing::LocalOutgoing(wire::LocalFrame frame, std::string_view header, std::span<const ByteSpan> payload,
                             std::span<const int> fds) {
  std::size_t payload_bytes = 0;
  parts_.emplace_back();
  for (ByteSpan p : payload) {
    payload_bytes += p.size();
    parts_.push_back(p);
  }
  fds_.assign(fds.begin(), fds.end());
  frame.header_bytes = static_cast<std::uint32_t>(header.size());
  frame.payload_bytes = static_cast<std::uint32_t>(payload_bytes);
  frame.fds = static_cast<std::uint8_t>(fds.size());
  head_.resize(wire::kLocalFrameBytes);
  wire::encode_local_frame(frame, std::as_writable_bytes(std::span(head_)));
  head_.append(header);
  left_ = head_.size() + payload_bytes;
}

int LocalOutgoing::send(int socket, int flags) {
  parts_[0] = as_bytes(head_);
  std::array<iovec, 64> gather;
  std::size_t n = 0;
  for (std::size_t i = part_; i < parts_.size() && n < gather.size(); ++i) {
    const ByteSpan bytes = parts_[i].subspan(i == part_ ? offset_ : 0);
    if (!bytes.empty()) gather[n++] = {const_cast<std::byte*>(bytes.data()), bytes.size()};
  }
  msghdr message{};
  message.msg_iov = gather.data();
  message.msg_iovlen = n;
  alignas(cmsghdr) std::array<char, kControlBytes> control{};
  if (!begun_ && !fds_.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds_.size() * sizeof(int));
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds_.size() * sizeof(int));
    std::memcpy(CMSG_DATA(c), fds_.data(), fds_.size() * sizeof(int));
  }
  const ssize_t sent = ::sendmsg(socket, &message, flags | MSG_NOSIGNAL);
  if (sent < 0) return errno;
  begun_ = true;
  left_ -= static_cast<std::size_t>(sent);
  for (auto rest = static_cast<std::size_t>(sent); rest > 0;) {
    const std::size_t here = std::min(rest, parts_[part_].size() - offset_);
    rest -= here;
    offset_ += here;
    if (offset_ == parts_[part_].size()) {
      ++part_;
      offset_ = 0;
    }
  }
  return 0;
}

Status check_local_limits(std::size_t header_bytes, std::size_t payload_bytes, std::size_t fds) {
  if (header_bytes > limits::kMaxHeaderBytes) {
    return fail(Errc::invalid_argument,
                str("a header of ", header_bytes, " bytes; the limit is ", limits::kMaxHeaderBytes));
  }
  if (payload_bytes > limits::kMaxPayloadBytes) {
    return fail(Errc::invalid_argument,
                str("a payload of ", payload_bytes, " bytes; the limit is ", limits::kMaxPayloadBytes));
  }
  if (fds > wire::kMaxLocalFrameFds) {
    return fail(Errc::invalid_argument,
                str(fds, " descriptors in one message; the limit is ", wire::kMaxLocalFrameFds));
  }
  return {};
}

std::size_t total_bytes(const std::vector<Buffer>& parts) {
  std::size_t n = 0;
  for (const auto& b : parts) n += b.size();
  return n;
}

}  // namespace holo::driver
