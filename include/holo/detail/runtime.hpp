// The seam between the templates of this library and its compiled part. Not for users; may change in any version.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <holo/error.hpp>
#include <holo/kv.hpp>
#include <holo/lock.hpp>
#include <holo/types.hpp>

namespace holo::detail {

inline constexpr std::size_t kMaxCaptureBytes = 4096;

/// What a task's code is given. Thread: the one that runs the task.
struct TaskContext {
  std::span<const std::byte> captures;  ///< Bytes of the callable, then of its arguments.
  std::byte* base = nullptr;          ///< Element 0 of the region; only the chunk's elements may be touched through it.
  std::uint64_t count = 0;            ///< Elements of the region.
  std::uint64_t first = 0, last = 0;  ///< The chunk: elements [first, last).
  std::uint32_t chunk = 0;
  std::vector<std::byte> result;  ///< What travels back to the program.
  /// Makes the whole region readable through the returned address (element 0). Throws TaskError when it cannot be had.
  const std::byte* (*whole)(TaskContext&) = nullptr;
  void* owner = nullptr;
};
/// Runs one task. Named across processes by its offset in the executable, so it must live there, not in a shared
/// library.
using TaskFunction = void (*)(TaskContext&);

/// Leaves a task with an error that is not the user's own.
struct TaskError {
  Error error;
};

struct JobProgress {
  std::uint64_t done = 0;
  std::uint64_t total = 0;
};

/// One open region of this process. Thread: any.
class Region {
 public:
  virtual ~Region() = default;
  virtual std::uint64_t id() const = 0;
  virtual std::uint64_t count() const = 0;
  virtual std::uint32_t element_bytes() const = 0;
  virtual const std::string& name() const = 0;
  /// Asks the agent: version and placement are those of now.
  virtual Result<RegionFacts> facts() = 0;
  virtual Result<std::byte*> map(bool for_writing) = 0;
  virtual Status populate(std::uint64_t offset, std::uint64_t length) = 0;
  virtual Status read(std::uint64_t offset, std::span<std::byte> out) = 0;
  virtual Status write(std::uint64_t offset, std::span<const std::byte> bytes) = 0;
  virtual Status sync() = 0;
  virtual Status refresh() = 0;
  virtual std::uint64_t version() const = 0;
};

/// One started job. Thread: any.
class Job {
 public:
  virtual ~Job() = default;
  /// Waits for the end. Errors: why the job failed; `deadline_exceeded` when `deadline` comes first.
  virtual Status wait(std::optional<std::chrono::steady_clock::time_point> deadline) = 0;
  virtual bool ready() const = 0;
  virtual JobProgress progress() const = 0;
  virtual void cancel() = 0;
  /// After a successful wait: the results in chunk order.
  virtual const std::vector<std::vector<std::byte>>& results() const = 0;
};

struct JobRequest {
  TaskFunction function = nullptr;
  std::vector<std::byte> captures;  ///< At most kMaxCaptureBytes.
  std::size_t checked_bytes = 0;    ///< The first so many bytes are refused when they hold an address.
  std::shared_ptr<Region> region;   ///< None: a single task.
  bool writes = false;
  bool results = false;
  std::string label;
};

/// A lock that is held, until release() or the end of the object. Thread: any.
class HeldLock {
 public:
  virtual ~HeldLock() = default;
  virtual const std::string& name() const = 0;
  virtual std::uint64_t token() const = 0;
  virtual std::uint64_t lease() const = 0;
  virtual bool lost() const = 0;
  virtual Status release() = 0;
};

/// One answer to a read of keys.
struct KvPageOf {
  std::vector<KvPair> pairs;
  std::uint64_t revision = 0;
  std::string next;  ///< Where to go on; empty: that was all.
};
/// What a watch has seen, and where it goes on.
struct KvEventsOf {
  std::vector<KvEvent> events;
  std::uint64_t from = 0;
  std::uint32_t skip = 0;
};

class Session {
 public:
  virtual ~Session() = default;
  struct RegionSpec {
    std::string name;
    std::string type;
    std::uint32_t element_bytes = 1;
    std::uint64_t count = 0;
    ArrayOptions options;
  };
  virtual Result<std::shared_ptr<Region>> create(const RegionSpec& spec) = 0;
  virtual Result<std::shared_ptr<Region>> open(std::string_view name, std::string_view type,
                                               std::uint32_t element_bytes) = 0;
  virtual Status free(std::string_view name) = 0;
  virtual Result<std::vector<RegionFacts>> regions() = 0;
  virtual std::shared_ptr<Job> start(JobRequest request) = 0;  ///< Never null; a job that could not start has failed.
  virtual Result<KvResult> kv_txn(const KvTransaction& transaction) = 0;
  virtual Result<KvPageOf> kv_page(const KeyRange& range, const KvReadOptions& options) = 0;
  virtual Result<KvEventsOf> kv_events(const KeyRange& range, std::uint64_t from, std::uint32_t skip,
                                       std::chrono::milliseconds wait) = 0;
  virtual Result<std::shared_ptr<HeldLock>> lock(std::string_view name, LockOptions options) = 0;
  virtual std::uint32_t nodes() const = 0;
  virtual std::string node_name() const = 0;
};

Result<std::shared_ptr<Session>> connect(int* argc, char** argv);
Result<std::shared_ptr<Session>> local(unsigned nodes, std::uint64_t memory_bytes);

/// A job that failed before it was sent.
std::shared_ptr<Job> failed_job(Error error);

}  // namespace holo::detail
