#include "cmd/holo/bench_bare_quic.h"

#include <arpa/inet.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstring>

#include "base/limits.h"
#include "base/strings.h"
#include "cmd/holo/link_peer.h"
#include "driver/posix/os_entropy.h"
#include "driver/posix/udp.h"
#include "driver/quic/keys.h"
#include "driver/quic/quic.h"

namespace holo::cmd::bare {
namespace {

namespace quic = driver::quic;

constexpr std::size_t kIdBytes = 8;
constexpr std::size_t kMessages = 4, kMessageBytes = 64 << 10;  // of one recvmmsg()
constexpr std::size_t kMaxBurst = 65'507, kMaxSegments = 64;
constexpr int kSocketBuffer = 8 << 20;
constexpr std::uint64_t kWindow = 256 << 20;
constexpr std::uint64_t kStreams = 4096;
constexpr std::size_t kMaxParameters = 1024;

driver::OsEntropy& entropy() {
  static driver::OsEntropy the;
  return the;
}
void random_bytes(std::uint8_t* out, std::size_t size) { entropy().fill(std::as_writable_bytes(std::span(out, size))); }
ngtcp2_tstamp now() {
  return static_cast<ngtcp2_tstamp>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}
ByteSpan bytes_of(const std::uint8_t* data, std::size_t size) { return std::as_bytes(std::span(data, size)); }
ByteSpan bytes_of(const ngtcp2_cid& id) { return bytes_of(id.data, id.datalen); }
std::uint64_t route_of(ByteSpan id) {
  std::uint64_t out = 0;
  std::memcpy(&out, id.data(), std::min(id.size(), sizeof out));
  return out;
}
ngtcp2_cid fresh_id() {
  ngtcp2_cid out;
  out.datalen = kIdBytes;
  random_bytes(out.data, kIdBytes);
  return out;
}

env::IpEndpoint endpoint_of(const sockaddr_in& address) {
  return env::IpEndpoint::v4(ntohl(address.sin_addr.s_addr), ntohs(address.sin_port));
}

/// What every answer is made of.
const Bytes& answer_bytes() {
  static const Bytes all(kMaxLinkReply, std::byte{7});
  return all;
}

}  // namespace

/// ngtcp2's callbacks.
struct Calls {
  static Connection& self(void* p) { return *static_cast<Connection*>(p); }
  static int client_initial(ngtcp2_conn*, void* p) { return self(p).begin() == 0 ? 0 : NGTCP2_ERR_CALLBACK_FAILURE; }
  static int recv_client_initial(ngtcp2_conn*, const ngtcp2_cid* id, void* p) {
    return self(p).install_initial_keys(bytes_of(*id));
  }
  static int recv_retry(ngtcp2_conn*, const ngtcp2_pkt_hd*, void*) { return NGTCP2_ERR_CALLBACK_FAILURE; }
  static int recv_crypto_data(ngtcp2_conn*, ngtcp2_encryption_level level, std::uint64_t, const std::uint8_t* data,
                              std::size_t size, void* p) {
    return self(p).on_crypto(level, bytes_of(data, size));
  }
  static int handshake_completed(ngtcp2_conn* conn, void* p) {
    ngtcp2_conn_set_keep_alive_timeout(conn, 2 * NGTCP2_SECONDS);
    if (self(p).server_) self(p).established_ = true;
    return 0;
  }
  static int handshake_confirmed(ngtcp2_conn*, void* p) {
    self(p).established_ = true;
    return 0;
  }
  static int stream_open(ngtcp2_conn* conn, std::int64_t id, void* p) {
    auto& stream = self(p).streams_[id];
    stream = std::make_unique<Stream>();
    stream->id = id;
    return ngtcp2_conn_set_stream_user_data(conn, id, stream.get());
  }
  static int recv_stream_data(ngtcp2_conn* conn, std::uint32_t flags, std::int64_t id, std::uint64_t,
                              const std::uint8_t* data, std::size_t size, void* p, void* stream) {
    ngtcp2_conn_extend_max_stream_offset(conn, id, size);
    ngtcp2_conn_extend_max_offset(conn, size);
    if (stream == nullptr) return 0;
    return self(p).on_stream_data(*static_cast<Stream*>(stream), bytes_of(data, size),
                                  (flags & NGTCP2_STREAM_DATA_FLAG_FIN) != 0);
  }
  static int stream_close(ngtcp2_conn* conn, std::uint32_t, std::int64_t id, std::uint64_t, void* p, void*) {
    if (ngtcp2_conn_is_local_stream(conn, id) == 0) ngtcp2_conn_extend_max_streams_bidi(conn, 1);
    self(p).streams_.erase(id);
    return 0;
  }
  static void rand(std::uint8_t* out, std::size_t size, const ngtcp2_rand_ctx*) { random_bytes(out, size); }
  static int path_challenge(ngtcp2_conn*, std::uint8_t* out, void*) {
    random_bytes(out, NGTCP2_PATH_CHALLENGE_DATALEN);
    return 0;
  }
  static int new_id(ngtcp2_conn*, ngtcp2_cid* id, std::uint8_t* token, std::size_t size, void* p) {
    id->datalen = size;
    random_bytes(id->data, size);
    random_bytes(token, NGTCP2_STATELESS_RESET_TOKENLEN);
    const std::uint64_t route = route_of(bytes_of(*id));
    self(p).ids_.push_back(route);
    self(p).endpoint_.routes_[route] = &self(p);
    return 0;
  }
  static int update_key(ngtcp2_conn*, std::uint8_t*, std::uint8_t*, ngtcp2_crypto_aead_ctx* receive,
                        std::uint8_t* receive_iv, ngtcp2_crypto_aead_ctx* send, std::uint8_t* send_iv,
                        const std::uint8_t*, const std::uint8_t*, std::size_t, void* p) {
    std::memcpy(receive_iv, quic::kBareIv, quic::kBareIvBytes);
    std::memcpy(send_iv, quic::kBareIv, quic::kBareIvBytes);
    auto& agreed = self(p).agreed_;
    agreed.send_secret = crypto::next_traffic_secret(agreed.send_secret);
    agreed.receive_secret = crypto::next_traffic_secret(agreed.receive_secret);
    *send = quic::make_packet_key(agreed.aead, agreed.send_secret);
    *receive = quic::make_packet_key(agreed.aead, agreed.receive_secret);
    return 0;
  }
  static void delete_aead(ngtcp2_conn*, ngtcp2_crypto_aead_ctx* key, void*) { quic::delete_packet_key(*key); }
  static void delete_cipher(ngtcp2_conn*, ngtcp2_crypto_cipher_ctx* key, void*) { quic::delete_header_key(*key); }

