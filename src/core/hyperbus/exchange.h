// Requests and replies over streams: one request is one bidirectional stream. This is the part of a session that is the
// same over QUIC and over TCP: classes and their order, credits, deadlines, cancelling. What carries the streams calls
// it with what arrives, and asks it what to send next.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/hyperbus/events.h"
#include "core/hyperbus/message.h"
#include "env/quic.h"
#include "env/transport.h"
#include "obs/histogram.h"

namespace holo::hyperbus {

using StreamNumber = env::QuicStreamId;

/// What an Exchange asks of the carrier of its streams. Streams are numbered as in QUIC on every carrier.
class Streams {
 public:
  virtual ~Streams() = default;
  /// Errors: `overloaded` (the peer allows no more; on_streams_available() follows), `unavailable`.
  virtual Result<StreamNumber> open_stream(bool bidirectional) = 0;
  /// Stops both directions of a stream, as far as they are not finished, and tells the peer. on_stream_closed()
  /// follows.
  virtual void abandon_stream(StreamNumber stream) = 0;
  /// How many bytes of bulk may be written while so many are written and have not arrived.
  virtual std::uint64_t room_for_bulk(std::uint64_t /*under_way*/) { return UINT64_MAX; }
  virtual void on_bulk_arrived(std::uint64_t /*bytes*/) {}
};

/// Bytes on their way out: kept until the carrier says that they arrived. A list, in order.
class Outgoing {
 public:
  void append(Buffer part);
  /// Ends with what is there.
  void finish() { fin_ = true; }
  [[nodiscard]] std::uint64_t unsent() const { return size_ - sent_; }
  /// All of it is with the carrier.
  [[nodiscard]] bool written() const { return fin_ && unsent() == 0; }
  /// All of it has arrived.
  [[nodiscard]] bool arrived() const { return written() && parts_.empty(); }
  /// The next unsent parts; `stream` is not touched.
  void next(env::QuicWrite& write) const;
  /// Written, and not arrived.
  [[nodiscard]] std::uint64_t under_way() const { return sent_ - acknowledged_; }
  void on_written(std::size_t bytes);
  void on_acknowledged(std::uint64_t bytes);

 private:
  std::vector<Buffer> parts_;
  std::size_t at_ = 0;         // the part where the unsent bytes begin
  std::size_t at_offset_ = 0;  // and how far into it
  std::size_t kept_ = 0;       // the first part that has not arrived
  std::size_t kept_offset_ = 0;
  std::uint64_t size_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t acknowledged_ = 0;
  bool fin_ = false;
};

/// A resource. Thread: one at a time. After the first error of on_stream_data() only close() is of use.
class Exchange {
 public:
  /// Request bytes that may wait in one class for credit; above: overloaded.
  static constexpr std::uint64_t kMaxQueuedBytes = 256 << 20;

  /// Events are appended to `events`; both outlive this.
  Exchange(const std::array<ClassWindow, kStreamClasses>& windows, Streams& streams, std::deque<Event>& events);

  // What the carrier says.

  /// Streams can be opened: the peer is told what it may send.
  void on_established();
  /// The next bytes of a stream, in order. Errors: `malformed` (the peer broke the protocol).
  Status on_stream_data(StreamNumber stream, ByteSpan bytes, bool fin);
  /// Where the next `bytes` bytes of this stream belong, so that a carrier can put them there itself; empty when they
  /// are not all payload of one message, or nobody wants them.
  [[nodiscard]] MutableByteSpan target(StreamNumber stream, std::size_t bytes);
  /// They are there. Only after a target() that was not empty.
  Status on_target_filled(StreamNumber stream, std::size_t bytes, bool fin);
  void on_stream_acknowledged(StreamNumber stream, std::uint64_t bytes);
  void on_stream_abandoned(StreamNumber stream);
  void on_stream_closed(StreamNumber stream);
  /// Packets with bytes of this stream were lost, and sent again. For people.
  void note_lost(StreamNumber stream, std::uint64_t packets);
  void on_streams_available() { streams_full_ = false; }
  void on_blocked(StreamNumber stream);
  void on_unblocked(StreamNumber stream);

  /// What to send next, most urgent first; false when nothing. Asked again without on_written() it says the same.
  bool next_write(Instant now, env::QuicWrite& write);
  void on_written(StreamNumber stream, std::size_t bytes, bool fin);
  /// True when next_write() would give something.
  [[nodiscard]] bool wants_to_write() const;
  /// About how many bytes wait to be written, those without credit included. Never less than is so.
  [[nodiscard]] std::size_t output_estimate() const;

