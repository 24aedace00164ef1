// Requests and replies as frames: the state of a session above encryption. Frames of the peer go in, frames for the
// peer and events come out. It knows records only as "this many plain bytes at once".
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/hyperbus/frame.h"
#include "core/hyperbus/session.h"

namespace holo::hyperbus {

/// A resource. Thread: one at a time. After the first error of on_frames() only close() is of use.
class Mux {
 public:
  /// Events are appended to `events`, which outlives this.
  Mux(const std::array<ClassWindow, kStreamClasses>& windows, std::deque<Event>& events);

  // What the peer says.

  /// Takes the plain bytes of a record of frames. Errors: `malformed` (the peer broke the protocol), or what the peer
  /// said when it closed (then peer_closed() is true).
  Status on_frames(Instant now, ByteSpan plain);
  /// Not 0: the next record must be raw, and has exactly as many bytes.
  [[nodiscard]] std::size_t raw_expected() const { return raw_expected_; }
  /// Where those bytes belong (raw_expected() of them); empty when nobody wants them any more.
  [[nodiscard]] MutableByteSpan raw_target();
  /// They are there. Only while raw_expected() is not 0.
  void on_raw();
  [[nodiscard]] bool peer_closed() const { return peer_closed_; }

  // What we say.

  /// True when write() would write something.
  [[nodiscard]] bool wants_output() const;
  /// About how many bytes wait to be written, those without credit included; for sizing buffers. Never less than is so.
  [[nodiscard]] std::size_t output_estimate() const;
  /// Fills `record` (at least kMinRecordRoom) with frames, most urgent first; returns how many bytes. When `raw` is not
  /// empty afterwards, it must follow as a record of its own; it has at most `raw_room` bytes less what was returned,
  /// and stays valid until the next call. Makes no events.
  std::size_t write(Instant now, MutableByteSpan record, std::size_t raw_room, ByteSpan& raw);
  static constexpr std::size_t kMinRecordRoom = 10 << 10;

  Result<StreamId> request(Instant now, StreamClass klass, env::Request request, Instant deadline);
  void cancel(StreamId stream, Error error);
  void reply(StreamId stream, Result<env::Reply> result);
  /// Ends every open request with `error`; with `tell_peer` the last frame names it. Idempotent.
  enum class TellPeer : bool { no, yes };
  void close(const Error& error, TellPeer tell);

  /// Ends requests whose deadline has passed.
  void on_time(Instant now);
  [[nodiscard]] Instant next_deadline();

  void ping(Instant now);
  [[nodiscard]] bool ping_under_way() const { return ping_sent_.has_value(); }
  [[nodiscard]] Duration round_trip() const { return round_trip_; }
  [[nodiscard]] ClassStatus status(StreamClass klass) const;

 private:
  /// Content on its way out: header first, then payload.
  struct Outgoing {
    enum class Stage : std::uint8_t { queued, admitted, started };  // admitted: its credit is taken
    std::string header;
    std::vector<Buffer> payload;
    std::uint64_t payload_bytes = 0;
    std::size_t header_sent = 0;
    std::size_t part = 0;  // index into payload
    std::size_t part_sent = 0;
    std::uint64_t sent = 0;
    Stage stage = Stage::queued;

    Outgoing() = default;
    Outgoing(std::string header_in, std::vector<Buffer> payload_in);
    [[nodiscard]] std::uint64_t size() const { return header.size() + payload_bytes; }
    [[nodiscard]] std::uint64_t left() const { return size() - sent; }
    [[nodiscard]] bool started() const { return stage == Stage::started; }
    [[nodiscard]] ByteSpan next_part() const;  // of the payload; empty when the header is not out yet, or all is
    void skip(std::size_t n);
    std::size_t copy_some(MutableByteSpan to);
  };
  /// Content on its way in.
  struct Incoming {
    std::string header;
    std::shared_ptr<std::byte[]> payload;
    std::uint64_t header_bytes = 0;
    std::uint64_t payload_bytes = 0;
    std::uint64_t header_got = 0;
    std::uint64_t payload_got = 0;

