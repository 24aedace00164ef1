#include "driver/quic/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace holo::driver::quic {

ConnectionMemory::ConnectionMemory() : pieces_{.previous = &pieces_, .next = &pieces_, .size = 0} {
  static constexpr auto kSelf = [](void* user_data) { return static_cast<ConnectionMemory*>(user_data); };
  allocator_ = {
      .user_data = this,
      .malloc = [](std::size_t size, void* user_data) { return kSelf(user_data)->allocate(size); },
      .free = [](void* data, void* user_data) { kSelf(user_data)->release(data); },
      .calloc = [](std::size_t count, std::size_t size, void* user_data) -> void* {
        if (size != 0 && count > SIZE_MAX / size) return nullptr;
        void* data = kSelf(user_data)->allocate(count * size);
        if (data != nullptr) std::memset(data, 0, count * size);
        return data;
      },
      .realloc = [](void* data, std::size_t size, void* user_data) { return kSelf(user_data)->reallocate(data, size); },
  };
}

ConnectionMemory::~ConnectionMemory() {
  for (Piece* piece = pieces_.next; piece != &pieces_;) std::free(std::exchange(piece, piece->next));
}

void* ConnectionMemory::allocate(std::size_t size) {
  if (size > SIZE_MAX - kHeader) return nullptr;
  void* block = std::malloc(kHeader + size);
  if (block == nullptr) return nullptr;
  auto* piece = static_cast<Piece*>(block);
  *piece = {.previous = &pieces_, .next = pieces_.next, .size = size};
  piece->next->previous = piece;
  pieces_.next = piece;
  bytes_ += kHeader + size;
  return static_cast<std::byte*>(block) + kHeader;
}

void ConnectionMemory::release(void* data) {
  if (data == nullptr) return;
  auto* piece = reinterpret_cast<Piece*>(static_cast<std::byte*>(data) - kHeader);
  piece->previous->next = piece->next;
  piece->next->previous = piece->previous;
  bytes_ -= kHeader + piece->size;
  std::free(piece);
}

void* ConnectionMemory::reallocate(void* data, std::size_t size) {
  if (data == nullptr) return allocate(size);
  const auto* piece = reinterpret_cast<const Piece*>(static_cast<const std::byte*>(data) - kHeader);
  void* moved = allocate(size);
  if (moved == nullptr) return nullptr;
  std::memcpy(moved, data, std::min(size, piece->size));
  release(data);
  return moved;
}

}  // namespace holo::driver::quic
