// A program's connection to its agent: regions, jobs, and what happens when the agent goes away.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <holo/detail/runtime.hpp>

#include "base/result.h"
#include "client/agent.h"
#include "client/executable.h"
#include "client/view.h"
#include "wire/local.pb.h"

namespace holo::client {

/// True in a worker process: there connect() is refused.
void set_worker_process();
[[nodiscard]] bool is_worker_process();

struct SessionOptions {
  std::uint32_t nodes = 0;     ///< At most so many nodes do this program's work; 0: all.
  bool show_output = true;     ///< Workers' lines go to standard error.
  bool show_progress = false;  ///< One line on standard error, rewritten while a job runs.
  std::string binary;          ///< Path and hash of the executable to ship; empty in holo::local.
  std::string binary_hash;
  std::shared_ptr<void> keep;  ///< Released after the connection is closed (the nodes of holo::local).
};

/// What is known of one job. Filled by the reader thread, read by futures.
struct JobState {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t id = 0;
  std::string label;
  std::uint64_t done = 0, total = 0;
  std::vector<std::vector<std::byte>> results;
  std::optional<Status> ended;
  bool abandoned = false;  ///< No future waits for it any more. Guarded by the session's mutex.

  void end(Status status);
};

class RegionImpl;

/// Thread: any.
class SessionImpl final : public detail::Session, public std::enable_shared_from_this<SessionImpl> {
 public:
  /// Connects to the agent at `socket_path`, or over `socket` when it is valid, and says Hello.
  static Result<std::shared_ptr<SessionImpl>> connect(const std::string& socket_path, env::Fd socket,
                                                      SessionOptions options);
  ~SessionImpl() override;

  Result<std::shared_ptr<detail::Region>> create(const RegionSpec& spec) override;
  Result<std::shared_ptr<detail::Region>> open(std::string_view name, std::string_view type,
                                               std::uint32_t element_bytes) override;
  Status free(std::string_view name) override;
  Result<std::vector<RegionFacts>> regions() override;
  std::shared_ptr<detail::Job> start(detail::JobRequest request) override;
  Result<KvResult> kv_txn(const KvTransaction& transaction) override;
  Result<detail::KvPageOf> kv_page(const KeyRange& range, const KvReadOptions& options) override;
  Result<detail::KvEventsOf> kv_events(const KeyRange& range, std::uint64_t from, std::uint32_t skip,
                                       std::chrono::milliseconds wait) override;
  Result<std::shared_ptr<detail::HeldLock>> lock(std::string_view name, LockOptions options) override;
  std::uint32_t nodes() const override { return nodes_; }
  std::string node_name() const override { return node_name_; }

  [[nodiscard]] Agent& agent() { return *agent_; }
  void cancel(std::uint64_t job);
  void forget(std::uint64_t job);

  /// Views that the agent may fail. Errors: `unavailable` (it is gone already).
  Status add_view(View& view);
  void remove_view(View& view);

 private:
  explicit SessionImpl(SessionOptions options) : options_(std::move(options)) {}
  Status hello();
  std::shared_ptr<RegionImpl> share(const wire::RegionInfo& info);
  Result<std::uint64_t> send_job(const detail::JobRequest& request);
  void on_request(const env::LocalRequest& request);
  void on_job_event(const wire::JobEvent& event, const std::vector<Buffer>& payload);
  void on_closed(const Error& why);
  std::shared_ptr<JobState> job(std::uint64_t id);
  void show(const wire::JobEvent& event, const std::string& label);

  SessionOptions options_;
  std::uint32_t nodes_ = 1;
  std::string node_name_;
  std::mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<JobState>> jobs_;
  std::map<std::uint64_t, std::weak_ptr<RegionImpl>> regions_;
  std::map<std::uint64_t, View*> views_;
  bool closed_ = false;
  bool progress_shown_ = false;
  driver::LocalClient* socket_ = nullptr;  // The agent's, for the reader thread.
  std::unique_ptr<Agent> agent_;           // Last: its reader thread uses what is above.
};

RegionFacts to_facts(const wire::RegionInfo& info);

}  // namespace holo::client
