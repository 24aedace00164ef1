// Byte ranges, and a reference-counted one for payloads that must outlive the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace holo {

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;
using Bytes = std::vector<std::byte>;

/// Immutable bytes with shared ownership: a heap vector, or a pinned page frame. Copying shares, never copies bytes.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Bytes bytes) {
    auto held = std::make_shared<const Bytes>(std::move(bytes));
    bytes_ = *held;
    owner_ = std::move(held);
  }
  /// Shares `bytes`, which stay valid and unchanged while `owner` lives.
  Buffer(ByteSpan bytes, std::shared_ptr<const void> owner) : owner_(std::move(owner)), bytes_(bytes) {}

  static Buffer copy(ByteSpan bytes) { return Buffer(Bytes(bytes.begin(), bytes.end())); }

  [[nodiscard]] ByteSpan span() const { return bytes_; }
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  /// A part of this buffer that keeps the whole alive. `offset + length` must lie inside.
  [[nodiscard]] Buffer slice(std::size_t offset, std::size_t length) const {
    Buffer out(bytes_.subspan(offset, length), owner_);
    out.part_ = part_ || length != size();
    return out;
  }
  /// Whether it keeps more alive than it shows.
  [[nodiscard]] bool is_part() const { return part_; }

 private:
  std::shared_ptr<const void> owner_;
  ByteSpan bytes_;
  bool part_ = false;
};

inline ByteSpan as_bytes(std::string_view s) { return std::as_bytes(std::span(s.data(), s.size())); }
inline std::string_view as_text(ByteSpan b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

}  // namespace holo
