// The cluster as a program holds it: arrays, buffers, and work on them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <holo/array.hpp>
#include <holo/buffer.hpp>
#include <holo/chunk.hpp>
#include <holo/detail/codec.hpp>
#include <holo/detail/runtime.hpp>
#include <holo/detail/task.hpp>
#include <holo/error.hpp>
#include <holo/future.hpp>
#include <holo/kv.hpp>
#include <holo/lock.hpp>

namespace holo {

/// A connection to the agent of this machine, and through it to the cluster. A handle: copies share the connection,
/// which closes with the last of them and of the arrays and futures made from it. Thread: any.
///
/// Functions given to parallel_for, map, reduce and submit run in other processes, on other machines: they may capture
/// trivially copyable values by value, nothing else. A captured pointer or reference is refused when the work is
/// started. What they print appears on this program's standard error as "[node] line".
class Cluster {
 public:
  explicit Cluster(std::shared_ptr<detail::Session> session) : session_(std::move(session)) {}

  /// Opens the array `name` when it exists with the same shape, or makes it: all zero, version 0. It outlives the
  /// program; free() ends it. `name`: 1 to 128 of [A-Za-z0-9._/-]. Errors: `already_exists` (another shape),
  /// `invalid_argument` (name, count of 0, page size), `out_of_memory` (the nodes' limits), `over_limit`, `unsupported`
  /// (strict), `refused` (replication above the live nodes), `unavailable`.
  template <class T>
  Result<SharedArray<T>> array(std::string_view name, std::uint64_t count, ArrayOptions options = {}) {
    static_assert(Element<T>, "holo: an array element must be trivially copyable and hold no pointer");
    return wrap<SharedArray<T>>(session_->create({.name = std::string(name),
                                                  .type = detail::element_type<T>(),
                                                  .element_bytes = sizeof(T),
                                                  .count = count,
                                                  .options = options}));
  }
  /// Opens an array that exists. Errors: `not_found`, `invalid_argument` (it holds another type), `unavailable`.
  template <class T>
  Result<SharedArray<T>> open(std::string_view name) {
    static_assert(Element<T>, "holo: an array element must be trivially copyable and hold no pointer");
    return wrap<SharedArray<T>>(session_->open(name, detail::element_type<T>(), sizeof(T)));
  }
  /// A buffer of `bytes` bytes; as array().
  Result<DistBuffer> buffer(std::string_view name, std::uint64_t bytes, ArrayOptions options = {}) {
    return wrap<DistBuffer>(session_->create(
        {.name = std::string(name), .type = "bytes", .element_bytes = 1, .count = bytes, .options = options}));
  }
  /// Opens a buffer that exists; as open().
  Result<DistBuffer> open_buffer(std::string_view name) { return wrap<DistBuffer>(session_->open(name, "bytes", 1)); }
  /// Ends an array or buffer on all nodes, for every program. Errors: `not_found`, `permission_denied`, `unavailable`.
  Status free(std::string_view name) { return session_->free(name); }
  /// All arrays and buffers of the cluster.
  Result<std::vector<RegionFacts>> regions() { return session_->regions(); }

  /// Runs `f(holo::Chunk<T>)` for every chunk of `xs`, each on the node where its pages live. A chunk's writes commit
  /// when its call returns, all of them or none, exactly once; afterwards work that this program starts sees them.
  /// Mapped memory of this program sees them after xs.sync() or xs.refresh(). An exception in `f` ends the job:
  /// `task_failed` with the node, the task and its message; chunks committed before stay.
  template <class T, class F>
  Future<void> parallel_for(const SharedArray<T>& xs, F f) {
    HOLO_CHECK_CALLABLE(F);
    using Want = detail::ChunkFor<F, T, Chunk<T>>;
    detail::JobRequest job = request(f, &detail::run_chunk<F, typename Want::type>, xs, "parallel_for");
    static_assert(std::is_void_v<std::invoke_result_t<F&, typename Want::type>>,
                  "holo: parallel_for takes a function that returns nothing; map() collects results");
    job.writes = Want::writes;
    return {session_->start(std::move(job)), [](detail::Job&) { return Result<void>(); }};
  }

  /// Runs `f` for every chunk and collects what it returns, in chunk order. A generic lambda gets a holo::Chunk<const
  /// T>; one that names holo::Chunk<T> may write as in parallel_for. R: trivially copyable, std::string, or vectors and
  /// pairs of those, at most 8 MiB each.
  template <class T, class F>
  auto map(const SharedArray<T>& xs, F f) {
    HOLO_CHECK_CALLABLE(F);
    using Want = detail::ChunkFor<F, T, Chunk<const T>>;
    using R = std::invoke_result_t<F&, typename Want::type>;
    static_assert(detail::Sendable<R>,
                  "holo: a result must be trivially copyable (no pointers), std::string, or a vector of those");
    detail::JobRequest job = request(f, &detail::run_chunk<F, typename Want::type>, xs, "map");
    job.writes = Want::writes;
    job.results = true;
    return Future<std::vector<R>>(session_->start(std::move(job)), [](detail::Job& done) -> Result<std::vector<R>> {
      std::vector<R> out;
      out.reserve(done.results().size());
      for (const auto& bytes : done.results()) {
        auto value = detail::decode<R>(bytes);
        if (!value) return std::unexpected(std::move(value).error());
        out.push_back(std::move(*value));
      }
      return out;
    });
  }

