#include "core/hyperbus/exchange.h"

#include <algorithm>
#include <limits>

#include "base/assert.h"
#include "base/limits.h"
#include "base/strings.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

std::unexpected<Error> broken_protocol(const char* what) {
  return fail(Errc::malformed, std::string("the peer broke the protocol: ") + what);
}

Error overloaded(std::string message) {
  return {.code = Errc::overloaded,
          .message = std::move(message),
          .retryable = true,
          .retry_after = std::chrono::milliseconds(50)};
}

std::uint64_t payload_size(const std::vector<Buffer>& parts) {
  std::uint64_t sum = 0;
  for (const Buffer& part : parts) sum += part.size();
  return sum;
}

}  // namespace

// --- messages on their way in

void Exchange::Incoming::expect(std::uint64_t header_bytes_in, std::uint64_t payload_bytes_in) {
  has_head = true;
  header_bytes = header_bytes_in;
  header.resize(header_bytes);
  payload_bytes = payload_bytes_in;
}

void Exchange::Incoming::add_header(ByteSpan& bytes) {
  const std::size_t n = std::min<std::size_t>(bytes.size(), header_bytes - header_got);
  if (n > 0) std::memcpy(header.data() + header_got, bytes.data(), n);
  header_got += n;
  bytes = bytes.subspan(n);
}

void Exchange::Incoming::place_payload(std::shared_ptr<env::Landing> to) {
  if (to && !to->over() && to->takes(header, payload_bytes)) {
    landing = std::move(to);
    return;
  }
  auto whole = std::make_shared_for_overwrite<std::byte[]>(payload_bytes);
  at = whole.get();
  room = payload_bytes;
  payload.emplace_back(ByteSpan(at, room), std::move(whole));
}

void Exchange::Incoming::next_place() {
  env::Landing::Place place = landing->next();
  HOLO_ASSERT(!place.bytes.empty());
  at = place.bytes.data();
  room = place.bytes.size();
  payload.emplace_back(place.bytes, std::move(place.owner));
}

std::vector<Buffer> Exchange::Incoming::take_payload() {
  landing.reset();
  return std::move(payload);
}

// --- what the owner wants

Exchange::Exchange(const std::array<ClassWindow, kStreamClasses>& windows, Streams& streams, std::deque<Event>& events)
    : streams_(&streams), events_(&events) {
  for (std::size_t i = 0; i < kStreamClasses; ++i) {
    constexpr std::uint64_t kLargest = limits::kMaxHeaderBytes + limits::kMaxPayloadBytes;
    HOLO_ASSERT(windows[i].requests >= 1 && windows[i].request_bytes >= kLargest && windows[i].reply_bytes >= kLargest,
                "the largest message must fit into a window");
    classes_[i].window = windows[i];
  }
}

Result<StreamId> Exchange::request(Instant now, StreamClass klass, env::Request request, Instant deadline) {
  if (closed_) return fail(Errc::unavailable, "the connection is closed");
  const std::uint64_t payload = payload_size(request.payload);
  const std::uint64_t bytes = request.header.size() + payload;
  if (request.header.size() > limits::kMaxHeaderBytes || payload > limits::kMaxPayloadBytes) {
    return fail(Errc::invalid_argument, str("a request of ", bytes, " bytes is over the limit of one message"));
  }
  if (deadline <= now) return fail(Errc::deadline_exceeded, "the deadline had passed before the request was sent");
  ClassState& state = state_of(klass);
  if (state.calls >= limits::kMaxCallsPerPeer || state.queued_bytes + bytes > kMaxQueuedBytes) {
    ++state.overloaded;
    return std::unexpected(overloaded(str(state.calls, " requests to this node are waiting")));
  }
  const std::uint64_t id = next_call_++;
  ++state.calls;
  ++state.queued;
  state.queued_bytes += bytes;
  auto landing = std::move(request.landing);
  const auto& call = calls_
                         .emplace(id, Call{.klass = klass,
                                           .deadline = deadline,
                                           .request = std::move(request),
                                           .bytes = bytes,
                                           .asked = now,
                                           .landing = std::move(landing)})
                         .first->second;
  if (!request_may_start(state, call)) note_missing_credit(now, state);
  state.waiting_requests.push_back(id);
  if (deadline < kNever) {
    due_.push_back({deadline, id});
    std::ranges::push_heap(due_, std::greater{});
  }
  return StreamId(id);
}

