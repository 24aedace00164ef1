// The port to page frames: for each region of this node one sparse file in memory, of the region's size, that
// applications map. Page p's slot is at offset p * page_bytes. memfd implements it; tests keep the bytes in a map.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"

namespace holo::env {

/// The slots of one region. Offsets and lengths are multiples of 4 KiB and lie inside the region's size rounded up to
/// its page size. Thread: loop, except where noted.
class RegionFrames {
 public:
  virtual ~RegionFrames() = default;

  /// The descriptor that applications map, or -1 where there is none (tests). Valid while this object lives.
  [[nodiscard]] virtual int fd() const = 0;

  /// Fills [offset, offset + bytes.size()). Whoever has these slots mapped sees the new bytes at once: punch first when
  /// a reader may stand on the old ones. Errors: `out_of_memory` (the system has no frame left), `io_error`.
  virtual Status write(std::uint64_t offset, ByteSpan bytes) = 0;

  /// Slots that are not filled, and that the caller writes to itself, through the agent's own mapping: no write to them
  /// can fail for want of memory. They count as filled, with anything. Cost: 20 us for 64 KiB. Errors: `out_of_memory`,
  /// `unsupported`; the range is then to be punched.
  virtual Result<MutableByteSpan> prepare(std::uint64_t offset, std::size_t length) = 0;

  /// Copies out; slots never filled read as zeros and stay unfilled. Errors: `io_error`.
  virtual Status read(std::uint64_t offset, MutableByteSpan out) const = 0;

  /// The agent's own mapping of filled slots, for reading without a copy. Touching a slot that is not filled would fill
  /// it with zeros: callers know which are. Valid until punch or write of the range.
  [[nodiscard]] virtual ByteSpan mapped(std::uint64_t offset, std::size_t length) const = 0;

  /// Frees the frames of the range and takes them out of every mapping: the next access faults as missing, in every
  /// process. Private copies that a process has made by writing stay its own. Errors: `io_error`.
  virtual Status punch(std::uint64_t offset, std::uint64_t length) = 0;
};

class FrameStore {
 public:
  virtual ~FrameStore() = default;
  /// An empty file of `bytes` (rounded up to 4 KiB). `name` shows in /proc. Errors: `out_of_memory`, `io_error`,
  /// `over_limit` (no descriptor left). Thread: loop.
  virtual Result<std::unique_ptr<RegionFrames>> create(RegionId region, std::string name, std::uint64_t bytes) = 0;
};

}  // namespace holo::env
