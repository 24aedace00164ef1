#include "core/hyperbus/record_streams.h"

#include <algorithm>

#include "base/assert.h"
#include "base/strings.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

/// Parts from this size on go out as raw records, straight from the caller's buffer.
constexpr std::size_t kRawBytes = 4 << 10;
/// Content copied in one turn at most, so that what is more urgent waits for no more than that.
constexpr std::size_t kMaxInline = 16 << 10;
constexpr std::size_t kRawFrameBytes = kFrameHeaderBytes + 4;
constexpr std::size_t kTokenFrameBytes = kFrameHeaderBytes + 8;
/// Below this a record takes no further content.
constexpr std::size_t kMinPiece = 256;
constexpr std::uint64_t kMaxStreamNumber = (1ULL << 62) - 1;
/// A peer's unidirectional streams: its control stream, and what a later release may add.
constexpr StreamNumber kMaxUnidirectional = 16;
constexpr StreamNumber kStep = 4;  // between numbers of one kind
static_assert(RecordStreams::kMinRecordRoom >= 2 * kTokenFrameBytes + kFrameHeaderBytes + 2 + kMaxErrorText + kMinPiece,
              "what cannot be split fits in a fresh record");

std::unexpected<Error> broken_protocol(const char* what) {
  return fail(Errc::malformed, std::string("the peer broke the protocol: ") + what);
}

}  // namespace

RecordStreams::RecordStreams(Role role, std::uint64_t most, Exchange& exchange)
    : role_(role),
      most_(most),
      exchange_(&exchange),
      next_bidirectional_(role == Role::initiator ? 0 : 1),
      next_unidirectional_(next_bidirectional_ + 2),
      peer_bidirectional_(1 - next_bidirectional_),
      peer_unidirectional_(peer_bidirectional_ + 2) {}

// --- what the peer says

Status RecordStreams::on_frames(Instant now, ByteSpan plain) {
  while (!plain.empty() && !closed_) {
    HOLO_ASSIGN(frame, take_frame(plain));
    HOLO_TRY(on_frame(now, frame, plain));
  }
  forget_closed();
  return {};
}

Status RecordStreams::on_frame(Instant now, const Frame& frame, ByteSpan rest) {
  Reader reader(frame.body);
  switch (frame.type) {
    case FrameType::stream: {
      HOLO_ASSIGN(stream, named(frame.stream));
      if (stream == nullptr) return {};
      return on_data(static_cast<StreamNumber>(frame.stream), *stream, frame.body, (frame.flags & kFlagFin) != 0);
    }
    case FrameType::raw: {
      const auto n = reader.number<std::uint32_t>();
      if (!reader.ok() || n == 0 || n > kMaxRecordPlain) return broken_protocol("a raw record of an impossible size");
      if (!rest.empty()) return broken_protocol("frames between a raw record and its announcement");
      HOLO_ASSIGN(stream, named(frame.stream));
      if (stream != nullptr && stream->got_end) return broken_protocol("bytes after the end of a stream");
      raw_expected_ = n;
      raw_stream_ = stream == nullptr ? -1 : static_cast<StreamNumber>(frame.stream);
      raw_fin_ = (frame.flags & kFlagFin) != 0;
      return {};
    }
    case FrameType::reset: {
      HOLO_ASSIGN(stream, named(frame.stream));
      if (stream == nullptr) return {};
      const auto number = static_cast<StreamNumber>(frame.stream);
      finish_receiving(number, *stream);
      exchange_->on_stream_abandoned(number);
      return {};
    }
    case FrameType::ping: {
      const auto token = reader.number<std::uint64_t>();
      if (!reader.ok()) return broken_protocol("a ping without a token");
      pong_ = token;  // Of many unanswered ones the last is answered.
      return {};
    }
    case FrameType::pong: {
      const auto token = reader.number<std::uint64_t>();
      if (!reader.ok() || !ping_sent_ || token + 1 != next_token_) return {};
      round_trip_ = now - *ping_sent_;
      min_round_trip_ = min_round_trip_.ns == 0 ? round_trip_ : std::min(min_round_trip_, round_trip_);
      ping_sent_.reset();
      return {};
    }
    case FrameType::close: peer_closed_ = true; return on_close(frame);
  }
  return {};  // A later release's frame.
}

Status RecordStreams::on_close(const Frame& frame) const {
  Reader reader(frame.body);
  auto code = static_cast<Errc>(reader.number<std::uint16_t>());
  if (!reader.ok()) return broken_protocol("a close without a code");
  if (code < Errc::invalid_argument || code > Errc::internal) code = Errc::internal;
  return std::unexpected(
      Error{.code = Errc::unavailable,
            .message = str("the peer closed the connection: ", as_text(reader.rest()).substr(0, kMaxErrorText), " [",
                           errc_name(code), "]"),
            .retryable = true});
}

