// Counts the words of a file on the cluster: the file goes into a buffer that spans the nodes, each node counts what it
// holds. A word is a longest run of [A-Za-z0-9]. Prints what `uniq -c` prints, words in the order of their bytes:
//   LC_ALL=C tr -cs 'A-Za-z0-9' '\n' < FILE | sed '/^$/d' | LC_ALL=C sort | uniq -c
//
//   wordcount [--replication R] FILE        FILE: a path, or - for standard input
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <holo/holo.hpp>

namespace {

constexpr std::size_t kBlock = 4 << 20;
constexpr std::size_t kLongWord = 1024;  // Longer words travel as a place in the buffer, not as bytes.

bool is_word(std::byte b) {
  const auto c = static_cast<unsigned char>(b);
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

struct Hash {
  using is_transparent = void;
  std::size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};
using Counts = std::unordered_map<std::string, std::uint64_t, Hash, std::equal_to<>>;

void add(Counts& counts, std::string_view word, std::uint64_t n) {
  auto it = counts.find(word);
  if (it == counts.end()) it = counts.emplace(std::string(word), 0).first;
  it->second += n;
}

void put_number(std::string& out, std::uint64_t v) {
  for (; v >= 128; v >>= 7) out.push_back(static_cast<char>(v | 128));
  out.push_back(static_cast<char>(v));
}
bool get_number(std::string_view& in, std::uint64_t& v) {
  v = 0;
  for (int shift = 0; shift < 64 && !in.empty(); shift += 7) {
    const auto b = static_cast<unsigned char>(in.front());
    in.remove_prefix(1);
    v |= static_cast<std::uint64_t>(b & 127) << shift;
    if (b < 128) return true;
  }
  return false;
}

/// What one chunk found: words with their counts, packed, and where the long ones lie.
using Found = std::pair<std::string, std::vector<std::pair<std::uint64_t, std::uint64_t>>>;

/// Words that begin in the chunk; the last of them may end beyond it.
Found count_chunk(holo::Chunk<const std::byte> chunk) {
  const std::span<const std::byte> text = chunk.array();
  std::unordered_map<std::string_view, std::uint64_t> counts;
  Found found;
  std::uint64_t i = chunk.first();
  if (i > 0 && is_word(text[i - 1])) {
    while (i < chunk.last() && is_word(text[i])) ++i;  // The end of a word that began before.
  }
  while (i < chunk.last()) {
    if (!is_word(text[i])) {
      ++i;
      continue;
    }
    const std::uint64_t begin = i;
    while (i < text.size() && is_word(text[i])) ++i;
    if (i - begin > kLongWord) {
      found.second.emplace_back(begin, i - begin);
    } else {
      ++counts[{reinterpret_cast<const char*>(text.data()) + begin, i - begin}];
    }
  }
  for (const auto& [word, n] : counts) {
    put_number(found.first, word.size());
    found.first += word;
    put_number(found.first, n);
  }
  return found;
}

struct Input {
  int fd = -1;
  bool whole = false;  ///< Its size is known: it is read straight into the buffer.
  std::uint64_t bytes = 0;
  std::vector<std::string> blocks;  ///< Of a pipe, read to its end.
};

int fail(std::string_view what, std::string_view why) {
  std::fprintf(stderr, "wordcount: %.*s: %.*s\n", static_cast<int>(what.size()), what.data(),
               static_cast<int>(why.size()), why.data());
  return 1;
}

/// Up to kBlock bytes; fewer only at the end. False: errno says why.
bool read_block(int fd, std::string& block) {
  block.resize(kBlock);
  std::size_t done = 0;
  while (done < block.size()) {
    const ssize_t n = ::read(fd, block.data() + done, block.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  block.resize(done);
  return true;
}

bool open_input(const std::string& path, Input& in) {
  in.fd = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info = {};
  if (in.fd < 0 || ::fstat(in.fd, &info) != 0) return false;
  if (S_ISDIR(info.st_mode)) {
    errno = EISDIR;
    return false;
  }
  in.whole = S_ISREG(info.st_mode) && path != "-" && info.st_size > 0;
  if (in.whole) {
    in.bytes = static_cast<std::uint64_t>(info.st_size);
    return true;
  }
  for (std::string block;;) {  // Its size shows only at its end.
    if (!read_block(in.fd, block)) return false;
    if (block.empty()) return true;
    in.bytes += block.size();
    in.blocks.push_back(std::move(block));
  }
}

class Stopwatch {
 public:
  void lap(const char* phase) {
    const auto now = std::chrono::steady_clock::now();
    std::fprintf(stderr, "%-9s %7.3f s\n", phase, std::chrono::duration<double>(now - last_).count());
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// Frees the buffer again, however the program goes on.
struct Freed {
  holo::Cluster& cluster;
  const std::string& name;
  ~Freed() { (void)cluster.free(name); }
};

holo::Status load(Input& in, holo::DistBuffer& buffer) {
  std::uint64_t at = 0;
  std::string block;
  while (at < in.bytes) {
    if (in.whole) {
      if (!read_block(in.fd, block)) return holo::fail(holo::Errc::io_error, std::strerror(errno));
      if (block.empty()) return holo::fail(holo::Errc::io_error, "it became shorter while it was read");
      if (block.size() > in.bytes - at) block.resize(in.bytes - at);  // It grew: what was there at the start counts.
    } else {
      block = std::move(in.blocks[at / kBlock]);
    }
    if (auto written = buffer.write(at, block); !written) return written;
    at += block.size();
  }
  return buffer.sync();
}

holo::Status merge(const std::vector<Found>& parts, const holo::DistBuffer& buffer, Counts& counts) {
  for (const auto& [packed, long_words] : parts) {
    std::string_view rest = packed;
    while (!rest.empty()) {
      std::uint64_t size = 0, n = 0;
      if (!get_number(rest, size) || size > rest.size())
        return holo::fail(holo::Errc::malformed, "a result does not decode");
      const std::string_view word = rest.substr(0, size);
      rest.remove_prefix(size);
      if (!get_number(rest, n)) return holo::fail(holo::Errc::malformed, "a result does not decode");
      add(counts, word, n);
    }
    for (const auto& [offset, size] : long_words) {
      std::string word(size, '\0');
      if (auto read = buffer.read(offset, std::as_writable_bytes(std::span(word.data(), word.size()))); !read)
        return read;
      add(counts, word, 1);
    }
  }
  return {};
}

bool print(const Counts& counts) {
  std::vector<const Counts::value_type*> sorted;
  sorted.reserve(counts.size());
  for (const auto& entry : counts) sorted.push_back(&entry);
  std::ranges::sort(sorted, {}, [](const Counts::value_type* e) -> const std::string& { return e->first; });
  for (const auto* entry : sorted) {
    std::printf("%7llu ", static_cast<unsigned long long>(entry->second));
    std::fwrite(entry->first.data(), 1, entry->first.size(), stdout);
    std::putchar('\n');
  }
  return std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
}

int run(holo::Cluster& cluster, const std::string& path, Input& in, std::uint32_t replication) {
  Stopwatch watch;
  const auto now = static_cast<unsigned long long>(std::chrono::system_clock::now().time_since_epoch().count());
  const std::string name = "wordcount-" + std::to_string(::getpid()) + "-" + std::to_string(now);
  auto buffer = cluster.buffer(name, in.bytes, {.replication = replication});
  if (!buffer) return fail("allocate", buffer.error().to_string());
  const Freed freed{cluster, name};
  watch.lap("allocate");

  if (auto loaded = load(in, *buffer); !loaded) return fail(path, loaded.error().to_string());
  watch.lap("load");

  auto parts = cluster.map(*buffer, [](holo::Chunk<const std::byte> chunk) { return count_chunk(chunk); }).get();
  if (!parts) return fail("count", parts.error().to_string());
  watch.lap("count");

  Counts counts;
  if (auto merged = merge(*parts, *buffer, counts); !merged) return fail("merge", merged.error().to_string());
  watch.lap("merge");
  if (!print(counts)) return fail("standard output", std::strerror(errno));
  watch.lap("print");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  auto cluster = holo::connect(argc, argv);
  std::uint32_t replication = 1;
  int at = 1;
  if (argc > 2 && std::string_view(argv[1]) == "--replication") {
    const std::string_view text = argv[2];
    std::from_chars(text.data(), text.data() + text.size(), replication);
    at = 3;
  }
  if (argc != at + 1 || replication < 1 || replication > 3) {
    std::fprintf(stderr, "usage: wordcount [--replication 1-3] FILE    (FILE - is standard input)\n");
    return 2;
  }
  const std::string path = argv[at];
  Input in;
  if (!open_input(path, in)) return fail(path, std::strerror(errno));
  if (!cluster) return fail("connect", cluster.error().to_string());
  if (in.bytes == 0) return 0;  // No words, and a cluster holds no region of no bytes.
  return run(*cluster, path, in, replication);
}
