// The memory service from the inside: what its parts (memory_*.cc) share. Nobody else includes this.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "base/limits.h"
#include "base/strings.h"
#include "core/memory/region_pages.h"
#include "node/memory.h"
#include "node/page_files.h"
#include "wire/memory.pb.h"
#include "wire/message_types.h"

namespace holo::node {

class MemoryImpl;

inline constexpr std::uint64_t kReadAheadBytes = 1 << 20;     // of one fault in a sequential scan, at most
inline constexpr std::uint64_t kFetchRequestBytes = 1 << 20;  // asked from a node in one request (one page at least)
inline constexpr std::uint64_t kStageRequestBytes = 4 << 20;  // sent to a node in one request (one page at least)
inline constexpr std::uint64_t kMoveRequestBytes = 1 << 20;   // copied to a node at a time (one page at least)
inline constexpr std::uint64_t kPrepareBytes = 64 << 10;      // of slots, made ready at a time (one page at least)
inline constexpr std::uint64_t kPopulateBytes = 8 << 20;      // fetched at a time by VIEW_POPULATE
inline constexpr std::size_t kTxnsPerCommand = 512;
inline constexpr std::size_t kDecidedKept = 1 << 16;       // transactions remembered as decided
inline constexpr std::uint64_t kWorkingMinimum = 4 << 20;  // for copies beside the owned ones, however full the node is
inline constexpr Duration kTick = milliseconds(200);       // floors
inline constexpr std::uint64_t kDropAtOnce = 64 << 20;     // of what a drained node has left over, in a tick
inline constexpr Duration kSweepEvery = seconds(5);        // staged pages that nobody decides
inline constexpr Duration kDecisionPatience =
    milliseconds(300);                                      // at a stop, for the log to decide what is staged here
inline constexpr std::uint64_t kLongStop = 512 << 20;       // of pages to write: the log says so
inline constexpr Duration kPathPatience = seconds(3);       // with a node that answers nothing, though it is alive
inline constexpr Duration kLookAtPath = milliseconds(500);  // the time between two looks
inline constexpr Duration kWindowPatience = seconds(1);     // of a move, for tasks that write its pages in place
inline constexpr Duration kRoomDeadline = seconds(2);       // then out_of_memory
inline constexpr Duration kPeerDeadline = seconds(2);       // of one request, within the caller's

struct PageAt {
  PageNo page;
  Version version;
  friend auto operator<=>(const PageAt&, const PageAt&) = default;
};

/// Frames that are made when the first page needs one: most nodes never touch most regions.
class LazyFrames final : public env::RegionFrames {
 public:
  LazyFrames(env::FrameStore& store, RegionId region, std::string name, std::uint64_t bytes)
      : store_(store), region_(region), name_(std::move(name)), bytes_(bytes) {}
  Status open();
  int fd() const override { return frames_ ? frames_->fd() : -1; }
  Status write(std::uint64_t offset, ByteSpan bytes) override;
  Result<MutableByteSpan> prepare(std::uint64_t offset, std::size_t length) override;
  Status read(std::uint64_t offset, MutableByteSpan out) const override;
  ByteSpan mapped(std::uint64_t offset, std::size_t length) const override;
  Status punch(std::uint64_t offset, std::uint64_t length) override;

 private:
  env::FrameStore& store_;
  RegionId region_;
  std::string name_;
  std::uint64_t bytes_;
  std::unique_ptr<env::RegionFrames> frames_;
};

struct View;

/// Somebody who waits for a page from elsewhere.
struct PageWaiter {
  std::shared_ptr<OneShot<Result<Buffer>>> shot;
  bool bytes = false;  // Wants them also where the page is kept.
};

struct Region {
  RegionShape shape;
  std::unique_ptr<LazyFrames> frames;
  std::unique_ptr<memory::RegionPages> pages;
  std::vector<std::int8_t> owned;  // by shard; -1: to be asked
  std::map<ViewId, std::shared_ptr<View>> views;
  memory::ViewBits bits_used = 0;
  std::multiset<Version> pins;
  std::map<PageAt, std::vector<PageWaiter>> fetching;
  std::set<PageNo> repairs;  // owned pages whose newest bytes are to be fetched
  bool repairing = false;
  bool filling = false;
  bool proving = false;
  bool freed = false;
  bool frozen = false;  // The agent stops: others read what is here, and nothing may change.
  [[nodiscard]] RegionId id() const { return shape.id; }
  [[nodiscard]] std::uint64_t page_bytes() const { return shape.page_bytes; }
};
using RegionPtr = std::shared_ptr<Region>;

/// Where the pages of one message go: each into its slot if that is free, or into a buffer of its own. What was not
/// taken from a slot (RegionPages::put() and the like) is given back when the last Buffer of it is gone.
class PageLanding : public env::Landing, public std::enable_shared_from_this<PageLanding> {
 public:
  struct Part {
    PageNo page;
    std::uint64_t bytes = 0;         ///< not 0
    std::optional<Version> version;  ///< of a whole page that may go into its slot; see RegionPages::begin_landing()
  };
  /// `region` null: buffers only.
  PageLanding(RegionPtr region, std::vector<Part> parts);
  ~PageLanding() override { give_back(); }

