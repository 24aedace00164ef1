// Executables of programs, kept by content hash: imported from the program's own process on its node, fetched in parts
// from there on every other. Nothing gets a name here before its hash and its ELF note have been checked.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/task.h"
#include "env/loop.h"

namespace holo::node {

/// Thread: loop; files are read and written on helper threads.
class BinaryCache {
 public:
  /// `directory`: made on first use, mode 0700. `max_bytes`: least recently used files go above it.
  BinaryCache(env::Loop& loop, std::string directory, std::uint64_t max_bytes);

  /// The path of the executable with this hash when it is here.
  [[nodiscard]] bool has(const std::string& hash) const;
  [[nodiscard]] std::string path(const std::string& hash) const;

  /// Copies `source` (a path, /proc/PID/exe included). Errors: `wrong_build` (another hash: the file is not the program
  /// that runs; or no note), `over_limit`, `io_error`, `not_found`.
  Task<Result<std::string>> import(std::string hash, std::string source);

  /// Reads the parts by `fetch` (offset -> bytes; empty at the end). One fetch of a hash at a time: others wait for it.
  using Fetch = std::function<Task<Result<Bytes>>(std::uint64_t offset)>;
  Task<Result<std::string>> obtain(std::string hash, std::uint64_t bytes, Fetch fetch);

  /// A part of a cached executable, for others. Errors: `not_found`, `io_error`.
  Task<Result<Bytes>> read(std::string hash, std::uint64_t offset, std::uint64_t length);
  /// Its size; 0 when it is not here.
  [[nodiscard]] std::uint64_t size(const std::string& hash) const;

 private:
  struct Waiting {
    std::vector<std::shared_ptr<OneShot<Result<std::string>>>> waiters;
  };
  Task<Result<std::string>> fetch_now(std::string hash, std::uint64_t bytes, Fetch fetch);
  Status prepare();
  std::string new_part();

  env::Loop& loop_;
  std::string directory_;
  std::uint64_t max_bytes_;
  std::uint64_t parts_ = 0;
  bool prepared_ = false;
  std::map<std::string, Waiting> fetching_;
};

}  // namespace holo::node
