// qlog on demand: a file for each connection, as ngtcp2 writes it (JSON-SEQ, qlog 0.3), bounded in number and size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "env/quic.h"

namespace holo::driver::quic {

struct QlogLimits {
  std::size_t files = 128;            ///< .sqlog files in the folder, whoever wrote them; then connections have none
  std::uint64_t bytes = 16ULL << 20;  ///< of one file; its last record then says so
};

/// Files in `folder`, which exists, named TIME-ID-client.sqlog or -server.sqlog: milliseconds since 1970, and the
/// connection id that the client chose first, which both sides of a connection have in common. Readable by their owner
/// alone. What cannot be written is said once in the log and left. A file is at most a second behind its connection
/// while that one sends or receives. Thread: one at a time, here and in what it returns; writes block.
[[nodiscard]] env::QlogFactory make_qlog_files(std::string folder, QlogLimits limits = {});

}  // namespace holo::driver::quic