  // What the owner wants: see Session.

  /// Where the payloads of the peer's requests go: env::Transport::Placer, of this peer.
  using Placer = std::function<std::shared_ptr<env::Landing>(const env::Request& announced, std::uint64_t bytes)>;
  void set_placer(Placer placer) { placer_ = std::move(placer); }
  Result<StreamId> request(Instant now, StreamClass klass, env::Request request, Instant deadline);
  void cancel(StreamId call, Error error);
  void reply(StreamId stream, Result<env::Reply> result);
  /// Ends every open request with `error`. Idempotent.
  void close(const Error& error);
  /// Ends requests whose deadline has passed.
  void on_time(Instant now);
  /// A request was answered `overloaded` by whom reply() does not know: counts it.
  void note_turned_away(StreamClass klass) { ++state_of(klass).turned_away; }
  [[nodiscard]] Instant next_deadline();
  [[nodiscard]] ClassStatus status(StreamClass klass) const;
  /// Bytes of the peer's requests that are announced and not answered: what they take here, or are about to.
  [[nodiscard]] std::uint64_t request_bytes() const;
  /// What status() summarises; null when nothing has waited.
  [[nodiscard]] const obs::Histogram* credit_wait(StreamClass klass) const {
    return classes_[static_cast<std::size_t>(klass)].credit_wait.get();
  }

 private:
  /// A message on its way in.
  struct Incoming {
    std::array<std::byte, RequestHead::kBytes> head{};
    std::size_t head_got = 0;
    bool has_head = false;
    std::string header;
    std::vector<Buffer> payload;            // the places that have bytes
    std::shared_ptr<env::Landing> landing;  // which gives these, if the payload goes anywhere in particular
    std::byte* at = nullptr;                // where the next byte of the payload goes,
    std::uint64_t room = 0;                 // and how many until its place is full
    std::uint64_t header_bytes = 0;         // As announced: `header` itself is gone once the message was handed over.
    std::uint64_t payload_bytes = 0;
    std::uint64_t header_got = 0;
    std::uint64_t payload_got = 0;

    void expect(std::uint64_t header_bytes_in, std::uint64_t payload_bytes_in);
    [[nodiscard]] bool has_header() const { return has_head && header_got == header_bytes; }
    /// The payload goes to `to`, when that takes it. Once, after the header.
    void place_payload(std::shared_ptr<env::Landing> to);
    [[nodiscard]] bool placed() const { return landing || !payload.empty(); }
    void next_place();
    [[nodiscard]] std::uint64_t size() const { return header_bytes + payload_bytes; }
    [[nodiscard]] bool complete() const { return has_header() && payload_got == payload_bytes; }
    /// More of the payload, but not the last of it, as most packets bring. False: it is something else.
    bool add_middle(ByteSpan bytes) {
      if (!placed() || bytes.size() >= payload_bytes - payload_got) return false;
      add_payload(bytes);
      return true;
    }
    void add_payload(ByteSpan bytes) {
      payload_got += bytes.size();
      if (!wanted()) return;
      while (!bytes.empty()) {
        if (room == 0) next_place();
        const std::size_t n = std::min<std::size_t>(bytes.size(), room);
        std::memcpy(at, bytes.data(), n);
        filled(n);
        bytes = bytes.subspan(n);
      }
    }
    void filled(std::uint64_t bytes) {
      at += bytes;
      room -= bytes;
    }
    /// False: its places were taken back.
    [[nodiscard]] bool wanted() const { return !landing || !landing->over(); }
    /// Takes what belongs to the header off `bytes`.
    void add_header(ByteSpan& bytes);
    std::vector<Buffer> take_payload();
  };
  /// A request of ours that has not ended.
  struct Call {
    StreamClass klass{};
    Instant deadline;
    StreamNumber stream = -1;  // once it is under way
    env::Request request;      // until then
    std::uint64_t bytes = 0;
    Instant asked;
    std::shared_ptr<env::Landing> landing;
  };
  struct Stream {
    StreamClass klass{};
    bool ours = false;
    std::uint64_t call = 0;  // of ours: 0 once it has ended
    bool abandoned = false;  // what still arrives is for nobody
    bool admitted = false;   // its message may be sent: the credit is taken
    bool in_turn = false;    // among the active of its class
    Outgoing out;
    Incoming in;
    // Credit that this stream holds, in the budget of its class: see release().
    bool slot = false;
    std::uint64_t request_bytes = 0;
    std::uint64_t reply_bytes = 0;
    // The peer's request.
    std::uint16_t type = 0;
    std::uint64_t time_left_us = 0;
    // The reply's head said that it is an error.
    bool error = false;
  };
  struct ClassState {
    ClassWindow window;
    Grant limit;                                 // what the peer allows us
    Grant ours;                                  // what we have under way towards the peer
    Grant theirs;                                // what the peer has under way towards us
    std::deque<std::uint64_t> waiting_requests;  // call ids; those that ended meanwhile are skipped
    std::deque<StreamNumber> waiting_replies;
    std::deque<StreamNumber> active;  // these take turns
    std::int64_t turn = 0;            // bytes left of the turn of the first of them
    std::uint64_t calls = 0;
    std::uint64_t queued = 0;
    std::uint64_t queued_bytes = 0;
    std::uint64_t serving = 0;        // handlers running, cancelled ones included
    std::uint64_t serving_bytes = 0;  // of their requests
    // For people: what waiting_requests had to wait for. kNever: for nothing but its turn.
    Instant without_credit_since = kNever;
    std::uint64_t credit_waits = 0;
    std::uint64_t overloaded = 0;
    std::uint64_t turned_away = 0;
    std::uint64_t packets_lost = 0;
    std::unique_ptr<obs::Histogram> credit_wait;  // Few connections ever need one.
  };
  struct Due {
    Instant when;
    std::uint64_t call = 0;
    friend bool operator>(const Due& a, const Due& b) { return a.when > b.when; }
  };
  ClassState& state_of(StreamClass klass) { return classes_[static_cast<std::size_t>(klass)]; }
  Stream* find(StreamNumber stream);
  Stream& find_or_open(StreamNumber stream);
  void forget(StreamNumber stream);

