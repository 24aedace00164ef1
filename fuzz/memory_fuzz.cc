// A node's memory against programs and peers that hold valid keys and talk nonsense: every request ends with one
// answer, and what was committed reads as it was committed, or not at all.
#include <array>
#include <cstdlib>

#include "sim/memory_testing.h"
#include "wire/message_types.h"
#include "wire/protobuf_log.h"

namespace {

using namespace holo;
using namespace holo::sim;

constexpr std::uint64_t kPage = 4096, kPages = 4;
constexpr std::array kLocal = {wire::VIEW_OPEN,   wire::VIEW_REFRESH, wire::VIEW_CLOSE, wire::VIEW_POPULATE,
                               wire::WINDOW_OPEN, wire::WINDOW_CLOSE, wire::READ,       wire::STAGE,
                               wire::COMMIT,      wire::ABORT};
constexpr std::array kPeer = {wire::PeerMessage::page_fetch, wire::PeerMessage::page_stage,
                              wire::PeerMessage::page_backup, wire::PeerMessage::txn_abort,
                              wire::PeerMessage::txn_status};

void expect(bool condition) {
  if (!condition) std::abort();
}

/// Commits kPages pages of 'a' as version 1.
void commit_known_bytes(MemoryCluster& cluster, const std::shared_ptr<TestSession>& session, RegionId region) {
  wire::Stage stage;
  stage.set_region(region.value);
  auto staged = cluster.call(1, session, wire::STAGE, stage, Bytes(kPages * kPage, std::byte{'a'}));
  expect(staged.has_value());
  wire::StageReply reply;
  expect(reply.ParseFromString(staged->header));
  wire::Commit commit;
  *commit.mutable_txn() = reply.txn();
  commit.add_regions(region.value);
  expect(cluster.call(1, session, wire::COMMIT, commit).has_value());
}

void check_known_bytes(MemoryCluster& cluster, const std::shared_ptr<TestSession>& session, RegionId region) {
  wire::Read read;
  read.set_region(region.value);
  read.set_snapshot(1);
  read.set_length(kPages * kPage);
  auto answer = cluster.call(1, session, wire::READ, read);
  if (!answer) return;
  for (const Buffer& part : answer->payload) {
    for (const std::byte b : part.span()) expect(b == std::byte{'a'});
  }
}

Buffer rest_of(ByteSpan bytes) { return Buffer::copy(bytes); }

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  holo::wire::route_protobuf_log();  // It would write a line for every string that is no text.
  return 0;
}

/// The input: requests, each a byte that chooses its type, two bytes of the header's and two of the payload's length.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  ByteSpan data{reinterpret_cast<const std::byte*>(bytes), size};
  node::MemoryConfig config;
  config.limit_bytes = 8 << 20;
  MemoryCluster cluster(2, 1, config);
  const RegionId region = cluster.create(kPages, 2, kPage);
  const auto honest = cluster.session(), hostile = cluster.session();
  commit_known_bytes(cluster, honest, region);

  const auto take = [&](std::size_t n) {
    const ByteSpan out = data.first(std::min(n, data.size()));
    data = data.subspan(out.size());
    return out;
  };
  for (int requests = 0; data.size() >= 5 && requests < 32; ++requests) {
    const ByteSpan head = take(5);
    const auto number = [&](std::size_t at) {
      return static_cast<std::size_t>(head[at]) | static_cast<std::size_t>(head[at + 1]) << 8;
    };
    const auto type = static_cast<std::size_t>(head[0]) % (kLocal.size() + kPeer.size());
    const ByteSpan header = take(number(1)), payload = take(number(3));
    if (type < kLocal.size()) {
      env::LocalRequest request{.type = static_cast<std::uint16_t>(kLocal[type]),
                                .header = std::string(as_text(header)),
                                .payload = {},
                                .fds = {}};
      if (!payload.empty()) request.payload.push_back(rest_of(payload));
      (void)cluster.run(1, (*cluster.members[0]->api.find(request.type))(hostile, std::move(request)));
    } else {
      env::Request request{.type = static_cast<std::uint16_t>(kPeer[type - kLocal.size()]),
                           .header = std::string(as_text(header)),
                           .payload = {}};
      if (!payload.empty()) request.payload.push_back(rest_of(payload));
      env::CallOptions options;
      options.deadline = cluster.members[1]->loop->now() + seconds(20);
      (void)cluster.run(2, cluster.members[1]->transport->call(NodeId{1}, std::move(request), options));
    }
  }
  cluster.close(1, *hostile);
  cluster.settle();
  check_known_bytes(cluster, honest, region);
  return 0;
}