Result<RecordStreams::Stream*> RecordStreams::named(std::uint64_t wire) {
  if (wire > kMaxStreamNumber) return broken_protocol("a stream of an impossible number");
  const auto number = static_cast<StreamNumber>(wire);
  if (const auto found = streams_.find(number); found != streams_.end()) return &found->second;
  const bool bidirectional = env::is_bidirectional(number);
  if (env::is_client_initiated(number) == (role_ == Role::initiator)) {
    if (number < (bidirectional ? next_bidirectional_ : next_unidirectional_)) return nullptr;
    return broken_protocol("an answer to what was never asked");
  }
  StreamNumber& next = bidirectional ? peer_bidirectional_ : peer_unidirectional_;
  if (number < next) return nullptr;
  const std::uint64_t fresh = static_cast<std::uint64_t>(number - next) / kStep + 1;
  if (bidirectional ? fresh > most_ - peer_open_ : number >= kStep * kMaxUnidirectional) {
    return broken_protocol("more streams than granted");
  }
  if (bidirectional) peer_open_ += fresh;
  // As in QUIC a number opens all below it, too: those streams' first bytes may come later.
  for (; next <= number; next += kStep) streams_[next].sent_end = !bidirectional;
  return &streams_.at(number);
}

Status RecordStreams::on_data(StreamNumber number, Stream& stream, ByteSpan bytes, bool fin) {
  if (stream.got_end) return broken_protocol("bytes after the end of a stream");
  HOLO_TRY(exchange_->on_stream_data(number, bytes, fin));
  if (fin) finish_receiving(number, stream);
  return {};
}

MutableByteSpan RecordStreams::raw_target() {
  return raw_stream_ < 0 ? MutableByteSpan() : exchange_->target(raw_stream_, raw_expected_);
}

Status RecordStreams::on_raw(ByteSpan plain) {
  const std::size_t bytes = std::exchange(raw_expected_, 0);
  const StreamNumber number = std::exchange(raw_stream_, -1);
  const auto found = streams_.find(number);
  if (found == streams_.end()) return {};
  if (plain.empty()) {
    HOLO_TRY(exchange_->on_target_filled(number, bytes, raw_fin_));
    if (raw_fin_) finish_receiving(number, found->second);
  } else {
    HOLO_TRY(on_data(number, found->second, plain, raw_fin_));
  }
  forget_closed();
  return {};
}

void RecordStreams::finish_receiving(StreamNumber number, Stream& stream) {
  if (!std::exchange(stream.got_end, true) && stream.sent_end) closing_.push_back(number);
}

void RecordStreams::finish_sending(StreamNumber number, Stream& stream) {
  if (!std::exchange(stream.sent_end, true) && stream.got_end) closing_.push_back(number);
}

void RecordStreams::forget_closed() {
  while (!closing_.empty()) {
    const StreamNumber number = closing_.back();
    closing_.pop_back();
    streams_.erase(number);
    const bool ours = env::is_client_initiated(number) == (role_ == Role::initiator);
    if (!ours && env::is_bidirectional(number)) --peer_open_;
    exchange_->on_stream_closed(number);
  }
}

// --- what we say

Result<StreamNumber> RecordStreams::open(bool bidirectional) {
  StreamNumber& next = bidirectional ? next_bidirectional_ : next_unidirectional_;
  const StreamNumber number = std::exchange(next, next + kStep);
  streams_[number].got_end = !bidirectional;
  return number;
}

void RecordStreams::abandon(StreamNumber number) {
  const auto found = streams_.find(number);
  if (found == streams_.end()) return;
  Stream& stream = found->second;
  if (std::exchange(stream.reset_sent, true) || (stream.sent_end && stream.got_end)) return;
  resets_.push_back(number);
  finish_sending(number, stream);
}

void RecordStreams::ping(Instant now) {
  if (closed_ || ping_sent_) return;
  ping_ = next_token_++;
  ping_sent_ = now;
}

void RecordStreams::close(const Error* error) {
  if (std::exchange(closed_, true)) return;
  raw_expected_ = 0;
  resets_.clear();
  ping_.reset();
  pong_.reset();
  if (error == nullptr) return;
  const std::string_view text = std::string_view(error->message).substr(0, kMaxErrorText);
  close_frame_.resize(kFrameHeaderBytes);
  write_frame_header(close_frame_.data(), FrameType::close, 0, 2 + text.size(), 0);
  put(close_frame_, static_cast<std::uint16_t>(error->code));
  put(close_frame_, as_bytes(text));
}