  /// Folds all elements: op(op(init, x0), x1)..., grouped by chunks, so `op` must be associative. Groups are combined
  /// in order: the result is the same in every run with the same placement of chunks. `op(R, T)` within a chunk, `op(R,
  /// R)` between them.
  template <class T, class R, class Op>
  Future<R> reduce(const SharedArray<T>& xs, R init, Op op) {
    HOLO_CHECK_CALLABLE(Op);
    static_assert(detail::Sendable<R>,
                  "holo: a result must be trivially copyable (no pointers), std::string, or a vector of those");
    detail::JobRequest job = request(op, &detail::run_fold<Op, T, R>, xs, "reduce");
    job.results = true;
    return {session_->start(std::move(job)), [init, op](detail::Job& done) mutable -> Result<R> {
              R total = init;
              for (const auto& bytes : done.results()) {
                if (bytes.empty()) continue;
                auto part = detail::decode<R>(bytes);
                if (!part) return std::unexpected(std::move(part).error());
                total = op(std::move(total), std::move(*part));
              }
              return total;
            }};
  }

  /// Runs `f(args...)` once, somewhere. Arguments and result: as results of map(); all arguments together at most 4
  /// KiB.
  template <class F, class... Args>
  auto submit(F f, Args... args) {
    HOLO_CHECK_CALLABLE(F);
    static_assert((detail::Sendable<Args> && ...),
                  "holo: an argument must be trivially copyable (no pointers), std::string, or a vector of those");
    using R = std::invoke_result_t<F&, Args...>;
    detail::JobRequest job;
    job.function = &detail::run_single<F, Args...>;
    job.captures = detail::capture_bytes(f);
    job.checked_bytes = job.captures.size();
    job.label = "submit";
    (detail::encode(job.captures, args), ...);
    job.results = true;
    if constexpr (std::is_void_v<R>) {
      return Future<void>(session_->start(std::move(job)), [](detail::Job&) { return Result<void>(); });
    } else {
      static_assert(detail::Sendable<R>,
                    "holo: a result must be trivially copyable (no pointers), std::string, or a vector of those");
      return Future<R>(session_->start(std::move(job)), [](detail::Job& done) -> Result<R> {
        if (done.results().size() != 1) return fail(Errc::internal, "a task gave no result");
        return detail::decode<R>(done.results().front());
      });
    }
  }

  /// The cluster's key-value store.
  [[nodiscard]] KeyValue kv() const { return KeyValue(session_); }
  /// Waits in line for the lock `name` (1 to 128 of [A-Za-z0-9._/-]), in the order in which all asked. Errors:
  /// `deadline_exceeded` (not in LockOptions::wait), `refused` (held, and no waiting), `invalid_argument`, `no_quorum`,
  /// `unavailable`, `over_limit`, `overloaded` (4,096 wait already).
  Result<Lock> lock(std::string_view name, LockOptions options = {}) {
    auto held = session_->lock(name, std::move(options));
    if (!held) return std::unexpected(std::move(held).error());
    return Lock(std::move(*held));
  }

  /// Nodes that this program's work uses.
  [[nodiscard]] std::uint32_t nodes() const { return session_->nodes(); }
  /// The node of this machine's agent.
  [[nodiscard]] std::string node_name() const { return session_->node_name(); }

 private:
  template <class Handle>
  static Result<Handle> wrap(Result<std::shared_ptr<detail::Region>> region) {
    if (!region) return std::unexpected(std::move(region).error());
    return Handle(std::move(*region));
  }
  template <class F, class T>
  static detail::JobRequest request(F& f, detail::TaskFunction function, const SharedArray<T>& xs, const char* verb) {
    detail::JobRequest job;
    job.function = function;
    job.captures = detail::capture_bytes(f);
    job.checked_bytes = job.captures.size();
    job.region = xs.region();
    job.label = std::string(verb) + "(" + xs.name() + ")";
    return job;
  }

  std::shared_ptr<detail::Session> session_;
};

/// Connects to this machine's agent. The socket: HOLO_SOCKET, or the one agent of this user (or of the system) that
/// runs here. Errors: `unavailable` (no agent), `refused` (several clusters here: HOLO_SOCKET chooses),
/// `permission_denied`, `wrong_version`, `unsupported` (called inside a task).
inline Result<Cluster> connect() {
  auto session = detail::connect(nullptr, nullptr);
  if (!session) return std::unexpected(std::move(session).error());
  return Cluster(std::move(*session));
}
/// The same; takes `--holo-socket=PATH` and `--holo-nodes=N` out of the arguments.
inline Result<Cluster> connect(int& argc, char** argv) {
  auto session = detail::connect(&argc, argv);
  if (!session) return std::unexpected(std::move(session).error());
  return Cluster(std::move(*session));
}
/// A cluster of `n` real nodes inside this process, for tests and development: no agent, no set-up, loopback only;
/// tasks run on threads. It ends with the last handle. `n`: 1 to 16. `memory_bytes`: limit of each node; 0: 256 MiB.
/// Errors: `invalid_argument`, `io_error`, `unavailable` (it did not form in time).
inline Result<Cluster> local(unsigned n, std::uint64_t memory_bytes = 0) {
  auto session = detail::local(n, memory_bytes);
  if (!session) return std::unexpected(std::move(session).error());
  return Cluster(std::move(*session));
}

}  // namespace holo