void Exchange::end_call(std::uint64_t id, Result<env::Reply> result) {
  const auto found = calls_.find(id);
  HOLO_ASSERT(found != calls_.end());
  const Call& call = found->second;
  ClassState& state = state_of(call.klass);
  --state.calls;
  if (call.stream < 0) {
    if (state.without_credit_since < kNever) ++state.credit_waits;
    --state.queued;
    state.queued_bytes -= call.bytes;
  } else if (Stream* stream = find(call.stream)) {
    stream->call = 0;
    release_reply(*stream);  // It has arrived, or what is still to come is dropped. The rest see release_slot().
  }
  calls_.erase(found);
  events_->push_back(ReplyArrived{.stream = StreamId(id), .result = std::move(result)});
}

void Exchange::cancel(StreamId call, Error error) {
  const auto found = calls_.find(call.value);
  if (found == calls_.end()) return;
  if (const StreamNumber number = found->second.stream; number >= 0) {
    if (Stream* stream = find(number)) abandon(number, *stream);
  }
  end_call(call.value, std::unexpected(std::move(error)));
}

void Exchange::reply(StreamId id, Result<env::Reply> result) {
  const auto number = static_cast<StreamNumber>(id.value);
  const auto running = running_.find(number);
  if (running == running_.end()) {
    HOLO_ASSERT(closed_, "a request is answered once");
    return;
  }
  ClassState& of = state_of(running->second.klass);
  --of.serving;
  of.serving_bytes -= running->second.bytes;
  running_.erase(running);
  Stream* stream = find(number);
  if (stream == nullptr || stream->abandoned) return;  // Nobody waits for it any more.
  if (result) {
    const std::uint64_t payload = payload_size(result->payload);
    if (result->header.size() > limits::kMaxHeaderBytes || payload > limits::kMaxPayloadBytes) {
      result = fail(Errc::over_limit,
                    str("a reply of ", result->header.size() + payload, " bytes is over the limit of one message"));
    }
  }
  Bytes start(ReplyHead::kBytes);
  ReplyHead head;
  if (result) {
    put(start, as_bytes(result->header));
    head.payload_bytes = payload_size(result->payload);
  } else {
    encode_error(result.error(), start);
    head.error = true;
  }
  head.header_bytes = static_cast<std::uint32_t>(start.size() - ReplyHead::kBytes);
  write_head(start.data(), head);
  stream->out.append(Buffer(std::move(start)));
  if (result) {
    for (Buffer& part : result->payload) stream->out.append(std::move(part));
  }
  stream->out.finish();
  unsent_ += stream->out.unsent();
  release_request(*stream);
  state_of(stream->klass).waiting_replies.push_back(number);
}

void Exchange::close(const Error& error) {
  if (closed_) return;
  closed_ = true;
  std::vector<std::uint64_t> calls;
  for (const auto& [id, call] : calls_) calls.push_back(id);
  std::ranges::sort(calls);  // The order of events must not depend on a hash table.
  for (const std::uint64_t id : calls) end_call(id, std::unexpected(error));
  running_.clear();
  due_.clear();
  unsent_ = 0;
  for (ClassState& state : classes_) {
    state.waiting_requests.clear();
    state.waiting_replies.clear();
    state.active.clear();
    state.serving = state.serving_bytes = 0;
  }
  // open_ stays: what carries the streams may still look at their bytes on the way out. What came in half goes at once,
  // as its places are somebody's.
  for (auto& [number, stream] : open_) stream.in = Incoming();
}

// --- time

Instant Exchange::next_deadline() {
  if (due_.size() > 2 * calls_.size() + 64) {  // Mostly calls that ended long before their deadline.
    std::erase_if(due_, [this](const Due& d) { return !calls_.contains(d.call); });
    std::ranges::make_heap(due_, std::greater{});
  }
  while (!due_.empty() && !calls_.contains(due_.front().call)) {
    std::ranges::pop_heap(due_, std::greater{});
    due_.pop_back();
  }
  return due_.empty() ? kNever : due_.front().when;
}

void Exchange::on_time(Instant now) {
  while (next_deadline() <= now) {
    cancel(StreamId(due_.front().call),
           {.code = Errc::deadline_exceeded, .message = "no answer in time", .retryable = true});
  }
}