  [[nodiscard]] std::uint64_t size() const override { return size_; }
  Place next() override;
  [[nodiscard]] std::size_t parts() const { return parts_.size(); }
  /// Parts that do not come.
  void leave_out(const std::vector<bool>& absent);

  /// Takes all slots now, as what is fetched has its room from the start.
  void take_slots();
  /// Makes all places ready: to be called while the bytes are on their way, for it takes time.
  void prepare();
  /// Something came, or comes, into these places.
  [[nodiscard]] bool used() const { return given_ > 0; }
  /// Nothing is written any more, and what was not taken is given back. Idempotent.
  void give_back();

 private:
  void take_slot();
  void make_places();

  RegionPtr region_;
  std::vector<Part> parts_;
  std::vector<bool> absent_;  // of the parts; empty: none
  std::uint64_t size_ = 0;
  std::vector<std::uint64_t> slots_;  // of the first parts: numbers of landings; 0: none
  std::vector<Place> places_;         // of the first parts
  std::size_t given_ = 0;             // of these
  bool slots_fail_ = false;
};

/// The same for an answer to PAGE_FETCH, which brings the bytes of what it says, in order.
class FetchLanding final : public PageLanding {
 public:
  using PageLanding::PageLanding;
  bool takes(const std::string& header, std::uint64_t payload_bytes) override;
};

/// Takes the bytes of one page after the other off what came with a message.
class PagesIn {
 public:
  explicit PagesIn(const std::vector<Buffer>& payload) : payload_(payload) {}
  /// Empty: there are no more, or they lie in another way.
  Buffer next(std::uint64_t bytes);

 private:
  const std::vector<Buffer>& payload_;
  std::size_t at_ = 0;
  std::uint64_t offset_ = 0;
};

/// What a process was given of a page, as far as this node knows: it may have dropped it since, and then faults.
class GivenPages {
 public:
  void shared(PageNo page) { set(page, shared_, private_); }
  void copied(PageNo page) { set(page, private_, shared_); }
  void forget(const PageSpan& span) {
    const std::uint64_t end = std::min(span.first.value + span.count, std::max(shared_.size(), private_.size()));
    for (PageNo page = span.first; page.value < end; ++page.value) {
      clear(page, shared_);
      clear(page, private_);
    }
  }
  [[nodiscard]] bool is_shared(PageNo page) const { return page.value < shared_.size() && shared_[page.value]; }
  [[nodiscard]] bool is_copied(PageNo page) const { return page.value < private_.size() && private_[page.value]; }

