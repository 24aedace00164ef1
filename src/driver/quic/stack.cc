#include <algorithm>
#include <array>

#include "base/assert.h"
#include "driver/quic/connection.h"
#include "driver/quic/quic.h"

namespace holo::driver::quic {
namespace {

using env::QuicPacketHeader;

constexpr std::byte kLongHeader{0x80};
constexpr std::byte kFixedBit{0x40};
constexpr std::size_t kMaxIdBytes = 20;  // of version 1
constexpr std::size_t kMinClientIdBytes = 8;
/// What a stateless reset has at least (RFC 9000, section 10.3), and what ours have where that is allowed: like a short
/// packet.
constexpr std::size_t kMinResetBytes = 21;
constexpr std::size_t kResetBytes = 43;

/// Reads from the front of a datagram; once it has run short it stays so.
class Reader {
 public:
  explicit Reader(ByteSpan bytes) : rest_(bytes) {}
  ByteSpan take(std::size_t n) {
    if (short_ || rest_.size() < n) {
      short_ = true;
      return {};
    }
    const ByteSpan out = rest_.first(n);
    rest_ = rest_.subspan(n);
    return out;
  }
  std::uint64_t number(std::size_t bytes) {
    std::uint64_t v = 0;
    for (const std::byte b : take(bytes)) v = v << 8 | std::to_integer<std::uint64_t>(b);
    return v;
  }
  /// RFC 9000, section 16.
  std::uint64_t varint() {
    const std::uint64_t first = number(1);
    const std::size_t more = (std::size_t{1} << (first >> 6)) - 1;
    return (first & 0x3f) << (8 * more) | number(more);
  }
  [[nodiscard]] bool ran_short() const { return short_; }

 private:
  ByteSpan rest_;
  bool short_ = false;
};

class Stack final : public env::QuicStack {
 public:
  std::unique_ptr<env::QuicConnection> connect(std::shared_ptr<const env::QuicConfig> config, Instant now,
                                               const env::DatagramPath& path, env::QuicHandshake& handshake,
                                               env::QuicApplication& application, env::Entropy& entropy) override {
    return Connection::connect({std::move(config), &handshake, &application, &entropy}, now, path);
  }

  Result<std::unique_ptr<env::QuicConnection>> accept(std::shared_ptr<const env::QuicConfig> config, Instant now,
                                                      const env::DatagramPath& path, const QuicPacketHeader& first,
                                                      ByteSpan retried_from, env::QuicHandshake& handshake,
                                                      env::QuicApplication& application,
                                                      env::Entropy& entropy) override {
    // Without a Retry the client has made the id up, long enough that nobody else guesses it.
    const std::size_t least = retried_from.empty() ? kMinClientIdBytes : 1;
    if (first.kind != QuicPacketHeader::Kind::initial || first.destination.size() < least ||
        retried_from.size() > kMaxIdBytes || (!retried_from.empty() && first.token.empty())) {
      return fail(Errc::malformed, "not a first packet of a connection");
    }
    Connection::FirstInitial initial{.client = to_cid(first.source), .destination = to_cid(first.destination)};
    if (!retried_from.empty()) {
      initial.retried_from = to_cid(retried_from);
      initial.token = first.token;
    }
    return Connection::accept({std::move(config), &handshake, &application, &entropy}, now, path, initial);
  }

