// docs/hyperbus.md says what this code does: the worked example byte for byte, and every limit it names. A block of the
// document looks like "```hex NAME" and its bytes; a row of its tables like "| `kName` | value | ...".
#include <gtest/gtest.h>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>

#include "base/strings.h"
#include "core/hyperbus/packet_endpoint.h"
#include "core/hyperbus/record.h"
#include "core/hyperbus/record_streams.h"
#include "core/hyperbus/test_support.h"
#include "core/hyperbus/wire_bytes.h"
#include "crypto/hash.h"
#include "crypto/packet_protection.h"
#include "crypto/vectors_testing.h"

namespace holo::hyperbus {
namespace {

using crypto::testing::hex;
using crypto::testing::unhex;
using testing::identity_of;
using testing::secret_of;

struct Document {
  std::map<std::string, std::string> blocks;     // name -> hex digits
  std::map<std::string, std::string> constants;  // name -> value
};

Document read_document() {
  Document out;
  std::ifstream in(std::string(HOLO_SOURCE_DIR) + "/docs/hyperbus.md");
  EXPECT_TRUE(in) << "docs/hyperbus.md is not there";
  std::string block;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("```")) {
      block = block.empty() && line.starts_with("```hex ") ? line.substr(7) : std::string();
      if (!block.empty()) {
        EXPECT_TRUE(out.blocks.emplace(block, "").second) << "twice: " << block;
      }
    } else if (!block.empty()) {
      std::erase(line, ' ');
      out.blocks[block] += line;
    } else if (line.starts_with("| `k")) {
      const std::size_t end = line.find('`', 3);
      const std::size_t value = line.find_first_of("0123456789", line.find('|', end));
      const std::string name = line.substr(3, end - 3);
      std::string digits;
      for (std::size_t i = value; i < line.size() && (std::isdigit(line[i]) != 0 || line[i] == ','); ++i) {
        if (line[i] != ',') digits += line[i];
      }
      EXPECT_TRUE(out.constants.emplace(name, digits).second) << "twice: " << name;
    }
  }
  return out;
}

/// Each call continues where the last one ended.
class CountingEntropy final : public env::Entropy {
 public:
  explicit CountingEntropy(std::uint8_t first) : next_(first) {}
  void fill(MutableByteSpan out) override {
    for (std::byte& b : out) b = std::byte{next_++};
  }

 private:
  std::uint8_t next_;
};

using Examples = std::map<std::string, std::string>;

void add_identity(Examples& out, const std::string& whose, const Identity& identity) {
  out[whose + "-public-key"] = hex(identity.public_key());
  out[whose + "-noise-static"] = hex(identity.noise_static().public_key);
  out[whose + "-static-signature"] = hex(identity.static_signature());
  Bytes node;
  put(node, identity.node().value);
  out[whose + "-node-field"] = hex(node);
}

void add_packet_keys(Examples& out, const std::string& prefix, const TrafficSecret& secret, std::size_t key_bytes) {
  const auto expand = [&](std::string_view label, std::size_t bytes) {
    Bytes key(bytes);
    crypto::hkdf_expand_label(secret.span(), label, key);
    return hex(key);
  };
  out[prefix + "-key"] = expand("quic key", key_bytes);
  out[prefix + "-iv"] = expand("quic iv", 12);
  out[prefix + "-hp"] = expand("quic hp", key_bytes);
}

