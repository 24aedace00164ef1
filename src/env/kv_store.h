// The port to a small durable table of this node: facts about itself that must survive a restart.
#pragma once

#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace holo::env {

/// Blocks for at most one write to disk (about a millisecond): for rare facts, never for pages. Thread: loop.
class KvStore {
 public:
  virtual ~KvStore() = default;
  /// Errors: `corrupt` (names the key and the file), `io_error`.
  virtual Result<std::optional<Bytes>> get(const std::string& key) = 0;
  /// Durable once it returns. Errors: `io_error`.
  virtual Status put(const std::string& key, ByteSpan value) = 0;
};

}  // namespace holo::env