 private:
  static void set(PageNo page, std::vector<bool>& in, std::vector<bool>& out) {
    if (page.value >= in.size()) in.resize(page.value + 1);
    in[page.value] = true;
    clear(page, out);
  }
  static void clear(PageNo page, std::vector<bool>& in) {
    if (page.value < in.size()) in[page.value] = false;
  }
  std::vector<bool> shared_;   // the slot
  std::vector<bool> private_;  // a copy, or the page of zeros
};

struct View {
  ViewId id;
  RegionPtr region;
  std::weak_ptr<LocalSession> session;
  SessionId session_id;
  Version snapshot;
  memory::ViewBits bit = 0;
  std::unique_ptr<env::FaultedView> faulted;  // null: the process reads by READ
  std::set<PageNo> windows;
  GivenPages given;
  bool closed = false;
  // Sequential access: the page after the last one given, and how many to give next time.
  std::uint64_t next_page = 0;
  std::uint64_t ahead = 1;
};
using ViewPtr = std::shared_ptr<View>;

/// What a transaction has staged through this node.
struct LocalTxn {
  SessionId owner;      // whose COMMIT and ABORT are valid; 0: a task's, driven by compute
  bool broken = false;  // a process that held a window of it is gone
  std::set<RegionId> windowed;
  std::map<RegionId, std::map<PageNo, std::vector<NodeId>>> staged;
  std::map<RegionId, SnapshotPin> pins;
};

/// Windows of a process whose connection has closed but which still lives: it may write them until it is gone.
struct StrayWindows {
  pid_t pid = 0;
  RegionPtr region;
  std::vector<PageNo> pages;
};
/// Whether another process may still run as `pid`. This process itself counts as gone: its workers are threads, which
/// end before their connection does.
bool process_lives(pid_t pid);

/// A commit that was proposed. Its entry is refused by every epoch after `epoch`.
struct Doubt {
  Epoch epoch;
  bool given_up = false;  // commit() has returned without an answer
};

struct PagePart {
  PageNo page;
  std::uint64_t offset = 0;
  Buffer bytes;
};

inline TxnId from_wire(const wire::Txn& t) { return {NodeId{t.node()}, t.incarnation(), t.sequence()}; }
inline void to_wire(const TxnId& t, wire::Txn* out) {
  out->set_node(t.node.value);
  out->set_incarnation(t.incarnation);
  out->set_sequence(t.sequence);
}
template <class Message>
Result<Message> decode(const std::string& header) {
  Message m;
  if (!m.ParseFromString(header)) return fail(Errc::malformed, "a request that does not decode");
  return m;
}
std::string digest_of(ByteSpan bytes);

/// Staged pages that an in-sync node is not known to hold.
struct Unheld {
  std::size_t region = 0, span = 0;  // indexes into TxnWrites
  NodeId node;
};

class MemoryImpl final : public MemoryService {
 public:
  MemoryImpl(Ports ports, MemoryConfig config);
  ~MemoryImpl() override;

  void serve_local(LocalApi& api) override;
  Task<Status> start() override;
  Task<void> stop() override;
  Task<Status> keep_pages() override;
  TxnId new_txn() override;
  Task<Result<std::vector<RegionWrites>>> seal(TxnId txn, Instant deadline) override;
  Task<Result<std::vector<Result<std::vector<RegionVersion>>>>> commit(std::vector<TxnWrites> txns,
                                                                       Instant deadline) override;
  void abort(std::vector<TxnId> txns) override;
  SnapshotPin pin(RegionId region, Version snapshot) override;
  Version newest(RegionId region) override;
  Task<Status> wait_applied(RegionId region, Version version, Instant deadline) override;
  Task<Result<Bytes>> read(RegionId region, Version snapshot, std::uint64_t offset, std::uint64_t length,
                           Instant deadline) override;
  std::vector<RegionVersion> lowest_snapshots() const override;
  MemoryStatus status() const override;
  Status may_leave() const override;
  /// A last copy here that no node is being given.
  [[nodiscard]] bool stranded() const;
  Task<Status> hand_over(Instant deadline) override;

 private:
  // -- memory_service.cc
  void sync_regions();
  void add_region(const RegionShape& shape);
  void remove_region(RegionId id);
  void apply(const CommitEvent& event);
  void nodes_changed();
  void placement_changed(RegionId id);
  void refuse_doubts();
  void tick();
  void schedule_tick();
  Task<void> sweep_staged();
  [[nodiscard]] Result<RegionPtr> find_region(RegionId id) const;
  /// The same for a request of another node, whose log may be a moment ahead of ours: waits a little for the region.
  Task<Result<RegionPtr>> region_for_peer(RegionId id);
  [[nodiscard]] bool owned(Region& r, PageNo page) const;
  [[nodiscard]] ShardCopies copies(const Region& r, PageNo page) const;
  [[nodiscard]] std::uint64_t block_end(const Region& r, std::uint64_t page) const;
  [[nodiscard]] Version floor_of(const Region& r) const;
  [[nodiscard]] memory::Usage usage() const;
  static void count_fills(MemoryCounters& sum, const Region& r);
  bool make_room(std::uint64_t bytes);
  /// Gives up clean copies of pages that live elsewhere; returns what that freed.
  std::uint64_t evict(std::uint64_t bytes);
  /// What this node had and others have now would be kept as read ahead, which nobody wants of a node that is drained.
  void look_for_left_over();
  Task<Status> wait_for_room(std::uint64_t bytes);
  void remember_decided(const TxnId& txn);
  SnapshotPin pin_region(const RegionPtr& r, Version snapshot);
  Task<Status> wait_region(RegionPtr r, Version version, Instant deadline);