  static const ngtcp2_callbacks& table() {
    static const ngtcp2_callbacks the = [] {
      ngtcp2_callbacks out{};
      out.client_initial = client_initial;
      out.recv_client_initial = recv_client_initial;
      out.recv_crypto_data = recv_crypto_data;
      out.handshake_completed = handshake_completed;
      out.handshake_confirmed = handshake_confirmed;
      out.encrypt = quic::seal_packet;
      out.decrypt = quic::open_packet;
      out.hp_mask = quic::header_mask;
      out.stream_open = stream_open;
      out.recv_stream_data = recv_stream_data;
      out.stream_close = stream_close;
      out.recv_retry = recv_retry;
      out.rand = rand;
      out.get_new_connection_id = new_id;
      out.update_key = update_key;
      out.delete_crypto_aead_ctx = delete_aead;
      out.delete_crypto_cipher_ctx = delete_cipher;
      out.get_path_challenge_data = path_challenge;
      return out;
    }();
    return the;
  }
};

// --- a connection

Connection::Connection(Endpoint& endpoint, std::optional<ngtcp2_pkt_hd> first, const sockaddr_in& remote)
    : endpoint_(endpoint),
      server_(first.has_value()),
      remote_(remote),
      burst_limit_(std::min(kMaxBurst, driver::burst_limit(endpoint_of(remote)))),
      handshake_(first ? hyperbus::noise::Role::responder : hyperbus::noise::Role::initiator, endpoint.handshake_,
                 entropy()) {
  ngtcp2_settings settings;
  ngtcp2_settings_default(&settings);
  settings.initial_ts = now_ = now();
  settings.initial_rtt = 100 * NGTCP2_MILLISECONDS;
  settings.cc_algo = NGTCP2_CC_ALGO_CUBIC;
  settings.max_tx_udp_payload_size = endpoint.options_.datagram_bytes;
  settings.no_tx_udp_payload_size_shaping = 1;
  settings.no_pmtud = 1;
  const ngtcp2_cid own = own_id_ = fresh_id();
  ngtcp2_transport_params params;
  ngtcp2_transport_params_default(&params);
  params.initial_max_stream_data_bidi_local = params.initial_max_stream_data_bidi_remote = kWindow;
  params.initial_max_data = kWindow;
  params.initial_max_streams_bidi = kStreams;
  params.max_idle_timeout = 8 * NGTCP2_SECONDS;
  params.active_connection_id_limit = 3;
  const ngtcp2_path where = path();
  int rv = 0;
  if (first) {
    params.original_dcid = first->dcid;
    params.original_dcid_present = 1;
    rv = ngtcp2_conn_server_new(&conn_, &first->scid, &own, &where, quic::kVersion, &Calls::table(), &settings, &params,
                                nullptr, this);
    ids_.push_back(route_of(bytes_of(first->dcid)));
  } else {
    const ngtcp2_cid destination = fresh_id();
    rv = ngtcp2_conn_client_new(&conn_, &destination, &own, &where, quic::kVersion, &Calls::table(), &settings, &params,
                                nullptr, this);
  }
  failed_ = rv != 0;
  ids_.push_back(route_of(bytes_of(own)));
  for (const std::uint64_t id : ids_) endpoint_.routes_[id] = this;
}

Connection::~Connection() {
  ngtcp2_conn_del(conn_);
  for (const std::uint64_t id : ids_) endpoint_.routes_.erase(id);
}

ngtcp2_path Connection::path() {
  return {.local = {reinterpret_cast<sockaddr*>(&endpoint_.local_), sizeof endpoint_.local_},
          .remote = {reinterpret_cast<sockaddr*>(&remote_), sizeof remote_},
          .user_data = nullptr};
}

int Connection::begin() {
  if (const int rv = install_initial_keys(bytes_of(*ngtcp2_conn_get_dcid(conn_))); rv != 0) return rv;
  std::array<std::uint8_t, kMaxParameters> own;
  const auto n = ngtcp2_conn_encode_local_transport_params(conn_, own.data(), own.size());
  if (n < 0) return static_cast<int>(n);
  const auto first = handshake_.start(bytes_of(own.data(), static_cast<std::size_t>(n)));
  return first ? submit(NGTCP2_ENCRYPTION_LEVEL_INITIAL, *first) : NGTCP2_ERR_CRYPTO;
}

int Connection::install_initial_keys(ByteSpan id) {
  const crypto::InitialSecrets secrets = quic::our_initial_secrets(id);
  constexpr auto kAead = crypto::AeadAlgorithm::aes_128_gcm;
  ngtcp2_crypto_ctx context{};
  context.aead = quic::packet_aead();
  context.max_encryption = context.max_decryption_failure = UINT64_MAX;
  ngtcp2_conn_set_initial_crypto_ctx(conn_, &context);
  const auto& send_secret = server_ ? secrets.server : secrets.client;
  const auto& receive_secret = server_ ? secrets.client : secrets.server;
  ngtcp2_crypto_aead_ctx receive = quic::make_packet_key(kAead, receive_secret);
  ngtcp2_crypto_aead_ctx send = quic::make_packet_key(kAead, send_secret);
  ngtcp2_crypto_cipher_ctx receive_header = quic::make_header_key(kAead, receive_secret);
  ngtcp2_crypto_cipher_ctx send_header = quic::make_header_key(kAead, send_secret);
  return ngtcp2_conn_install_initial_key(conn_, &receive, quic::kBareIv, &receive_header, &send, quic::kBareIv,
                                         &send_header, quic::kBareIvBytes);
}

int Connection::submit(ngtcp2_encryption_level level, ByteSpan message) {
  Bytes whole = {static_cast<std::byte>(message.size() & 0xff), static_cast<std::byte>(message.size() >> 8)};
  whole.insert(whole.end(), message.begin(), message.end());
  return ngtcp2_conn_submit_crypto_data(conn_, level, reinterpret_cast<const std::uint8_t*>(whole.data()),
                                        whole.size());
}

int Connection::on_crypto(ngtcp2_encryption_level level, ByteSpan bytes) {
  if (level != expects_) return 0;
  message_.insert(message_.end(), bytes.begin(), bytes.end());
  while (message_.size() >= 2) {
    const auto length = std::to_integer<std::size_t>(message_[0]) | std::to_integer<std::size_t>(message_[1]) << 8;
    if (message_.size() < 2 + length) break;
    const Bytes one(message_.begin() + 2, message_.begin() + 2 + static_cast<std::ptrdiff_t>(length));
    message_.erase(message_.begin(), message_.begin() + 2 + static_cast<std::ptrdiff_t>(length));
    if (one.empty()) continue;
    if (const int rv = on_message(one); rv != 0) return rv;
  }
  return 0;
}

int Connection::on_message(ByteSpan message) {
  auto answer = handshake_.on_message(message, [this](ByteSpan peer) { return exchange(peer); });
  if (!answer) return NGTCP2_ERR_CRYPTO;
  if (auto level = handshake_.take_level_secrets()) {
    if (const int rv = install_keys(handshake_.aead(), level->send, level->receive, NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE);
        rv != 0) {
      return rv;
    }
    expects_ = NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE;
  }
  if (!answer->empty()) {
    const auto level = server_ ? NGTCP2_ENCRYPTION_LEVEL_INITIAL : NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE;
    if (const int rv = submit(level, *answer); rv != 0) return rv;
  }
  if (!handshake_.done()) return server_ ? submit(NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE, {}) : 0;
  agreed_ = handshake_.take_result();
  const int rv = install_keys(agreed_.aead, agreed_.send_secret, agreed_.receive_secret, NGTCP2_ENCRYPTION_LEVEL_1RTT);
  if (rv == 0) ngtcp2_conn_tls_handshake_completed(conn_);
  return rv;
}

int Connection::install_keys(crypto::AeadAlgorithm aead, const hyperbus::TrafficSecret& send,
                             const hyperbus::TrafficSecret& receive, ngtcp2_encryption_level level) {
  ngtcp2_crypto_ctx context{};
  context.aead = quic::packet_aead();
  context.max_encryption = 1ULL << 23;
  context.max_decryption_failure = 1ULL << 36;
  ngtcp2_conn_set_crypto_ctx(conn_, &context);
  for (const bool sending : {false, true}) {
    const auto& secret = sending ? send : receive;
    ngtcp2_crypto_aead_ctx key = quic::make_packet_key(aead, secret);
    ngtcp2_crypto_cipher_ctx header = quic::make_header_key(aead, secret);
    int rv = 0;
    if (level == NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE) {
      const auto install = sending ? ngtcp2_conn_install_tx_handshake_key : ngtcp2_conn_install_rx_handshake_key;
      rv = install(conn_, &key, quic::kBareIv, quic::kBareIvBytes, &header);
    } else {
      const auto install = sending ? ngtcp2_conn_install_tx_key : ngtcp2_conn_install_rx_key;
      rv = install(conn_, nullptr, 0, &key, quic::kBareIv, quic::kBareIvBytes, &header);
    }
    if (rv != 0) return rv;
  }
  return 0;
}

Result<Bytes> Connection::exchange(ByteSpan peer) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(peer.data());
  if (ngtcp2_conn_decode_and_set_remote_transport_params(conn_, data, peer.size()) != 0) {
    return fail(Errc::malformed, "transport parameters");
  }
  if (!server_) return Bytes();
  Bytes own(kMaxParameters);
  ngtcp2_transport_params mine = *ngtcp2_conn_get_local_transport_params(conn_);
  mine.initial_scid_present = 1;
  mine.initial_scid = own_id_;
  const auto n = ngtcp2_transport_params_encode(reinterpret_cast<std::uint8_t*>(own.data()), own.size(), &mine);
  if (n < 0) return fail(Errc::internal, "transport parameters");
  own.resize(static_cast<std::size_t>(n));
  return own;
}

