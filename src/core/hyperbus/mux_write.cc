// The sending half of the multiplexer: which bytes are next.
#include <algorithm>

#include "base/assert.h"
#include "core/hyperbus/mux.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

/// Messages of one class that take turns; the others wait whole.
constexpr std::size_t kMaxActive = 8;
/// Payload parts from this size on go out as raw records, straight from the caller's buffer.
constexpr std::size_t kRawBytes = 4 << 10;
/// Content copied in one turn at most, so that what is more urgent waits for no more than that.
constexpr std::size_t kMaxInline = 16 << 10;
constexpr std::size_t kRawFrameBytes = kFrameHeaderBytes + 4;
constexpr std::size_t kCreditFrameBytes = kFrameHeaderBytes + Credit::kBytes;
constexpr std::size_t kTokenFrameBytes = kFrameHeaderBytes + 8;
/// Below this a record takes no further content.
constexpr std::size_t kMinPiece = 256;
static_assert(kMinPiece >= kFrameHeaderBytes + RequestHead::kBytes + kRawFrameBytes);
static_assert(Mux::kMinRecordRoom >= kStreamClasses * kCreditFrameBytes + 2 * kTokenFrameBytes + kFrameHeaderBytes +
                                         16 + 2 * kMaxErrorText + kMinPiece,
              "what cannot be split fits in a fresh record");

}  // namespace

// --- content
// -----------------------------------------------------------------------------------------------------------

Mux::Outgoing::Outgoing(std::string header_in, std::vector<Buffer> payload_in)
    : header(std::move(header_in)), payload(std::move(payload_in)) {
  std::erase_if(payload, [](const Buffer& b) { return b.empty(); });
  for (const Buffer& one : payload) payload_bytes += one.size();
}

ByteSpan Mux::Outgoing::next_part() const {
  if (header_sent < header.size() || part == payload.size()) return {};
  return payload[part].span().subspan(part_sent);
}

void Mux::Outgoing::skip(std::size_t n) {
  sent += n;
  part_sent += n;
  if (part_sent == payload[part].size()) {
    payload[part] = Buffer();  // Whatever pins it may go now.
    ++part;
    part_sent = 0;
  }
}

/// Copies header bytes, then small payload parts up to the first one that deserves a raw record.
std::size_t Mux::Outgoing::copy_some(MutableByteSpan to) {
  std::size_t done = std::min(to.size(), header.size() - header_sent);
  std::ranges::copy(as_bytes(header).subspan(header_sent, done), to.begin());
  header_sent += done;
  sent += done;
  while (done < to.size()) {
    const ByteSpan from = next_part();
    if (from.empty() || from.size() >= kRawBytes) break;
    const std::size_t n = std::min(from.size(), to.size() - done);
    std::ranges::copy(from.first(n), to.subspan(done).begin());
    skip(n);
    done += n;
  }
  return done;
}

// --- what waits
// --------------------------------------------------------------------------------------------------------

bool Mux::request_may_start(const ClassState& state, const Call& call) const {
  const Credit& limit = state.ours.limit;
  const Credit& used = state.ours.used;
  return used.requests < limit.requests && call.out.size() <= limit.request_bytes - used.request_bytes;
}

bool Mux::reply_may_start(const ClassState& state, const Served& served) const {
  return !served.out || served.out->size() <= state.ours.limit.reply_bytes - state.ours.used.reply_bytes;
}

bool Mux::has_work(const ClassState& state) const {
  if (!state.active.empty()) return true;
  // The id of an ended message counts as work: writing removes it.
  if (!state.waiting_replies.empty()) {
    const auto found = served_.find(state.waiting_replies.front());
    if (found == served_.end() || reply_may_start(state, found->second)) return true;
  }
  if (!state.waiting_requests.empty()) {
    const auto found = calls_.find(state.waiting_requests.front());
    if (found == calls_.end() || request_may_start(state, found->second)) return true;
  }
  return false;
}

bool Mux::wants_output() const {
  if (!close_frame_.empty()) return true;
  if (closed_) return false;
  if (ping_ || pong_ || !cancels_.empty()) return true;
  return std::ranges::any_of(classes_, [this](const ClassState& s) { return s.theirs.tell || has_work(s); });
}

std::size_t Mux::output_estimate() const {
  std::size_t messages = 0;
  for (const ClassState& state : classes_) {
    messages += state.active.size() + state.waiting_replies.size() + state.waiting_requests.size();
  }
  return kMinRecordRoom + close_frame_.size() + cancels_.size() * kFrameHeaderBytes + content_left_ +
         messages * kMinPiece;
}

