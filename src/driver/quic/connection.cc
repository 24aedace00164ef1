#include "driver/quic/connection.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "crypto/hash.h"
#include "driver/quic/callbacks.h"
#include "driver/quic/quic.h"

namespace holo::driver::quic {
namespace {

/// Until a round trip was measured. Machines of a cluster are near each other: ngtcp2's 333 ms would let a lost first
/// packet cost a second.
constexpr ngtcp2_duration kInitialRtt = 100 * NGTCP2_MILLISECONDS;
constexpr std::uint64_t kUnidirectionalStreams = 8;
/// One in use, and spare ones for when the peer's address changes.
constexpr std::uint64_t kConnectionIds = 3;
/// What path MTU discovery tries: Ethernet, jumbo frames, Ethernet behind PPPoE or a tunnel; less what IPv6 and UDP
/// take.
constexpr std::array<std::uint16_t, 5> kProbedDatagrams{1452, 8952, 1444, 1406, 1342};
/// Frames of different streams that may share a packet; also stops an application that offers the same write for ever.
constexpr int kMaxWritesPerPacket = 64;
/// ngtcp2 takes frames of so few parts from a pool.
constexpr std::size_t kMaxParts = 3;
/// What UDP carries over IPv4; over IPv6 it is a little more. One burst is one system call.
constexpr std::size_t kMaxBurst = 65'507;
/// The first burst to a peer that is at rest: it wakes up and reads it while the next one is being encrypted. Where
/// more than a page or two is sent at a time that wins nothing, and costs system calls.
constexpr std::size_t kFirstBurst = 32 << 10;
constexpr std::size_t kManyBursts = 2 * kMaxBurst;
/// What ngtcp2 may keep for one connection. Flow control bounds bytes; gaps between them cost more than they do.
constexpr std::size_t kMaxMemory = 64 << 20;
/// What pacing would delay by less than this is sent at once: timers cost more than such bursts do harm.
constexpr ngtcp2_duration kPacingSlack = NGTCP2_MILLISECONDS;
/// ngtcp2 acknowledges a lone packet after an eighth of the round trip: on a LAN a wake-up on both sides for
/// nearly every small message. It may wait for the next message, or for a moment that all connections of a machine
/// share; well below the 25 ms that peers allow for (RFC 9000, max_ack_delay).
constexpr ngtcp2_tstamp kLoneAckEvery = 16 * NGTCP2_MILLISECONDS;
/// The peer is told of streams that it may open again once it is so many parts of all.
constexpr std::uint64_t kStreamParts = 8;
/// A keep-alive may be late by two of so many parts of its time.
constexpr ngtcp2_duration kKeepAliveParts = 8;
constexpr ngtcp2_duration kLanRtt = 8 * NGTCP2_MILLISECONDS;
/// RFC 9001, section 6.6: AES-GCM's limit, less what a slow update may still need.
constexpr std::uint64_t kMaxPacketsPerKey = (1ULL << 23) - (1ULL << 20);

/// ngtcp2 acknowledges a packet in what it sends an eighth of the round trip later: never in the reply to a small
/// request, which then takes a packet more. The least of that eighth and max_ack_delay counts, for which there is no
/// call. What the peer was told of it stays as it was.
ngtcp2_transport_params* own_parameters(ngtcp2_conn* conn) {
  return const_cast<ngtcp2_transport_params*>(ngtcp2_conn_get_local_transport_params2(conn));
}

/// The user data of a stream of ours: null when the peer knows of it, so that callbacks need not look that up.
void* mark_unheard(bool unheard) {
  static char mark;
  return unheard ? &mark : nullptr;
}

}  // namespace

ResetToken reset_token(const env::QuicConfig& config, ByteSpan connection_id) {
  const auto mac = crypto::hmac_sha256(config.reset_key.span(), connection_id);
  ResetToken out;
  std::copy_n(mac.span().begin(), out.size(), out.begin());
  return out;
}

ngtcp2_cid to_cid(ByteSpan id) {
  ngtcp2_cid out;
  HOLO_ASSERT(id.size() <= NGTCP2_MAX_CIDLEN);
  ngtcp2_cid_init(&out, reinterpret_cast<const std::uint8_t*>(id.data()), id.size());
  return out;
}

Connection::Connection(Parts parts, const env::DatagramPath& path, bool server)
    : parts_(std::move(parts)),
      server_(server),
      local_(path.local),
      arrival_(path.local, path.remote),
      arrival_remote_(path.remote),
      departure_(path.local, path.remote) {
  std::array<std::byte, env::QuicStack::kConnectionIdBytes> id;
  parts_.entropy->fill(id);
  own_id_ = to_cid(id);
}

Connection::~Connection() { ngtcp2_conn_del(conn_); }

void Connection::fill_settings(Instant now, ngtcp2_settings& settings, ngtcp2_transport_params& params) {
  const env::QuicConfig& config = *parts_.config;
  ngtcp2_settings_default(&settings);
  settings.initial_ts = clock(now);
  settings.initial_rtt = kInitialRtt;
  settings.cc_algo = NGTCP2_CC_ALGO_CUBIC;
  settings.handshake_timeout = static_cast<ngtcp2_duration>(config.handshake_timeout.ns);
  settings.rand_ctx.native_handle = parts_.entropy;
  max_datagram_ = config.datagram_bytes != 0
                      ? std::clamp<std::size_t>(config.datagram_bytes, NGTCP2_MAX_UDP_PAYLOAD_SIZE, 65'507)
                      : std::ranges::max(kProbedDatagrams);
  settings.max_tx_udp_payload_size = max_datagram_;
  settings.pmtud_probes = kProbedDatagrams.data();
  settings.pmtud_probeslen = kProbedDatagrams.size();
  if (config.datagram_bytes != 0) {
    settings.no_pmtud = 1;
    settings.no_tx_udp_payload_size_shaping = 1;
  }

  ngtcp2_transport_params_default(&params);
  params.initial_max_stream_data_bidi_local = config.stream_window;
  params.initial_max_stream_data_bidi_remote = config.stream_window;
  params.initial_max_stream_data_uni = config.stream_window;
  params.initial_max_data = config.connection_window;
  params.initial_max_streams_bidi = config.bidirectional_streams;
  params.initial_max_streams_uni = kUnidirectionalStreams;
  params.max_idle_timeout = static_cast<ngtcp2_duration>(config.idle_timeout.ns);
  params.active_connection_id_limit = kConnectionIds;
}

std::unique_ptr<Connection> Connection::connect(Parts parts, Instant now, const env::DatagramPath& path) {
  std::unique_ptr<Connection> out(new Connection(std::move(parts), path, false));
  ngtcp2_settings settings;
  ngtcp2_transport_params params;
  out->fill_settings(now, settings, params);
  std::array<std::byte, env::QuicStack::kConnectionIdBytes> random;
  out->parts_.entropy->fill(random);
  const ngtcp2_cid destination = to_cid(random);
  if (out->parts_.config->qlog) {
    out->qlog_ = out->parts_.config->qlog(random, false);
    if (out->qlog_) settings.qlog_write = qlog_writer();
  }
  ngtcp2_path first_path = out->arrival_.path();
  const int rv = ngtcp2_conn_client_new(&out->conn_, &destination, &out->own_id_, &first_path, kVersion, &callbacks(),
                                        &settings, &params, out->memory_.allocator(), out.get());
  HOLO_ASSERT(rv == 0, "out of memory");
  out->own_parameters_ = own_parameters(out->conn_);
  const ngtcp2_crypto_aead aead = retry_aead();
  const ngtcp2_crypto_aead_ctx key = retry_key();
  ngtcp2_conn_set_retry_aead(out->conn_, &aead, &key);
  return out;
}

std::unique_ptr<Connection> Connection::accept(Parts parts, Instant now, const env::DatagramPath& path,
                                               const FirstInitial& first) {
  std::unique_ptr<Connection> out(new Connection(std::move(parts), path, true));
  ngtcp2_settings settings;
  ngtcp2_transport_params params;
  out->fill_settings(now, settings, params);
  params.original_dcid = first.retried_from.value_or(first.destination);
  params.original_dcid_present = 1;
  if (first.retried_from) {
    params.retry_scid = first.destination;
    params.retry_scid_present = 1;
    settings.token = reinterpret_cast<const std::uint8_t*>(first.token.data());
    settings.tokenlen = first.token.size();
    settings.token_type = NGTCP2_TOKEN_TYPE_RETRY;
  }
  params.stateless_reset_token_present = 1;
  const ResetToken token = reset_token(*out->parts_.config, bytes_of(out->own_id_));
  std::memcpy(params.stateless_reset_token, token.data(), token.size());
  if (out->parts_.config->qlog) {
    out->qlog_ = out->parts_.config->qlog(bytes_of(params.original_dcid), true);
    if (out->qlog_) settings.qlog_write = qlog_writer();
  }
  ngtcp2_path first_path = out->arrival_.path();
  const int rv = ngtcp2_conn_server_new(&out->conn_, &first.client, &out->own_id_, &first_path, kVersion, &callbacks(),
                                        &settings, &params, out->memory_.allocator(), out.get());
  HOLO_ASSERT(rv == 0, "out of memory");
  out->own_parameters_ = own_parameters(out->conn_);
  // A client may repeat its first packets under the id that it made up.
  out->original_id_ = first.destination;
  return out;
}

ngtcp2_tstamp Connection::clock(Instant now) {
  // ngtcp2 counts unsigned, and never backwards.
  now_ = std::max(now_, static_cast<ngtcp2_tstamp>(std::max<std::int64_t>(now.ns, 1)));
  return told_ = now_;
}

void Connection::confirm() {
  if (std::exchange(established_, true) || ending()) return;
  parts_.application->on_established();
}

void Connection::announce_ids() {
  if (ids_announced_) return;
  ids_announced_ = true;
  parts_.application->on_connection_id(bytes_of(own_id_));
  if (original_id_) parts_.application->on_connection_id(bytes_of(*original_id_));
}

env::DatagramPath Connection::path_to(const sockaddr_in6& remote) const {
  return {.local = local_, .remote = to_endpoint(remote)};
}

// ---- receiving ----

void Connection::receive(Instant now, const env::DatagramPath& path, env::Ecn ecn, ByteSpan datagram) {
  const ngtcp2_tstamp ts = clock(now);
  if (datagram.empty()) return;
  if (ending()) {
    // Whoever still sends may have missed the farewell; it is repeated now and then (RFC 9000, section 10.2.1).
    if (!goodbye_.bytes.empty() && ts < lingers_until_ && ts >= repeats_from_) goodbye_wanted_ = true;
    return;
  }
  announce_ids();
  if (path.remote != arrival_remote_) {
    arrival_.remote = to_socket_address(path.remote);
    arrival_remote_ = path.remote;
    moved_ = true;
  }
  last_received_ = ts;
  bytes_received_ += datagram.size();
  ++packets_received_;
  if (ecn == env::Ecn::ce) ++congestion_marks_;
  const ngtcp2_path arrival = arrival_.path();
  const ngtcp2_pkt_info info{.ecn = static_cast<std::uint8_t>(ecn)};
  const int rv = ngtcp2_conn_read_pkt(conn_, &arrival, &info, reinterpret_cast<const std::uint8_t*>(datagram.data()),
                                      datagram.size(), ts);
  tell_acknowledged();
  if (rv != 0) settle(rv);
  if (memory_.bytes() > kMaxMemory) give_up(NGTCP2_INTERNAL_ERROR, "too much waits for what is missing before it");
  if (ending()) tell_end();
}

void Connection::on_stream_data(env::QuicStreamId stream, ByteSpan bytes, bool fin) {
  if (alive(stream)) {
    if (const Status taken = parts_.application->on_stream_data(stream, bytes, fin); !taken && !ending()) {
      const std::string& reason = taken.error().message;
      end_with({.cause = env::QuicEnd::Cause::protocol,
                .application = true,
                .code = env::kQuicProtocolViolation,
                .reason = reason},
               Farewell{.application = true, .code = env::kQuicProtocolViolation, .reason = reason});
    }
  }
  // The windows stand still: what was handed over makes room at once.
  ngtcp2_conn_extend_max_stream_offset(conn_, stream, bytes.size());
  ngtcp2_conn_extend_max_offset(conn_, bytes.size());
}

void Connection::on_stream_closed(env::QuicStreamId stream) {
  tell_acknowledged();
  packets_lost_ += ngtcp2_conn_get_stream_loss_count(conn_, stream);
  if (const auto sent = sending_.find(stream); sent != sending_.end()) {
    unacknowledged_ -= sent->second;
    sending_.erase(sent);
    last_sending_ = {-1, nullptr};
  }
  given_up_.erase(stream);
  unheard_.erase(stream);
  if (ngtcp2_conn_is_local_stream(conn_, stream) == 0) {
    if (env::is_bidirectional(stream)) {
      // Many at a time: a frame for each would be a packet, and its acknowledgement, for every request. The peer may
      // have twice as many open as it has requests (core/hyperbus), so it never waits for these.
      if (++streams_over_ >= std::max<std::uint64_t>(parts_.config->bidirectional_streams / kStreamParts, 1))
        ngtcp2_conn_extend_max_streams_bidi(conn_, std::exchange(streams_over_, 0));
    } else {
      ngtcp2_conn_extend_max_streams_uni(conn_, 1);
    }
  }
  if (!ending()) parts_.application->on_stream_closed(stream);
}

void Connection::tell_acknowledged() {
  const auto [stream, bytes] = std::exchange(acknowledged_, {});
  if (bytes == 0) return;
  if (const auto sent = sending_.find(stream); sent != sending_.end()) {
    const std::uint64_t arrived = std::min(bytes, sent->second);
    sent->second -= arrived;
    unacknowledged_ -= arrived;
    if (arrived != 0) unacknowledged_since_ = unacknowledged_ == 0 ? 0 : now_;
  }
  if (alive(stream)) parts_.application->on_stream_acknowledged(stream, bytes);
}

void Connection::on_unblocked(env::QuicStreamId stream) {
  if (alive(stream)) parts_.application->on_unblocked(stream);
}

void Connection::on_stream_given_up(env::QuicStreamId stream, std::uint64_t code) {
  if (!alive(stream)) return;
  // One that was reset before anything else of it arrived has never existed for ngtcp2, which will not close it.
  const bool known = open_now(stream);
  if (known) abandon(stream, code);
  parts_.application->on_stream_abandoned(stream, code);
  if (!known && !ending()) parts_.application->on_stream_closed(stream);
}

bool Connection::open_now(env::QuicStreamId stream) {
  return ngtcp2_conn_set_stream_user_data(conn_, stream, mark_unheard(unheard_.contains(stream))) == 0;
}

void Connection::on_heard_of(env::QuicStreamId stream) {
  const auto unheard = unheard_.extract(stream);
  if (unheard.empty()) return;
  ngtcp2_conn_set_stream_user_data(conn_, stream, mark_unheard(false));
  if (unheard.mapped()) abandoned_.push_back({.stream = stream, .code = *unheard.mapped(), .whole = true});
}

// ---- sending ----

void Connection::shut_abandoned() {
  const auto given_up = std::exchange(abandoned_, {});
  for (const Abandoned& a : given_up) {
    const int rv = a.whole ? ngtcp2_conn_shutdown_stream(conn_, 0, a.stream, a.code)
                           : ngtcp2_conn_shutdown_stream_read(conn_, 0, a.stream, a.code);
    if (rv != 0) settle(rv);
  }
}

void Connection::update_keys_when_due(ngtcp2_tstamp ts) {
  // The client does it for both: ngtcp2 takes an update that the peer began for settled as soon as it has sent an
  // acknowledgement. When that is lost and the next update is its own, the peer cannot follow, and nothing arrives any
  // more. Who alone begins them knows that the last one is settled.
  if (!established_) return;
  const std::uint64_t limit = std::min(parts_.config->packets_per_key, kMaxPacketsPerKey);
  // Not all that the server has sent has arrived.
  if (sent_.packets < limit && received_.packets < limit - limit / 4) return;
  // Refused while the last update is young; then it is tried again with the next packet.
  if (ngtcp2_conn_initiate_key_update(conn_, ts) == 0) sent_.packets = received_.packets = 0;
}

/// A peer that sends, so that it is not idle, and acknowledges nothing would hold what it was sent for ever.
void Connection::end_when_unacknowledged(ngtcp2_tstamp ts) {
  if (unacknowledged_since_ != 0 &&
      ts >= unacknowledged_since_ + static_cast<ngtcp2_duration>(parts_.config->idle_timeout.ns)) {
    give_up(NGTCP2_INTERNAL_ERROR, "nothing is acknowledged");
  }
}

/// What was sent takes its time at the path's rate, and a quarter less (RFC 9002, section 7.7).
void Connection::pace(ngtcp2_tstamp ts, std::size_t bytes) {
  ngtcp2_conn_info info;
  ngtcp2_conn_get_conn_info(conn_, &info);
  if (info.cwnd == 0) return;
  const auto takes = static_cast<ngtcp2_duration>(static_cast<double>(bytes) * static_cast<double>(info.smoothed_rtt) /
                                                  (1.25 * static_cast<double>(info.cwnd)));
  sent_until_ = std::max(sent_until_, ts) + takes;
}

std::size_t Connection::next_train() {
  if (train_ == 0) {
    ngtcp2_conn_info stat;
    ngtcp2_conn_get_conn_info(conn_, &stat);
    train_ = stat.bytes_in_flight == 0 && flushed_ < kManyBursts ? kFirstBurst : kMaxBurst;
    flushed_ = 0;
  }
  return std::exchange(train_, std::min(2 * train_, kMaxBurst));
}

/// A write of the application while packets take bytes of it.
struct Connection::Offer {
  const std::size_t packet;  // Bytes that fill one for sure.
  env::QuicWrite write{};
  std::array<ngtcp2_vec, kMaxParts> parts{};
  std::size_t first = 0, count = 0;  // of `parts`: not taken yet
  std::size_t left = 0, taken = 0;   // bytes
  bool fin = false, fin_taken = false;
  bool open = false;

  [[nodiscard]] const ngtcp2_vec* data() const { return parts.data() + first; }
  void take(std::size_t bytes) {
    taken += bytes;
    left -= bytes;
    fin_taken = fin && left == 0;
    while (first < count && bytes >= parts[first].len) bytes -= parts[first++].len;
    if (first == count) return;
    parts[first].base += bytes;
    parts[first].len -= bytes;
  }
  /// The application is to be asked again.
  [[nodiscard]] bool used_up() const { return left == 0 || taken >= write.most; }
};

void Connection::take_offer(Offer& offer) {
  offer.write.count = 0;
  offer.write.most = SIZE_MAX;
  if (!parts_.application->next_write(offer.write)) return;
  offer.count = std::min(offer.write.count, kMaxParts);
  offer.first = offer.left = offer.taken = 0;
  offer.fin = offer.write.fin && offer.count == offer.write.count;
  offer.fin_taken = false;
  for (std::size_t i = 0; i < offer.count; ++i) {
    // ngtcp2 reads them only, though its type does not say so.
    offer.parts[i] = {.base = reinterpret_cast<std::uint8_t*>(const_cast<std::byte*>(offer.write.parts[i].data())),
                      .len = offer.write.parts[i].size()};
    offer.left += offer.parts[i].len;
  }
  offer.open = offer.left != 0 || offer.fin;
}

void Connection::settle_offer(Offer& offer) {
  if (!std::exchange(offer.open, false)) return;
  if (offer.taken == 0 && !offer.fin_taken) return;
  const env::QuicStreamId stream = offer.write.stream;
  if (last_sending_.first != stream) last_sending_ = {stream, &sending_[stream]};
  *last_sending_.second += offer.taken;
  unacknowledged_ += offer.taken;
  parts_.application->on_written(stream, offer.taken, offer.fin_taken);
}

bool Connection::write_packet(ngtcp2_tstamp ts, ngtcp2_tstamp ts_without_stream, MutableByteSpan out, Offer& offer,
                              Written& written) {
  ngtcp2_path path{};  // Where ngtcp2 writes what it chose.
  if (moved_) path = departure_.path();
  ngtcp2_pkt_info info{};
  auto* dest = reinterpret_cast<std::uint8_t*>(out.data());
  for (int writes = 0;; ++writes) {
    const bool may = established_ && !ending() && !paced(ts) && writes < kMaxWritesPerPacket;
    if (may && !offer.open) take_offer(offer);
    const bool stream = may && offer.open;
    ngtcp2_ssize taken = -1;
    told_ = stream || writes > 0 ? ts : ts_without_stream;
    own_parameters_->max_ack_delay = stream ? 0 : NGTCP2_DEFAULT_MAX_ACK_DELAY;
    const bool fin = stream && offer.fin;
    std::uint32_t flags = stream ? NGTCP2_WRITE_STREAM_FLAG_MORE | (fin ? NGTCP2_WRITE_STREAM_FLAG_FIN : 0U) : 0U;
    // ngtcp2 begins no frame of less than 256 bytes when there are more: a packet that has less room left would be a
    // shorter one, and end the burst.
    if (stream && offer.left >= offer.packet) flags |= NGTCP2_WRITE_STREAM_FLAG_PADDING;
    const ngtcp2_ssize n = ngtcp2_conn_writev_stream(conn_, moved_ ? &path : nullptr, &info, dest, out.size(), &taken,
                                                     flags, stream ? offer.write.stream : -1, offer.data(),
                                                     stream ? offer.count - offer.first : 0, told_);
    own_parameters_->max_ack_delay = NGTCP2_DEFAULT_MAX_ACK_DELAY;
    if (taken >= 0) {
      if (taken > 0 && unacknowledged_since_ == 0) unacknowledged_since_ = ts;
      offer.take(static_cast<std::size_t>(taken));
      if (offer.used_up()) settle_offer(offer);
    }
    switch (n) {
      case NGTCP2_ERR_WRITE_MORE: continue;
      case NGTCP2_ERR_STREAM_DATA_BLOCKED:
        settle_offer(offer);
        parts_.application->on_blocked(offer.write.stream);
        continue;
      case NGTCP2_ERR_STREAM_SHUT_WR:
      case NGTCP2_ERR_STREAM_NOT_FOUND:
        // STOP_SENDING has closed our direction; ngtcp2 tells it here only.
        settle_offer(offer);
        parts_.application->on_blocked(offer.write.stream);
        on_stream_given_up(offer.write.stream, 0);
        continue;
      default: break;
    }
    if (n < 0) {
      settle_offer(offer);
      settle(static_cast<int>(n));
      return false;
    }
    held_back_ = n == 0 && stream;
    written.bytes = static_cast<std::size_t>(n);
    written.ecn = static_cast<env::Ecn>(info.ecn);
    return n > 0;
  }
}

std::optional<env::QuicConnection::Burst> Connection::send_stash(MutableByteSpan out) {
  HOLO_ASSERT(out.size() >= stash_->bytes.size());
  std::ranges::copy(stash_->bytes, out.begin());
  const Burst burst{
      .path = stash_->path, .ecn = stash_->ecn, .segment = stash_->bytes.size(), .bytes = stash_->bytes.size()};
  stash_.reset();
  return burst;
}

std::optional<env::QuicConnection::Burst> Connection::send(Instant now, MutableByteSpan out) {
  HOLO_ASSERT(out.size() >= kMinBurst);
  const ngtcp2_tstamp before = told_;
  ngtcp2_tstamp ts = clock(now);
  told_ = before;
  // ngtcp2 acknowledges in whatever call comes an eighth of the round trip after a packet. When that can wait for the
  // time that next_expiry() gives, it is told that no time has passed, unless there is something else to send.
  const bool quiet = established_ && before == last_received_ && ack_can_wait(ts);
  ngtcp2_tstamp first = quiet ? before : ts;
  if (stash_) return send_stash(out);
  if (!ending()) announce_ids();
  if (ending()) return send_farewell(ts, out);

  if (ping_wanted_ && established_) {
    // ngtcp2 has no call for it, but a keep-alive that is due: one nanosecond after what was sent last.
    if (ts == last_sent_) ts = ++now_;
    ngtcp2_conn_set_keep_alive_timeout(conn_, 1);
  }
  const std::size_t limit = std::min({out.size(), next_train(), ngtcp2_conn_get_send_quantum(conn_)});
  const std::size_t datagram = ngtcp2_conn_get_path_max_tx_udp_payload_size(conn_);
  Burst burst;
  sockaddr_in6 remote{};
  Offer offer{.packet = datagram};
  while (burst.bytes == 0 || burst.bytes + datagram <= limit) {
    Written written;
    if (!abandoned_.empty()) {
      settle_offer(offer);  // It may be of one of them.
      shut_abandoned();
    }
    if (!server_) update_keys_when_due(first);
    const MutableByteSpan rest = out.subspan(burst.bytes, std::min(max_datagram_, out.size() - burst.bytes));
    if (ending() || !write_packet(ts, std::exchange(first, ts), rest, offer, written)) break;
    bytes_sent_ += written.bytes;
    ++packets_sent_;
    ecn_ = written.ecn == env::Ecn::ect0;
    if (burst.bytes == 0) {
      remote = departure_.remote;
      burst.path = path_to(remote);
      burst.ecn = written.ecn;
      burst.segment = written.bytes;
    } else if (written.bytes > burst.segment || written.ecn != burst.ecn ||
               (moved_ && !same_address(departure_.remote, remote))) {
      const ByteSpan packet = out.subspan(burst.bytes, written.bytes);
      stash_ =
          Stash{.bytes = Bytes(packet.begin(), packet.end()), .path = path_to(departure_.remote), .ecn = written.ecn};
      break;
    }
    burst.bytes += written.bytes;
    // The first short one ends the burst; after a short first one, a long one could not follow.
    if (written.bytes < burst.segment || written.bytes < datagram) break;
    if (ending()) break;
  }
  settle_offer(offer);
  if (ping_wanted_ && established_) {
    ngtcp2_conn_set_keep_alive_timeout(conn_, static_cast<ngtcp2_duration>(parts_.config->keep_alive.ns));
    ping_wanted_ = burst.bytes == 0;
  }
  if (burst.bytes != 0) last_sent_ = ts;
  // Pacing follows the measured round trip; before there is one it would only hold the handshake up.
  if (established_ && burst.bytes != 0) pace(ts, burst.bytes);
  flushed_ += burst.bytes;
  if (burst.bytes != 0) return burst;
  train_ = 0;
  if (ending()) return send_farewell(ts, out);
  return std::nullopt;
}

// ---- time ----

Instant Connection::next_timer() const {
  const auto instant = [](ngtcp2_tstamp ts) {
    return ts >= static_cast<ngtcp2_tstamp>(kNever.ns) ? kNever : Instant{static_cast<std::int64_t>(ts)};
  };
  if (stash_ || farewell_ || goodbye_wanted_ || (ending() && !end_told_)) return instant(now_);
  if (ending()) return lingers_until_ != 0 ? instant(lingers_until_) : kNever;
  return instant(next_expiry());
}

ngtcp2_tstamp Connection::next_expiry() const {
  ngtcp2_tstamp next = ngtcp2_conn_get_expiry(conn_);
  if (!established_) return next;
  if (paced(now_)) next = std::min(next, sent_until_ - kPacingSlack);
  const auto keep_alive = static_cast<ngtcp2_duration>(parts_.config->keep_alive.ns);
  if (next >= std::max(last_sent_, last_received_) + keep_alive) {
    // Silence, which all connections end at the same moments; servers a little later, when it was not in vain.
    const ngtcp2_duration every = std::max<ngtcp2_duration>(keep_alive / kKeepAliveParts, 1);
    return (next / every + (server_ ? 2 : 1)) * every;
  }
  const bool lone_ack = !held_back_ && ack_can_wait(next);
  return lone_ack ? (next / kLoneAckEvery + 1) * kLoneAckEvery : next;
}

/// Whether what is to be done at `ts`, besides sending what there is, can only be to acknowledge what came last.
bool Connection::ack_can_wait(ngtcp2_tstamp ts) const {
  if (ts > last_received_ + kLanRtt / 8) return false;
  ngtcp2_conn_info info;
  ngtcp2_conn_get_conn_info(conn_, &info);
  return info.bytes_in_flight == 0;
}

bool Connection::paced(ngtcp2_tstamp ts) const { return sent_until_ > ts + kPacingSlack; }

void Connection::on_timer(Instant now) {
  const ngtcp2_tstamp ts = clock(now);
  if (ending()) {
    tell_end();
    if (ts >= lingers_until_) lingers_until_ = 0;
    return;
  }
  announce_ids();
  if (const int rv = ngtcp2_conn_handle_expiry(conn_, ts); rv != 0) settle(rv);
  if (established_ && !ending()) end_when_unacknowledged(ts);
  if (ending()) tell_end();
}

// ---- what the application asks for ----

Result<env::QuicStreamId> Connection::open(bool bidirectional) {
  if (!established_ || ending()) return fail(Errc::unavailable, "the connection is not open");
  std::int64_t stream = -1;
  const int rv = bidirectional ? ngtcp2_conn_open_bidi_stream(conn_, &stream, mark_unheard(true))
                               : ngtcp2_conn_open_uni_stream(conn_, &stream, nullptr);
  if (rv == 0) {
    if (bidirectional) unheard_.emplace(stream, std::nullopt);
    return stream;
  }
  if (rv != NGTCP2_ERR_STREAM_ID_BLOCKED) return fail(Errc::unavailable, ngtcp2_strerror(rv));
  streams_wanted_ = true;
  return fail(Errc::overloaded, "the peer allows no more streams");
}

void Connection::abandon(env::QuicStreamId stream, std::uint64_t code) {
  // Not now: a packet may be half written, and ngtcp2 would take the frames for sent with it.
  if (ending() || !open_now(stream)) return;  // It is over already.
  if (!given_up_.insert(stream).second) return;
  const auto unheard = unheard_.find(stream);
  if (unheard != unheard_.end()) unheard->second = code;
  abandoned_.push_back({.stream = stream, .code = code, .whole = unheard == unheard_.end()});
}

void Connection::close(Instant now, std::uint64_t code, std::string reason) {
  clock(now);
  if (ending()) return;
  end_with({.cause = env::QuicEnd::Cause::closed_here, .application = true, .code = code, .reason = reason},
           Farewell{.application = true, .code = code, .reason = reason});
}

// ---- the end ----

void Connection::give_up(std::uint64_t code, const char* reason) {
  end_with({.cause = env::QuicEnd::Cause::internal, .code = code, .reason = reason},
           Farewell{.application = false, .code = code, .reason = reason});
}

void Connection::end_with(env::QuicEnd end, std::optional<Farewell> farewell) {
  if (ending()) return;
  end_ = std::move(end);
  farewell_ = std::move(farewell);
  if (farewell_) farewell_->reason.resize(std::min(farewell_->reason.size(), kMaxReasonBytes));
}

void Connection::end(env::QuicEnd::Cause cause, std::string reason, std::uint64_t code) {
  end_with({.cause = cause, .code = code, .reason = std::move(reason)}, std::nullopt);
}

void Connection::settle(int rv) {
  using Cause = env::QuicEnd::Cause;
  if (ending()) return;
  if (failure_) {
    const std::uint64_t code = NGTCP2_CRYPTO_ERROR + failure_->alert;
    end_with({.cause = Cause::handshake_failed, .code = code, .reason = failure_->reason},
             Farewell{.application = false, .code = code, .reason = failure_->reason});
    return;
  }
  switch (rv) {
    case NGTCP2_ERR_RETRY:
      // A later part of a client's first message came first. ngtcp2 suggests to validate the address before it is kept;
      // whoever accepts connections bounds the memory of half-open ones instead, and sends Retry packets by itself.
      return;
    case NGTCP2_ERR_DRAINING: {
      if (reset_received_) return end(Cause::reset, "the peer has forgotten this connection");
      const ngtcp2_ccerr& error = *ngtcp2_conn_get_ccerr(conn_);
      env::QuicEnd by_peer{.cause = Cause::closed_by_peer, .code = error.error_code};
      by_peer.application = error.type == NGTCP2_CCERR_TYPE_APPLICATION;
      by_peer.reason.assign(reinterpret_cast<const char*>(error.reason),
                            std::min<std::size_t>(error.reasonlen, kMaxReasonBytes));
      return end_with(std::move(by_peer), std::nullopt);
    }
    case NGTCP2_ERR_IDLE_CLOSE: return end(Cause::idle, "the peer is silent");
    case NGTCP2_ERR_HANDSHAKE_TIMEOUT: return end(Cause::idle, "the handshake took too long");
    case NGTCP2_ERR_RECV_VERSION_NEGOTIATION:
      return end(Cause::refused_version, "the peer does not speak this version of QUIC");
    case NGTCP2_ERR_DROP_CONN: return end(Cause::protocol, "not a packet that begins a connection");
    case NGTCP2_ERR_NOMEM:
    case NGTCP2_ERR_CALLBACK_FAILURE:
    case NGTCP2_ERR_INVALID_ARGUMENT:
    case NGTCP2_ERR_INVALID_STATE:
    case NGTCP2_ERR_NOBUF:
    case NGTCP2_ERR_PKT_NUM_EXHAUSTED:
      return end_with({.cause = Cause::internal, .code = NGTCP2_INTERNAL_ERROR, .reason = ngtcp2_strerror(rv)},
                      Farewell{.application = false, .code = NGTCP2_INTERNAL_ERROR, .reason = {}});
    default: {
      const std::uint64_t code = ngtcp2_err_infer_quic_transport_error_code(rv);
      return end_with({.cause = Cause::protocol, .code = code, .reason = ngtcp2_strerror(rv)},
                      Farewell{.application = false, .code = code, .reason = ngtcp2_strerror(rv)});
    }
  }
}

void Connection::tell_end() {
  if (end_told_) return;
  end_told_ = true;
  parts_.application->on_end(*end_);
}

std::optional<env::QuicConnection::Burst> Connection::send_farewell(ngtcp2_tstamp ts, MutableByteSpan out) {
  tell_end();
  if (farewell_) {
    const Farewell farewell = std::move(*farewell_);
    farewell_.reset();
    ngtcp2_ccerr error;
    const auto* reason = reinterpret_cast<const std::uint8_t*>(farewell.reason.data());
    if (farewell.application) {
      ngtcp2_ccerr_set_application_error(&error, farewell.code, reason, farewell.reason.size());
    } else {
      ngtcp2_ccerr_set_transport_error(&error, farewell.code, reason, farewell.reason.size());
    }
    ngtcp2_path path = departure_.path();
    ngtcp2_pkt_info info{};
    const ngtcp2_ssize n = ngtcp2_conn_write_connection_close(
        conn_, &path, &info, reinterpret_cast<std::uint8_t*>(out.data()), max_datagram_, &error, ts);
    if (n <= 0) return std::nullopt;  // Nothing was ever sent, or nothing may be: then silence.
    const ByteSpan packet = ByteSpan(out).first(static_cast<std::size_t>(n));
    goodbye_ = {.bytes = Bytes(packet.begin(), packet.end()),
                .path = path_to(departure_.remote),
                .ecn = static_cast<env::Ecn>(info.ecn)};
    // Peers that were never let in are not waited for: they could make us keep any number of connections.
    if (established_) lingers_until_ = ts + 3 * ngtcp2_conn_get_pto(conn_);
  } else if (!goodbye_wanted_) {
    return std::nullopt;
  }
  goodbye_wanted_ = false;
  repeats_from_ = ts + ngtcp2_conn_get_pto(conn_) / 16;
  std::ranges::copy(goodbye_.bytes, out.begin());
  bytes_sent_ += goodbye_.bytes.size();
  ++packets_sent_;
  return Burst{
      .path = goodbye_.path, .ecn = goodbye_.ecn, .segment = goodbye_.bytes.size(), .bytes = goodbye_.bytes.size()};
}

bool Connection::finished() const {
  return end_told_ && !stash_ && !farewell_ && !goodbye_wanted_ && lingers_until_ == 0;
}

// ---- what is to be seen ----

Instant Connection::unacknowledged_since() const {
  return unacknowledged_since_ == 0 ? kNever : Instant{static_cast<std::int64_t>(unacknowledged_since_)};
}

std::uint64_t Connection::stream_losses(env::QuicStreamId stream) const {
  return ngtcp2_conn_get_stream_loss_count(conn_, stream);
}

env::QuicConnectionStats Connection::stats() const {
  ngtcp2_conn_info stat;
  ngtcp2_conn_get_conn_info(conn_, &stat);
  const auto duration = [](ngtcp2_duration d) {
    return d == UINT64_MAX ? Duration{} : nanoseconds(static_cast<std::int64_t>(d));
  };
  env::QuicConnectionStats out;
  out.latest_rtt = duration(stat.latest_rtt);
  out.min_rtt = duration(stat.min_rtt);
  out.smoothed_rtt = duration(stat.smoothed_rtt);
  out.rtt_variance = duration(stat.rttvar);
  out.congestion_window = stat.cwnd;
  out.bytes_in_flight = stat.bytes_in_flight;
  out.bytes_sent = bytes_sent_;
  out.bytes_received = bytes_received_;
  out.packets_sent = packets_sent_;
  out.packets_received = packets_received_;
  out.packets_lost = packets_lost_;
  for (const auto& [stream, unacknowledged] : sending_) {
    out.packets_lost += ngtcp2_conn_get_stream_loss_count(conn_, stream);
  }
  out.memory_bytes = memory_.bytes();
  out.key_updates = sent_.generation;
  out.ecn = ecn_;
  out.congestion_marks = congestion_marks_;
  out.datagram_bytes = ngtcp2_conn_get_path_max_tx_udp_payload_size(conn_);
  sockaddr_in6 remote;
  std::memcpy(&remote, ngtcp2_conn_get_path(conn_)->remote.addr, sizeof remote);
  out.path = path_to(remote);
  return out;
}

}  // namespace holo::driver::quic
