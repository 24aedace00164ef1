// The sending half of an exchange: which bytes are next.
#include <algorithm>

#include "base/assert.h"
#include "core/hyperbus/exchange.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

/// Messages of one class that take turns; the others wait whole.
constexpr std::size_t kMaxActive = 8;
/// Bytes of one turn, so that a small message never waits for more than that of each of the others. A page with its
/// head, so that the last bytes of one do not wait for the turns of the others.
constexpr std::int64_t kTurnBytes = 66 << 10;
/// What a message needs on the wire beyond its content.
constexpr std::size_t kMessageOverhead = 256;

constexpr StreamClass other_of(StreamClass klass) {
  return klass == StreamClass::bulk ? StreamClass::data : StreamClass::bulk;
}

}  // namespace

// --- bytes on their way out

void Outgoing::append(Buffer part) {
  if (part.empty()) return;
  size_ += part.size();
  parts_.push_back(std::move(part));
}

void Outgoing::next(env::QuicWrite& write) const {
  write.count = 0;
  std::size_t offset = at_offset_;
  for (std::size_t i = at_; i < parts_.size() && write.count < write.parts.size(); ++i) {
    write.parts[write.count++] = parts_[i].span().subspan(offset);
    offset = 0;
  }
  write.fin = fin_ && at_ + write.count == parts_.size();
}

void Outgoing::on_written(std::size_t bytes) {
  sent_ += bytes;
  HOLO_ASSERT(sent_ <= size_);
  while (bytes > 0) {
    const std::size_t n = std::min(bytes, parts_[at_].size() - at_offset_);
    bytes -= n;
    at_offset_ += n;
    if (at_offset_ < parts_[at_].size()) break;
    ++at_;
    at_offset_ = 0;
  }
}

void Outgoing::on_acknowledged(std::uint64_t bytes) {
  acknowledged_ += bytes;
  kept_offset_ += bytes;
  while (kept_ < at_ && kept_offset_ >= parts_[kept_].size()) {
    kept_offset_ -= parts_[kept_].size();
    parts_[kept_++] = Buffer();  // Whatever pins it may go now.
  }
  if (kept_ < parts_.size()) return;
  parts_.clear();
  at_ = kept_ = 0;
}

// --- what waits

bool Exchange::request_may_start(const ClassState& state, const Call& call) const {
  return !streams_full_ && state.ours.requests < state.limit.requests &&
         state.ours.request_bytes + call.bytes <= state.limit.request_bytes;
}

bool Exchange::reply_may_start(const ClassState& state, const Stream& stream) const {
  // However much the peer grants, what it has not acknowledged is kept here.
  const std::uint64_t most = std::min(state.limit.reply_bytes, state.window.reply_bytes);
  return state.ours.reply_bytes + stream.out.unsent() - ReplyHead::kBytes <= most;
}

bool Exchange::has_work(const ClassState& state) const {
  if (!state.active.empty()) return true;
  // The id of an ended message counts as work: asking for what is next removes it.
  if (!state.waiting_replies.empty()) {
    const auto found = open_.find(state.waiting_replies.front());
    if (found == open_.end() || found->second.abandoned || reply_may_start(state, found->second)) return true;
  }
  if (!state.waiting_requests.empty()) {
    const auto found = calls_.find(state.waiting_requests.front());
    if (found == calls_.end() || request_may_start(state, found->second)) return true;
  }
  return false;
}

bool Exchange::wants_to_write() const {
  if (closed_ || control_number_ < 0) return false;
  return control_.unsent() > 0 || std::ranges::any_of(classes_, [this](const ClassState& s) { return has_work(s); });
}

std::size_t Exchange::output_estimate() const {
  std::size_t messages = 1;
  std::uint64_t queued = 0;
  for (const ClassState& state : classes_) {
    messages += state.active.size() + state.waiting_replies.size() + state.waiting_requests.size();
    queued += state.queued_bytes;
  }
  return unsent_ + queued + control_.unsent() + messages * kMessageOverhead;
}

void Exchange::on_established() {
  auto opened = streams_->open_stream(false);
  HOLO_ASSERT(opened.has_value(), "every carrier allows one stream of our own");
  control_number_ = *opened;
  Bytes grants;
  put(grants, kControlStream);
  for (std::size_t i = 0; i < kStreamClasses; ++i) {
    const ClassWindow& w = classes_[i].window;
    encode_grant(static_cast<std::uint8_t>(i),
                 {.requests = w.requests, .request_bytes = w.request_bytes, .reply_bytes = w.reply_bytes}, grants);
  }
  control_.append(Buffer(std::move(grants)));
}

void Exchange::enter_turn(StreamNumber number, Stream& stream) {
  ClassState& state = state_of(stream.klass);
  if (state.active.empty()) state.turn = kTurnBytes;
  state.active.push_back(number);
  stream.admitted = stream.in_turn = true;
}

void Exchange::leave_turn(StreamNumber number, Stream& stream) {
  ClassState& state = state_of(stream.klass);
  if (!state.active.empty() && state.active.front() == number) state.turn = kTurnBytes;
  std::erase(state.active, number);
  stream.in_turn = false;
}

/// A request cannot start for lack of credit. Before the peer's first grant nothing can, which says nothing about it.
void Exchange::note_missing_credit(Instant now, ClassState& state) {
  if (state.limit.requests > 0) state.without_credit_since = std::min(state.without_credit_since, now);
}

/// A request starts: whatever it waited since credit ran out, it waited for credit.
void Exchange::note_credit_wait(Instant now, ClassState& state, const Call& call) {
  if (state.without_credit_since == kNever) return;
  ++state.credit_waits;
  if (!state.credit_wait) state.credit_wait = std::make_unique<obs::Histogram>();
  state.credit_wait->record(now - std::max(call.asked, state.without_credit_since));
}