bool RecordStreams::wants_output() const {
  if (!close_frame_.empty()) return true;
  return !closed_ && (ping_ || pong_ || !resets_.empty() || exchange_->wants_to_write());
}

std::size_t RecordStreams::output_estimate() const {
  return kMinRecordRoom + close_frame_.size() + resets_.size() * kFrameHeaderBytes + exchange_->output_estimate();
}

std::size_t RecordStreams::write(Instant now, MutableByteSpan record, std::size_t raw_room, ByteSpan& raw) {
  HOLO_ASSERT(record.size() >= kMinRecordRoom && raw_room >= record.size());
  raw = {};
  std::size_t used = write_own_frames(record);
  while (!closed_ && raw.empty() && record.size() - used >= kMinPiece) {
    env::QuicWrite write;
    if (!exchange_->next_write(now, write)) break;
    const bool is_raw = write.parts[0].size() >= kRawBytes;
    const MutableByteSpan rest = record.subspan(used);
    const std::size_t n = is_raw ? announce_raw(write, rest, raw_room - used, raw) : write_some(write, rest);
    if (n == 0) break;
    used += n;
  }
  forget_closed();
  return used;
}

std::size_t RecordStreams::write_own_frames(MutableByteSpan record) {
  std::size_t used = 0;
  const auto frame = [&](FrameType type, std::size_t body, StreamNumber stream) {
    write_frame_header(record.data() + used, type, 0, body, static_cast<std::uint64_t>(stream));
    used += kFrameHeaderBytes + body;
    return record.data() + used - body;
  };
  if (closed_) {
    std::ranges::copy(close_frame_, record.begin());
    used = close_frame_.size();
    close_frame_.clear();
    return used;
  }
  if (const auto token = std::exchange(pong_, {})) store(frame(FrameType::pong, 8, 0), *token);
  if (const auto token = std::exchange(ping_, {})) store(frame(FrameType::ping, 8, 0), *token);
  while (!resets_.empty() && record.size() - used >= kFrameHeaderBytes) {
    frame(FrameType::reset, 0, resets_.back());
    resets_.pop_back();
  }
  return used;
}

/// Copies small parts into a frame, up to the first one that deserves a record of its own.
std::size_t RecordStreams::write_some(const env::QuicWrite& write, MutableByteSpan record) {
  const MutableByteSpan to = record.subspan(kFrameHeaderBytes, std::min(record.size() - kFrameHeaderBytes, kMaxInline));
  std::size_t bytes = 0;
  std::size_t part = 0;
  for (; part < write.count && write.parts[part].size() < kRawBytes; ++part) {
    const ByteSpan from = write.parts[part].first(std::min(write.parts[part].size(), to.size() - bytes));
    std::ranges::copy(from, to.subspan(bytes).begin());
    bytes += from.size();
    if (from.size() < write.parts[part].size()) break;
  }
  const bool fin = write.fin && part == write.count;
  write_frame_header(record.data(), FrameType::stream, fin ? kFlagFin : 0, bytes,
                     static_cast<std::uint64_t>(write.stream));
  exchange_->on_written(write.stream, bytes, fin);
  written_ = {.stream = write.stream, .bytes = bytes, .fin = fin};
  raw_sealed();
  return kFrameHeaderBytes + bytes;
}

/// 0: the record is too full.
std::size_t RecordStreams::announce_raw(const env::QuicWrite& write, MutableByteSpan record, std::size_t raw_room,
                                        ByteSpan& raw) {
  if (record.size() < kRawFrameBytes || raw_room < kRawFrameBytes + kRawBytes) return 0;
  const ByteSpan part = write.parts[0];
  raw = part.first(std::min({part.size(), kMaxRecordPlain, raw_room - kRawFrameBytes}));
  const bool fin = write.fin && write.count == 1 && raw.size() == part.size();
  write_frame_header(record.data(), FrameType::raw, fin ? kFlagFin : 0, 4, static_cast<std::uint64_t>(write.stream));
  store(record.data() + kFrameHeaderBytes, static_cast<std::uint32_t>(raw.size()));
  exchange_->on_written(write.stream, raw.size(), fin);
  written_ = {.stream = write.stream, .bytes = raw.size(), .fin = fin};
  return kRawFrameBytes;
}

void RecordStreams::raw_sealed() {
  // TCP is ordered: what was written counts as arrived, since nothing that is written later arrives before it.
  const Written written = std::exchange(written_, {});
  if (written.stream < 0) return;
  exchange_->on_stream_acknowledged(written.stream, written.bytes);
  if (!written.fin) return;
  const auto found = streams_.find(written.stream);
  if (found != streams_.end()) finish_sending(written.stream, found->second);
  forget_closed();
}

}  // namespace holo::hyperbus
