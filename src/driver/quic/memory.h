// What ngtcp2 allocates for one connection, so that it is counted, and all freed with it.
#pragma once

#include <ngtcp2/ngtcp2.h>

#include <cstddef>

namespace holo::driver::quic {

/// A resource. Thread: one at a time. Cost: a header of 32 bytes for each piece.
class ConnectionMemory {
 public:
  ConnectionMemory();
  ConnectionMemory(const ConnectionMemory&) = delete;
  ConnectionMemory& operator=(const ConnectionMemory&) = delete;
  /// Frees what is left. Nothing of it may be used any more.
  ~ConnectionMemory();

  /// Valid as long as this object.
  [[nodiscard]] const ngtcp2_mem* allocator() const { return &allocator_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  struct Piece {
    Piece *previous, *next;
    std::size_t size;
  };
  static constexpr std::size_t kHeader = 32;  // Keeps what follows aligned like malloc's.
  static_assert(kHeader >= sizeof(Piece) && kHeader % alignof(std::max_align_t) == 0);

  void* allocate(std::size_t size);
  void* reallocate(void* data, std::size_t size);
  void release(void* data);

  ngtcp2_mem allocator_;
  Piece pieces_;  // A ring; this one is its beginning and holds nothing.
  std::size_t bytes_ = 0;
};

}  // namespace holo::driver::quic
