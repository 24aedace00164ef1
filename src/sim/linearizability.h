// Is there an order of the operations of a history, each between its call and its answer, that a single copy of the
// data would have answered so? Herlihy & Wing, TOPLAS 1990; the search is Wing & Gong's (JPDC 1993) with Lowe's memory
// of what was tried (CCPE 2017), one key after the other, as linearizability is local.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace holo::sim {

/// One operation of a client on one key or lock. Values are texts without blanks; "nil": nothing is there.
struct Operation {
  enum class Kind : std::uint8_t {
    get,      ///< `value` is what was read
    put,      ///< `value`
    cas,      ///< writes `value` where `expected` is
    del,      ///< `done`: something was there
    acquire,  ///< of a lock: `token` is its fencing token
    release,  ///< of the lock that has `token`
  };
  static constexpr std::int64_t kNeverEnded = INT64_MAX;

  std::int64_t begin = 0;          ///< When it was called; of any clock that all clients share.
  std::int64_t end = kNeverEnded;  ///< When it was answered. kNeverEnded: it may take effect whenever, or never.
  std::uint64_t client = 0;
  Kind kind = Kind::get;
  std::string key;
  std::string value, expected;
  std::uint64_t token = 0;
  std::uint64_t revision =
      0;             ///< Of the store, as the answer named it: a place in its order. 0: unknown, or before all.
  bool done = true;  ///< What cas, del, acquire and release answered. Without an answer: of no meaning.
};

struct Verdict {
  enum class Kind : std::uint8_t { linearizable, violated, undecided } kind = Kind::linearizable;
  std::string key;   ///< Of the first key whose operations have no order.
  std::string what;  ///< The operation that fits nowhere, for people.
  std::uint64_t operations = 0;
  std::uint64_t steps = 0;  ///< Of the search.
};

/// `max_steps`: per key, above: undecided. An acquired lock that nobody has released may have been lost at any time.
/// Memory: O(operations of one key * steps / 64).
Verdict check_linearizable(const std::vector<Operation>& history, std::uint64_t max_steps = 5'000'000);

/// Whether the order of their revisions is one that explains these operations, all on one key: proof enough where the
/// search would take too long. Those without an answer and without a revision never happened. False proves nothing.
bool explained_by_revisions(const std::vector<Operation>& of_one_key);

/// One operation a line: BEGIN END|- CLIENT KIND KEY ARGUMENTS RESULT, where KIND ARGUMENTS RESULT is one of
///   get KEY VALUE | put KEY VALUE | cas KEY EXPECTED VALUE ok|no|- | del KEY ok|no|- | acquire KEY TOKEN |
///   release KEY TOKEN ok|no|-
/// Lines that begin with # say nothing. Errors: `malformed`, with the line.
Result<std::vector<Operation>> parse_history(std::string_view text);
std::string format_operation(const Operation& op);

}  // namespace holo::sim
