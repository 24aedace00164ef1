// A few nodes, without allocation.
#pragma once

#include <array>
#include <cstdint>

#include "base/ids.h"
#include "base/limits.h"

namespace holo::control {

/// Holders of a shard. While copies move, a shard has up to twice its replication.
class NodeList {
 public:
  static constexpr std::size_t kMax = 2 * limits::kMaxReplication;
  [[nodiscard]] const NodeId* begin() const { return nodes_.data(); }
  [[nodiscard]] const NodeId* end() const { return nodes_.data() + size_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool empty() const { return size_ == 0; }
  [[nodiscard]] NodeId operator[](std::size_t i) const { return nodes_[i]; }
  [[nodiscard]] bool contains(NodeId id) const;
  [[nodiscard]] bool push(NodeId id);  ///< False when full.
  void push_front(NodeId id);          ///< Drops the last one when full.
  void replace(std::size_t i, NodeId id) { nodes_[i] = id; }
  void erase(NodeId id);  ///< Keeps the order of the others.
  friend bool operator==(const NodeList& a, const NodeList& b);

 private:
  std::array<NodeId, kMax> nodes_{};
  std::uint8_t size_ = 0;
};

}  // namespace holo::control
