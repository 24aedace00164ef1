// Every decoder of the hyperbus that takes bytes as they are: of handshakes, identities, pins, messages, frames,
// records and the part of QUIC's packets that is read without keys. The first byte chooses. What decodes must encode to
// something that decodes to the same.
#include <cstring>

#include "base/limits.h"
#include "core/hyperbus/frame.h"
#include "core/hyperbus/handshake.h"
#include "core/hyperbus/message.h"
#include "core/hyperbus/record.h"
#include "crypto/base64.h"
#include "driver/quic/quic.h"
#include "fuzzing.h"

namespace {

using namespace holo;
using namespace holo::hyperbus;
using fuzz::expect;

/// decode(encode(decode(x))) == decode(x)
template <auto Decode, auto Encode>
void binary(ByteSpan data) {
  const auto first = Decode(data);
  if (!first) return;
  Bytes bytes;
  Encode(*first, bytes);
  const auto again = Decode(bytes);
  expect(again.has_value() && *again == *first);
}

void certificate_text_form(ByteSpan data) {
  if (const auto carried = parse_certificate(as_text(data))) {
    expect(parse_certificate(certificate_text(*carried)) == *carried);
  }
}
void request_text_form(ByteSpan data) {
  if (const auto chain = parse_request(as_text(data)))
    expect(verify_chain(node_id_of(chain->first), *chain).has_value());
}
void public_key_form(ByteSpan data) { (void)parse_public_key(as_text(data)); }

/// A chain that says it is somebody's: checked, then looked through as the trust decision does.
void identity(ByteSpan data) {
  const auto chain = decode_chain(data);
  if (!chain) return;
  expect(chain->links.size() <= kMaxChainLinks);
  const NodeId node = node_id_of(chain->first);
  const bool whole = verify_chain(node, *chain).has_value();
  TrustBook book(TrustMode::tofu);
  const std::optional<Certificate> none;
  if (whole) expect(book.judge({.node = node, .chain = *chain, .certificate = none}, WallTime{}).has_value());
  (void)chain->position_of(chain->current());
}

void pins(ByteSpan data) {
  TrustBook book(TrustMode::tofu);
  if (!book.load_pins(as_text(data))) return expect(book.pins().empty());
  expect(book.pins().size() <= kMaxPins);
  TrustBook again(TrustMode::tofu);
  expect(again.load_pins(book.pins_text()).has_value() && again.pins() == book.pins());
}

void utc(ByteSpan data) {
  if (const auto t = parse_utc(as_text(data))) expect(parse_utc(utc_text(*t)) == *t);
}
void base64(ByteSpan data) {
  if (const auto bytes = crypto::base64_decode(as_text(data))) expect(crypto::base64_encode(*bytes) == as_text(data));
}
void names(ByteSpan data) {
  if (const auto mode = parse_trust_mode(as_text(data))) expect(trust_mode_name(*mode) == as_text(data));
}

template <class Head, auto Read>
void head(ByteSpan data) {
  if (data.size() < Head::kBytes) return;
  const auto first = Read(data.first(Head::kBytes));
  if (!first) return;
  expect(first->header_bytes <= limits::kMaxHeaderBytes && first->payload_bytes <= limits::kMaxPayloadBytes);
  std::array<std::byte, Head::kBytes> bytes{}, again{};
  write_head(bytes.data(), *first);
  const auto second = Read(bytes);
  expect(second.has_value());
  write_head(again.data(), *second);
  expect(again == bytes);
}

void grant(ByteSpan data) {
  const auto first = decode_grant(data);
  if (!first) return;
  Bytes bytes;
  encode_grant(1, *first, bytes);
  expect(decode_grant(ByteSpan(bytes).subspan(kControlHeadBytes)) == *first);
}

void frames(ByteSpan data) {
  while (!data.empty()) {
    const std::size_t before = data.size();
    const auto frame = take_frame(data);
    if (!frame) return;
    expect(data.size() + kFrameHeaderBytes + frame->body.size() == before);
  }
}

void record(ByteSpan data) {
  if (data.size() < kRecordHeaderBytes) return;
  const RecordHeader header = read_record_header(data);
  std::array<std::byte, kRecordHeaderBytes> again;
  write_record_header(again.data(), header.kind, header.length);
  expect(std::memcmp(again.data(), data.data(), again.size()) == 0);
}

/// What a stranger's datagram is answered without keeping anything, and with how much.
void first_packet(ByteSpan data) {
  static const auto stack = driver::quic::make_stack();
  static const env::QuicConfig config;
  fuzz::SeededEntropy entropy(1);
  const env::QuicPacketHeader packet = stack->classify(data);
  const auto inside = [data](ByteSpan part) {
    return part.empty() || (part.data() >= data.data() && part.data() + part.size() <= data.data() + data.size());
  };
  expect(inside(packet.destination) && inside(packet.source) && inside(packet.token));
  expect(packet.token.size() <= env::QuicStack::kTokenBytes);
  std::array<std::byte, 512> out;
  const std::array<std::byte, 8> id{};
  const std::array<std::byte, 40> token{};
  expect(stack->write_version_negotiation(packet, entropy, out) <= out.size());
  expect(stack->write_retry(packet, id, token, out) <= out.size());
  const std::size_t reset = stack->write_stateless_reset(config, packet, data.size(), entropy, out);
  expect(reset == 0 || reset < data.size());
}

using Decoder = void (*)(ByteSpan);
constexpr Decoder kDecoders[] = {
    binary<decode_preamble, encode_preamble>,
    binary<decode_payload, encode_payload>,
    binary<decode_refusal, encode_refusal>,
    binary<decode_chain, encode_chain>,
    binary<decode_certificate, encode_certificate>,
    binary<decode_error, encode_error>,
    certificate_text_form,
    request_text_form,
    public_key_form,
    identity,
    pins,
    utc,
    base64,
    names,
    head<RequestHead, read_request_head>,
    head<ReplyHead, read_reply_head>,
    grant,
    frames,
    record,
    first_packet,
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  // Appended to only, so that the kept inputs keep their meaning.
  if (size == 0 || bytes[0] % 32 >= std::size(kDecoders)) return 0;
  kDecoders[bytes[0] % 32](std::as_bytes(std::span(bytes + 1, size - 1)));
  return 0;
}
