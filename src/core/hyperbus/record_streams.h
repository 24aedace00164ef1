// Streams over records: what QUIC does for its streams, where there is only one ordered byte stream below. It knows
// records only as "this many plain bytes at once".
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/hyperbus/events.h"
#include "core/hyperbus/exchange.h"
#include "core/hyperbus/frame.h"

namespace holo::hyperbus {

/// A resource. Thread: one at a time. After the first error of on_frames() or on_raw() only close() is of use.
class RecordStreams {
 public:
  /// `most`: bidirectional streams the peer may have open at once. `exchange` outlives this.
  RecordStreams(Role role, std::uint64_t most, Exchange& exchange);

  // What the peer says.

  /// Takes the plain bytes of a record of frames. Errors: `malformed` (the peer broke the protocol), or what the peer
  /// said when it closed (then peer_closed() is true).
  Status on_frames(Instant now, ByteSpan plain);
  /// Not 0: the next record must be raw, and has exactly as many bytes.
  [[nodiscard]] std::size_t raw_expected() const { return raw_expected_; }
  /// Where those bytes belong (raw_expected() of them); empty: hand them to on_raw() instead.
  [[nodiscard]] MutableByteSpan raw_target();
  /// They are there (`plain` is empty), or here. Only while raw_expected() is not 0.
  Status on_raw(ByteSpan plain);
  [[nodiscard]] bool peer_closed() const { return peer_closed_; }

  // What we say.

  [[nodiscard]] bool wants_output() const;
  /// About how many bytes wait to be written, those without credit included; for sizing buffers. Never less than is so.
  [[nodiscard]] std::size_t output_estimate() const;
  /// Fills `record` (at least kMinRecordRoom) with frames, most urgent first; returns how many bytes. When `raw` is not
  /// empty afterwards, it must follow as a record of its own; it has at most `raw_room` bytes less what was returned.
  /// Seal it, then call raw_sealed(), before anything else. Makes no events.
  std::size_t write(Instant now, MutableByteSpan record, std::size_t raw_room, ByteSpan& raw);
  static constexpr std::size_t kMinRecordRoom = 10 << 10;
  /// The `raw` of the last write() is sealed: its bytes may go.
  void raw_sealed();

  Result<StreamNumber> open(bool bidirectional);
  void abandon(StreamNumber number);
  /// Nothing is said from now on, but `error`, where there is one.
  void close(const Error* error);

  void ping(Instant now);
  [[nodiscard]] bool ping_under_way() const { return ping_sent_.has_value(); }
  [[nodiscard]] Duration round_trip() const { return round_trip_; }
  [[nodiscard]] Duration min_round_trip() const { return min_round_trip_; }

 private:
  struct Stream {
    bool sent_end = false;  // our direction is finished, or was given up
    bool got_end = false;   // the peer's likewise
    bool reset_sent = false;
  };
  struct Written {
    StreamNumber stream = -1;
    std::size_t bytes = 0;
    bool fin = false;
  };

  Status on_frame(Instant now, const Frame& frame, ByteSpan rest);
  Status on_close(const Frame& frame) const;
  /// The stream that a frame names; null when it ended meanwhile.
  Result<Stream*> named(std::uint64_t number);
  Status on_data(StreamNumber number, Stream& stream, ByteSpan bytes, bool fin);
  void finish_receiving(StreamNumber number, Stream& stream);
  void finish_sending(StreamNumber number, Stream& stream);
  void forget_closed();

  std::size_t write_own_frames(MutableByteSpan record);
  std::size_t write_some(const env::QuicWrite& write, MutableByteSpan record);
  std::size_t announce_raw(const env::QuicWrite& write, MutableByteSpan record, std::size_t raw_room, ByteSpan& raw);

  Role role_;
  std::uint64_t most_;
  Exchange* exchange_;
  std::unordered_map<StreamNumber, Stream> streams_;
  std::vector<StreamNumber> closing_;  // both directions are finished
  StreamNumber next_bidirectional_, next_unidirectional_;
  StreamNumber peer_bidirectional_, peer_unidirectional_;  // the next that the peer may open
  std::uint64_t peer_open_ = 0;                            // of its bidirectional ones

  std::size_t raw_expected_ = 0;
  StreamNumber raw_stream_ = -1;
  bool raw_fin_ = false;
  Written written_;  // the exchange hears that it arrived once it is sealed

  std::vector<StreamNumber> resets_;
  std::optional<std::uint64_t> pong_;
  std::optional<std::uint64_t> ping_;
  std::uint64_t next_token_ = 1;
  std::optional<Instant> ping_sent_;
  Duration round_trip_;
  Duration min_round_trip_;
  Bytes close_frame_;
  bool closed_ = false;
  bool peer_closed_ = false;
};

}  // namespace holo::hyperbus