    Incoming() = default;
    Incoming(std::uint64_t header_bytes_in, std::uint64_t payload_bytes_in);
    [[nodiscard]] std::uint64_t size() const { return header_bytes + payload_bytes; }
    [[nodiscard]] bool complete() const { return header_got == header_bytes && payload_got == payload_bytes; }
    Status add(ByteSpan content);
    std::vector<Buffer> take_payload();
  };
  /// A request of ours that has not ended.
  struct Call {
    StreamClass klass{};
    std::uint16_t type = 0;
    Instant deadline;
    Outgoing out;
    std::optional<Incoming> reply;
  };
  /// A request of the peer that has not been answered to the last byte.
  struct Served {
    StreamClass klass{};
    std::uint16_t type = 0;
    std::uint64_t time_left_us = 0;
    std::uint64_t request_bytes = 0;
    Incoming in;
    bool delivered = false;
    bool cancelled = false;
    std::optional<Outgoing> out;
    Bytes error;  // instead of `out`
  };
  /// What the peer allows us, and what we have used, over the whole session.
  struct Spent {
    Credit limit, used;
  };
  /// What we allow the peer: used by it, returned to it, and the limit it was last told.
  struct Granted {
    Credit used, returned, told;
    bool tell = true;
  };
  struct ClassState {
    ClassWindow window;
    Spent ours;
    Granted theirs;
    std::deque<std::uint64_t> waiting_requests;  // ids; those that ended meanwhile are skipped
    std::deque<std::uint64_t> waiting_replies;
    struct Active {
      std::uint64_t stream = 0;
      bool is_reply = false;
    };
    std::deque<Active> active;  // one piece each, in turn
    std::uint64_t calls = 0;
    std::uint64_t queued = 0;
    std::uint64_t queued_bytes = 0;
    std::uint64_t serving = 0;
  };
  struct Due {
    Instant when;
    std::uint64_t stream = 0;
    friend bool operator>(const Due& a, const Due& b) { return a.when > b.when; }
  };

  Status on_frame(Instant now, const Frame& frame, ByteSpan rest);
  Status on_request(const Frame& frame);
  Status on_reply(const Frame& frame);
  Status on_content(const Frame& frame);
  Status on_raw_announced(const Frame& frame, ByteSpan rest);
  void on_cancel(std::uint64_t stream);
  Status on_credit(const Frame& frame);
  void on_pong(Instant now, const Frame& frame);
  Incoming* incoming_of(std::uint64_t stream, bool is_reply);
  void deliver_request(std::uint64_t stream, Served& served);
  void deliver_if_complete(std::uint64_t stream, bool is_reply);
  void end_call(std::uint64_t stream, Result<env::Reply> result);
  void abandon_call(std::uint64_t stream, Error error);
  void end_served(std::uint64_t stream);
  static void credit_back(ClassState& state);

  std::size_t write_session_frames(MutableByteSpan record);
  ClassState* pick(Instant now);
  bool admit(Instant now, ClassState& state);
  [[nodiscard]] bool reply_may_start(const ClassState& state, const Served& served) const;
  [[nodiscard]] bool request_may_start(const ClassState& state, const Call& call) const;
  [[nodiscard]] bool has_work(const ClassState& state) const;
  [[nodiscard]] Outgoing* outgoing_of(std::uint64_t stream, bool is_reply);
  struct Piece {
    std::size_t bytes = 0;
    bool done = false;     // the message is out
    bool no_room = false;  // nothing was written because the record is too full
  };
  Piece write_piece(Instant now, ClassState::Active active, MutableByteSpan record, std::size_t raw_room,
                    ByteSpan& raw);
  std::size_t write_first(Instant now, ClassState::Active active, Outgoing& out, MutableByteSpan record);
  std::size_t write_error(std::uint64_t stream, const Served& served, MutableByteSpan record);

  ClassState& state_of(StreamClass klass) { return classes_[static_cast<std::size_t>(klass)]; }

  std::array<ClassState, kStreamClasses> classes_;
  std::deque<Event>* events_;
  std::unordered_map<std::uint64_t, Call> calls_;
  std::unordered_map<std::uint64_t, Served> served_;
  std::vector<Due> due_;  // heap, earliest first; entries of ended calls are dropped when met
  std::uint64_t next_stream_ = 1;

  std::size_t raw_expected_ = 0;
  std::uint64_t raw_stream_ = 0;
  bool raw_is_reply_ = false;

  std::vector<std::uint64_t> cancels_;
  std::optional<std::uint64_t> pong_;
  std::optional<std::uint64_t> ping_;
  std::uint64_t next_token_ = 1;
  std::optional<Instant> ping_sent_;
  Duration round_trip_;
  Bytes close_frame_;
  std::uint64_t content_left_ = 0;  // of all outgoing messages
  bool closed_ = false;
  bool peer_closed_ = false;
  bool data_turn_ = true;  // whose turn it is among data and bulk
  Buffer raw_held_;        // keeps `raw` of the last write() alive
};

}  // namespace holo::hyperbus