void Connection::request(std::uint64_t bytes, std::byte* into, std::function<void()> done) {
  auto stream = std::make_unique<Stream>();
  if (ngtcp2_conn_open_bidi_stream(conn_, &stream->id, stream.get()) != 0) {
    failed_ = true;
    return;
  }
  stream->ask.bytes = bytes;
  stream->ours = true;
  stream->into = into;
  stream->done = std::move(done);
  to_say_.push_back(stream->id);
  streams_[stream->id] = std::move(stream);
}

int Connection::on_stream_data(Stream& stream, ByteSpan bytes, bool fin) {
  if (stream.ours) {
    const std::size_t n = std::min<std::size_t>(bytes.size(), stream.ask.bytes - stream.got);
    std::memcpy(stream.into + stream.got, bytes.data(), n);
    stream.got += n;
    if (fin) stream.done();
    return 0;
  }
  const std::size_t n = std::min(bytes.size(), sizeof stream.ask - stream.got);
  std::memcpy(reinterpret_cast<std::byte*>(&stream.ask) + stream.got, bytes.data(), n);
  stream.got += n;
  if (!fin) return 0;
  stream.ask.bytes = std::min<std::uint64_t>(stream.ask.bytes, answer_bytes().size());
  to_say_.push_back(stream.id);
  return 0;
}

