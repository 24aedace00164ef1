#include "core/hyperbus/session.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "base/assert.h"
#include "base/strings.h"
#include "core/hyperbus/mux.h"
#include "core/hyperbus/record.h"

namespace holo::hyperbus {
namespace {

constexpr std::size_t kMaxRefusalBytes = 64;
/// Sealed bytes made at once: four pages of 64 KiB and what announces them.
constexpr std::size_t kBlockBytes = 272 << 10;
constexpr std::size_t kLeastBlockBytes = 72
                                         << 10;  // room for one full raw record, so that large payloads are not chopped
/// Blocks above this come from the pool, where they keep their pages.
constexpr std::size_t kPooledBytes = 32 << 10;
constexpr std::size_t kMaxPooledBlocks = 4;
/// So many small outputs in a row (heartbeats), and the pool is given back.
constexpr unsigned kSmallOutputs = 64;

using Block = std::shared_ptr<std::byte[]>;

Error closed_error() { return {.code = Errc::unavailable, .message = "the connection is closed", .retryable = true}; }

}  // namespace

struct Session::Impl {
  /// handshaking, then (initiators only) confirming until the first record of the peer proves that it has the keys too.
  enum class State : std::uint8_t { handshaking, confirming, running, over };

  Impl(Role role_in, std::shared_ptr<const SessionConfig> config_in, env::Entropy& entropy, Instant now,
       NodeId expected)
      : role(role_in),
        config(std::move(config_in)),
        mux(config->windows, events),
        last_received(now),
        handshake_until(now + config->handshake_deadline) {
    handshake.emplace(role, config->handshake, entropy, expected);
    if (role == Role::initiator) {
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

  // The end.
  void handshake_failed(HandshakeFailure failure);
  void over(Error error, RefusalKind kind, Mux::TellPeer tell);
  [[nodiscard]] std::string peer_name() const;
  [[nodiscard]] bool has_keys() const { return state == State::confirming || state == State::running; }

  Role role;
  std::shared_ptr<const SessionConfig> config;
  std::deque<Event> events;
  Mux mux;
  State state = State::handshaking;
  std::optional<Handshake> handshake;
  HandshakeResult agreed;
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
};

// --- in
// ----------------------------------------------------------------------------------------------------------------

void Session::Impl::feed(Instant now, ByteSpan bytes) {
  bytes_in += bytes.size();
  last_received = now;
  while (!bytes.empty() && state != State::over) feed_some(now, bytes);
}

/// Reads one record, or keeps what there is of one.
void Session::Impl::feed_some(Instant now, ByteSpan& bytes) {
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
bool Session::Impl::acceptable(ByteSpan start) {
  const auto kind = static_cast<RecordKind>(start[0]);
  const bool sealed = kind == RecordKind::frames || kind == RecordKind::raw;
  // A responder hears one after its own message: the initiator does not take its identity.
  const bool refusal = kind == RecordKind::refusal && (role == Role::initiator || spoke) && !authenticated;
  const bool message = kind == RecordKind::handshake && state == State::handshaking;
  bool fine = message || refusal || (sealed && has_keys());
  if (fine && start.size() >= kRecordHeaderBytes) {
    const std::size_t length = read_record_header(start).length;
    if (message) fine = length <= kMaxHandshakeMessageBytes;
    if (refusal) fine = length <= kMaxRefusalBytes;
    if (sealed) fine = length >= crypto::kAeadTagBytes && length <= kMaxRecordPlain + crypto::kAeadTagBytes;
  }
  if (fine && message && !spoke && role == Role::responder) {
    const std::string_view seen = as_text(start).substr(std::min(start.size(), kRecordHeaderBytes));
    const std::size_t n = std::min(seen.size(), kMagic.size());
    fine = seen.substr(0, n) == kMagic.substr(0, n);
  }
  if (fine) return true;
  if (has_keys()) {
    over({.code = Errc::malformed, .message = str(peer_name(), " sent bytes that are no record")}, RefusalKind::none,
         Mux::TellPeer::yes);
  } else {
    over({.code = Errc::malformed, .message = "bytes that are not the hyperbus protocol"}, RefusalKind::garbage,
         Mux::TellPeer::no);
  }
  return false;
}

void Session::Impl::on_record(Instant now, ByteSpan record) {
  const RecordKind kind = read_record_header(record).kind;
  switch (kind) {
    case RecordKind::handshake: return on_handshake(record.subspan(kRecordHeaderBytes));
    case RecordKind::refusal: return on_refusal(record.subspan(kRecordHeaderBytes));
    case RecordKind::frames:
    case RecordKind::raw: return on_sealed(now, kind, record);
  }
}

void Session::Impl::on_handshake(ByteSpan message) {
  spoke = true;
  auto answer = handshake->on_message(message);
  if (!answer) return handshake_failed(std::move(answer).error());
  if (!answer->empty()) send_handshake(RecordKind::handshake, *answer);
  if (handshake->done()) keys_agreed();
}

void Session::Impl::keys_agreed() {
  agreed = handshake->take_result();
  handshake.reset();
  sending.emplace(agreed.aead, std::move(agreed.send_secret), config->records_per_key);
  receiving.emplace(agreed.aead, std::move(agreed.receive_secret), config->records_per_key);
  state = State::confirming;
  if (role == Role::responder) announce();  // The third message proved that the initiator has the keys.
}

void Session::Impl::announce() {
  state = State::running;
  events.push_back(Established{.peer = agreed.peer,
                               .peer_key = agreed.peer_key,
                               .version = agreed.version,
                               .features = agreed.features,
                               .aead = agreed.aead,
                               .peer_transport_parameters = agreed.peer_transport_parameters,
                               .handshake_hash = agreed.handshake_hash});
}

void Session::Impl::on_refusal(ByteSpan body) {
  const auto refusal = decode_refusal(body);
  if (!refusal) return over(refusal.error(), RefusalKind::garbage, Mux::TellPeer::no);
  over(refusal_error(*refusal, *config->handshake), refusal->kind, Mux::TellPeer::no);
}

void Session::Impl::on_sealed(Instant now, RecordKind kind, ByteSpan record) {
  const std::size_t expected = mux.raw_expected();
  const bool in_place =
      (kind == RecordKind::raw) == (expected != 0) && (expected == 0 || record.size() == expected + kRecordOverhead);
  if (!in_place) {
    return over({.code = Errc::malformed, .message = str(peer_name(), " sent a record out of place")},
                RefusalKind::none, Mux::TellPeer::yes);
  }
  const MutableByteSpan target = kind == RecordKind::raw ? mux.raw_target() : MutableByteSpan();
  MutableByteSpan plain = target;
  if (target.empty()) {
    const std::size_t bytes = record.size() - kRecordOverhead;
    if (scratch.size() < bytes) scratch.resize(bytes);
    plain = MutableByteSpan(scratch).first(bytes);
  }
  if (!receiving->open(record, plain)) {
    return over({.code = Errc::corrupt, .message = str("a record from ", peer_name(), " is not authentic")},
                RefusalKind::none, Mux::TellPeer::yes);
  }
  authenticated = true;
  if (state == State::confirming) announce();
  if (kind == RecordKind::raw) return mux.on_raw();
  if (const Status status = mux.on_frames(now, plain); !status) {
    over(status.error(), RefusalKind::none, mux.peer_closed() ? Mux::TellPeer::no : Mux::TellPeer::yes);
  }
}

// --- out
// ---------------------------------------------------------------------------------------------------------------

void Session::Impl::send_handshake(RecordKind kind, ByteSpan body) {
  const std::size_t at = clear_out.size();
  clear_out.resize(at + kRecordHeaderBytes);
  write_record_header(clear_out.data() + at, kind, body.size());
  clear_out.insert(clear_out.end(), body.begin(), body.end());
}

/// A block that nobody else holds.
Block Session::Impl::block_of(std::size_t bytes) {
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
std::size_t Session::Impl::fill(Instant now, MutableByteSpan block) {
  std::size_t at = 0;
  while (block.size() - at >= Mux::kMinRecordRoom + 2 * kRecordOverhead) {
    const MutableByteSpan rest = block.subspan(at);
    const std::size_t room = rest.size() - 2 * kRecordOverhead;
    ByteSpan raw;
    const MutableByteSpan frames = rest.subspan(kRecordHeaderBytes, std::min(room, kMaxRecordPlain));
    const std::size_t n = mux.write(now, frames, room, raw);
    if (n == 0) break;
    sending->seal(RecordKind::frames, frames.first(n), rest.first(n + kRecordOverhead));
    at += n + kRecordOverhead;
    if (raw.empty()) continue;
    sending->seal(RecordKind::raw, raw, block.subspan(at, raw.size() + kRecordOverhead));
    at += raw.size() + kRecordOverhead;
  }
  return at;
}

// --- the end
// -----------------------------------------------------------------------------------------------------------

std::string Session::Impl::peer_name() const {
  return agreed.peer ? str("node ", agreed.peer) : std::string("the other node");
}

void Session::Impl::handshake_failed(HandshakeFailure failure) {
  if (!failure.refusal.empty()) send_handshake(RecordKind::refusal, failure.refusal);
  over(std::move(failure.error), failure.kind, Mux::TellPeer::no);
}

void Session::Impl::over(Error error, RefusalKind kind, Mux::TellPeer tell) {
  if (state == State::over) return;
  if (!has_keys()) tell = Mux::TellPeer::no;
  state = State::over;
  Error for_requests = error;
  if (error.code == Errc::malformed || error.code == Errc::corrupt) {  // Of the connection, not of any request.
    for_requests.code = Errc::unavailable;
    for_requests.retryable = true;
  }
  mux.close(for_requests, tell);
  handshake.reset();
  receiving.reset();
  events.push_back(Closed{.error = std::move(error), .kind = kind});
}

// --- the interface
// -----------------------------------------------------------------------------------------------------

Session::Session(Role role, std::shared_ptr<const SessionConfig> config, env::Entropy& entropy, Instant now,
                 NodeId expected)
    : impl_(std::make_unique<Impl>(role, std::move(config), entropy, now, expected)) {}
Session::~Session() = default;

void Session::feed(Instant now, ByteSpan bytes) { impl_->feed(now, bytes); }

void Session::broken(Instant, Error error) {
  impl_->over(std::move(error), RefusalKind::none, Mux::TellPeer::no);
  impl_->clear_out.clear();
}

void Session::output(Instant now, std::size_t max_bytes, std::vector<Buffer>& out) {
  Impl& impl = *impl_;
  std::size_t made = 0;
  if (!impl.clear_out.empty()) {
    made += impl.clear_out.size();
    out.emplace_back(std::exchange(impl.clear_out, {}));
  }
  while (impl.sending && made < max_bytes && impl.mux.wants_output()) {
    const std::size_t most = std::max(std::min(kBlockBytes, max_bytes - made), kLeastBlockBytes);
    const std::size_t needed = impl.mux.output_estimate();
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

bool Session::wants_output() const {
  return !impl_->clear_out.empty() || (impl_->sending && impl_->mux.wants_output());
}

bool Session::finished() const { return impl_->state == Impl::State::over && !wants_output(); }

Instant Session::next_timer() const {
  Impl& impl = *impl_;
  if (impl.state == Impl::State::over) return kNever;
  const Instant deadline = impl.mux.next_deadline();
  if (impl.state != Impl::State::running) return std::min(deadline, impl.handshake_until);
  const Duration silence = impl.mux.ping_under_way() ? impl.config->idle_timeout : impl.config->keep_alive;
  return std::min(deadline, impl.last_received + silence);
}

void Session::on_timer(Instant now) {
  Impl& impl = *impl_;
  if (impl.state == Impl::State::over) return;
  impl.mux.on_time(now);
  if (impl.state != Impl::State::running) {
    if (now < impl.handshake_until) return;
    const bool stranger = impl.role == Role::responder;
    return impl.over({.code = stranger ? Errc::malformed : Errc::unavailable,
                      .message = stranger ? "a connection that did not finish its handshake in time"
                                          : "the other node did not finish the handshake in time",
                      .retryable = true},
                     stranger ? RefusalKind::garbage : RefusalKind::none, Mux::TellPeer::no);
  }
  const Duration silence = now - impl.last_received;
  if (silence >= impl.config->idle_timeout) {
    return impl.over({.code = Errc::unavailable,
                      .message = str(impl.peer_name(), " was silent for ", silence.millis(), " ms"),
                      .retryable = true},
                     RefusalKind::none, Mux::TellPeer::yes);
  }
  if (silence < impl.config->keep_alive || impl.mux.ping_under_way()) return;
  impl.mux.ping(now);
  // Nothing is going on: an idle session keeps no buffers.
  if (impl.partial.empty()) Bytes().swap(impl.partial);
  Bytes().swap(impl.scratch);
  impl.pool.clear();
}

std::optional<Event> Session::next_event() {
  if (impl_->events.empty()) return std::nullopt;
  Event event = std::move(impl_->events.front());
  impl_->events.pop_front();
  return event;
}

Result<StreamId> Session::request(Instant now, StreamClass klass, env::Request request, Instant deadline) {
  if (impl_->state == Impl::State::over) return std::unexpected(closed_error());
  return impl_->mux.request(now, klass, std::move(request), deadline);
}

void Session::cancel(StreamId stream, Error error) { impl_->mux.cancel(stream, std::move(error)); }
void Session::reply(StreamId stream, Result<env::Reply> result) { impl_->mux.reply(stream, std::move(result)); }
void Session::close(Error error) { impl_->over(std::move(error), RefusalKind::none, Mux::TellPeer::yes); }

bool Session::established() const { return impl_->state == Impl::State::running; }
NodeId Session::peer() const { return impl_->agreed.peer; }
std::uint64_t Session::bytes_in() const { return impl_->bytes_in; }
std::uint64_t Session::bytes_out() const { return impl_->bytes_out; }
Duration Session::round_trip() const { return impl_->mux.round_trip(); }
void Session::ping(Instant now) { impl_->mux.ping(now); }
ClassStatus Session::class_status(StreamClass klass) const { return impl_->mux.status(klass); }

}  // namespace holo::hyperbus