ClassStatus Exchange::status(StreamClass klass) const {
  const ClassState& state = classes_[static_cast<std::size_t>(klass)];
  const auto left = [](std::uint64_t limit, std::uint64_t used) { return limit - std::min(limit, used); };
  return {.queued = state.queued,
          .in_flight = state.calls,
          .serving = state.serving,
          .request_credit = left(state.limit.requests, state.ours.requests),
          .byte_credit = left(state.limit.request_bytes, state.ours.request_bytes),
          .credit_waits = state.credit_waits,
          .overloaded = state.overloaded,
          .turned_away = state.turned_away,
          .packets_lost = state.packets_lost,
          .credit_wait = state.credit_wait ? state.credit_wait->summary() : obs::Summary()};
}

std::uint64_t Exchange::request_bytes() const {
  std::uint64_t sum = 0;
  for (const ClassState& state : classes_) sum += state.theirs.request_bytes;
  return sum;
}

// --- credit
//
// A stream holds credit of its class while it needs the other side's memory. Both sides count the same streams, and the
// one that grants lets go first: before it sends that by which the other one lets go. So whatever is lost or overtaken
// on the way, a sender that counts right is never over what its peer counts, and neither needs to tell the other.
//
//                    who grants lets go                         who is granted lets go
//   a slot           its answer is written to the end,          the stream is closed: the end of the answer,
//                    or the stream was given up                 or a reset, is here
//   request bytes    the answer is handed in, or given up       the answer's head is here, or the stream is closed
//   reply bytes      the answer is here, or given up            all of it is acknowledged, or the stream is closed

Exchange::Stream* Exchange::find(StreamNumber number) {
  if (last_.first == number) return last_.second;
  const auto found = open_.find(number);
  if (found == open_.end()) return nullptr;
  last_ = {number, &found->second};
  return last_.second;
}

Exchange::Stream& Exchange::find_or_open(StreamNumber number) {
  Stream* known = find(number);
  return known != nullptr ? *known : open_[number];
}

void Exchange::forget(StreamNumber number) {
  last_ = {-1, nullptr};
  open_.erase(number);
}

void Exchange::release_request(Stream& stream) {
  ClassState& state = state_of(stream.klass);
  (stream.ours ? state.ours : state.theirs).request_bytes -= std::exchange(stream.request_bytes, 0);
}

void Exchange::release_reply(Stream& stream) {
  ClassState& state = state_of(stream.klass);
  (stream.ours ? state.theirs : state.ours).reply_bytes -= std::exchange(stream.reply_bytes, 0);
}

void Exchange::release_slot(Stream& stream) {
  ClassState& state = state_of(stream.klass);
  if (std::exchange(stream.slot, false)) --(stream.ours ? state.ours : state.theirs).requests;
}

// --- what the carrier says

Status Exchange::on_stream_data(StreamNumber number, ByteSpan bytes, bool fin) {
  if (closed_) return {};
  if (number == last_.first && !fin && !last_.second->abandoned && last_.second->in.add_middle(bytes)) return {};
  if (!env::is_bidirectional(number)) return on_control_data(number, bytes);
  Stream& stream = find_or_open(number);  // Unknown ones are new, and the peer's: the carrier sees to that.
  if (stream.abandoned) return {};
  return on_message_data(number, stream, bytes, fin);
}

Status Exchange::on_message_data(StreamNumber number, Stream& stream, ByteSpan bytes, bool fin) {
  Incoming& in = stream.in;
  if (!in.has_head) {
    const std::size_t whole = stream.ours ? ReplyHead::kBytes : RequestHead::kBytes;
    const std::size_t n = std::min(bytes.size(), whole - in.head_got);
    std::copy_n(bytes.begin(), n, in.head.begin() + static_cast<std::ptrdiff_t>(in.head_got));
    in.head_got += n;
    bytes = bytes.subspan(n);
    if (in.head_got < whole) return fin ? broken_protocol("a stream that ends within its head") : Status();
    HOLO_TRY(on_head(stream));
    if (in.complete() && bytes.empty()) return on_complete(number, stream);
  }
  const bool was_complete = in.complete();
  in.add_header(bytes);
  if (in.has_header() && in.payload_got < in.payload_bytes && !in.placed()) place_payload(stream);
  if (bytes.empty() && (was_complete || (!fin && !in.complete()))) return {};
  if (bytes.size() > in.payload_bytes - in.payload_got) return broken_protocol("more content than announced");
  if (!bytes.empty()) in.add_payload(bytes);
  if (in.complete()) return on_complete(number, stream);
  return fin ? broken_protocol("less content than announced") : Status();
}

