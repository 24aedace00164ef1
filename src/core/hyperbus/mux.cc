#include "core/hyperbus/mux.h"

#include <algorithm>
#include <limits>

#include "base/assert.h"
#include "base/strings.h"
#include "core/hyperbus/wire_bytes.h"

namespace holo::hyperbus {
namespace {

std::unexpected<Error> broken_protocol(const char* what) {
  return fail(Errc::malformed, std::string("the peer broke the protocol: ") + what);
}

std::uint64_t step(std::uint64_t window) { return std::max<std::uint64_t>(1, window / 4); }

}  // namespace

// --- content
// -----------------------------------------------------------------------------------------------------------

Mux::Incoming::Incoming(std::uint64_t header_bytes_in, std::uint64_t payload_bytes_in)
    : header_bytes(header_bytes_in), payload_bytes(payload_bytes_in) {
  header.resize(header_bytes);
  if (payload_bytes > 0) payload = std::make_shared_for_overwrite<std::byte[]>(payload_bytes);
}

Status Mux::Incoming::add(ByteSpan content) {
  const std::size_t for_header = std::min<std::size_t>(content.size(), header_bytes - header_got);
  std::copy_n(content.begin(), for_header,
              std::as_writable_bytes(std::span(header)).begin() + static_cast<std::ptrdiff_t>(header_got));
  header_got += for_header;
  content = content.subspan(for_header);
  if (content.size() > payload_bytes - payload_got) return broken_protocol("more content than announced");
  if (!content.empty()) std::memcpy(payload.get() + payload_got, content.data(), content.size());
  payload_got += content.size();
  return {};
}

std::vector<Buffer> Mux::Incoming::take_payload() {
  std::vector<Buffer> out;
  if (payload_bytes > 0) {
    const ByteSpan span(payload.get(), payload_bytes);
    out.emplace_back(span, std::shared_ptr<const void>(std::move(payload)));
  }
  return out;
}

// --- construction, requests, replies
// -----------------------------------------------------------------------------------

Mux::Mux(const std::array<ClassWindow, kStreamClasses>& windows, std::deque<Event>& events) : events_(&events) {
  for (std::size_t i = 0; i < kStreamClasses; ++i) {
    const ClassWindow& window = windows[i];
    // The largest message must fit although up to a quarter of a window is returned but not yet told.
    constexpr std::uint64_t kLargest = limits::kMaxHeaderBytes + limits::kMaxPayloadBytes;
    HOLO_ASSERT(window.requests >= 1 && window.request_bytes - step(window.request_bytes) >= kLargest &&
                window.reply_bytes - step(window.reply_bytes) >= kLargest);
    classes_[i].window = window;
    classes_[i].theirs.told = {window.requests, window.request_bytes, window.reply_bytes};
  }
}

Result<StreamId> Mux::request(Instant now, StreamClass klass, env::Request request, Instant deadline) {
  if (closed_) return fail(Errc::unavailable, "the connection is closed");
  Outgoing out(std::move(request.header), std::move(request.payload));
  if (out.header.size() > limits::kMaxHeaderBytes || out.payload_bytes > limits::kMaxPayloadBytes) {
    return fail(Errc::invalid_argument, str("a request of ", out.size(), " bytes is over the limit of one message"));
  }
  if (deadline <= now) return fail(Errc::deadline_exceeded, "the deadline had passed before the request was sent");
  ClassState& state = state_of(klass);
  if (state.calls >= limits::kMaxCallsPerPeer || state.queued_bytes + out.size() > Session::kMaxQueuedBytes) {
    Error error{.code = Errc::overloaded,
                .message = str(state.calls, " requests to this node are waiting"),
                .hint = "try again in 50 ms",
                .retryable = true};
    return std::unexpected(std::move(error));
  }
  const std::uint64_t stream = next_stream_++;
  ++state.calls;
  ++state.queued;
  state.queued_bytes += out.size();
  content_left_ += out.size();
  calls_.emplace(stream,
                 Call{.klass = klass, .type = request.type, .deadline = deadline, .out = std::move(out), .reply = {}});
  state.waiting_requests.push_back(stream);
  if (deadline < kNever) {
    due_.push_back({deadline, stream});
    std::ranges::push_heap(due_, std::greater{});
  }
  return StreamId(stream);
}

void Mux::end_call(std::uint64_t stream, Result<env::Reply> result) {
  const auto found = calls_.find(stream);
  HOLO_ASSERT(found != calls_.end());
  const Call& call = found->second;
  ClassState& state = state_of(call.klass);
  --state.calls;
  if (call.out.stage == Outgoing::Stage::queued) {
    --state.queued;
    state.queued_bytes -= call.out.size();
  } else if (call.out.stage == Outgoing::Stage::admitted) {  // The peer never hears of it.
    state.ours.used.requests -= 1;
    state.ours.used.request_bytes -= call.out.size();
  }
  content_left_ -= call.out.left();
  if (call.reply) {  // Whatever arrived is handed over or dropped: its room is free either way.
    state.theirs.returned.reply_bytes += call.reply->size();
    credit_back(state);
  }
  calls_.erase(found);
  events_->push_back(ReplyArrived{.stream = StreamId(stream), .result = std::move(result)});
}

/// Ends a call that the peer may still be working on.
void Mux::abandon_call(std::uint64_t stream, Error error) {
  if (calls_.at(stream).out.started()) cancels_.push_back(stream);
  end_call(stream, std::unexpected(std::move(error)));
}

void Mux::cancel(StreamId stream, Error error) {
  if (calls_.contains(stream.value)) abandon_call(stream.value, std::move(error));
}

void Mux::reply(StreamId stream, Result<env::Reply> result) {
  const auto found = served_.find(stream.value);
  if (found == served_.end()) {
    HOLO_ASSERT(closed_, "a request is answered once");
    return;
  }
  Served& served = found->second;
  HOLO_ASSERT(served.delivered && !served.out && served.error.empty(), "a request is answered once");
  ClassState& state = state_of(served.klass);
  state.theirs.returned.request_bytes += std::exchange(served.request_bytes, 0);
  credit_back(state);
  if (served.cancelled) return end_served(stream.value);
  if (result) {
    Outgoing out(std::move(result->header), std::move(result->payload));
    if (out.header.size() <= limits::kMaxHeaderBytes && out.payload_bytes <= limits::kMaxPayloadBytes) {
      content_left_ += out.size();
      served.out = std::move(out);
    } else {
      result = fail(Errc::over_limit, str("a reply of ", out.size(), " bytes is over the limit of one message"));
    }
  }
  if (!result) encode_error(result.error(), served.error);
  state.waiting_replies.push_back(stream.value);
}

void Mux::end_served(std::uint64_t stream) {
  const auto found = served_.find(stream);
  ClassState& state = state_of(found->second.klass);
  if (const auto& out = found->second.out) {
    if (out->stage == Outgoing::Stage::admitted) state.ours.used.reply_bytes -= out->size();
    content_left_ -= out->left();
  }
  --state.serving;
  ++state.theirs.returned.requests;
  state.theirs.returned.request_bytes += found->second.request_bytes;
  served_.erase(found);
  credit_back(state);
}

/// Tells the peer of new credit once it is worth a frame.
void Mux::credit_back(ClassState& state) {
  Granted& granted = state.theirs;
  const auto worth = [](std::uint64_t returned, std::uint64_t window, std::uint64_t told) {
    return returned + window - told >= step(window);
  };
  granted.tell |= worth(granted.returned.requests, state.window.requests, granted.told.requests) ||
                  worth(granted.returned.request_bytes, state.window.request_bytes, granted.told.request_bytes) ||
                  worth(granted.returned.reply_bytes, state.window.reply_bytes, granted.told.reply_bytes);
}

void Mux::close(const Error& error, TellPeer tell) {
  if (closed_) return;
  closed_ = true;
  std::vector<std::uint64_t> streams;
  for (const auto& [stream, call] : calls_) streams.push_back(stream);
  std::ranges::sort(streams);  // The order of events must not depend on a hash table.
  for (const std::uint64_t stream : streams) {
    Error why = error;
    end_call(stream, std::unexpected(std::move(why)));
  }
  served_.clear();
  content_left_ = 0;
  due_.clear();
  cancels_.clear();
  raw_expected_ = 0;
  for (ClassState& state : classes_) {
    state.waiting_requests.clear();
    state.waiting_replies.clear();
    state.active.clear();
    state.serving = 0;
    state.theirs.tell = false;
  }
  ping_.reset();
  pong_.reset();
  if (tell == TellPeer::no) return;
  const std::string_view text = std::string_view(error.message).substr(0, kMaxErrorText);
  close_frame_.resize(kFrameHeaderBytes + 2);
  write_frame_header(close_frame_.data(), FrameType::close, 0, 0, 2 + text.size(), 0);
  store(close_frame_.data() + kFrameHeaderBytes, static_cast<std::uint16_t>(error.code));
  put(close_frame_, as_bytes(text));
}

// --- time
// --------------------------------------------------------------------------------------------------------------

Instant Mux::next_deadline() {
  if (due_.size() > 2 * calls_.size() + 64) {  // Mostly calls that ended long before their deadline.
    std::erase_if(due_, [this](const Due& d) { return !calls_.contains(d.stream); });
    std::ranges::make_heap(due_, std::greater{});
  }
  while (!due_.empty() && !calls_.contains(due_.front().stream)) {
    std::ranges::pop_heap(due_, std::greater{});
    due_.pop_back();
  }
  return due_.empty() ? kNever : due_.front().when;
}

void Mux::on_time(Instant now) {
  while (next_deadline() <= now) {
    abandon_call(due_.front().stream,
                 {.code = Errc::deadline_exceeded, .message = "no answer in time", .retryable = true});
  }
}

void Mux::ping(Instant now) {
  if (closed_ || ping_sent_) return;
  ping_ = next_token_++;
  ping_sent_ = now;
}

ClassStatus Mux::status(StreamClass klass) const {
  const ClassState& state = classes_[static_cast<std::size_t>(klass)];
  const Spent& ours = state.ours;
  return {.queued = state.queued,
          .in_flight = state.calls,
          .serving = state.serving,
          .request_credit = ours.limit.requests - ours.used.requests,
          .byte_credit = ours.limit.request_bytes - ours.used.request_bytes};
}

// --- what the peer says
// ------------------------------------------------------------------------------------------------

Status Mux::on_frames(Instant now, ByteSpan plain) {
  while (!plain.empty() && !closed_) {
    HOLO_ASSIGN(frame, take_frame(plain));
    HOLO_TRY(on_frame(now, frame, plain));
  }
  return {};
}

Status Mux::on_frame(Instant now, const Frame& frame, ByteSpan rest) {
  switch (frame.type) {
    case FrameType::request: return on_request(frame);
    case FrameType::reply: return on_reply(frame);
    case FrameType::data: return on_content(frame);
    case FrameType::raw: return on_raw_announced(frame, rest);
    case FrameType::cancel: on_cancel(frame.stream); return {};
    case FrameType::credit: return on_credit(frame);
    case FrameType::ping:
      if (frame.body.size() < 8) return broken_protocol("a ping without a token");
      pong_ = load<std::uint64_t>(frame.body.data());  // Of many unanswered ones the last is answered.
      return {};
    case FrameType::pong: on_pong(now, frame); return {};
    case FrameType::close: {
      Reader reader(frame.body);
      auto code = static_cast<Errc>(reader.number<std::uint16_t>());
      if (!reader.ok()) return broken_protocol("a close without a code");
      if (code < Errc::invalid_argument || code > Errc::internal) code = Errc::internal;
      peer_closed_ = true;
      return std::unexpected(
          Error{.code = Errc::unavailable,
                .message = str("the peer closed the connection: ", as_text(reader.rest()).substr(0, kMaxErrorText),
                               " [", errc_name(code), "]"),
                .retryable = true});
    }
  }
  return {};  // A later release's frame.
}

Status Mux::on_request(const Frame& frame) {
  ByteSpan body = frame.body;
  HOLO_ASSIGN(head, take_request_head(body));
  if (frame.klass >= kStreamClasses) return broken_protocol("a request of no known class");
  const auto klass = static_cast<StreamClass>(frame.klass);
  ClassState& state = state_of(klass);
  const std::uint64_t size = head.header_bytes + head.payload_bytes;
  Granted& granted = state.theirs;
  if (granted.used.requests + 1 > granted.told.requests) return broken_protocol("more requests than granted");
  if (size > granted.told.request_bytes - granted.used.request_bytes) return broken_protocol("more bytes than granted");
  granted.used.requests += 1;
  granted.used.request_bytes += size;
  const auto [place, fresh] = served_.try_emplace(frame.stream);
  if (!fresh) return broken_protocol("a stream that is open already");
  Served& served = place->second;
  served.klass = klass;
  served.type = head.type;
  served.time_left_us = head.time_left_us;
  served.request_bytes = size;
  served.in = Incoming(head.header_bytes, head.payload_bytes);
  ++state.serving;
  HOLO_TRY(served.in.add(body));
  deliver_if_complete(frame.stream, false);
  return {};
}

Status Mux::on_reply(const Frame& frame) {
  if (frame.stream >= next_stream_) return broken_protocol("a reply to what was never asked");
  const auto found = calls_.find(frame.stream);
  if (found != calls_.end() && (!found->second.out.started() || found->second.reply)) {
    return broken_protocol("a reply out of turn");
  }
  if ((frame.flags & kFlagError) != 0) {
    HOLO_ASSIGN(error, decode_error(frame.body));
    if (found != calls_.end()) end_call(frame.stream, std::unexpected(std::move(error)));
    return {};
  }
  ByteSpan body = frame.body;
  HOLO_ASSIGN(head, take_reply_head(body));
  if (frame.klass >= kStreamClasses) return broken_protocol("a reply of no known class");
  ClassState& state = state_of(static_cast<StreamClass>(frame.klass));
  if (found != calls_.end() && found->second.klass != static_cast<StreamClass>(frame.klass)) {
    return broken_protocol("a reply of another class than its request");
  }
  const std::uint64_t size = head.header_bytes + head.payload_bytes;
  Granted& granted = state.theirs;
  if (size > granted.told.reply_bytes - granted.used.reply_bytes) return broken_protocol("more bytes than granted");
  granted.used.reply_bytes += size;
  if (found == calls_.end()) {  // Cancelled here while the answer was on its way.
    granted.returned.reply_bytes += size;
    credit_back(state);
    return {};
  }
  found->second.reply.emplace(head.header_bytes, head.payload_bytes);
  HOLO_TRY(found->second.reply->add(body));
  deliver_if_complete(frame.stream, true);
  return {};
}

/// Where content of `stream` goes; null when nobody waits for it.
Mux::Incoming* Mux::incoming_of(std::uint64_t stream, bool is_reply) {
  if (is_reply) {
    const auto found = calls_.find(stream);
    return found != calls_.end() && found->second.reply ? &*found->second.reply : nullptr;
  }
  const auto found = served_.find(stream);
  return found != served_.end() && !found->second.delivered ? &found->second.in : nullptr;
}

Status Mux::on_content(const Frame& frame) {
  const bool is_reply = (frame.flags & kFlagReply) != 0;
  Incoming* incoming = incoming_of(frame.stream, is_reply);
  if (incoming == nullptr) return {};
  HOLO_TRY(incoming->add(frame.body));
  deliver_if_complete(frame.stream, is_reply);
  return {};
}

Status Mux::on_raw_announced(const Frame& frame, ByteSpan rest) {
  Reader reader(frame.body);
  const auto n = reader.number<std::uint32_t>();
  if (!reader.ok() || n == 0 || n > kMaxRecordPlain) return broken_protocol("a raw record of an impossible size");
  if (!rest.empty()) return broken_protocol("frames between a raw record and its announcement");
  raw_is_reply_ = (frame.flags & kFlagReply) != 0;
  if (const Incoming* incoming = incoming_of(frame.stream, raw_is_reply_)) {
    if (incoming->header_got < incoming->header_bytes || n > incoming->payload_bytes - incoming->payload_got) {
      return broken_protocol("more content than announced");
    }
  }
  raw_expected_ = n;
  raw_stream_ = frame.stream;
  return {};
}

MutableByteSpan Mux::raw_target() {
  Incoming* incoming = incoming_of(raw_stream_, raw_is_reply_);
  if (incoming == nullptr) return {};  // The call may have been cancelled between the two records.
  return {incoming->payload.get() + incoming->payload_got, raw_expected_};
}

void Mux::on_raw() {
  const std::size_t n = std::exchange(raw_expected_, 0);
  Incoming* incoming = incoming_of(raw_stream_, raw_is_reply_);
  if (incoming == nullptr) return;
  incoming->payload_got += n;
  deliver_if_complete(raw_stream_, raw_is_reply_);
}

void Mux::deliver_if_complete(std::uint64_t stream, bool is_reply) {
  if (is_reply) {
    Incoming& reply = *calls_.at(stream).reply;
    if (!reply.complete()) return;
    env::Reply content{.header = std::move(reply.header), .payload = reply.take_payload()};
    end_call(stream, std::move(content));
    return;
  }
  Served& served = served_.at(stream);
  if (served.in.complete()) deliver_request(stream, served);
}

void Mux::deliver_request(std::uint64_t stream, Served& served) {
  served.delivered = true;
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max() / 1000;
  env::Request request{.type = served.type, .header = std::move(served.in.header), .payload = served.in.take_payload()};
  events_->push_back(
      RequestArrived{.stream = StreamId(stream),
                     .klass = served.klass,
                     .request = std::move(request),
                     .time_left = microseconds(static_cast<std::int64_t>(std::min(served.time_left_us, kMost)))});
}

void Mux::on_cancel(std::uint64_t stream) {
  const auto found = served_.find(stream);
  if (found == served_.end() || found->second.cancelled) return;
  Served& served = found->second;
  const bool answered = served.out || !served.error.empty();
  if (!served.delivered || answered) return end_served(stream);
  served.cancelled = true;  // Its place stays taken until reply(): cancelling must not let more work in than granted.
  events_->push_back(RequestCancelled{StreamId(stream)});
}

Status Mux::on_credit(const Frame& frame) {
  ByteSpan body = frame.body;
  HOLO_ASSIGN(credit, take_credit(body));
  if (frame.klass >= kStreamClasses) return {};  // A later release's class.
  Credit& limit = classes_[frame.klass].ours.limit;
  limit.requests = std::max(limit.requests, credit.requests);
  limit.request_bytes = std::max(limit.request_bytes, credit.request_bytes);
  limit.reply_bytes = std::max(limit.reply_bytes, credit.reply_bytes);
  return {};
}

void Mux::on_pong(Instant now, const Frame& frame) {
  if (frame.body.size() < 8 || !ping_sent_ || load<std::uint64_t>(frame.body.data()) + 1 != next_token_) return;
  round_trip_ = now - *ping_sent_;
  ping_sent_.reset();
}

}  // namespace holo::hyperbus
