// counter: programs anywhere in the cluster count together, and one of them at a time writes a summary.
//
//   holo run counter --times 100          (as often as you like, also at once, on any node)
//   holo kv get counter
#include <charconv>
#include <cstdio>
#include <cstring>
#include <holo/holo.hpp>
#include <string>

namespace {

int fail(const holo::Error& error) {
  std::fprintf(stderr, "counter: %s\n", error.to_string().c_str());
  return 1;
}

std::uint64_t number(const std::string& text) {
  std::uint64_t out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

/// Adds one; somebody else may be faster, then it looks again.
holo::Result<std::uint64_t> count(holo::KeyValue& kv) {
  for (;;) {
    auto was = kv.get("counter");
    if (!was) return std::unexpected(was.error());
    const bool fresh = !was->has_value();
    const std::uint64_t next = fresh ? 1 : number((*was)->value) + 1;
    auto done = kv.txn({.when = {fresh ? holo::KvCondition::absent("counter")
                                       : holo::KvCondition::unchanged("counter", (*was)->modified)},
                        .then = {holo::KvOperation::put("counter", std::to_string(next))},
                        .otherwise = {}});
    if (!done) return std::unexpected(done.error());
    if (done->succeeded) return next;
  }
}

}  // namespace

int main(int argc, char** argv) {
  auto cluster = holo::connect(argc, argv);
  if (!cluster) return fail(cluster.error());
  std::uint64_t times = 10;
  if (argc == 3 && std::strcmp(argv[1], "--times") == 0) {
    times = number(argv[2]);
  } else if (argc != 1) {
    std::fputs("usage: counter [--times N]\n", stderr);
    return 2;
  }
  holo::KeyValue kv = cluster->kv();
  std::uint64_t last = 0;
  for (std::uint64_t i = 0; i < times; ++i) {
    auto counted = count(kv);
    if (!counted) return fail(counted.error());
    last = *counted;
  }

  // The summary is written by one at a time, and never by one that lost the lock without knowing it.
  auto lock = cluster->lock("counter/summary");
  if (!lock) return fail(lock.error());
  auto written = kv.txn({.when = {lock->held()},
                         .then = {holo::KvOperation::put(
                             "counter/summary", "up to " + std::to_string(last) + " by " + cluster->node_name())},
                         .otherwise = {}});
  if (!written) return fail(written.error());
  std::printf("%llu\n", static_cast<unsigned long long>(last));
  return 0;
}
