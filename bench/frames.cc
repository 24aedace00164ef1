// How the bytes of a page come from the wire into its frame, without a protocol around it: a page of 64 KiB arrives as
// datagrams' payloads, one at a time, each valid only until the next one is decrypted.
//   taskset -c 0 build/release/bin/bench/frames
// Ways: gathered in a buffer, then written with one pwrite (two copies); each piece written with a pwrite of its own;
// each piece copied into a mapping of the frame (one copy each), which was filled ahead or not. Frames are fresh, as at
// a first touch, or used again. What is filled ahead can be while the answer is on its way: the time of that, too.
// The buffers of pages that are staged live until their commit, so that each is fresh memory, too ("kept"); "kept
// alone" is what such a page takes that stays in its buffer.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kPage = 64 << 10, kPieceBytes = 1'400, kPages = 2'048, kRuns = 5;

/// A memory file of kPages frames, and a mapping of it.
class Frames {
 public:
  Frames() : fd_(::memfd_create("frames", MFD_CLOEXEC)) {
    if (fd_ < 0 || ::ftruncate(fd_, static_cast<off_t>(kPages * kPage)) != 0) std::perror("memfd");
    void* at = ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (at == MAP_FAILED) std::perror("mmap");
    base_ = static_cast<std::byte*>(at);
  }
  Frames(const Frames&) = delete;
  Frames& operator=(const Frames&) = delete;
  ~Frames() {
    ::munmap(base_, kPages * kPage);
    ::close(fd_);
  }
  void write(std::size_t at, const std::byte* from, std::size_t bytes) const {
    if (::pwrite(fd_, from, bytes, static_cast<off_t>(at)) != static_cast<ssize_t>(bytes)) std::perror("pwrite");
  }
  void fill(std::size_t at) {
    if (::madvise(base_ + at, kPage, MADV_POPULATE_WRITE) != 0) std::perror("madvise");
  }
  void copy(std::size_t at, const std::byte* from, std::size_t bytes) { std::memcpy(base_ + at, from, bytes); }

 private:
  int fd_;
  std::byte* base_ = nullptr;
};

using Way = std::function<void(Frames&, std::size_t page, const std::vector<std::byte>& wire)>;

void in_pieces(const std::function<void(std::size_t at, std::size_t bytes)>& f) {
  for (std::size_t at = 0; at < kPage; at += kPieceBytes) f(at, std::min(kPieceBytes, kPage - at));
}

void gathered(Frames& frames, std::size_t page, const std::vector<std::byte>& wire) {
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(kPage);
  in_pieces([&](std::size_t at, std::size_t bytes) { std::memcpy(buffer.get() + at, wire.data() + at, bytes); });
  frames.write(page * kPage, buffer.get(), kPage);
}
/// Of one pass over the pages.
std::vector<std::unique_ptr<std::byte[]>> kept_buffers;
void kept(Frames&, std::size_t, const std::vector<std::byte>& wire) {
  auto& buffer = kept_buffers.emplace_back(std::make_unique_for_overwrite<std::byte[]>(kPage));
  in_pieces([&](std::size_t at, std::size_t bytes) { std::memcpy(buffer.get() + at, wire.data() + at, bytes); });
}
void kept_and_written(Frames& frames, std::size_t page, const std::vector<std::byte>& wire) {
  kept(frames, page, wire);
  frames.write(page * kPage, kept_buffers.back().get(), kPage);
}
void piecewise(Frames& frames, std::size_t page, const std::vector<std::byte>& wire) {
  in_pieces([&](std::size_t at, std::size_t bytes) { frames.write(page * kPage + at, wire.data() + at, bytes); });
}
void mapped(Frames& frames, std::size_t page, const std::vector<std::byte>& wire) {
  in_pieces([&](std::size_t at, std::size_t bytes) { frames.copy(page * kPage + at, wire.data() + at, bytes); });
}
void filled(Frames& frames, std::size_t page, const std::vector<std::byte>&) { frames.fill(page * kPage); }
void filled_and_mapped(Frames& frames, std::size_t page, const std::vector<std::byte>& wire) {
  filled(frames, page, wire);
  mapped(frames, page, wire);
}

/// Microseconds for one page.
double once(Frames& frames, const Way& way, const std::vector<std::byte>& wire) {
  const auto began = Clock::now();
  for (std::size_t page = 0; page < kPages; ++page) way(frames, page, wire);
  const double took = std::chrono::duration<double, std::micro>(Clock::now() - began).count() / kPages;
  kept_buffers.clear();
  return took;
}

double median(std::vector<double> v) {
  std::ranges::sort(v);
  return v[v.size() / 2];
}

}  // namespace

int main() {
  const std::vector<std::byte> wire(kPage, std::byte{7});
  const std::vector<std::pair<std::string, Way>> ways = {{"gathered, one pwrite", gathered},
                                                         {"kept, one pwrite", kept_and_written},
                                                         {"kept alone", kept},
                                                         {"a pwrite for each piece", piecewise},
                                                         {"copied into the mapping", mapped},
                                                         {"filled ahead, then copied", filled_and_mapped},
                                                         {"filled ahead alone", filled}};
  std::vector<std::vector<double>> fresh(ways.size()), again(ways.size());
  for (std::size_t run = 0; run < kRuns; ++run) {
    for (std::size_t i = 0; i < ways.size(); ++i) {
      Frames frames;
      fresh[i].push_back(once(frames, ways[i].second, wire));
      again[i].push_back(once(frames, ways[i].second, wire));
    }
  }
  std::printf("%-26s %14s %14s\n", "us for a page of 64 KiB", "fresh frame", "used again");
  for (std::size_t i = 0; i < ways.size(); ++i) {
    std::printf("%-26s %14.1f %14.1f\n", ways[i].first.c_str(), median(fresh[i]), median(again[i]));
  }
  return 0;
}
