// Shared by this module's sources only: spans as AWS-LC wants them, and owners for its objects.
#pragma once

#include <openssl/base.h>

#include <cstdint>
#include <memory>
#include <span>

#include "base/bytes.h"

namespace holo::crypto {

template <std::size_t N>
const std::uint8_t* raw(std::span<const std::byte, N> b) {
  return reinterpret_cast<const std::uint8_t*>(b.data());
}
template <std::size_t N>
std::uint8_t* raw(std::span<std::byte, N> b) {
  return reinterpret_cast<std::uint8_t*>(b.data());
}

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* p) const {
    Free(p);
  }
};

}  // namespace holo::crypto
