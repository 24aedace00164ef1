#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <thread>

#include "driver/uffd/memfd_frames.h"
#include "driver/uffd/uffd_faults.h"

namespace holo::driver {
namespace {

constexpr std::uint64_t kPage = 65536;
constexpr std::uint64_t kPages = 16;

Bytes filled(char c) { return Bytes(kPage, static_cast<std::byte>(c)); }

TEST(MemfdFrames, WritesReadsAndPunches) {
  MemfdFrameStore store;
  auto frames = store.create(RegionId{1}, "xs", kPages * kPage).value();
  ASSERT_TRUE(frames->write(kPage, filled('a')));
  EXPECT_EQ(frames->mapped(kPage, 1)[0], std::byte{'a'});
  Bytes out(kPage);
  ASSERT_TRUE(frames->read(2 * kPage, out));
  EXPECT_EQ(out[0], std::byte{0});
  ASSERT_TRUE(frames->punch(kPage, kPage));
  ASSERT_TRUE(frames->read(kPage, out));
  EXPECT_EQ(out, Bytes(kPage));
  EXPECT_NE(::ftruncate(frames->fd(), 4096), 0) << "sealed";
}

TEST(MemfdFrames, APreparedSlotIsWrittenToInPlace) {
  MemfdFrameStore store;
  auto frames = store.create(RegionId{1}, "xs", kPages * kPage).value();
  const auto blocks = [&] {
    struct stat file{};
    EXPECT_EQ(::fstat(frames->fd(), &file), 0);
    return static_cast<std::uint64_t>(file.st_blocks) * 512;
  };
  const MutableByteSpan place = frames->prepare(2 * kPage, 2 * kPage).value();
  EXPECT_EQ(blocks(), 2 * kPage) << "the memory is there before it is written to";
  ASSERT_EQ(place.size(), 2 * kPage);
  std::ranges::fill(place, std::byte{'p'});
  Bytes out(2 * kPage);
  ASSERT_TRUE(frames->read(2 * kPage, out));
  EXPECT_EQ(out, Bytes(2 * kPage, std::byte{'p'}));
  ASSERT_TRUE(frames->punch(2 * kPage, 2 * kPage));
  EXPECT_EQ(blocks(), 0U);
}

// One mapping of the test's own process, touched by a second thread while this one runs the loop.
class Mapped : public ::testing::Test {
 protected:
  void SetUp() override {
    auto fd = open_userfaultfd();
    if (!fd) GTEST_SKIP() << fd.error().message;
    uffd_ = std::move(*fd);
    frames_ = store_.create(RegionId{1}, "xs", kPages * kPage).value();
    base_ = static_cast<char*>(
        ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, frames_->fd(), 0));
    ASSERT_NE(base_, MAP_FAILED);
    register_range(base_, kPages * kPage);
    view_ = faults_
                .attach(env::Fd(::dup(uffd_.get())), reinterpret_cast<std::uint64_t>(base_), kPages * kPage,
                        [this](std::vector<env::PageFault> faults) {
                          for (const auto& f : faults) on_fault_(f);
                        })
                .value();
  }
  void TearDown() override {
    view_.reset();
    if (base_ != nullptr) ::munmap(base_, kPages * kPage);
  }
  void register_range(char* at, std::uint64_t length) {
    uffdio_register r{};
    r.range = {.start = reinterpret_cast<std::uint64_t>(at), .len = length};
    r.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
    ASSERT_EQ(::ioctl(uffd_.get(), UFFDIO_REGISTER, &r), 0);
  }
  // Runs `touch` on a thread of its own, serving faults meanwhile.
  template <class F>
  auto while_serving(F touch) {
    decltype(touch()) result{};
    std::atomic<bool> done{false};
    std::thread thread([&] {
      result = touch();
      done = true;
      loop_.post([] {});
    });
    EXPECT_TRUE(loop_.run_until([&] { return done.load(); }, seconds(10)));
    thread.join();
    return result;
  }

