// Every fuzz target over the inputs that are kept for it, in every build that has tests: what fuzzing once found stays
// fixed. The targets are compiled in, each under a name of its own (cmake/Programs.cmake); cryptography is real here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "wire/protobuf_log.h"

#define TARGET(name) extern "C" int holo_##name(const std::uint8_t*, std::size_t);
#include "fuzz_targets.inc"
#undef TARGET

namespace {

struct Target {
  const char* name;
  int (*run)(const std::uint8_t*, std::size_t);
};
constexpr Target kTargets[] = {
#define TARGET(name) {#name, holo_##name},
#include "fuzz_targets.inc"
#undef TARGET
};

class Replay : public testing::TestWithParam<Target> {};

TEST_P(Replay, KeptInputsFindNothing) {
  holo::wire::route_protobuf_log();  // It would write a line for every string that is no text.
  std::vector<std::filesystem::path> files;
  const std::string folder = std::string(HOLO_SOURCE_DIR "/fuzz/corpus/") + GetParam().name;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with("seed-")) files.push_back(entry.path());
  }
  ASSERT_FALSE(files.empty()) << "./dev fuzz --keep keeps some";
  std::ranges::sort(files);
  for (const auto& file : files) {
    std::ifstream in(file, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    RecordProperty("last_input", file.filename().string());
    // A copy of exactly that size, so that a sanitizer sees what reads beyond it.
    const std::vector<std::uint8_t> data(bytes.begin(), bytes.end());
    ASSERT_EQ(GetParam().run(data.data(), data.size()), 0) << file;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Replay, testing::ValuesIn(kTargets),
                         [](const testing::TestParamInfo<Target>& target) { return std::string(target.param.name); });

}  // namespace