/// The worked example: node seeds 32 x 0a and 32 x 0b, cluster key 32 x 0c, randomness that counts up.
void add_handshake(Examples& out) {
  const ClusterKey key(secret_of(0x0c));
  out["psk"] = hex(key.psk().span());
  HandshakeConfig of_initiator{.identity = identity_of(0x0a), .keys = {key}, .has_aes = true};
  HandshakeConfig of_responder{.identity = identity_of(0x0b), .keys = {key}, .has_aes = true};
  add_identity(out, "initiator", of_initiator.identity);
  add_identity(out, "responder", of_responder.identity);

  // As QUIC stacks would say them; the handshake carries them as they are.
  const Bytes client_parameters = unhex(
      "01025f4003048000fff7040484000000050481200000060481200000070480100000080240400901080e01020f080001020304050607");
  Bytes server_parameters = unhex("00088394c8f03e5157080210101112131415161718191a1b1c1d1e1f");
  put(server_parameters, ByteSpan(client_parameters).first(client_parameters.size() - 8));
  put(server_parameters, unhex("08090a0b0c0d0e0f"));
  out["client-parameters"] = hex(client_parameters);
  out["server-parameters"] = hex(server_parameters);

  CountingEntropy initiator_entropy(0x00), responder_entropy(0x80);
  Handshake initiator(Role::initiator, std::make_shared<const HandshakeConfig>(of_initiator), initiator_entropy);
  Handshake responder(Role::responder, std::make_shared<const HandshakeConfig>(of_responder), responder_entropy);
  const auto first = initiator.start(client_parameters);
  ASSERT_TRUE(first);
  const auto second = responder.on_message(*first, [&](ByteSpan peer) -> Result<Bytes> {
    EXPECT_EQ(hex(peer), hex(client_parameters));
    return server_parameters;
  });
  ASSERT_TRUE(second);
  const auto third = initiator.on_message(*second, [](ByteSpan) -> Result<Bytes> { return Bytes(); });
  ASSERT_TRUE(third);
  ASSERT_TRUE(responder.on_message(*third));
  out["preamble"] = hex(ByteSpan(*first).first(kPreambleBytes));
  out["message-1"] = hex(*first);
  out["message-2"] = hex(*second);
  out["message-3"] = hex(*third);

  const auto level = initiator.take_level_secrets();
  ASSERT_TRUE(level);
  out["initiator-handshake-secret"] = hex(level->send.span());
  out["responder-handshake-secret"] = hex(level->receive.span());
  const HandshakeResult result = initiator.take_result();
  out["handshake-hash"] = hex(result.handshake_hash);
  out["initiator-traffic-secret"] = hex(result.send_secret.span());
  out["responder-traffic-secret"] = hex(result.receive_secret.span());
  add_packet_keys(out, "initiator-packet", result.send_secret, 32);
  out["initiator-next-secret"] = hex(crypto::next_traffic_secret(result.send_secret).span());

  // Over TCP: the initiator's first record, with one ping frame of token 1.
  Bytes ping(kFrameHeaderBytes);
  write_frame_header(ping.data(), FrameType::ping, 0, 8, 0);
  put(ping, std::uint64_t{1});
  Bytes record(ping.size() + kRecordOverhead);
  RecordKey(result.aead, result.send_secret, 1ULL << 23).seal(RecordKind::frames, ping, record);
  out["record"] = hex(record);
}

void add_payloads(Examples& out) {
  const Identity initiator = identity_of(0x0a), responder = identity_of(0x0b);
  Payload third{.node = initiator.node(), .key = initiator.public_key(), .signature = initiator.static_signature()};
  Bytes bytes;
  encode_payload(third, bytes);
  out["payload-3"] = hex(bytes);
  Payload first{.versions = {1},
                .aeads = {crypto::AeadAlgorithm::aes_256_gcm, crypto::AeadAlgorithm::xchacha20_poly1305},
                .transport_parameters = unhex(out.at("client-parameters"))};
  bytes.clear();
  encode_payload(first, bytes);
  out["payload-1"] = hex(bytes);
  Payload second{.versions = {1},
                 .aeads = {crypto::AeadAlgorithm::aes_256_gcm},
                 .transport_parameters = unhex(out.at("server-parameters")),
                 .node = responder.node(),
                 .key = responder.public_key(),
                 .signature = responder.static_signature()};
  bytes.clear();
  encode_payload(second, bytes);
  out["payload-2"] = hex(bytes);
  bytes.clear();
  encode_refusal({.kind = RefusalKind::wrong_key,
                  .protocol = kHandshakeProtocol,
                  .newest_version = 1,
                  .oldest_version = 1,
                  .suite = Suite::hybrid_psk},
                 bytes);
  out["refusal"] = hex(bytes);
}

void add_initial_keys(Examples& out) {
  const auto salt = crypto::sha256(as_bytes("holo hyperbus initial salt v1"));
  const auto secrets = crypto::initial_secrets(ByteSpan(salt).first(20), unhex("8394c8f03e515708"));
  out["client-initial-secret"] = hex(secrets.client.span());
  out["server-initial-secret"] = hex(secrets.server.span());
  add_packet_keys(out, "client-initial", secrets.client, 16);
}

void add_messages(Examples& out) {
  Bytes bytes;
  put(bytes, kControlStream);
  const SessionConfig config;
  for (std::size_t i = 0; i < kStreamClasses; ++i) {
    const ClassWindow& w = config.windows[i];
    encode_grant(static_cast<std::uint8_t>(i),
                 {.requests = w.requests, .request_bytes = w.request_bytes, .reply_bytes = w.reply_bytes}, bytes);
  }
  out["control-stream"] = hex(bytes);
  bytes.assign(RequestHead::kBytes, std::byte{});
  write_head(bytes.data(), RequestHead{.type = 0xffff, .klass = 0, .header_bytes = 2, .time_left_us = 5'000'000});
  put(bytes, as_bytes("hi"));
  out["request"] = hex(bytes);
  bytes.assign(ReplyHead::kBytes, std::byte{});
  encode_error({.code = Errc::unsupported, .message = "no", .hint = "ask", .node = 0x0102030405060708}, bytes);
  write_head(bytes.data(),
             ReplyHead{.error = true, .header_bytes = static_cast<std::uint32_t>(bytes.size() - ReplyHead::kBytes)});
  out["error-reply"] = hex(bytes);
}

