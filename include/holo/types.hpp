// What arrays are made of, and how they are laid out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include <holo/error.hpp>

namespace holo {

/// How writes of one process become visible to others.
enum class Mode : std::uint8_t {
  phased,  ///< What a process writes is its own until it commits (sync(), or the end of a task); then all of it appears
           ///< at once.
  strict,  ///< Sequentially consistent loads and stores. Refused by this version with `unsupported`.
};

/// How a region is made. All of it is fixed at creation.
struct ArrayOptions {
  Mode mode = Mode::phased;
  std::uint32_t replication =
      1;  ///< Copies of each page on different nodes, 1 to 3. Above the number of live nodes: refused.
  std::uint64_t page_bytes = 0;  ///< A power of two from 4 KiB to 2 MiB; 0: 64 KiB.
};

/// Where pages of a region live.
struct PagesOnNode {
  std::uint64_t node = 0;   ///< Node id.
  std::uint64_t pages = 0;  ///< Pages whose home it is.
};

/// A region as the cluster knows it.
struct RegionFacts {
  std::string name;
  std::string type;  ///< "u64", "f64", "bytes", "struct:24", ...
  std::uint32_t element_bytes = 1;
  std::uint64_t count = 0;  ///< Elements.
  std::uint64_t page_bytes = 0;
  std::uint32_t replication = 1;
  std::uint64_t version = 0;  ///< Commits so far, when asked.
  std::vector<PagesOnNode> pages_by_node;
};

/// What an array can hold: bytes that mean the same in another process.
template <class T>
concept Element = std::is_trivially_copyable_v<T> && !std::is_pointer_v<T> && !std::is_member_pointer_v<T> &&
                  !std::is_reference_v<T> && !std::is_const_v<T> && !std::is_volatile_v<T>;

namespace detail {

/// The name under which the cluster stores the element type.
template <class T>
std::string element_type() {
  if constexpr (std::is_same_v<T, std::byte>) {
    return "bytes";
  } else if constexpr (std::is_same_v<T, bool>) {
    return "bool";
  } else if constexpr (std::is_floating_point_v<T>) {
    return "f" + std::to_string(sizeof(T) * 8);
  } else if constexpr (std::is_integral_v<T>) {
    return (std::is_signed_v<T> ? "i" : "u") + std::to_string(sizeof(T) * 8);
  } else {
    return "struct:" + std::to_string(sizeof(T));
  }
}

}  // namespace detail
}  // namespace holo