Status Exchange::on_head(Stream& stream) {
  Incoming& in = stream.in;
  if (stream.ours) {
    HOLO_ASSIGN(head, read_reply_head(ByteSpan(in.head).first(ReplyHead::kBytes)));
    const std::uint64_t size = head.header_bytes + head.payload_bytes;
    ClassState& state = state_of(stream.klass);
    if (size > state.window.reply_bytes - state.theirs.reply_bytes) return broken_protocol("more bytes than granted");
    state.theirs.reply_bytes += size;
    stream.reply_bytes = size;
    stream.error = head.error;
    release_request(stream);
    in.expect(head.header_bytes, head.payload_bytes);
    return {};
  }
  HOLO_ASSIGN(head, read_request_head(in.head));
  if (head.klass >= kStreamClasses) return broken_protocol("a request of no known class");
  stream.klass = static_cast<StreamClass>(head.klass);
  ClassState& state = state_of(stream.klass);
  const std::uint64_t size = head.header_bytes + head.payload_bytes;
  if (state.theirs.requests >= state.window.requests) return broken_protocol("more requests than granted");
  if (size > state.window.request_bytes - state.theirs.request_bytes) return broken_protocol("more bytes than granted");
  ++state.theirs.requests;
  stream.slot = true;
  state.theirs.request_bytes += size;
  stream.request_bytes = size;
  stream.type = head.type;
  stream.time_left_us = head.time_left_us;
  in.expect(head.header_bytes, head.payload_bytes);
  return {};
}

void Exchange::place_payload(Stream& stream) {
  Incoming& in = stream.in;
  std::shared_ptr<env::Landing> to;
  if (stream.ours) {
    const auto call = calls_.find(stream.call);
    if (call != calls_.end() && !stream.error) to = call->second.landing;
  } else if (placer_) {
    env::Request announced{.type = stream.type, .header = std::move(in.header), .payload = {}};
    to = placer_(announced, in.payload_bytes);
    in.header = std::move(announced.header);
  }
  in.place_payload(std::move(to));
}

Status Exchange::on_complete(StreamNumber number, Stream& stream) {
  return stream.ours ? deliver_reply(stream) : deliver_request(number, stream);
}

Status Exchange::deliver_reply(Stream& stream) {
  const std::uint64_t id = stream.call;
  const StreamNumber number = calls_.at(id).stream;
  if (stream.error) {
    HOLO_ASSIGN(error, decode_error(as_bytes(stream.in.header)));
    end_call(id, std::unexpected(std::move(error)));
  } else {
    env::Reply reply{.header = std::move(stream.in.header), .payload = stream.in.take_payload()};
    end_call(id, std::move(reply));
  }
  // An answer may come before all of the question was said; the rest is of no use.
  if (!stream.out.written()) abandon(number, stream);
  return {};
}

Status Exchange::deliver_request(StreamNumber number, Stream& stream) {
  ClassState& state = state_of(stream.klass);
  const std::uint64_t bytes = stream.in.size();
  const bool room = state.serving < state.window.requests && bytes <= state.window.request_bytes - state.serving_bytes;
  running_.emplace(number, Running{.klass = stream.klass, .bytes = room ? bytes : 0});
  ++state.serving;
  if (room) state.serving_bytes += bytes;
  if (!room) {  // Cancelled requests whose handlers still run: cancelling must not let more work in than granted.
    ++state.turned_away;
    reply(StreamId(static_cast<std::uint64_t>(number)),
          std::unexpected(overloaded("this node is still at work on requests that were cancelled")));
    return {};
  }
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max() / 1000;
  env::Request request{.type = stream.type, .header = std::move(stream.in.header), .payload = stream.in.take_payload()};
  events_->push_back(
      RequestArrived{.stream = StreamId(static_cast<std::uint64_t>(number)),
                     .klass = stream.klass,
                     .request = std::move(request),
                     .time_left = microseconds(static_cast<std::int64_t>(std::min(stream.time_left_us, kMost)))});
  return {};
}

MutableByteSpan Exchange::target(StreamNumber number, std::size_t bytes) {
  Stream* stream = find(number);
  if (closed_ || stream == nullptr || stream->abandoned) return {};
  Incoming& in = stream->in;
  if (!in.placed() || !in.wanted() || bytes == 0 || bytes > in.payload_bytes - in.payload_got) return {};
  if (in.room == 0) in.next_place();
  return bytes <= in.room ? MutableByteSpan(in.at, bytes) : MutableByteSpan();
}