  Status on_message_data(StreamNumber number, Stream& stream, ByteSpan bytes, bool fin);
  Status on_head(Stream& stream);
  void place_payload(Stream& stream);
  Status on_complete(StreamNumber number, Stream& stream);
  Status on_control_data(StreamNumber number, ByteSpan bytes);
  Status on_control(std::uint8_t type, std::uint8_t klass, ByteSpan body);
  Status deliver_request(StreamNumber number, Stream& stream);
  Status deliver_reply(Stream& stream);

  void end_call(std::uint64_t call, Result<env::Reply> result);
  void abandon(StreamNumber number, Stream& stream);
  void release_reply(Stream& stream);
  void release_request(Stream& stream);
  void release_slot(Stream& stream);

  bool admit(Instant now, ClassState& state);
  bool start_request(Instant now, ClassState& state, std::uint64_t id, Call& call);
  static void note_missing_credit(Instant now, ClassState& state);
  static void note_credit_wait(Instant now, ClassState& state, const Call& call);
  [[nodiscard]] bool reply_may_start(const ClassState& state, const Stream& stream) const;
  [[nodiscard]] bool request_may_start(const ClassState& state, const Call& call) const;
  [[nodiscard]] bool has_work(const ClassState& state) const;
  void enter_turn(StreamNumber number, Stream& stream);
  void leave_turn(StreamNumber number, Stream& stream);

  std::array<ClassState, kStreamClasses> classes_;
  Streams* streams_;
  std::deque<Event>* events_;
  Placer placer_;
  std::unordered_map<std::uint64_t, Call> calls_;
  std::unordered_map<StreamNumber, Stream> open_;
  std::pair<StreamNumber, Stream*> last_{-1, nullptr};  // Of open_, the one looked for last: packets come in trains.
  /// A request delivered and not yet answered.
  struct Running {
    StreamClass klass{};
    std::uint64_t bytes = 0;
  };
  std::unordered_map<StreamNumber, Running> running_;
  std::vector<Due> due_;  // heap, earliest first; entries of ended calls are dropped when met
  std::uint64_t next_call_ = 1;
  StreamNumber control_number_ = -1;
  Outgoing control_;
  StreamNumber peer_control_ = -1;
  Bytes peer_control_partial_;
  std::uint64_t unsent_ = 0;          // of all outgoing messages
  std::uint64_t bulk_under_way_ = 0;  // written and not arrived
  bool streams_full_ = false;
  bool closed_ = false;
  bool data_turn_ = true;  // whose turn it is among data and bulk
};

}  // namespace holo::hyperbus
