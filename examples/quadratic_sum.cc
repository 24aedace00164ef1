// Fills an array that spans the cluster with i*i + 3*i + 1 and adds it up, modulo 2^64.
//
//   quadratic_sum [--count N] [--replication R] [--repeat K] [--name NAME]
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>

#include <holo/holo.hpp>

namespace {

struct Options {
  std::uint64_t count = 100'000'000;
  std::uint64_t replication = 1;
  std::uint64_t repeat = 1;
  std::string name = "quadratic_sum";
};

bool parse_number(std::string_view text, std::uint64_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size() && out > 0;
}

bool parse(int argc, char** argv, Options& out) {
  for (int i = 1; i < argc; i += 2) {
    const std::string_view key = argv[i];
    if (i + 1 == argc) return false;
    if (key == "--name") {
      out.name = argv[i + 1];
      continue;
    }
    std::uint64_t* number = key == "--count"         ? &out.count
                            : key == "--replication" ? &out.replication
                            : key == "--repeat"      ? &out.repeat
                                                     : nullptr;
    if (!number || !parse_number(argv[i + 1], *number)) return false;
  }
  return out.replication <= 3;
}

/// The sum over i < n by closed forms, each product divided before it can lose bits: n(n-1)(2n-1)/6 + 3n(n-1)/2 + n.
std::uint64_t expected(std::uint64_t n) {
  std::uint64_t a = n, b = n - 1, c = 2 * n - 1;
  (a % 2 == 0 ? a : b) /= 2;
  (a % 3 == 0 ? a : b % 3 == 0 ? b : c) /= 3;
  const std::uint64_t squares = a * b * c;
  std::uint64_t d = n, e = n - 1;
  (d % 2 == 0 ? d : e) /= 2;
  return squares + 3 * d * e + n;
}

class Stopwatch {
 public:
  /// Seconds since the last call.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

int fail(const char* what, const holo::Error& error) {
  std::fprintf(stderr, "quadratic_sum: %s: %s\n", what, error.to_string().c_str());
  return 1;
}

/// One fill and one sum. Returns the exit status.
int run(holo::Cluster& cluster, const Options& options) {
  Stopwatch watch;
  auto xs = cluster.array<std::uint64_t>(options.name, options.count,
                                         {.replication = static_cast<std::uint32_t>(options.replication)});
  if (!xs) return fail("allocate", xs.error());
  std::fprintf(stderr, "allocate  %7.3f s\n", watch.lap());

  auto filled = cluster
                    .parallel_for(*xs,
                                  [](holo::Chunk<std::uint64_t> c) {
                                    for (std::uint64_t i = c.first(); i < c.last(); ++i) c[i] = i * i + 3 * i + 1;
                                  })
                    .wait();
  if (!filled) return fail("fill", filled.error());
  std::fprintf(stderr, "fill      %7.3f s\n", watch.lap());

  if (auto synced = xs->sync(); !synced) return fail("sync", synced.error());
  std::fprintf(stderr, "sync      %7.3f s\n", watch.lap());

  auto total = cluster.reduce(*xs, std::uint64_t{0}, std::plus<>{}).get();
  if (!total) return fail("sum", total.error());
  std::fprintf(stderr, "sum       %7.3f s\n", watch.lap());

  auto facts = xs->facts();
  if (!facts) return fail("placement", facts.error());
  std::uint64_t pages = 0;
  for (const auto& share : facts->pages_by_node) pages += share.pages;
  for (const auto& share : facts->pages_by_node) {
    std::fprintf(stderr, "pages on %016llx: %llu (%.1f %%)\n", static_cast<unsigned long long>(share.node),
                 static_cast<unsigned long long>(share.pages),
                 100.0 * static_cast<double>(share.pages) / static_cast<double>(pages));
  }
  std::printf("%llu\n", static_cast<unsigned long long>(*total));
  if (*total == expected(options.count)) return 0;
  std::fprintf(stderr, "quadratic_sum: wrong: %llu was expected\n",
               static_cast<unsigned long long>(expected(options.count)));
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  auto cluster = holo::connect(argc, argv);
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr, "usage: quadratic_sum [--count N] [--replication 1-3] [--repeat K] [--name NAME]\n");
    return 2;
  }
  if (!cluster) return fail("connect", cluster.error());
  int status = 0;
  for (std::uint64_t i = 0; i < options.repeat && status == 0; ++i) status = run(*cluster, options);
  if (auto freed = cluster->free(options.name); !freed && status == 0) return fail("free", freed.error());
  return status;
}
