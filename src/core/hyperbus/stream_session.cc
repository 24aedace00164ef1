#include "core/hyperbus/stream_session.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/assert.h"
#include "base/strings.h"
#include "core/hyperbus/frame.h"
#include "core/hyperbus/record.h"
#include "core/hyperbus/record_streams.h"

namespace holo::hyperbus {
namespace {

/// A keep-alive may be late by two of so many parts of its time.
constexpr std::int64_t kKeepAliveParts = 8;
constexpr std::size_t kMaxRefusalBytes = 64;
/// Sealed bytes made at once: four pages of 64 KiB and what announces them.
constexpr std::size_t kBlockBytes = 272 << 10;
/// Room for one full raw record, so that large payloads are not chopped.
constexpr std::size_t kLeastBlockBytes = 72 << 10;
/// Blocks above this come from the pool, where they keep their pages.
constexpr std::size_t kPooledBytes = 32 << 10;
constexpr std::size_t kMaxPooledBlocks = 4;
/// So many small outputs in a row (heartbeats), and the pool is given back.
constexpr unsigned kSmallOutputs = 64;

using Block = std::shared_ptr<std::byte[]>;

}  // namespace

struct StreamSession::Impl {
  /// handshaking, then (initiators only) confirming until the first record of the peer proves that it has the keys too.
  enum class State : std::uint8_t { handshaking, confirming, running, over };
  enum class TellPeer : bool { no, yes };

  Impl(StreamSession& session_in, env::Entropy& entropy, Instant now, NodeId expected)
      : session(session_in),
        config(*session_in.config_),
        streams(session_in.role_, config.streams(), session_in.exchange_),
        last_received(now),
        handshake_until(now + config.handshake_deadline) {
    handshake.emplace(session.role_, config.handshake, entropy, expected);
    if (session.role_ == Role::initiator) {
      auto first = handshake->start();
      HOLO_ASSERT(first.has_value());
      send_handshake(RecordKind::handshake, *first);
    }
  }

  // In.
  void feed(Instant now, ByteSpan bytes);
  void feed_some(Instant now, ByteSpan& bytes);
  [[nodiscard]] bool acceptable(ByteSpan start);
  void on_record(Instant now, ByteSpan record);
  void on_handshake(ByteSpan message);
  void on_refusal(ByteSpan body);
  void on_sealed(Instant now, RecordKind kind, ByteSpan record);
  void keys_agreed();
  void announce();

  // Out.
  void send_handshake(RecordKind kind, ByteSpan body);
  std::size_t fill(Instant now, MutableByteSpan block);
  Block block_of(std::size_t bytes);
  [[nodiscard]] bool wants_output() const;

  // The end.
  void handshake_failed(HandshakeFailure failure);
  void end(Error error, RefusalKind kind, TellPeer tell);
  [[nodiscard]] bool has_keys() const { return state == State::confirming || state == State::running; }

  StreamSession& session;
  const SessionConfig& config;
  RecordStreams streams;
  State state = State::handshaking;
  std::optional<Handshake> handshake;
  std::optional<RecordKey> sending, receiving;
  bool spoke = false;          // the peer's first handshake message is here
  bool authenticated = false;  // a sealed record of the peer was opened

  Bytes partial;  // the beginning of a record whose rest has not arrived
  Bytes scratch;  // plain frames of the record being read
  Bytes clear_out;
  std::vector<Block> pool;
  unsigned small_outputs = 0;

