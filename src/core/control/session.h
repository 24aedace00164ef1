// What the state remembers of one client node so that a repeated command, or a repeated commit of a transaction, acts
// once.
#pragma once

#include <cstdint>
#include <deque>
#include <map>

#include "wire/control.pb.h"

namespace holo::control {

/// Bounded: kMaxResults results, kMaxTxnResults results of transactions, kMaxDecidedRanges ranges of decided sequences.
struct Session {
  static constexpr std::size_t kMaxResults = 8192;
  static constexpr std::size_t kMaxTxnResults = 4096;
  static constexpr std::size_t kMaxDecidedRanges = 4096;

  std::uint64_t incarnation = 0;
  std::uint64_t floor = 0;  ///< Commands with a lower sequence are refused: their results are gone.
  std::map<std::uint64_t, wire::CommandResult> results;

  std::uint64_t decided_floor = 0;                 ///< Transactions with a lower sequence count as decided.
  std::map<std::uint64_t, std::uint64_t> decided;  ///< first -> end of decided sequences
  std::map<std::uint64_t, wire::TxnResult> txns;
  std::deque<std::uint64_t> txn_order;  ///< Oldest first.

  /// Forgets everything of the earlier incarnation.
  void start(std::uint64_t new_incarnation);
  void remember(std::uint64_t sequence, std::uint64_t outstanding, const wire::CommandResult& result);
  [[nodiscard]] bool is_decided(std::uint64_t txn_sequence) const;
  void decide(std::uint64_t txn_sequence, const wire::TxnResult& result);
};

}  // namespace holo::control