ngtcp2_ssize Connection::write_packet(std::uint8_t* out, std::size_t room) {
  while (true) {
    Stream* stream = nullptr;
    while (established_ && !to_say_.empty() && stream == nullptr) {
      const auto found = streams_.find(to_say_.front());
      if (found != streams_.end())
        stream = found->second.get();
      else
        to_say_.pop_front();
    }
    ngtcp2_vec part{};
    if (stream != nullptr) {
      const ByteSpan all =
          stream->ours ? std::as_bytes(std::span(&stream->ask, 1)) : ByteSpan(answer_bytes()).first(stream->ask.bytes);
      const ByteSpan rest = all.subspan(stream->sent);
      part = {reinterpret_cast<std::uint8_t*>(const_cast<std::byte*>(rest.data())), rest.size()};
    }
    ngtcp2_ssize taken = -1;
    const std::uint32_t flags = stream != nullptr ? NGTCP2_WRITE_STREAM_FLAG_MORE | NGTCP2_WRITE_STREAM_FLAG_FIN : 0U;
    const auto n =
        ngtcp2_conn_writev_stream(conn_, nullptr, nullptr, reinterpret_cast<std::uint8_t*>(out), room, &taken, flags,
                                  stream != nullptr ? stream->id : -1, &part, stream != nullptr ? 1 : 0, now_);
    if (taken >= 0 && stream != nullptr) {
      stream->sent += static_cast<std::uint64_t>(taken);
      if (static_cast<std::size_t>(taken) == part.len) to_say_.pop_front();
    }
    if (n == NGTCP2_ERR_WRITE_MORE) continue;
    if (n == NGTCP2_ERR_STREAM_SHUT_WR || n == NGTCP2_ERR_STREAM_NOT_FOUND || n == NGTCP2_ERR_STREAM_DATA_BLOCKED) {
      failed_ = true;  // The windows are too large for that.
      return -1;
    }
    return n;
  }
}

