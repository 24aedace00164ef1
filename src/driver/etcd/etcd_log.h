// env::CommandLog in an etcd that is there already: for those who run one, and want the cluster's state in it.
#pragma once

#include <memory>
#include <string>

#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"
#include "driver/etcd/client.h"
#include "env/command_log.h"
#include "env/entropy.h"
#include "env/loop.h"

namespace holo::driver {

struct EtcdLogPorts {
  env::Loop* loop = nullptr;
  env::Entropy* entropy = nullptr;
};

struct EtcdLogOptions {
  NodeId self;
  bool bootstrap = false;  ///< A fresh cluster with this node as its only member.
  bool joining = false;    ///< A log that has to be there already.
  etcd::Endpoints endpoints;
  std::string prefix = "holo";          ///< Everything lies under "holo/PREFIX/"; one for each cluster.
  Duration leader_ttl = seconds(3);     ///< How long a leader that is gone is waited for. Whole seconds, at least 2.
  std::uint64_t snapshot_every = 8192;  ///< Entries between snapshots.
  std::uint64_t trailing = 1024;        ///< Entries kept below one.
};

/// Opens the log; what is in etcd is applied to `machine` soon after. `machine` and the ports outlive the log. With
/// `bootstrap` or `joining` it blocks for a request. Errors: `unavailable` (no etcd answers), `refused` (bootstrap of a
/// log that is there already, joining one that is not), `invalid_argument` (no endpoints).
Result<std::unique_ptr<env::CommandLog>> open_etcd_log(EtcdLogPorts ports, env::StateMachine& machine,
                                                       EtcdLogOptions options);

}  // namespace holo::driver