TEST(Specification, TheWorkedExampleIsWhatTheCodeDoes) {
  Examples code;
  add_handshake(code);
  if (HasFatalFailure()) return;
  add_payloads(code);
  add_initial_keys(code);
  add_messages(code);
  const Document document = read_document();
  for (const auto& [name, digits] : code) {
    const auto found = document.blocks.find(name);
    if (found == document.blocks.end()) {
      ADD_FAILURE() << "docs/hyperbus.md lacks ```hex " << name << "\n" << digits;
    } else {
      EXPECT_EQ(found->second, digits) << name;
    }
  }
  for (const auto& [name, digits] : document.blocks) EXPECT_TRUE(code.contains(name)) << "nothing computes " << name;
}

std::map<std::string, std::uint64_t> constants() {
  const SessionConfig session;
  const env::QuicConfig quic;
  const PacketEndpointConfig endpoint;
  const auto ms = [](Duration d) { return static_cast<std::uint64_t>(d.millis()); };
  return {
      {"kHandshakeProtocol", kHandshakeProtocol},
      {"kNewestVersion", kNewestVersion},
      {"kOldestVersion", kOldestVersion},
      {"kPreambleBytes", kPreambleBytes},
      {"kMaxTransportParameters", kMaxTransportParameters},
      {"kMaxHandshakeMessageBytes", kMaxHandshakeMessageBytes},
      {"kMaxListed", kMaxListed},
      {"kMaxChainLinks", kMaxChainLinks},
      {"kCertificateBytes", kCertificateBytes},
      {"kMaxPins", kMaxPins},
      {"kMaxUnconfirmedPins", kMaxUnconfirmedPins},
      {"kMaxErrorText", kMaxErrorText},
      {"kMaxRecordPlain", kMaxRecordPlain},
      {"kMaxHeaderBytes", limits::kMaxHeaderBytes},
      {"kMaxPayloadBytes", limits::kMaxPayloadBytes},
      {"kMaxCallsPerPeer", limits::kMaxCallsPerPeer},
      {"kMaxQueuedBytes", Exchange::kMaxQueuedBytes},
      {"kMaxHalfOpen", limits::kMaxHalfOpen},
      {"kMaxStrangers", limits::kMaxStrangers},
      {"kMaxStrangerBytes", limits::kMaxStrangerBytes},
      {"kHandshakeDeadline", ms(limits::kHandshakeDeadline)},
      {"kKeepAlive", ms(session.keep_alive)},
      {"kIdleTimeout", ms(session.idle_timeout)},
      {"kRecordsPerKey", session.records_per_key},
      {"kPacketsPerKey", quic.packets_per_key},
      {"kStreams", session.streams()},
      {"kConnectionIdBytes", env::QuicStack::kConnectionIdBytes},
      {"kTokenBytes", env::QuicStack::kTokenBytes},
      {"kRetryFrom", endpoint.retry_from},
      {"kTokenLifetime", ms(endpoint.token_lifetime)},
      {"kResetsPerSecond", endpoint.resets_per_second},
  };
}

TEST(Specification, EveryLimitIsWhatTheCodeHas) {
  const auto code = constants();
  const Document document = read_document();
  for (const auto& [name, value] : code) {
    const auto found = document.constants.find(name);
    if (found == document.constants.end()) {
      ADD_FAILURE() << "docs/hyperbus.md lacks `" << name << "`, " << value;
    } else {
      EXPECT_EQ(found->second, std::to_string(value)) << name;
    }
  }
}

