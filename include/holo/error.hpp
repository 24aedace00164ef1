// Errors are values: every fallible call returns holo::Result<T>.
#pragma once

#include <chrono>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <utility>

namespace holo {

/// What kind of failure it was. A code exists only where some caller reacts differently to it.
/// The numbers travel on the wire and through the C interface: append only.
enum class Errc : std::uint16_t {
  invalid_argument = 1,   ///< The request can never succeed as written.
  not_found = 2,          ///< No such region, node, view, job or file.
  already_exists = 3,     ///< The name is taken.
  permission_denied = 4,  ///< The caller may not do this.
  out_of_memory = 5,      ///< The memory limit of a node, or of the cluster, is reached.
  over_limit = 6,         ///< Another named limit is reached (names, connections, queue length).
  overloaded = 7,         ///< A bounded queue is full; retry later.
  deadline_exceeded = 8,  ///< No answer in time; the effect is unknown unless the call is idempotent.
  cancelled = 9,          ///< The caller, or a shutdown, ended it.
  unavailable = 10,       ///< The node or agent cannot be reached now.
  wrong_key = 11,         ///< The cluster key does not match.
  wrong_version = 12,     ///< No protocol version in common.
  malformed = 13,         ///< Bytes from outside that do not decode.
  corrupt = 14,           ///< Stored or received bytes failed their checksum.
  stale_epoch = 15,       ///< The placement moved; refresh, then retry.
  not_leader = 16,        ///< This voter does not lead; ask the leader.
  no_quorum = 17,         ///< Too few voters answer.
  under_replicated = 18,  ///< Too few live nodes to commit as the region's replication demands.
  write_conflict = 19,    ///< Another writer changed the same byte since this writer's base version.
  page_lost = 20,         ///< No live node holds the page; its last holders are named.
  snapshot_too_old = 21,  ///< The version this reader stands on is no longer kept.
  task_failed = 22,       ///< The user's code threw, trapped, exited or was killed.
  wrong_build = 23,       ///< The binary is not linked with holo, or is another build.
  refused = 24,           ///< A precondition does not hold (`leave` with a last copy, a second agent, ...).
  unsupported = 25,       ///< This build or this machine cannot do it.
  io_error = 26,          ///< The operating system refused; the message carries errno's text.
  internal = 27,          ///< Our own mistake, reported instead of hidden.
};

/// The stable lower-case name of `code`, for example "out_of_memory". Never null.
const char* errc_name(Errc code) noexcept;

/// A failure: what, why, what to do, and whether trying again can help.
struct Error {
  Errc code = Errc::internal;
  std::string message;     ///< One sentence: what failed and why. No trailing newline.
  std::string hint;        ///< What the user can do; may be empty.
  std::uint64_t node = 0;  ///< The node it happened on; 0 when not tied to one.
  bool retryable = false;  ///< True when the same call may succeed later.
  /// Of a retryable one: before this, trying again is hardly of use. `overloaded` always says it.
  std::optional<std::chrono::milliseconds> retry_after = std::nullopt;

  /// "message (hint; try again in 50 ms)" on one line, as the command line prints it.
  [[nodiscard]] std::string to_string() const {
    std::string advice = hint;
    if (retry_after) {
      advice += (advice.empty() ? "try again in " : "; try again in ") + std::to_string(retry_after->count()) + " ms";
    }
    return advice.empty() ? message : message + " (" + advice + ")";
  }
  friend bool operator==(const Error&, const Error&) = default;
};

template <class T>
using Result = std::expected<T, Error>;
using Status = Result<void>;

/// Shorthand for `return fail(Errc::not_found, "no region \"xs\"", "holo regions lists them");`
[[nodiscard]] inline std::unexpected<Error> fail(Errc code, std::string message, std::string hint = {}) {
  return std::unexpected(Error{.code = code, .message = std::move(message), .hint = std::move(hint)});
}

}  // namespace holo
