// What the end-to-end tests run on a cluster: small programs that behave, and some that do not.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <holo/holo.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using Array = holo::SharedArray<std::uint64_t>;
using Arguments = std::vector<std::string>;

std::uint64_t value(std::uint64_t i) { return i * i + 3 * i + 1; }

std::uint64_t number(const std::string& text) {
  std::uint64_t out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

int failed(const holo::Error& error) {
  std::fprintf(stderr, "probe: %s: %s\n", holo::errc_name(error.code), error.to_string().c_str());
  return 1;
}

int ended(const holo::Status& status) {
  if (!status) return failed(status.error());
  std::puts("ok");
  return 0;
}

Array array(holo::Cluster& c, const Arguments& a) {
  auto xs = a.size() > 1
                ? c.array<std::uint64_t>(a[0], number(a[1]),
                                         {.replication = a.size() > 2 ? static_cast<std::uint32_t>(number(a[2])) : 1})
                : c.open<std::uint64_t>(a[0]);
  if (!xs) std::exit(failed(xs.error()));
  return *xs;
}

/// fill NAME COUNT [REPLICATION]: every element, on the nodes; prints the sum.
int fill(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, a);
  auto filled = c.parallel_for(xs, [](holo::Chunk<std::uint64_t> chunk) {
                   for (std::uint64_t i = chunk.first(); i < chunk.last(); ++i) chunk[i] = value(i);
                 }).wait();
  if (!filled) return failed(filled.error());
  if (auto synced = xs.sync(); !synced) return failed(synced.error());
  auto sum = c.reduce(xs, std::uint64_t{0}, std::plus<>{}).get();
  if (!sum) return failed(sum.error());
  std::printf("%llu\n", static_cast<unsigned long long>(*sum));
  return 0;
}

/// sum NAME
int sum(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, a);
  auto total = c.reduce(xs, std::uint64_t{0}, std::plus<>{}).get();
  if (!total) return failed(total.error());
  std::printf("%llu\n", static_cast<unsigned long long>(*total));
  return 0;
}

/// scan NAME: reads every element by mapped memory and compares it; prints how many.
int scan(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, a);
  auto view = xs.map_read();
  if (!view) return failed(view.error());
  for (std::uint64_t i = 0; i < view->size(); ++i) {
    if ((*view)[i] != value(i)) {
      std::fprintf(stderr, "probe: element %llu is %llu\n", static_cast<unsigned long long>(i),
                   static_cast<unsigned long long>((*view)[i]));
      return 3;
    }
  }
  std::printf("%zu\n", view->size());
  return 0;
}

/// bulk NAME: the same by read(), so that an error is a value.
int bulk(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, a);
  std::vector<std::uint64_t> part(1 << 17);
  for (std::uint64_t first = 0; first < xs.size(); first += part.size()) {
    part.resize(std::min<std::uint64_t>(part.size(), xs.size() - first));
    if (auto read = xs.read(first, part); !read) return failed(read.error());
    for (std::uint64_t i = 0; i < part.size(); ++i) {
      if (part[i] != value(first + i)) return 3;
    }
  }
  std::printf("%llu\n", static_cast<unsigned long long>(xs.size()));
  return 0;
}

/// put NAME INDEX VALUE: written through mapped memory, then committed.
int put(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, {a[0]});
  auto view = xs.map_write();
  if (!view) return failed(view.error());
  (*view)[number(a[1])] = number(a[2]);
  return ended(xs.sync());
}

/// churn TIMES: regions that come and go, each with a long entry in the log. Prints the name of each that is there.
int churn(holo::Cluster& c, const Arguments& a) {
  std::string last;
  for (std::uint64_t i = 0; i < number(a[0]); ++i) {
    const std::string name = std::string(100, 'x') + std::to_string(i);
    if (auto xs = c.array<std::uint64_t>(name, 1); !xs) return failed(xs.error());
    std::puts(name.c_str());
    std::fflush(stdout);
    if (!last.empty()) {
      if (auto freed = c.free(last); !freed) return failed(freed.error());
    }
    last = name;
  }
  return 0;
}

/// get NAME INDEX
int get(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, {a[0]});
  auto view = xs.map_read();
  if (!view) return failed(view.error());
  std::printf("%llu\n", static_cast<unsigned long long>((*view)[number(a[1])]));
  return 0;
}