void Connection::flush() {
  now_ = now();  // ngtcp2 is told of time in order; without its being told when packets left, it does not pace them.
  auto* out = reinterpret_cast<std::uint8_t*>(endpoint_.burst_.data());
  const std::size_t most = endpoint_.options_.datagram_bytes;
  while (!failed_) {
    const std::size_t limit =
        std::min({burst_limit_, kMaxSegments * most, std::max(most, ngtcp2_conn_get_send_quantum(conn_))});
    std::size_t bytes = 0, segment = 0;
    while (bytes + most <= limit) {
      const auto n = write_packet(out + bytes, most);
      if (n < 0) failed_ = true;
      if (n <= 0) break;
      const auto written = static_cast<std::size_t>(n);
      if (segment != 0 && written > segment) {  // GSO wants equal ones.
        endpoint_.send(remote_, ByteSpan(endpoint_.burst_).first(bytes), segment);
        std::memmove(out, out + bytes, written);
        bytes = 0;
        segment = 0;
      }
      if (segment == 0) segment = written;
      bytes += written;
      if (written < segment) break;
    }
    if (bytes == 0) break;
    endpoint_.send(remote_, ByteSpan(endpoint_.burst_).first(bytes), segment);
  }
}

void Connection::receive(ByteSpan datagram) {
  const ngtcp2_path where = path();
  const ngtcp2_pkt_info info{};
  now_ = std::max(now_, endpoint_.now_);
  const int rv = ngtcp2_conn_read_pkt(conn_, &where, &info, reinterpret_cast<const std::uint8_t*>(datagram.data()),
                                      datagram.size(), now_);
  if (rv != 0 && rv != NGTCP2_ERR_RETRY) failed_ = true;
}

