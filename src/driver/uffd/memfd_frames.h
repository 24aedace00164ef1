// Page frames in memfds: sparse files in memory that applications map by descriptor.
#pragma once

#include "env/frames.h"

namespace holo::driver {

/// The files are sealed against growing and shrinking, so that no process can take pages from under this one.
class MemfdFrameStore final : public env::FrameStore {
 public:
  Result<std::unique_ptr<env::RegionFrames>> create(RegionId region, std::string name, std::uint64_t bytes) override;
};

}  // namespace holo::driver
