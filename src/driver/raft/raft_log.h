// env::CommandLog on libraft: elections, replication and snapshots are libraft's; disk, network, time and randomness
// come through the ports.
#pragma once

#include <memory>

#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"
#include "env/command_log.h"
#include "env/entropy.h"
#include "env/log_store.h"
#include "env/loop.h"
#include "env/transport.h"

namespace holo::driver {

struct RaftLogPorts {
  env::Loop* loop = nullptr;
  env::Transport* transport = nullptr;
  env::Entropy* entropy = nullptr;
  std::shared_ptr<env::LogStore> store;
};

struct RaftLogOptions {
  NodeId self;
  bool bootstrap = false;  ///< A fresh cluster with this node as its only voter.
  Duration election_timeout =
      milliseconds(300);  ///< To twice that, by chance; time in which the loop stood still does not count.
  Duration heartbeat = milliseconds(100);
  unsigned snapshot_threshold = 100'000;  ///< Entries between snapshots; they come sooner by the bytes of entries.
  unsigned snapshot_trailing = 1024;      ///< Entries kept below one, for those a little behind; fewer of large ones.
};

/// Opens the log and applies to `machine` what is known to be committed. Registers its handlers with the transport.
/// `machine` and the ports outlive the log. Blocks for the reading of the disk. Errors: `corrupt` (names entry and
/// file), `io_error`, `refused` (bootstrap of a log that is not empty).
Result<std::unique_ptr<env::CommandLog>> open_raft_log(RaftLogPorts ports, env::StateMachine& machine,
                                                       RaftLogOptions options);

}  // namespace holo::driver
