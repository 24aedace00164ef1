#include "core/control/session.h"

#include <algorithm>

namespace holo::control {

void Session::start(std::uint64_t new_incarnation) {
  *this = Session{};
  incarnation = new_incarnation;
}

void Session::remember(std::uint64_t sequence, std::uint64_t outstanding, const wire::CommandResult& result) {
  results[sequence] = result;
  // A client cannot be past a command that it has only now sent.
  floor = std::max(floor, std::min(outstanding, sequence));
  results.erase(results.begin(), results.lower_bound(floor));
  while (results.size() > kMaxResults) {
    floor = results.begin()->first + 1;
    results.erase(results.begin());
  }
}

bool Session::is_decided(std::uint64_t txn_sequence) const {
  if (txn_sequence < decided_floor) return true;
  const auto after = decided.upper_bound(txn_sequence);
  return after != decided.begin() && std::prev(after)->second > txn_sequence;
}

void Session::decide(std::uint64_t txn_sequence, const wire::TxnResult& result) {
  txns[txn_sequence] = result;
  txn_order.push_back(txn_sequence);
  if (txn_order.size() > kMaxTxnResults) {
    txns.erase(txn_order.front());
    txn_order.pop_front();
  }

  // Join the sequence with its neighbours.
  std::uint64_t first = txn_sequence;
  std::uint64_t end = txn_sequence + 1;
  const auto after = decided.upper_bound(txn_sequence);
  if (after != decided.end() && after->first == end) end = after->second;
  if (after != decided.begin()) {
    const auto before = std::prev(after);
    if (before->second == first) first = before->first;
  }
  if (after != decided.end() && after->first == txn_sequence + 1) decided.erase(after);
  decided[first] = end;
  if (decided.size() > kMaxDecidedRanges) {
    decided_floor = decided.begin()->second;
    decided.erase(decided.begin());
  }
}

}  // namespace holo::control