  AsioLoop loop_;
  MemfdFrameStore store_;
  UffdFaults faults_{loop_};
  env::Fd uffd_;
  std::unique_ptr<env::RegionFrames> frames_;
  char* base_ = nullptr;
  std::unique_ptr<env::FaultedView> view_;
  int served_ = 0;
  std::function<void(const env::PageFault&)> on_fault_ = [this](const env::PageFault& f) {
    ++served_;
    const std::uint64_t page = f.offset / kPage;
    ASSERT_TRUE(view_->install(page * kPage, kPage));
  };
};

TEST_F(Mapped, ASlotIsSharedUntilItIsWritten) {
  ASSERT_TRUE(frames_->write(3 * kPage, filled('s')));
  volatile char* at = base_ + 3 * kPage;
  EXPECT_EQ(while_serving([&] { return at[100]; }), 's');
  EXPECT_EQ(served_, 1);
  EXPECT_EQ(at[kPage - 1], 's') << "the whole page came at once";
  at[0] = 'w';  // The kernel copies 4 KiB.
  EXPECT_EQ(frames_->mapped(3 * kPage, 1)[0], std::byte{'s'});
  EXPECT_EQ(at[1], 's');
}

TEST_F(Mapped, APreparedSlotIsNotSeenBeforeItIsGiven) {
  const MutableByteSpan place = frames_->prepare(kPage, kPage).value();
  std::ranges::fill(place, std::byte{'?'});
  on_fault_ = [&](const env::PageFault& f) {
    ++served_;
    ASSERT_EQ(f.offset / kPage, 1U);
    std::ranges::fill(place, std::byte{'p'});  // The last of it comes after somebody has begun to wait.
    ASSERT_TRUE(view_->install(kPage, kPage));
  };
  volatile char* at = base_ + kPage;
  EXPECT_EQ(while_serving([&] { return at[100]; }), 'p');
  EXPECT_EQ(served_, 1);
}

TEST_F(Mapped, AfterAPunchTheNextAccessFaultsAgainButOwnWritesStay) {
  ASSERT_TRUE(frames_->write(0, filled('a')));
  volatile char* at = base_;
  ASSERT_EQ(while_serving([&] { return at[0]; }), 'a');
  at[0] = 'w';
  ASSERT_TRUE(frames_->punch(0, kPage));
  ASSERT_TRUE(frames_->write(0, filled('b')));
  EXPECT_EQ(at[0], 'w');
  EXPECT_EQ(while_serving([&] { return at[8192]; }), 'b');
  EXPECT_EQ(served_, 2);
}

TEST_F(Mapped, APrivateCopyAndAZeroPageWorkOverAFilledSlot) {
  ASSERT_TRUE(frames_->write(0, filled('n')));
  ASSERT_TRUE(frames_->write(kPage, filled('n')));
  const Bytes old = filled('o');
  on_fault_ = [&](const env::PageFault& f) {
    if (f.offset < kPage) {
      ASSERT_TRUE(view_->copy(0, old));
    } else {
      ASSERT_TRUE(view_->zero(kPage, kPage));
    }
  };
  volatile char* at = base_;
  EXPECT_EQ(while_serving([&] { return at[5000]; }), 'o');
  EXPECT_EQ(while_serving([&] { return at[kPage + 5000]; }), '\0');
}

TEST_F(Mapped, InstallSkipsWhatIsThereAndWhatIsNotFilled) {
  for (std::uint64_t p = 0; p < kPages; p += 2) ASSERT_TRUE(frames_->write(p * kPage, filled('p')));
  volatile char* at = base_;
  ASSERT_EQ(while_serving([&] { return at[4 * kPage + 4096]; }), 'p');
  at[4 * kPage + 4096] = 'w';
  ASSERT_TRUE(view_->install(0, kPages * kPage));
  for (std::uint64_t p = 0; p < kPages; p += 2) EXPECT_EQ(at[p * kPage], 'p');
  EXPECT_EQ(at[4 * kPage + 4096], 'w');
  EXPECT_EQ(served_, 1);
  on_fault_ = [&](const env::PageFault& f) {
    ASSERT_TRUE(view_->zero(f.offset / kPage * kPage, kPage));
    ++served_;
  };
  EXPECT_EQ(while_serving([&] { return at[kPage]; }), '\0');
  EXPECT_EQ(served_, 2);
}

TEST_F(Mapped, AWindowInTheMiddleDoesNotDisturbItsNeighbours) {
  for (std::uint64_t p = 0; p < kPages; ++p) ASSERT_TRUE(frames_->write(p * kPage, filled('p')));
  char* window = base_ + 4 * kPage;
  ASSERT_NE(::mmap(window, 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, frames_->fd(), 4 * kPage),
            MAP_FAILED);
  window[0] = 'W';
  EXPECT_EQ(frames_->mapped(4 * kPage, 1)[0], std::byte{'W'});
  ASSERT_TRUE(view_->install(0, kPages * kPage));
  volatile char* at = base_;
  EXPECT_EQ(at[0], 'p');
  EXPECT_EQ(at[15 * kPage], 'p');
  EXPECT_EQ(served_, 0);
  ASSERT_NE(::mmap(window, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, frames_->fd(),
                   4 * kPage),
            MAP_FAILED);
  register_range(window, 2 * kPage);
  EXPECT_EQ(while_serving([&] { return at[4 * kPage]; }), 'W');
  EXPECT_EQ(served_, 1);
}

TEST(UffdFaults, RefusesWhatIsNoUserfaultfd) {
  AsioLoop loop;
  UffdFaults faults(loop);
  auto r = faults.attach(env::Fd(::memfd_create("x", 0)), 4096, 4096, {});
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().code, Errc::invalid_argument);
}

}  // namespace
}  // namespace holo::driver