  Instant last_received;
  Instant handshake_until;
  std::uint64_t bytes_in = 0;
  std::uint64_t bytes_out = 0;
  std::uint64_t records_out = 0;
};

// --- in

void StreamSession::Impl::feed(Instant now, ByteSpan bytes) {
  bytes_in += bytes.size();
  last_received = now;
  while (!bytes.empty() && state != State::over) feed_some(now, bytes);
}

/// Reads one record, or keeps what there is of one.
void StreamSession::Impl::feed_some(Instant now, ByteSpan& bytes) {
  const auto take = [&bytes](std::size_t n) { return std::exchange(bytes, bytes.subspan(n)).first(n); };
  if (partial.empty()) {
    // The usual case: a whole record lies in the carrier's buffer, and is opened from there.
    if (!acceptable(bytes)) return;
    const std::size_t whole =
        bytes.size() < kRecordHeaderBytes ? kRecordHeaderBytes : kRecordHeaderBytes + read_record_header(bytes).length;
    if (bytes.size() >= kRecordHeaderBytes && bytes.size() >= whole) return on_record(now, take(whole));
    partial.reserve(whole);
  }
  const auto add = [this](ByteSpan more) { partial.insert(partial.end(), more.begin(), more.end()); };
  if (partial.size() < kRecordHeaderBytes) {
    add(take(std::min(bytes.size(), kRecordHeaderBytes - partial.size())));
    if (!acceptable(partial) || partial.size() < kRecordHeaderBytes) return;
  }
  const std::size_t whole = kRecordHeaderBytes + read_record_header(partial).length;
  partial.reserve(whole);
  add(take(std::min(bytes.size(), whole - partial.size())));
  if (state == State::handshaking && !acceptable(partial)) return;
  if (partial.size() < whole) return;
  on_record(now, partial);
  partial.clear();
}

/// Judges the first bytes of a record as early as they can be judged, so that garbage ends at once and nobody can make
/// us wait for, or keep, more than a record.
bool StreamSession::Impl::acceptable(ByteSpan start) {
  const auto kind = static_cast<RecordKind>(start[0]);
  const bool sealed = kind == RecordKind::frames || kind == RecordKind::raw;
  // A responder hears one after its own message: the initiator does not take its identity.
  const bool refusal = kind == RecordKind::refusal && (session.role_ == Role::initiator || spoke) && !authenticated;
  const bool message = kind == RecordKind::handshake && state == State::handshaking;
  bool fine = message || refusal || (sealed && has_keys());
  if (fine && start.size() >= kRecordHeaderBytes) {
    const std::size_t length = read_record_header(start).length;
    if (message) fine = length <= kMaxHandshakeMessageBytes;
    if (refusal) fine = length <= kMaxRefusalBytes;
    if (sealed) fine = length >= crypto::kAeadTagBytes && length <= kMaxRecordPlain + crypto::kAeadTagBytes;
  }
  if (fine && message && !spoke && session.role_ == Role::responder) {
    const std::string_view seen = as_text(start).substr(std::min(start.size(), kRecordHeaderBytes));
    const std::size_t n = std::min(seen.size(), kMagic.size());
    fine = seen.substr(0, n) == kMagic.substr(0, n);
  }
  if (fine) return true;
  if (has_keys()) {
    end({.code = Errc::malformed, .message = str(session.peer_name(), " sent bytes that are no record")},
        RefusalKind::none, TellPeer::yes);
  } else {
    end({.code = Errc::malformed, .message = "bytes that are not the hyperbus protocol"}, RefusalKind::garbage,
        TellPeer::no);
  }
  return false;
}

void StreamSession::Impl::on_record(Instant now, ByteSpan record) {
  const RecordKind kind = read_record_header(record).kind;
  switch (kind) {
    case RecordKind::handshake: return on_handshake(record.subspan(kRecordHeaderBytes));
    case RecordKind::refusal: return on_refusal(record.subspan(kRecordHeaderBytes));
    case RecordKind::frames:
    case RecordKind::raw: return on_sealed(now, kind, record);
  }
}

void StreamSession::Impl::on_handshake(ByteSpan message) {
  spoke = true;
  auto answer = handshake->on_message(message);
  if (!answer) return handshake_failed(std::move(answer).error());
  if (!answer->empty()) send_handshake(RecordKind::handshake, *answer);
  if (handshake->done()) keys_agreed();
}

void StreamSession::Impl::keys_agreed() {
  HandshakeResult& agreed = session.agreed_ = handshake->take_result();
  handshake.reset();
  sending.emplace(agreed.aead, std::move(agreed.send_secret), config.records_per_key);
  receiving.emplace(agreed.aead, std::move(agreed.receive_secret), config.records_per_key);
  state = State::confirming;
  if (session.role_ == Role::responder) announce();  // The third message proved that the initiator has the keys.
}

void StreamSession::Impl::announce() {
  state = State::running;
  session.announce();
}

void StreamSession::Impl::on_refusal(ByteSpan body) {
  const auto refusal = decode_refusal(body);
  if (!refusal) return end(refusal.error(), RefusalKind::garbage, TellPeer::no);
  end(refusal_error(*refusal, *config.handshake), refusal->kind, TellPeer::no);
}

void StreamSession::Impl::on_sealed(Instant now, RecordKind kind, ByteSpan record) {
  const std::size_t expected = streams.raw_expected();
  const bool in_place =
      (kind == RecordKind::raw) == (expected != 0) && (expected == 0 || record.size() == expected + kRecordOverhead);
  if (!in_place) {
    return end({.code = Errc::malformed, .message = str(session.peer_name(), " sent a record out of place")},
               RefusalKind::none, TellPeer::yes);
  }
  const MutableByteSpan target = kind == RecordKind::raw ? streams.raw_target() : MutableByteSpan();
  MutableByteSpan plain = target;
  if (target.empty()) {
    const std::size_t bytes = record.size() - kRecordOverhead;
    if (scratch.size() < bytes) scratch.resize(bytes);
    plain = MutableByteSpan(scratch).first(bytes);
  }
  if (!receiving->open(record, plain)) {
    return end({.code = Errc::corrupt, .message = str("a record from ", session.peer_name(), " is not authentic")},
               RefusalKind::none, TellPeer::yes);
  }
  authenticated = true;
  if (state == State::confirming) announce();
  const Status status = kind == RecordKind::raw ? streams.on_raw(target.empty() ? plain : MutableByteSpan())
                                                : streams.on_frames(now, plain);
  if (!status) end(status.error(), RefusalKind::none, streams.peer_closed() ? TellPeer::no : TellPeer::yes);
}

// --- out

void StreamSession::Impl::send_handshake(RecordKind kind, ByteSpan body) {
  const std::size_t at = clear_out.size();
  clear_out.resize(at + kRecordHeaderBytes);
  write_record_header(clear_out.data() + at, kind, body.size());
  clear_out.insert(clear_out.end(), body.begin(), body.end());
}

/// A block that nobody else holds.
Block StreamSession::Impl::block_of(std::size_t bytes) {
  if (bytes <= kPooledBytes) {
    if (++small_outputs == kSmallOutputs) pool.clear();
    return std::make_shared_for_overwrite<std::byte[]>(bytes);
  }
  small_outputs = 0;
  const auto free = std::ranges::find_if(pool, [](const Block& block) { return block.use_count() == 1; });
  if (free != pool.end()) return *free;
  Block made = std::make_shared_for_overwrite<std::byte[]>(kBlockBytes);
  if (pool.size() < kMaxPooledBlocks) pool.push_back(made);
  return made;
}

/// Seals what is most urgent into `block`; returns how many bytes.
std::size_t StreamSession::Impl::fill(Instant now, MutableByteSpan block) {
  std::size_t at = 0;
  while (block.size() - at >= RecordStreams::kMinRecordRoom + 2 * kRecordOverhead) {
    const MutableByteSpan rest = block.subspan(at);
    const std::size_t room = rest.size() - 2 * kRecordOverhead;
    ByteSpan raw;
    const MutableByteSpan frames = rest.subspan(kRecordHeaderBytes, std::min(room, kMaxRecordPlain));
    const std::size_t n = streams.write(now, frames, room, raw);
    if (n == 0) break;
    sending->seal(RecordKind::frames, frames.first(n), rest.first(n + kRecordOverhead));
    at += n + kRecordOverhead;
    ++records_out;
    if (raw.empty()) continue;
    const std::size_t sealed = raw.size() + kRecordOverhead;
    sending->seal(RecordKind::raw, raw, block.subspan(at, sealed));
    streams.raw_sealed();
    at += sealed;
    ++records_out;
  }
  return at;
}

bool StreamSession::Impl::wants_output() const { return !clear_out.empty() || (sending && streams.wants_output()); }

// --- the end

void StreamSession::Impl::handshake_failed(HandshakeFailure failure) {
  if (!failure.refusal.empty()) send_handshake(RecordKind::refusal, failure.refusal);
  end(std::move(failure.error), failure.kind, TellPeer::no);
}

void StreamSession::Impl::end(Error error, RefusalKind kind, TellPeer tell) {
  if (state == State::over) return;
  const bool told = tell == TellPeer::yes && has_keys();
  state = State::over;
  streams.close(told ? &error : nullptr);
  session.conclude(std::move(error), kind);
  handshake.reset();
  receiving.reset();
}

// --- the interface

StreamSession::StreamSession(Role role, std::shared_ptr<const SessionConfig> config, env::Entropy& entropy, Instant now,
                             NodeId expected)
    : Session(role, std::move(config)), impl_(std::make_unique<Impl>(*this, entropy, now, expected)) {}
StreamSession::~StreamSession() = default;

Result<StreamNumber> StreamSession::open_stream(bool bidirectional) { return impl_->streams.open(bidirectional); }
void StreamSession::abandon_stream(StreamNumber stream) { impl_->streams.abandon(stream); }

void StreamSession::feed(Instant now, ByteSpan bytes) { impl_->feed(now, bytes); }

void StreamSession::broken(Instant, Error error) {
  impl_->end(std::move(error), RefusalKind::none, Impl::TellPeer::no);
  impl_->clear_out.clear();
}

void StreamSession::output(Instant now, std::size_t max_bytes, std::vector<Buffer>& out) {
  Impl& impl = *impl_;
  std::size_t made = 0;
  if (!impl.clear_out.empty()) {
    made += impl.clear_out.size();
    out.emplace_back(std::exchange(impl.clear_out, {}));
  }
  while (impl.sending && made < max_bytes && impl.streams.wants_output()) {
    const std::size_t most = std::max(std::min(kBlockBytes, max_bytes - made), kLeastBlockBytes);
    const std::size_t needed = impl.streams.output_estimate();
    const std::size_t size = std::min(needed + needed / 256 + 2 * kRecordOverhead, most);
    Block block = impl.block_of(size);
    const std::size_t used = impl.fill(now, {block.get(), size});
    if (used == 0) break;
    made += used;
    const ByteSpan bytes(block.get(), used);
    out.emplace_back(bytes, std::shared_ptr<const void>(std::move(block)));
  }
  impl.bytes_out += made;
}

bool StreamSession::wants_output() const { return impl_->wants_output(); }

bool StreamSession::finished() const { return over() && !wants_output(); }

Instant StreamSession::next_timer() {
  Impl& impl = *impl_;
  if (impl.state == Impl::State::over) return kNever;
  const Instant deadline = exchange_.next_deadline();
  if (impl.state != Impl::State::running) return std::min(deadline, impl.handshake_until);
  if (impl.streams.ping_under_way()) return std::min(deadline, impl.last_received + config_->idle_timeout);
  // All sessions look after silent peers at the same moments; responders a little later, when it was not in vain.
  const std::int64_t every = std::max<std::int64_t>(config_->keep_alive.ns / kKeepAliveParts, 1);
  const std::int64_t parts = (impl.last_received + config_->keep_alive).ns / every + (role_ == Role::responder ? 2 : 1);
  return std::min(deadline, Instant{parts * every});
}

void StreamSession::on_timer(Instant now) {
  Impl& impl = *impl_;
  if (impl.state == Impl::State::over) return;
  exchange_.on_time(now);
  if (impl.state != Impl::State::running) {
    if (now < impl.handshake_until) return;
    const bool stranger = role_ == Role::responder;
    return impl.end({.code = stranger ? Errc::malformed : Errc::unavailable,
                     .message = stranger ? "a connection that did not finish its handshake in time"
                                         : "the other node did not finish the handshake in time",
                     .retryable = true},
                    stranger ? RefusalKind::garbage : RefusalKind::none, Impl::TellPeer::no);
  }
  const Duration silence = now - impl.last_received;
  if (silence >= config_->idle_timeout) {
    return impl.end({.code = Errc::unavailable,
                     .message = str(peer_name(), " was silent for ", silence.millis(), " ms"),
                     .retryable = true},
                    RefusalKind::none, Impl::TellPeer::yes);
  }
  if (silence < config_->keep_alive || impl.streams.ping_under_way()) return;
  impl.streams.ping(now);
  // Nothing is going on: an idle session keeps no buffers.
  if (impl.partial.empty()) Bytes().swap(impl.partial);
  Bytes().swap(impl.scratch);
  impl.pool.clear();
}

void StreamSession::close(Error error) { impl_->end(std::move(error), RefusalKind::none, Impl::TellPeer::yes); }

LinkFigures StreamSession::figures() const {
  return {.bytes_in = impl_->bytes_in,
          .bytes_out = impl_->bytes_out,
          .round_trip = impl_->streams.round_trip(),
          .min_round_trip = impl_->streams.min_round_trip(),
          .packets_sent = impl_->records_out};
}
void StreamSession::ping(Instant now) { impl_->streams.ping(now); }

}  // namespace holo::hyperbus
