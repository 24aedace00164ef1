// Frames in ordinary memory: for simulation and tests, where no other process maps them.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "env/frames.h"

namespace holo::env {

class HeapFrames final : public RegionFrames {
 public:
  explicit HeapFrames(std::uint64_t bytes) : bytes_(bytes) {}
  int fd() const override { return -1; }
  Status write(std::uint64_t offset, ByteSpan bytes) override {
    std::memcpy(bytes_.data() + offset, bytes.data(), bytes.size());
    return {};
  }
  Result<MutableByteSpan> prepare(std::uint64_t offset, std::size_t length) override {
    return MutableByteSpan(bytes_).subspan(offset, length);
  }
  Status read(std::uint64_t offset, MutableByteSpan out) const override {
    std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return {};
  }
  ByteSpan mapped(std::uint64_t offset, std::size_t length) const override {
    return ByteSpan(bytes_).subspan(offset, length);
  }
  Status punch(std::uint64_t offset, std::uint64_t length) override {
    std::fill_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    return {};
  }

 private:
  Bytes bytes_;
};

class HeapFrameStore final : public FrameStore {
 public:
  Result<std::unique_ptr<RegionFrames>> create(RegionId, std::string, std::uint64_t bytes) override {
    constexpr std::uint64_t kUnit = 4096;
    return std::make_unique<HeapFrames>((bytes + kUnit - 1) / kUnit * kUnit);
  }
};

}  // namespace holo::env
