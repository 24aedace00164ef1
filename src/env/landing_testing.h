// Places in ordinary memory: for simulation, fuzzing and tests.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "env/transport.h"

namespace holo::env::testing {

/// Places of `piece` bytes, each made when it is asked for, and a last one of what is left.
class Pieces final : public Landing {
 public:
  Pieces(std::uint64_t size, std::uint64_t piece) : size_(size), piece_(piece) {}
  [[nodiscard]] std::uint64_t size() const override { return size_; }
  Place next() override {
    const std::uint64_t bytes = std::min(piece_, size_ - given_);
    const auto place = std::make_shared_for_overwrite<std::byte[]>(bytes);
    given_ += bytes;
    made.push_back(place);
    return {.bytes = {place.get(), bytes}, .owner = place};
  }
  /// Places that somebody holds.
  [[nodiscard]] std::size_t living() const {
    return static_cast<std::size_t>(std::ranges::count_if(made, [](const auto& place) { return !place.expired(); }));
  }
  std::vector<std::weak_ptr<std::byte[]>> made;

 private:
  std::uint64_t size_, piece_, given_ = 0;
};

/// For a payload of `bytes`: pieces of some length, or none.
inline std::shared_ptr<Landing> pieces_for(std::uint64_t bytes) {
  return bytes % 4 == 3 ? nullptr : std::make_shared<Pieces>(bytes, 1 + bytes / (1 + bytes % 7));
}

}  // namespace holo::env::testing