  // -- memory_fetch.cc
  /// The bytes of pages at exact versions, from here, the kept files, or other nodes; in order. `keep`: put what came
  /// from elsewhere into the frames where there is room (owned pages always); what has its slot there may then come
  /// without its bytes.
  Task<Result<std::vector<Buffer>>> fetch(RegionPtr r, std::vector<PageAt> wants, bool keep, env::StreamClass klass,
                                          Instant deadline);
  Task<void> fetch_group(RegionPtr r, std::vector<PageAt> wants, bool keep, env::StreamClass klass, Instant deadline);
  Task<Status> fetch_from(RegionPtr r, NodeId node, std::shared_ptr<std::vector<PageAt>> pending, bool keep,
                          env::StreamClass klass, Instant deadline);
  void settle(Region& r, PageAt at, Result<Buffer> result);
  bool keep_page(Region& r, PageAt at, const Buffer& bytes);
  std::shared_ptr<PageLanding> landing_for(const RegionPtr& r, const std::vector<PageAt>& wants);
  bool room_for(Region& r, const std::vector<PageAt>& pages);
  Task<std::vector<Buffer>> load_kept(RegionPtr r, std::vector<PageAt> wants);
  Task<Status> ensure_for_stage(RegionPtr r, PageNo page, Version base, Instant deadline);
  Task<Result<env::Reply>> serve_fetch(NodeId from, env::Request request);
  Task<Result<std::vector<Buffer>>> read_pages(RegionPtr r, Version snapshot, PageNo first, std::uint64_t count,
                                               TxnId txn, Instant deadline);
  Task<Result<Buffer>> read_staged(RegionPtr r, PageAt at, TxnId txn, Instant deadline);

  // -- memory_views.cc
  using Handled = Task<Result<LocalReply>>;
  Handled view_open(std::shared_ptr<LocalSession> session, LocalRequest request);
  Handled view_refresh(std::shared_ptr<LocalSession> session, LocalRequest request);
  Handled view_close(std::shared_ptr<LocalSession> session, LocalRequest request);
  Handled view_populate(std::shared_ptr<LocalSession> session, LocalRequest request);
  Handled window_open(std::shared_ptr<LocalSession> session, LocalRequest request);
  Handled window_close(std::shared_ptr<LocalSession> session, LocalRequest request);
  Result<ViewPtr> find_view(const LocalSession& session, std::uint64_t id) const;
  void close_view(const ViewPtr& view);
  void fail_view(const ViewPtr& view, std::uint64_t page, const Error& error);
  void session_closed(LocalSession& session);
  void on_faults(const ViewPtr& view, const std::vector<env::PageFault>& faults);
  Task<void> serve_fault(ViewPtr view, PageNo page, std::uint64_t ahead);
  /// Fetches what a scan will touch next, into the frames.
  Task<void> prefetch(ViewPtr view, std::uint64_t first, std::uint64_t count);
  /// Gives the process what is here of [first, first + count); returns what has to be fetched.
  enum class Given : std::uint8_t { again, skip };
  Result<std::vector<PageAt>> give_local(View& view, PageNo first, std::uint64_t count, Given given);
  /// False: it is here no more, and not in `bytes` either.
  Result<bool> give_fetched(View& view, PageAt at, const Buffer& bytes);
  /// What of `wants` is to be fetched once more. Errors: of the first page only; the others were read ahead.
  Result<std::vector<PageAt>> give_all(View& view, const std::vector<PageAt>& wants, const std::vector<Buffer>& bytes);

  // -- memory_stage.cc
  Task<Result<std::vector<StagedSpan>>> stage_group(RegionPtr r, TxnId txn, Version base, std::vector<PagePart> parts,
                                                    Instant deadline);
  Task<Result<std::vector<StagedSpan>>> stage_remote(RegionPtr r, NodeId home, TxnId txn, Version base,
                                                     std::vector<PagePart> parts, Instant deadline);
  Task<Result<std::vector<StagedSpan>>> stage_at_home(RegionPtr r, TxnId txn, Version base, std::vector<PagePart> parts,
                                                      Instant deadline);
  Task<Result<std::vector<StagedSpan>>> replicate(RegionPtr r, TxnId txn, std::vector<PageNo> pages, Instant deadline);
  Task<Status> send_backup(RegionPtr r, NodeId node, TxnId txn, std::vector<PageNo> pages, Instant deadline);
  Status check_open(const TxnId& txn) const;
  Task<Status> stage_parts(RegionPtr r, TxnId txn, Version base, std::vector<PagePart> parts, Instant deadline);
  Task<Status> seal_windows(RegionPtr r, TxnId txn, Instant deadline);
  Task<Result<env::Reply>> serve_stage(NodeId from, env::Request request);
  Task<Result<env::Reply>> serve_backup(NodeId from, env::Request request);
  std::shared_ptr<env::Landing> place_stage(const env::Request& announced, std::uint64_t payload_bytes);
  std::shared_ptr<env::Landing> place_backup(const env::Request& announced, std::uint64_t payload_bytes);
  /// What make_room() is to be asked for; none for the first copy of a page, which was promised to its region.
  [[nodiscard]] static std::optional<std::uint64_t> room_to_stage(const Region& r, PageNo page, const Buffer& bytes);
  Task<Result<env::Reply>> serve_abort(NodeId from, env::Request request);
  Task<Result<env::Reply>> serve_txn_status(NodeId from, env::Request request);

