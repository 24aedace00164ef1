// Does what user code sometimes does, to show what the program then gets.
//
//   faulty throw | segfault | exit | loop | capture | print | allocate | status N
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string_view>
#include <thread>

#include <holo/holo.hpp>

namespace {

using Array = holo::SharedArray<std::uint64_t>;

int show(const holo::Status& result) {
  if (result) {
    std::printf("done\n");
    return 0;
  }
  std::fprintf(stderr, "faulty: %s: %s\n", holo::errc_name(result.error().code), result.error().to_string().c_str());
  return 1;
}

int run(holo::Cluster& cluster, Array& xs, std::string_view what) {
  if (what == "throw") {
    return show(cluster
                    .parallel_for(xs,
                                  [](holo::Chunk<std::uint64_t> c) {
                                    if (c.index() == 2) throw std::runtime_error("chunk 2 is not to my liking");
                                    for (auto& x : c) x = 1;
                                  })
                    .wait());
  }
  if (what == "segfault") {
    return show(cluster
                    .parallel_for(xs,
                                  [](holo::Chunk<std::uint64_t> c) {
                                    volatile int* nowhere = nullptr;
                                    if (c.index() == 2) *nowhere = 1;
                                  })
                    .wait());
  }
  if (what == "exit") {
    return show(cluster
                    .parallel_for(xs,
                                  [](holo::Chunk<std::uint64_t> c) {
                                    if (c.index() == 2) std::exit(3);
                                  })
                    .wait());
  }
  if (what == "loop") {
    return show(cluster
                    .parallel_for(xs,
                                  [](holo::Chunk<std::uint64_t> c) {
                                    for (volatile std::uint64_t i = c.first();;) i = i + 1;
                                  })
                    .wait());
  }
  if (what == "capture") {
    std::uint64_t local = 1;
    return show(cluster
                    .parallel_for(xs,
                                  [&local](holo::Chunk<std::uint64_t> c) {
                                    for (auto& x : c) x = local;
                                  })
                    .wait());
  }
  if (what == "print") {
    return show(cluster
                    .parallel_for(xs,
                                  [](holo::Chunk<const std::uint64_t> c) {
                                    std::printf("chunk %u has %llu elements\n", c.index(),
                                                static_cast<unsigned long long>(c.size()));
                                  })
                    .wait());
  }
  if (what == "allocate") {
    auto huge = cluster.array<std::uint64_t>("faulty-huge", 1ULL << 42);
    return show(huge ? holo::Status() : holo::Status(std::unexpected(huge.error())));
  }
  std::fprintf(stderr, "faulty: unknown: %.*s\n", static_cast<int>(what.size()), what.data());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  auto cluster = holo::connect(argc, argv);
  if (argc < 2) {
    std::fprintf(stderr, "usage: faulty throw | segfault | exit | loop | capture | print | allocate | status N\n");
    return 2;
  }
  if (std::string_view(argv[1]) == "status") return argc > 2 ? std::atoi(argv[2]) : 0;
  if (!cluster) {
    std::fprintf(stderr, "faulty: %s\n", cluster.error().to_string().c_str());
    return 1;
  }
  auto xs = cluster->array<std::uint64_t>("faulty", 4'000'000);
  if (!xs) return show(std::unexpected(xs.error()));
  const int status = run(*cluster, *xs, argv[1]);
  (void)cluster->free("faulty");
  return status;
}
