// `holo bench link --cluster`: what the link between two agents carries, measured by one of them, from its loop.
#pragma once

#include <cstdint>

#include "env/loop.h"
#include "node/bus.h"
#include "node/control.h"
#include "node/local_api.h"

namespace holo::node {

inline constexpr std::uint64_t kMaxLinkBenchReply = 1 << 20;  ///< bytes; above: invalid_argument
inline constexpr std::uint32_t kMaxLinkBenchCount = 50'000, kMaxLinkBenchInFlight = 64;

/// Gives other nodes as many bytes as they ask for.
void serve_link_bench(Bus& bus);

/// Answers LINK_BENCH (wire::LinkBenchRequest) with AdminJson {node, id, address, carrier, cipher, path_mtu, seconds,
/// took_us: of each round trip}, once a connection stands. Takes a minute at most. Errors: `not_found`,
/// `invalid_argument`, those of Bus::call. All pointers outlive the task. Thread: loop.
Task<Result<LocalReply>> ask_link_bench(env::Loop* loop, Bus* bus, const ControlService* control, LocalRequest request);

}  // namespace holo::node