  // -- memory_txn.cc
  Handled local_read(std::shared_ptr<LocalSession> session, LocalRequest request);
  Handled local_stage(std::shared_ptr<LocalSession> session, LocalRequest request);
  Handled local_commit(std::shared_ptr<LocalSession> session, LocalRequest request);
  Handled local_abort(std::shared_ptr<LocalSession> session, LocalRequest request);
  Status check_holders(const TxnWrites& writes, std::vector<Unheld>* unheld) const;
  Task<void> learn_holders(TxnId txn, std::shared_ptr<TxnWrites> writes, std::vector<Unheld> unheld);
  Task<std::vector<std::string>> staged_digests(NodeId node, RegionId region, TxnId txn, std::vector<PageNo> pages);
  [[nodiscard]] std::vector<std::string> digests_here(RegionId region, const TxnId& txn,
                                                      const std::vector<PageNo>& pages) const;
  Task<Result<env::Reply>> serve_staged_query(NodeId from, env::Request request);
  void abort_here(const TxnId& txn);
  Task<bool> send_abort(NodeId node, std::string header);
  Task<void> abort_everywhere(std::vector<TxnId> txns);

  // -- memory_fill.cc
  void start_moves(const RegionPtr& r);
  void start_all_moves();
  Task<void> fill_region(RegionPtr r);
  /// Looks whether `target` answers, and tells the cluster when it does not, until it does.
  void watch_path(NodeId target);
  Task<void> look_at_path(NodeId target);
  Task<Status> fill_shards(RegionPtr r, NodeId target, std::vector<ShardMove> moves);
  void drop_overtaken(const Region& r, std::vector<ShardMove>& moves) const;
  [[nodiscard]] bool windows_open(const Region& r, const std::set<ShardNo>& shards) const;
  Task<Status> send_fill(RegionPtr r, NodeId target, std::vector<PageAt> pages);
  Task<void> prove_region(RegionPtr r);
  Task<bool> prove_shards(RegionPtr r, std::vector<ShardMove> moves);
  [[nodiscard]] std::vector<PageAt> lacking(const RegionPtr& r, const std::set<ShardNo>& shards) const;
  /// Until `bytes` more may be copied to other nodes (MemoryConfig::move_rate). False: the agent is stopping.
  Task<bool> pace(std::uint64_t bytes);
  void start_repair(const RegionPtr& r);
  Task<void> repair(RegionPtr r);
  [[nodiscard]] std::vector<PageAt> committed_pages(const RegionPtr& r) const;

  env::Loop& loop_;
  env::Transport& transport_;
  env::FrameStore& frames_;
  env::PageFaults& faults_;
  env::Entropy& entropy_;
  MemoryControl& control_;
  MemoryConfig config_;
  MemoryCounters counters_;
  std::map<RegionId, RegionPtr> regions_;
  std::map<ViewId, ViewPtr> views_;
  std::map<SessionId, std::set<ViewId>> session_views_;
  std::map<TxnId, LocalTxn> txns_;
  std::vector<StrayWindows> stray_windows_;
  std::unordered_set<TxnId> open_;   // coordinated here, not decided
  std::map<TxnId, Doubt> in_doubt_;  // proposed, outcome unknown: kept until the log or the epoch decides
  std::unordered_set<TxnId> decided_;
  std::deque<TxnId> decided_order_;
  std::map<TxnId, Instant> staged_since_;
  std::map<RegionId, std::vector<std::shared_ptr<OneShot<Result<bool>>>>> version_waiters_;
  std::shared_ptr<PageFiles> kept_;
  struct KeptPage {
    RegionPtr region;
    PageAt at;
  };
  std::vector<KeptPage> to_keep_;  // Settled by stop(), written by keep_pages().
  std::uint64_t next_view_ = 1;
  std::uint64_t next_txn_ = 1;
  Instant next_sweep_;
  std::uint64_t left_over_ = 0;  // of clean copies, to be dropped by and by
  std::set<NodeId> watched_paths_;
  Instant next_move_;  ///< When the bytes copied so far have had their time.
  bool stopped_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace holo::node