void Connection::close() {
  ngtcp2_ccerr error;
  ngtcp2_ccerr_default(&error);
  auto* out = reinterpret_cast<std::uint8_t*>(endpoint_.burst_.data());
  const auto n = ngtcp2_conn_write_connection_close(conn_, nullptr, nullptr, out, endpoint_.options_.datagram_bytes,
                                                    &error, now());
  if (n > 0) {
    const auto bytes = static_cast<std::size_t>(n);
    endpoint_.send(remote_, ByteSpan(endpoint_.burst_).first(bytes), bytes);
  }
}

// --- the socket

Outcome<sockaddr_in> parse_address(const std::string& text) {
  sockaddr_in out{};
  out.sin_family = AF_INET;
  const auto colon = text.rfind(':');
  std::uint16_t port = 0;
  if (colon != std::string::npos) std::from_chars(text.data() + colon + 1, text.data() + text.size(), port);
  if (colon == std::string::npos || ::inet_pton(AF_INET, text.substr(0, colon).c_str(), &out.sin_addr) != 1) {
    return usage(str("\"", text, "\" is no IPv4 address and port"));
  }
  out.sin_port = htons(port);
  return out;
}

Endpoint::Endpoint(const Options& options, std::shared_ptr<const hyperbus::HandshakeConfig> handshake)
    : options_(options),
      handshake_(std::move(handshake)),
      received_(kMessages * kMessageBytes),
      burst_(kMaxBurst + 2048) {}

Endpoint::~Endpoint() = default;

Outcome<std::unique_ptr<Endpoint>> Endpoint::open(const Options& options,
                                                  std::shared_ptr<const hyperbus::HandshakeConfig> handshake) {
  std::unique_ptr<Endpoint> out(new Endpoint(options, std::move(handshake)));
  HOLO_ASSIGN(local, parse_address(options.listen.empty() ? "0.0.0.0:0" : options.listen));
  out->local_ = local;
  out->socket_ = env::Fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const int fd = out->socket_.get();
  if (fd < 0) return fail(Errc::io_error, "cannot make a socket");
  for (const int name : {SO_RCVBUFFORCE, SO_SNDBUFFORCE}) {
    (void)::setsockopt(fd, SOL_SOCKET, name, &kSocketBuffer, sizeof kSocketBuffer);
  }
  const int probe = IP_PMTUDISC_PROBE, on = 1;
  (void)::setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &probe, sizeof probe);
  (void)::setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on);
  socklen_t length = sizeof out->local_;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&out->local_), length) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&out->local_), &length) != 0) {
    return fail(Errc::io_error, str("cannot listen on ", options.listen));
  }
  return out;
}

std::string Endpoint::address() const {
  char text[INET_ADDRSTRLEN];
  ::inet_ntop(AF_INET, &local_.sin_addr, text, sizeof text);
  return str(text, ':', ntohs(local_.sin_port));
}

Connection& Endpoint::dial(const sockaddr_in& remote) {
  connections_.push_back(std::make_unique<Connection>(*this, std::nullopt, remote));
  connections_.back()->flush();
  return *connections_.back();
}

void Endpoint::close(Connection& connection) {
  connection.close();
  std::erase(touched_, &connection);
  std::erase_if(connections_, [&](const auto& c) { return c.get() == &connection; });
}

Connection* Endpoint::find(const sockaddr_in& from, ByteSpan datagram) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(datagram.data());
  ngtcp2_version_cid ids;
  if (ngtcp2_pkt_decode_version_cid(&ids, data, datagram.size(), kIdBytes) != 0) return nullptr;
  if (const auto found = routes_.find(route_of(bytes_of(ids.dcid, ids.dcidlen))); found != routes_.end()) {
    return found->second;
  }
  ngtcp2_pkt_hd header;
  if (options_.listen.empty() || ngtcp2_accept(&header, data, datagram.size()) == NGTCP2_ERR_INVALID_ARGUMENT ||
      ids.version == 0) {
    return nullptr;
  }
  connections_.push_back(std::make_unique<Connection>(*this, header, from));
  return connections_.back().get();
}