std::string text_of_document() {
  std::ifstream in(std::string(HOLO_SOURCE_DIR) + "/docs/hyperbus.md");
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

/// As people write it: 17891328 is 17,891,328.
std::string with_commas(std::uint64_t n) {
  if (n < 1000) return str(n);
  const std::uint64_t last = n % 1000;
  return str(with_commas(n / 1000), ',', last / 100, last / 10 % 10, last % 10);
}

std::string grants_of(const ClassWindow& w, const char* requests) {
  return str(with_commas(w.requests), requests, ", ", w.request_bytes >> 20, " MiB, ", w.reply_bytes >> 20, " MiB");
}

/// Numbers that stand in sentences, not in the table of limits.
TEST(Specification, NumbersInTheTextAreWhatTheCodeHas) {
  const std::string document = text_of_document();
  const auto says = [&](const std::string& words) {
    EXPECT_TRUE(document.contains(words)) << "docs/hyperbus.md does not say: " << words;
  };
  const SessionConfig plain{.handshake = std::make_shared<const HandshakeConfig>(testing::config_of(1))};
  const auto quic = quic_config(plain);
  says(str("| max_idle_timeout | ", with_commas(static_cast<std::uint64_t>(quic->idle_timeout.millis())), " ms |"));
  says(str("| initial_max_data | ", with_commas(quic->connection_window), " (all windows"));
  says(str("| initial_max_stream_data (all three) | ", with_commas(quic->stream_window), " (one message and 64 KiB)"));
  says(str("| initial_max_streams_bidi | ", with_commas(quic->bidirectional_streams), " (twice the requests"));
  says(str("Silence of ", plain.keep_alive.millis() / 1000, " s is ended with a ping, silence of ",
           plain.idle_timeout.millis() / 1000, " s ends the connection"));
  says(str("holo grants: control ", grants_of(plain.windows[0], " requests"), "; data ",
           grants_of(plain.windows[1], ""), "; bulk ", grants_of(plain.windows[2], "")));

  const std::map<std::string_view, std::size_t> labels = {
      {"holo hyperbus initial salt v1", 20}, {"holo hyperbus retry key v1", 16}, {"holo hyperbus retry nonce v1", 12}};
  for (const auto& [text, bytes] : labels) {
    EXPECT_TRUE(document.contains(text)) << text;
    says(str('`', hex(ByteSpan(crypto::sha256(as_bytes(text))).first(bytes)), '`'));
  }
  for (int code = 1; code <= static_cast<int>(Errc::internal); ++code) {
    const std::string one = str(code, ' ', errc_name(static_cast<Errc>(code)));
    EXPECT_TRUE(document.contains(str(one, ',')) || document.contains(str(one, '.'))) << one;
  }
  const std::map<RefusalKind, std::string_view> kinds = {{RefusalKind::wrong_key, "kind: 1 another cluster key"},
                                                         {RefusalKind::wrong_version, "; 2 no protocol, version"},
                                                         {RefusalKind::unknown_identity, "; 4 nobody vouches"},
                                                         {RefusalKind::changed_key, "; 5 another key than the pinned"},
                                                         {RefusalKind::revoked, "; 6 revoked"}};
  for (const auto& [kind, words] : kinds) {
    EXPECT_TRUE(words.contains(str(static_cast<int>(kind)))) << words;
    says(std::string(words));
  }
}

/// Each label under which something is derived or signed, as it stands in the sources.
TEST(Specification, EveryLabelIsInTheText) {
  const std::string document = text_of_document();
  constexpr std::string_view kStart = "\"holo hyperbus ", kCommon = "\"holo hyperbus v1: ";
  std::size_t found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(HOLO_SOURCE_DIR) + "/src/core/hyperbus")) {
    const std::string path = entry.path().string();
    if (!path.ends_with(".cc") || path.ends_with("_test.cc")) continue;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
      const std::size_t at = line.find(kStart);
      if (at == std::string::npos) continue;
      const std::string label = line.substr(at, line.find('"', at + 1) + 1 - at);
      const std::string rest = label.starts_with(kCommon) ? str('"', label.substr(kCommon.size())) : label;
      EXPECT_TRUE(document.contains(label) || document.contains(rest)) << label;
      ++found;
    }
  }
  EXPECT_GT(found, 10U);
}

/// Each test that the document's threat model names is in the tree.
TEST(Specification, EveryTestItNamesExists) {
  const std::string document = text_of_document();
  std::map<std::string, std::string> files;
  std::size_t named = 0;
  // A reference is `path/to/file.cc: TestName` or `path/to/file.py: test_name`.
  for (std::size_t at = document.find('`'); at != std::string::npos; at = document.find('`', at + 1)) {
    const std::size_t end = document.find('`', at + 1);
    if (end == std::string::npos) break;
    const std::string reference = document.substr(at + 1, end - at - 1);
    at = end;
    const std::size_t colon = reference.find(": ");
    if (colon == std::string::npos || reference.find('\n') != std::string::npos) continue;
    const std::string path = reference.substr(0, colon), name = reference.substr(colon + 2);
    if (!path.ends_with("_test.cc") && !path.ends_with(".py")) continue;
    ++named;
    if (!files.contains(path)) {
      std::ifstream file(std::string(HOLO_SOURCE_DIR) + "/" + path);
      EXPECT_TRUE(file) << path;
      std::stringstream content;
      content << file.rdbuf();
      files[path] = content.str();
    }
    EXPECT_NE(files[path].find(name + (path.ends_with(".py") ? "(" : ")")), std::string::npos) << reference;
  }
  EXPECT_GT(named, 30U);
}

}  // namespace
}  // namespace holo::hyperbus