/// Opens the stream of a request. False: the peer allows no more streams for now.
bool Exchange::start_request(Instant now, ClassState& state, std::uint64_t id, Call& call) {
  auto opened = streams_->open_stream(true);
  if (!opened) {
    streams_full_ = true;
    return false;
  }
  call.stream = *opened;
  --state.queued;
  state.queued_bytes -= call.bytes;
  Stream& stream = open_[*opened];
  stream.klass = call.klass;
  stream.ours = true;
  stream.call = id;
  stream.slot = true;
  ++state.ours.requests;
  stream.request_bytes = call.bytes;
  state.ours.request_bytes += call.bytes;
  Bytes start(RequestHead::kBytes);
  put(start, as_bytes(call.request.header));
  write_head(start.data(), RequestHead{.type = call.request.type,
                                       .klass = static_cast<std::uint8_t>(call.klass),
                                       .header_bytes = static_cast<std::uint32_t>(call.request.header.size()),
                                       .payload_bytes = call.bytes - call.request.header.size(),
                                       .time_left_us = static_cast<std::uint64_t>((call.deadline - now).ns / 1000)});
  stream.out.append(Buffer(std::move(start)));
  for (Buffer& part : call.request.payload) stream.out.append(std::move(part));
  stream.out.finish();
  call.request = {};
  unsent_ += stream.out.unsent();
  enter_turn(*opened, stream);
  return true;
}

/// Moves waiting messages of one class among those that take turns, as far as credit goes. True when one may be
/// written.
bool Exchange::admit(Instant now, ClassState& state) {
  if (state.active.size() >= kMaxActive) return true;
  if (state.waiting_replies.empty() && state.waiting_requests.empty()) {
    state.without_credit_since = kNever;
    return !state.active.empty();
  }
  while (state.active.size() < kMaxActive && !state.waiting_replies.empty()) {
    const StreamNumber number = state.waiting_replies.front();
    Stream* stream = find(number);
    if (stream != nullptr && !stream->abandoned) {
      if (!reply_may_start(state, *stream)) break;
      stream->reply_bytes = stream->out.unsent() - ReplyHead::kBytes;
      state.ours.reply_bytes += stream->reply_bytes;
      enter_turn(number, *stream);
    }
    state.waiting_replies.pop_front();
  }
  while (state.active.size() < kMaxActive && !state.waiting_requests.empty()) {
    const std::uint64_t id = state.waiting_requests.front();
    const auto found = calls_.find(id);
    // One whose time is up is not sent; on_time() ends it.
    if (found != calls_.end() && found->second.deadline > now) {
      if (!request_may_start(state, found->second)) {
        note_missing_credit(now, state);
        break;
      }
      if (!start_request(now, state, id, found->second)) break;
      note_credit_wait(now, state, found->second);
    }
    state.waiting_requests.pop_front();
  }
  if (state.waiting_requests.empty()) state.without_credit_since = kNever;
  return !state.active.empty();
}

// --- writing

bool Exchange::next_write(Instant now, env::QuicWrite& write) {
  if (closed_ || control_number_ < 0) return false;
  if (control_.unsent() > 0) {
    write.stream = control_number_;
    control_.next(write);
    return true;
  }
  const std::array<StreamClass, kStreamClasses> order = {StreamClass::control,
                                                         data_turn_ ? StreamClass::data : StreamClass::bulk,
                                                         data_turn_ ? StreamClass::bulk : StreamClass::data};
  for (const StreamClass klass : order) {
    ClassState& state = state_of(klass);
    if (!admit(now, state)) continue;
    if (klass == StreamClass::bulk) {
      write.most = streams_->room_for_bulk(bulk_under_way_);
      if (write.most == 0) continue;
    }
    write.stream = state.active.front();
    find(write.stream)->out.next(write);
    if (state.active.size() > 1) {
      write.most = std::min(write.most, static_cast<std::size_t>(std::max<std::int64_t>(state.turn, 1)));
    }
    if (klass != StreamClass::control && has_work(state_of(other_of(klass)))) write.most = 1;  // Packet by packet.
    return true;
  }
  return false;
}

void Exchange::on_written(StreamNumber number, std::size_t bytes, bool fin) {
  if (number == control_number_) return control_.on_written(bytes);
  Stream& stream = *find(number);
  ClassState& state = state_of(stream.klass);
  stream.out.on_written(bytes);
  unsent_ -= bytes;
  if (stream.klass == StreamClass::bulk) bulk_under_way_ += bytes;
  if (stream.klass != StreamClass::control) data_turn_ = stream.klass == StreamClass::bulk;
  HOLO_ASSERT(fin == stream.out.written());
  if (fin) {
    leave_turn(number, stream);
    if (!stream.ours) release_slot(stream);
    return;
  }
  state.turn -= static_cast<std::int64_t>(bytes);
  if (state.turn > 0 || state.active.size() == 1) return;
  state.turn = kTurnBytes;
  state.active.push_back(state.active.front());
  state.active.pop_front();
}

void Exchange::on_blocked(StreamNumber number) {
  Stream* stream = find(number);
  if (stream != nullptr && stream->in_turn) leave_turn(number, *stream);
}

void Exchange::on_unblocked(StreamNumber number) {
  Stream* stream = find(number);
  if (stream == nullptr || stream->abandoned || !stream->admitted || stream->in_turn || stream->out.written()) return;
  enter_turn(number, *stream);
}

}  // namespace holo::hyperbus