Status Exchange::on_target_filled(StreamNumber number, std::size_t bytes, bool fin) {
  Stream& stream = *find(number);
  stream.in.filled(bytes);
  stream.in.payload_got += bytes;
  if (stream.in.complete()) return on_complete(number, stream);
  return fin ? broken_protocol("less content than announced") : Status();
}

void Exchange::on_stream_acknowledged(StreamNumber number, std::uint64_t bytes) {
  if (number == control_number_) return control_.on_acknowledged(bytes);
  Stream* stream = find(number);
  if (stream == nullptr) return;
  if (stream->klass == StreamClass::bulk) {
    bulk_under_way_ -= bytes;
    streams_->on_bulk_arrived(bytes);
  }
  stream->out.on_acknowledged(bytes);
  if (!stream->ours && stream->out.arrived()) release_reply(*stream);
}

void Exchange::abandon(StreamNumber number, Stream& stream) {
  if (std::exchange(stream.abandoned, true)) return;
  if (stream.in_turn) leave_turn(number, stream);
  unsent_ -= stream.out.unsent();
  stream.in = Incoming();
  if (!stream.ours) {
    release_slot(stream);
    release_request(stream);
  }
  streams_->abandon_stream(number);
}

void Exchange::on_stream_abandoned(StreamNumber number) {
  if (closed_) return;
  Stream* stream = find(number);
  if (stream == nullptr) return streams_->abandon_stream(number);  // Opened and given up before it said anything.
  if (stream->abandoned) return;
  const std::uint64_t call = stream->call;
  abandon(number, *stream);
  if (call != 0) {
    end_call(call, fail(Errc::unavailable, "the other node gave the request up"));
  } else if (running_.contains(number)) {
    events_->push_back(RequestCancelled{StreamId(static_cast<std::uint64_t>(number))});
  }
}

void Exchange::note_lost(StreamNumber number, std::uint64_t packets) {
  if (const Stream* stream = find(number); stream != nullptr) state_of(stream->klass).packets_lost += packets;
}

void Exchange::on_stream_closed(StreamNumber number) {
  if (number == control_number_) return;
  Stream* known = find(number);
  if (known == nullptr) return;
  Stream& stream = *known;
  if (!closed_) {
    if (stream.call != 0) end_call(stream.call, fail(Errc::unavailable, "the other node gave the request up"));
    if (stream.in_turn) leave_turn(number, stream);
    if (!stream.abandoned) unsent_ -= stream.out.unsent();
  }
  release_slot(stream);
  release_request(stream);
  release_reply(stream);
  if (stream.klass == StreamClass::bulk) bulk_under_way_ -= stream.out.under_way();
  forget(number);
}

// --- the peer's control stream

Status Exchange::on_control_data(StreamNumber number, ByteSpan bytes) {
  if (bytes.empty()) return {};
  if (number != peer_control_) {
    if (!open_.try_emplace(number).second) return {};  // Of a kind that a later release knows.
    if (std::to_integer<std::uint8_t>(bytes[0]) != kControlStream) return {};
    forget(number);
    if (peer_control_ >= 0) return broken_protocol("a second control stream");
    peer_control_ = number;
    bytes = bytes.subspan(1);
  }
  Bytes& partial = peer_control_partial_;
  put(partial, bytes);
  std::size_t at = 0;
  while (partial.size() - at >= kControlHeadBytes) {
    const ByteSpan head = ByteSpan(partial).subspan(at);
    const std::size_t length = load<std::uint16_t>(head.data() + 2);
    if (head.size() < kControlHeadBytes + length) break;
    HOLO_TRY(on_control(std::to_integer<std::uint8_t>(head[0]), std::to_integer<std::uint8_t>(head[1]),
                        head.subspan(kControlHeadBytes, length)));
    at += kControlHeadBytes + length;
  }
  partial.erase(partial.begin(), partial.begin() + static_cast<std::ptrdiff_t>(at));
  return {};
}

Status Exchange::on_control(std::uint8_t type, std::uint8_t klass, ByteSpan body) {
  if (static_cast<ControlType>(type) != ControlType::grant || klass >= kStreamClasses) return {};  // A later release's.
  HOLO_ASSIGN(grant, decode_grant(body));
  classes_[klass].limit = grant;
  return {};
}

}  // namespace holo::hyperbus
