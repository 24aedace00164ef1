// Writes a recognisable number into every word of an array and leaves it in the cluster; another run reads all of it
// back.
//
//   pages write NAME MEGABYTES [REPLICATION]
//   pages check NAME
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include <holo/holo.hpp>

namespace {

/// What word `i` holds: no two alike, none zero.
std::uint64_t word(std::uint64_t i) { return (i + 1) * 0x9E3779B97F4A7C15ULL; }

int fail(const char* what, const holo::Error& error) {
  std::fprintf(stderr, "pages: %s: %s\n", what, error.to_string().c_str());
  return 1;
}

bool parse_number(std::string_view text, std::uint64_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size() && out > 0;
}

int write(holo::Cluster& cluster, const std::string& name, std::uint64_t megabytes, std::uint64_t replication) {
  auto xs = cluster.array<std::uint64_t>(name, (megabytes << 20) / sizeof(std::uint64_t),
                                         {.replication = static_cast<std::uint32_t>(replication)});
  if (!xs) return fail("allocate", xs.error());
  auto done = cluster
                  .parallel_for(*xs,
                                [](holo::Chunk<std::uint64_t> c) {
                                  for (std::uint64_t i = c.first(); i < c.last(); ++i) c[i] = word(i);
                                })
                  .wait();
  if (!done) return fail("write", done.error());
  std::printf("%llu MiB written\n", static_cast<unsigned long long>(megabytes));
  return 0;
}

/// Through ordinary pointers, in this process: each page is fetched from whoever holds it.
int check(holo::Cluster& cluster, const std::string& name) {
  auto xs = cluster.open<std::uint64_t>(name);
  if (!xs) return fail("open", xs.error());
  auto view = xs->map_read();
  if (!view) return fail("map", view.error());
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 0; i < view->size(); ++i) wrong += (*view)[i] != word(i);
  if (wrong != 0) {
    std::fprintf(stderr, "pages: %llu of %llu words are wrong\n", static_cast<unsigned long long>(wrong),
                 static_cast<unsigned long long>(view->size()));
    return 1;
  }
  std::printf("%llu words read back, every one right\n", static_cast<unsigned long long>(view->size()));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  auto cluster = holo::connect(argc, argv);
  const std::string_view verb = argc > 1 ? argv[1] : "";
  std::uint64_t megabytes = 0;
  std::uint64_t replication = 1;
  const bool writes = verb == "write" && (argc == 4 || argc == 5) && parse_number(argv[3], megabytes) &&
                      (argc == 4 || (parse_number(argv[4], replication) && replication <= 3));
  if (!writes && !(verb == "check" && argc == 3)) {
    std::fprintf(stderr, "usage: pages write NAME MEGABYTES [REPLICATION] | pages check NAME\n");
    return 2;
  }
  if (!cluster) return fail("connect", cluster.error());
  return writes ? write(*cluster, argv[2], megabytes, replication) : check(*cluster, argv[2]);
}
