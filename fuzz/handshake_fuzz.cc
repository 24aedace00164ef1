// The handshake's decoders, and both sides of it, against arbitrary bytes.
#include <cstdlib>

#include "core/hyperbus/frame.h"
#include "core/hyperbus/handshake.h"
#include "core/hyperbus/message.h"
#include "env/entropy_testing.h"

namespace {

using namespace holo;
using namespace holo::hyperbus;
using env::testing::SeededEntropy;

void expect(bool condition) {
  if (!condition) std::abort();
}

std::shared_ptr<const HandshakeConfig> node(std::uint64_t seed, Suite suite) {
  SeededEntropy entropy(seed), shared(7);
  return std::make_shared<const HandshakeConfig>(
      HandshakeConfig{.identity = Identity::from_seed(crypto::random_secret<32>(entropy)),
                      .keys = {ClusterKey(crypto::random_secret<32>(shared))},
                      .suite = suite});
}

/// What decodes must encode to something that decodes to the same.
void decoders(ByteSpan data) {
  if (const auto preamble = decode_preamble(data)) {
    Bytes again;
    encode_preamble(*preamble, again);
    expect(decode_preamble(again) == *preamble);
  }
  if (const auto payload = decode_payload(data)) {
    Bytes again;
    encode_payload(*payload, again);
    expect(decode_payload(again) == *payload);
  }
  if (const auto refusal = decode_refusal(data)) {
    Bytes again;
    encode_refusal(*refusal, again);
    expect(decode_refusal(again) == *refusal);
  }
  TrustBook book(TrustMode::tofu);
  if (book.load_pins(as_text(data))) {
    TrustBook again(TrustMode::tofu);
    expect(again.load_pins(book.pins_text()).has_value() && again.pins() == book.pins());
  }
  if (const auto carried = parse_certificate(as_text(data)))
    expect(parse_certificate(certificate_text(*carried)) == *carried);
  (void)parse_request(as_text(data));
  if (const auto error = decode_error(data)) {
    Bytes again;
    encode_error(*error, again);
    expect(decode_error(again) == *error);
  }
}

/// A real handshake in which one message is altered as `data` says: no side may end up with keys unless nothing
/// changed.
void altered(ByteSpan data, Suite suite) {
  static const auto a = node(1, Suite::hybrid_psk), b = node(2, Suite::hybrid_psk);
  static const auto c = node(1, Suite::classical), d = node(2, Suite::classical);
  const bool hybrid = suite == Suite::hybrid_psk;
  SeededEntropy entropy_a(3), entropy_b(4);
  Handshake dialler(Role::initiator, hybrid ? a : c, entropy_a), listener(Role::responder, hybrid ? b : d, entropy_b);
  const std::size_t target = std::to_integer<std::size_t>(data[0]) % 3;
  data = data.subspan(1);
  bool changed = false;
  const auto send = [&](std::size_t index, Handshake& to, Bytes message) -> Bytes {
    if (index == target) {
      const Bytes original = message;
      for (; data.size() >= 3; data = data.subspan(3)) {  // place, place, xor
        const std::size_t at = std::to_integer<std::size_t>(data[0]) << 8 | std::to_integer<std::size_t>(data[1]);
        if (at < message.size()) {
          message[at] ^= data[2];
        } else {
          message.resize(at % (kMaxHandshakeMessageBytes + 2));
        }
      }
      changed = message != original;
    }
    auto answer = to.on_message(message);
    return answer ? std::move(*answer) : Bytes();
  };
  auto first = dialler.start();
  const Bytes second = send(0, listener, std::move(*first));
  if (second.empty()) return expect(changed);
  const Bytes third = send(1, dialler, second);
  if (third.empty()) return expect(changed);
  (void)send(2, listener, third);
  expect(listener.done() == !changed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const ByteSpan data(reinterpret_cast<const std::byte*>(bytes), size);
  if (size < 2) return 0;
  const ByteSpan rest = data.subspan(1);
  switch (bytes[0] % 4) {
    case 0: altered(rest, Suite::hybrid_psk); break;
    case 1: altered(rest, Suite::classical); break;
    default: decoders(rest); break;
  }
  return 0;
}