/// Moves waiting messages of one class among those that take turns, as far as credit goes. True when one may be
/// written.
bool Mux::admit(Instant now, ClassState& state) {
  while (state.active.size() < kMaxActive && !state.waiting_replies.empty()) {
    const std::uint64_t stream = state.waiting_replies.front();
    const auto found = served_.find(stream);
    if (found != served_.end()) {
      if (!reply_may_start(state, found->second)) break;
      if (auto& out = found->second.out) {
        out->stage = Outgoing::Stage::admitted;
        state.ours.used.reply_bytes += out->size();
      }
      state.active.push_back({.stream = stream, .is_reply = true});
    }
    state.waiting_replies.pop_front();
  }
  while (state.active.size() < kMaxActive && !state.waiting_requests.empty()) {
    const std::uint64_t stream = state.waiting_requests.front();
    const auto found = calls_.find(stream);
    // One whose time is up is not sent; on_time() ends it.
    if (found != calls_.end() && found->second.deadline > now) {
      Outgoing& out = found->second.out;
      if (!request_may_start(state, found->second)) break;
      out.stage = Outgoing::Stage::admitted;
      --state.queued;
      state.queued_bytes -= out.size();
      state.ours.used.requests += 1;
      state.ours.used.request_bytes += out.size();
      state.active.push_back({.stream = stream, .is_reply = false});
    }
    state.waiting_requests.pop_front();
  }
  while (!state.active.empty()) {
    const auto [stream, is_reply] = state.active.front();
    if (is_reply ? served_.contains(stream) : calls_.contains(stream)) return true;
    state.active.pop_front();
  }
  return false;
}

/// The class whose first message is written next: control always first, data and bulk in turn.
Mux::ClassState* Mux::pick(Instant now) {
  if (admit(now, state_of(StreamClass::control))) return &state_of(StreamClass::control);
  const auto first = data_turn_ ? StreamClass::data : StreamClass::bulk;
  const auto second = data_turn_ ? StreamClass::bulk : StreamClass::data;
  data_turn_ = !data_turn_;
  if (admit(now, state_of(first))) return &state_of(first);
  if (admit(now, state_of(second))) return &state_of(second);
  return nullptr;
}

// --- writing
// -----------------------------------------------------------------------------------------------------------

std::size_t Mux::write(Instant now, MutableByteSpan record, std::size_t raw_room, ByteSpan& raw) {
  HOLO_ASSERT(record.size() >= kMinRecordRoom && raw_room >= record.size());
  raw = {};
  raw_held_ = {};
  std::size_t used = write_session_frames(record);
  while (!closed_ && raw.empty() && record.size() - used >= kMinPiece) {
    ClassState* state = pick(now);
    if (state == nullptr) break;
    const auto active = state->active.front();
    const Piece piece = write_piece(now, active, record.subspan(used), raw_room - used, raw);
    if (piece.no_room) break;
    used += piece.bytes;
    state->active.pop_front();
    if (!piece.done) {
      state->active.push_back(active);
    } else if (active.is_reply) {
      end_served(active.stream);
    }
  }
  return used;
}

std::size_t Mux::write_session_frames(MutableByteSpan record) {
  std::size_t used = 0;
  const auto frame = [&](FrameType type, std::uint8_t klass, std::size_t body, std::uint64_t stream) {
    write_frame_header(record.data() + used, type, 0, klass, body, stream);
    used += kFrameHeaderBytes + body;
    return record.data() + used - body;
  };
  if (closed_) {
    std::ranges::copy(close_frame_, record.begin());
    used = close_frame_.size();
    close_frame_.clear();
    return used;
  }
  for (std::size_t i = 0; i < kStreamClasses; ++i) {
    Granted& granted = classes_[i].theirs;
    if (!std::exchange(granted.tell, false)) continue;
    const ClassWindow& window = classes_[i].window;
    granted.told = {.requests = granted.returned.requests + window.requests,
                    .request_bytes = granted.returned.request_bytes + window.request_bytes,
                    .reply_bytes = granted.returned.reply_bytes + window.reply_bytes};
    write_head(frame(FrameType::credit, static_cast<std::uint8_t>(i), Credit::kBytes, 0), granted.told);
  }
  if (const auto token = std::exchange(pong_, {})) store(frame(FrameType::pong, 0, 8, 0), *token);
  if (const auto token = std::exchange(ping_, {})) store(frame(FrameType::ping, 0, 8, 0), *token);
  while (!cancels_.empty() && record.size() - used >= kFrameHeaderBytes) {
    frame(FrameType::cancel, 0, 0, cancels_.back());
    cancels_.pop_back();
  }
  return used;
}