/// slow NAME COUNT MILLISECONDS: each chunk takes that long, then is filled.
int slow(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, {a[0], a[1], "1"});
  const auto pause = std::chrono::milliseconds(number(a[2]));
  std::puts("started");
  std::fflush(stdout);
  return ended(c.parallel_for(xs, [pause](holo::Chunk<std::uint64_t> chunk) {
                  std::this_thread::sleep_for(pause);
                  for (std::uint64_t i = chunk.first(); i < chunk.last(); ++i) chunk[i] = value(i);
                }).wait());
}

/// misbehave NAME HOW: segv, exit, throw, abort or loop, in the chunk that holds element 0.
int misbehave(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, {a[0], "1000000"});
  const char how = a[1].at(0);
  std::puts("started");
  std::fflush(stdout);
  return ended(c.parallel_for(xs, [how](holo::Chunk<std::uint64_t> chunk) {
                  if (chunk.first() != 0) return;
                  for (std::uint64_t i = chunk.first(); i < chunk.last(); ++i) chunk[i] = 7;
                  switch (how) {
                    case 's': std::raise(SIGSEGV); break;
                    case 'e': std::_Exit(5);
                    case 't': throw std::runtime_error("seventeen is right out");
                    case 'a': std::abort();
                    default:
                      for (volatile bool forever = true; forever;) {
                      }
                  }
                }).wait());
}

/// chatter: a line from each node's worker.
int chatter(holo::Cluster& c, const Arguments&) {
  auto xs = array(c, {"chatter", "4000000"});
  return ended(c.parallel_for(xs, [](holo::Chunk<const std::uint64_t> chunk) {
                  std::printf("chunk %u says hello\n", chunk.index());
                  std::fflush(stdout);
                }).wait());
}

/// Whether the test has closed our standard input: then it is enough.
bool enough() {
  pollfd in{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  return ::poll(&in, 1, 0) > 0;
}

/// writer NAME: every element becomes 1, then 2, ..., one version each, until standard input ends; prints the last.
int writer(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, a);
  std::uint64_t round = 0;
  std::puts("started");
  std::fflush(stdout);
  while (!enough()) {
    ++round;
    auto view = xs.map_write();
    if (!view) return failed(view.error());
    std::fill(view->begin(), view->end(), round);
    if (auto synced = xs.sync(); !synced) return failed(synced.error());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::printf("%llu\n", static_cast<unsigned long long>(round));
  return 0;
}

/// reader NAME: looks until standard input ends that all elements are alike, and never less than before; prints how
/// often.
int reader(holo::Cluster& c, const Arguments& a) {
  auto xs = array(c, a);
  std::uint64_t looks = 0, last = 0;
  std::puts("started");
  std::fflush(stdout);
  while (!enough()) {
    if (auto fresh = xs.refresh(); !fresh) return failed(fresh.error());
    auto view = xs.map_read();
    if (!view) return failed(view.error());
    const std::uint64_t first = view->front();
    for (std::size_t i = 0; i < view->size(); ++i) {
      if ((*view)[i] == first && first >= last) continue;
      std::fprintf(stderr, "probe: element %zu is %llu, the first %llu, before %llu\n", i,
                   static_cast<unsigned long long>((*view)[i]), static_cast<unsigned long long>(first),
                   static_cast<unsigned long long>(last));
      return 1;
    }
    last = first;
    ++looks;
  }
  std::printf("%llu %llu\n", static_cast<unsigned long long>(looks), static_cast<unsigned long long>(last));
  return 0;
}

struct Command {
  const char* name;
  std::size_t arguments;
  int (*run)(holo::Cluster&, const Arguments&);
};
constexpr Command kCommands[] = {
    {"fill", 2, fill},       {"sum", 1, sum},     {"scan", 1, scan},     {"bulk", 1, bulk},
    {"put", 3, put},         {"get", 2, get},     {"slow", 3, slow},     {"misbehave", 2, misbehave},
    {"chatter", 0, chatter}, {"churn", 1, churn}, {"writer", 1, writer}, {"reader", 1, reader}};

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  const Arguments arguments(argv + std::min(argc, 2), argv + argc);
  if (name == "exit") return static_cast<int>(number(arguments.at(0)));
  if (name == "signal") std::raise(static_cast<int>(number(arguments.at(0))));
  for (const auto& command : kCommands) {
    if (name != command.name || arguments.size() < command.arguments) continue;
    auto cluster = holo::connect();
    return cluster ? command.run(*cluster, arguments) : failed(cluster.error());
  }
  std::fprintf(stderr, "probe: unknown command\n");
  return 2;
}