bool Endpoint::receive() {
  std::array<mmsghdr, kMessages> messages;
  std::array<iovec, kMessages> parts;
  std::array<sockaddr_in, kMessages> names;
  struct Control {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> bytes;
  };
  std::array<Control, kMessages> controls;
  for (std::size_t i = 0; i < kMessages; ++i) {
    parts[i] = {received_.data() + i * kMessageBytes, kMessageBytes};
    messages[i].msg_hdr = {.msg_name = &names[i],
                           .msg_namelen = sizeof names[i],
                           .msg_iov = &parts[i],
                           .msg_iovlen = 1,
                           .msg_control = controls[i].bytes.data(),
                           .msg_controllen = controls[i].bytes.size(),
                           .msg_flags = 0};
  }
  const int n = ::recvmmsg(socket_.get(), messages.data(), kMessages, MSG_DONTWAIT, nullptr);
  if (n <= 0) return false;
  now_ = now();
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    std::size_t segment = kMessageBytes;
    for (cmsghdr* c = CMSG_FIRSTHDR(&messages[i].msg_hdr); c != nullptr; c = CMSG_NXTHDR(&messages[i].msg_hdr, c)) {
      int size = 0;
      if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) std::memcpy(&size, CMSG_DATA(c), sizeof size);
      if (size > 0) segment = static_cast<std::size_t>(size);
    }
    for (ByteSpan rest(received_.data() + i * kMessageBytes, messages[i].msg_len); !rest.empty();) {
      const ByteSpan datagram = rest.first(std::min(segment, rest.size()));
      rest = rest.subspan(datagram.size());
      Connection* connection = find(names[i], datagram);
      if (connection == nullptr) continue;
      connection->receive(datagram);
      if (!std::exchange(connection->touched_, true)) touched_.push_back(connection);
    }
  }
  for (Connection* connection : std::exchange(touched_, {})) {
    connection->touched_ = false;
    connection->flush();
    if (connection->failed_ && !options_.listen.empty()) {  // A client looks at its own.
      std::erase_if(connections_, [&](const auto& c) { return c.get() == connection; });
    }
  }
  return true;
}

void Endpoint::send(const sockaddr_in& to, ByteSpan bytes, std::size_t segment) {
  iovec part = {const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(std::uint16_t))> control{};
  sockaddr_in name = to;
  msghdr message{};
  message.msg_name = &name;
  message.msg_namelen = sizeof name;
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (segment < bytes.size()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof(std::uint16_t));
    const auto size = static_cast<std::uint16_t>(segment);
    std::memcpy(CMSG_DATA(c), &size, sizeof size);
  }
  (void)::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);  // What is not taken is lost, and QUIC finds out.
}

ngtcp2_tstamp Endpoint::next_timer() const {
  ngtcp2_tstamp out = UINT64_MAX;
  for (const auto& c : connections_) out = std::min(out, ngtcp2_conn_get_expiry(c->conn_));
  return out;
}

void Endpoint::on_time() {
  const ngtcp2_tstamp ts = now();
  for (const auto& c : connections_) {
    if (c->failed_ || ngtcp2_conn_get_expiry(c->conn_) > ts) continue;
    c->now_ = std::max(c->now_, ts);
    if (ngtcp2_conn_handle_expiry(c->conn_, c->now_) != 0) c->failed_ = true;
    c->flush();
  }
  if (!options_.listen.empty()) std::erase_if(connections_, [](const auto& c) { return c->failed_; });
}

bool Endpoint::run(const std::function<bool()>& over, int limit_ms, int stop_fd) {
  const ngtcp2_tstamp until = limit_ms < 0 ? UINT64_MAX : now() + static_cast<std::uint64_t>(limit_ms) * 1'000'000;
  std::array<pollfd, 2> fds = {pollfd{.fd = socket_.get(), .events = POLLIN, .revents = 0},
                               pollfd{.fd = stop_fd, .events = POLLIN, .revents = 0}};
  while (!over()) {
    if (options_.poll) {
      const ngtcp2_tstamp look_until = now() + static_cast<std::uint64_t>(kPollFor.ns);
      bool any = false;
      while (!any && now() < look_until) any = receive();
      if (any) continue;
    }
    const ngtcp2_tstamp ts = now();
    const ngtcp2_tstamp next = std::min(next_timer(), until);
    if (ts >= until) return false;
    const ngtcp2_tstamp wait = next > ts ? next - ts : 0;
    const timespec span = {.tv_sec = static_cast<time_t>(wait / NGTCP2_SECONDS),
                           .tv_nsec = static_cast<long>(wait % NGTCP2_SECONDS)};
    if (wait > 0) (void)::ppoll(fds.data(), fds.size(), next == UINT64_MAX ? nullptr : &span, nullptr);
    if (fds[1].revents != 0) return false;
    (void)receive();
    on_time();
  }
  return true;
}

}  // namespace holo::cmd::bare