Mux::Outgoing* Mux::outgoing_of(std::uint64_t stream, bool is_reply) {
  if (!is_reply) return &calls_.at(stream).out;
  auto& out = served_.at(stream).out;
  return out ? &*out : nullptr;
}

/// Writes one turn of a message: its first frame or more content, and at its end perhaps the announcement of a raw
/// record.
Mux::Piece Mux::write_piece(Instant now, ClassState::Active active, MutableByteSpan record, std::size_t raw_room,
                            ByteSpan& raw) {
  Outgoing* out = outgoing_of(active.stream, active.is_reply);
  if (out == nullptr) {
    const Served& served = served_.at(active.stream);
    if (record.size() < kFrameHeaderBytes + served.error.size()) return {.no_room = true};
    return {.bytes = write_error(active.stream, served, record), .done = true};
  }
  const std::uint64_t sent_before = out->sent;
  const std::uint8_t flags = active.is_reply ? kFlagReply : 0;
  std::size_t used = 0;
  if (!out->started()) {
    used = write_first(now, active, *out, record);
  } else {
    const std::size_t room = std::min(record.size() - kFrameHeaderBytes, kMaxInline);
    const std::size_t n = out->copy_some(record.subspan(kFrameHeaderBytes, room));
    if (n > 0) {
      write_frame_header(record.data(), FrameType::data, flags, 0, n, active.stream);
      used = kFrameHeaderBytes + n;
    }
  }
  const ByteSpan part = out->next_part();
  const std::size_t announced = used + kRawFrameBytes;
  if (part.size() >= kRawBytes && record.size() >= announced && raw_room >= announced + kRawBytes) {
    raw = part.first(std::min({part.size(), kMaxRecordPlain, raw_room - announced}));
    raw_held_ = out->payload[out->part];
    write_frame_header(record.data() + used, FrameType::raw, flags, 0, 4, active.stream);
    store(record.data() + used + kFrameHeaderBytes, static_cast<std::uint32_t>(raw.size()));
    used = announced;
    out->skip(raw.size());
  }
  content_left_ -= out->sent - sent_before;
  return {.bytes = used, .done = out->left() == 0, .no_room = used == 0};
}

std::size_t Mux::write_first(Instant now, ClassState::Active active, Outgoing& out, MutableByteSpan record) {
  out.stage = Outgoing::Stage::started;
  const std::size_t head = active.is_reply ? ReplyHead::kBytes : RequestHead::kBytes;
  const std::size_t fixed = kFrameHeaderBytes + head;
  const std::size_t n = out.copy_some(record.subspan(fixed, std::min(record.size() - fixed, kMaxInline)));
  const auto header_bytes = static_cast<std::uint32_t>(out.header.size());
  if (active.is_reply) {
    const auto klass = static_cast<std::uint8_t>(served_.at(active.stream).klass);
    write_frame_header(record.data(), FrameType::reply, 0, klass, head + n, active.stream);
    write_head(record.data() + kFrameHeaderBytes,
               ReplyHead{.header_bytes = header_bytes, .payload_bytes = out.payload_bytes});
  } else {
    const Call& call = calls_.at(active.stream);
    const std::int64_t left_us = (call.deadline - now).ns / 1000;
    write_frame_header(record.data(), FrameType::request, 0, static_cast<std::uint8_t>(call.klass), head + n,
                       active.stream);
    write_head(record.data() + kFrameHeaderBytes,
               RequestHead{.type = call.type,
                           .header_bytes = header_bytes,
                           .payload_bytes = out.payload_bytes,
                           .time_left_us = static_cast<std::uint64_t>(std::max<std::int64_t>(left_us, 0))});
  }
  return fixed + n;
}

std::size_t Mux::write_error(std::uint64_t stream, const Served& served, MutableByteSpan record) {
  write_frame_header(record.data(), FrameType::reply, kFlagError, static_cast<std::uint8_t>(served.klass),
                     served.error.size(), stream);
  std::ranges::copy(served.error, record.begin() + kFrameHeaderBytes);
  return kFrameHeaderBytes + served.error.size();
}

}  // namespace holo::hyperbus
