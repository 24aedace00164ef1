// Bytes that span the cluster.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include <holo/array.hpp>

namespace holo {

/// A shared array of bytes: a file in memory, a blob, text.
class DistBuffer : public SharedArray<std::byte> {
 public:
  using SharedArray::SharedArray;
  using SharedArray::write;
  /// Writes text from byte `offset` on.
  Status write(std::uint64_t offset, std::string_view text) {
    return SharedArray::write(offset, std::as_bytes(std::span(text.data(), text.size())));
  }
};

}  // namespace holo