  [[nodiscard]] QuicPacketHeader classify(ByteSpan datagram) const override;
  std::size_t write_version_negotiation(const QuicPacketHeader& header, env::Entropy& entropy,
                                        MutableByteSpan out) const override;
  std::size_t write_retry(const QuicPacketHeader& header, ByteSpan new_source_id, ByteSpan token,
                          MutableByteSpan out) const override;
  std::size_t write_stateless_reset(const env::QuicConfig& config, const QuicPacketHeader& header,
                                    std::size_t datagram_bytes, env::Entropy& entropy,
                                    MutableByteSpan out) const override;
};

std::uint8_t* raw(MutableByteSpan bytes) { return reinterpret_cast<std::uint8_t*>(bytes.data()); }
const std::uint8_t* raw(ByteSpan bytes) { return reinterpret_cast<const std::uint8_t*>(bytes.data()); }
std::size_t size_or_none(ngtcp2_ssize n) { return n > 0 ? static_cast<std::size_t>(n) : 0; }

QuicPacketHeader Stack::classify(ByteSpan datagram) const {
  QuicPacketHeader out;
  if (datagram.empty()) return out;
  Reader reader(datagram);
  const std::byte first = reader.take(1)[0];
  // The fixed bit may be clear: our own connections grease it (RFC 9287).
  if ((first & kLongHeader) == std::byte{}) {
    const ByteSpan id = reader.take(kConnectionIdBytes);
    if (reader.ran_short()) return out;
    out.kind = QuicPacketHeader::Kind::one_rtt;
    out.version = kVersion;
    out.destination = id;
    return out;
  }
  out.version = static_cast<std::uint32_t>(reader.number(4));
  out.destination = reader.take(reader.number(1));
  out.source = reader.take(reader.number(1));
  if (reader.ran_short()) return {};
  if (out.version != 0 && out.version != kVersion) {
    out.kind = QuicPacketHeader::Kind::unknown_version;
    return out;
  }
  if (out.destination.size() > kMaxIdBytes || out.source.size() > kMaxIdBytes) return {};
  const bool initial = out.version == kVersion && (first & std::byte{0x30}) == std::byte{};
  if (initial) {
    const std::uint64_t token_bytes = reader.varint();
    if (token_bytes > kTokenBytes) return {};
    out.token = reader.take(token_bytes);
    if (reader.ran_short()) return {};
  }
  out.kind = initial ? QuicPacketHeader::Kind::initial : QuicPacketHeader::Kind::other_long;
  return out;
}

std::size_t Stack::write_version_negotiation(const QuicPacketHeader& header, env::Entropy& entropy,
                                             MutableByteSpan out) const {
  if (header.kind != QuicPacketHeader::Kind::unknown_version) return 0;
  const std::uint32_t versions[] = {kVersion};
  return size_or_none(ngtcp2_pkt_write_version_negotiation(
      raw(out), out.size(), static_cast<std::uint8_t>(entropy.u64()), raw(header.source), header.source.size(),
      raw(header.destination), header.destination.size(), versions, std::size(versions)));
}

std::size_t Stack::write_retry(const QuicPacketHeader& header, ByteSpan new_source_id, ByteSpan token,
                               MutableByteSpan out) const {
  if (header.kind != QuicPacketHeader::Kind::initial || header.destination.size() < kMinClientIdBytes ||
      std::ranges::equal(new_source_id, header.destination)) {
    return 0;
  }
  HOLO_ASSERT(!token.empty() && token.size() <= kTokenBytes && new_source_id.size() <= kMaxIdBytes);
  const ngtcp2_cid client = to_cid(header.source), original = to_cid(header.destination), own = to_cid(new_source_id);
  const ngtcp2_crypto_aead aead = retry_aead();
  const ngtcp2_crypto_aead_ctx key = retry_key();
  return size_or_none(ngtcp2_pkt_write_retry(raw(out), out.size(), kVersion, &client, &own, &original, raw(token),
                                             token.size(), seal_packet, &aead, &key));
}

std::size_t Stack::write_stateless_reset(const env::QuicConfig& config, const QuicPacketHeader& header,
                                         std::size_t datagram_bytes, env::Entropy& entropy, MutableByteSpan out) const {
  // Always smaller than what it answers, so that two that have forgotten each other fall silent.
  if (header.kind != QuicPacketHeader::Kind::one_rtt || datagram_bytes <= kMinResetBytes) return 0;
  const std::size_t size = std::min({kResetBytes, datagram_bytes - 1, out.size()});
  if (size < kMinResetBytes) return 0;
  const ResetToken token = reset_token(config, header.destination);
  const MutableByteSpan random = out.first(size - token.size());
  entropy.fill(random);
  random[0] = (random[0] & ~kLongHeader) | kFixedBit;
  std::ranges::copy(token, out.begin() + static_cast<std::ptrdiff_t>(random.size()));
  return size;
}

}  // namespace

std::unique_ptr<env::QuicStack> make_stack() { return std::make_unique<Stack>(); }

}  // namespace holo::driver::quic
