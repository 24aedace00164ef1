#include "core/control/directory.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace holo::control {
namespace {

TEST(Directory, AgreesWithAPlainArray) {
  constexpr std::uint64_t kPages = 3 * Directory::kLeafPages + 17;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Random rnd(seed);
    Directory d;
    std::vector<std::uint64_t> plain(kPages);
    for (std::uint64_t v = 1; v <= 40; ++v) {
      const std::uint64_t first = rnd.below(kPages);
      const std::uint64_t count =
          1 + rnd.below(rnd.chance(1, 2) ? kPages - first : std::min<std::uint64_t>(kPages - first, 50));
      d.write({first, count}, Version{v});
      std::fill_n(plain.begin() + static_cast<std::ptrdiff_t>(first), count, v);
    }
    for (std::uint64_t p = 0; p < kPages; ++p) ASSERT_EQ(d.at(PageNo{p}).value, plain[p]);
    const std::uint64_t since = rnd.below(40);
    const std::uint64_t from = rnd.below(kPages);
    std::vector<std::uint64_t> seen(kPages);
    std::uint64_t last_end = 0;
    std::uint64_t last_version = 0;
    d.visit({from, kPages - from}, Version{since}, [&](PageRange r, Version v) {
      EXPECT_GE(r.first, last_end);
      EXPECT_FALSE(r.first == last_end && v.value == last_version) << "neighbours of one version are joined";
      last_end = r.end();
      last_version = v.value;
      std::fill_n(seen.begin() + static_cast<std::ptrdiff_t>(r.first), r.count, v.value);
    });
    for (std::uint64_t p = 0; p < kPages; ++p) ASSERT_EQ(seen[p], p >= from && plain[p] > since ? plain[p] : 0);
  }
}

TEST(Directory, UnwrittenIsVersionZero) {
  const Directory d;
  EXPECT_EQ(d.at(PageNo{12345678901}), Version{});
}

}  // namespace
}  // namespace holo::control
