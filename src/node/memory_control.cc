#include "node/memory_control.h"

#include <unordered_map>

#include "base/strings.h"
#include "node/control.h"
#include "wire/errors.h"

namespace holo::node {
namespace {

Error from_wire(const wire::WireError& e) { return wire::error_of(e); }

void to_wire(std::span<const PageSpan> pages, wire::RegionPages& out) {
  for (const auto& span : pages) {
    auto* range = out.add_pages();
    range->set_first(span.first.value);
    range->set_count(span.count);
  }
}

void to_wire(const ShardMove& m, wire::ShardMove& out) {
  out.set_region(m.region.value);
  out.set_shard(m.shard.value);
  out.set_node(m.node.value);
  out.set_serial(m.serial);
}

ShardCopies copies_from(const control::State::ShardView& view) {
  return {.in_sync = {view.in_sync.begin(), view.in_sync.end()},
          .filling = view.filling,
          .unproven = view.unproven,
          .serial = view.serial,
          .planned = !view.target.empty()};
}

class Adapter final : public MemoryControl, private control::StateObserver {
 public:
  Adapter(ControlService& control, ClusterId remembered) : control_(control), remembered_(remembered) {
    control_.add_observer(this);
  }

  void observe(MemoryObserver observer) override { observers_.push_back(std::move(observer)); }

  NodeId self() const override { return control_.self(); }
  ClusterId cluster() const override { return state().cluster() ? state().cluster() : remembered_; }
  std::uint64_t incarnation() const override { return control_.incarnation(); }
  LogIndex applied() const override { return state().applied(); }
  Epoch epoch() const override { return state().epoch(); }
  bool alive(NodeId node) const override {
    const auto* record = state().node(node);
    return record && record->alive();
  }
  std::uint64_t incarnation_of(NodeId node) const override {
    const auto* record = state().node(node);
    return record && record->alive() ? record->incarnation : 0;
  }
  std::vector<NodeId> live_nodes() const override { return state().live_holders(); }
  std::string node_name(NodeId node) const override {
    const auto* record = state().node(node);
    return record ? record->name : to_hex(node.value);
  }

  std::vector<RegionId> regions() const override { return state().regions(); }
  std::optional<RegionShape> region(RegionId id) const override {
    const auto* r = state().region(id);
    if (!r) return std::nullopt;
    return RegionShape{.id = r->id,
                       .name = r->name,
                       .bytes = r->bytes,
                       .page_bytes = r->page_bytes,
                       .block_pages = r->block_pages,
                       .replication = r->replication,
                       .owner_uid = r->owner_uid};
  }
  Version newest(RegionId id) const override {
    const auto* r = state().region(id);
    return r ? r->version : Version();
  }
  Version page_version(RegionId region, PageNo page) const override { return state().version_of(region, page); }
  void for_each_written(RegionId region, const std::function<void(PageSpan, Version)>& f) const override {
    state().for_each_written(region, [&](control::PageRange range, Version version) {
      f({.first = PageNo(range.first), .count = range.count}, version);
    });
  }
  ShardNo shard_of(RegionId region, PageNo page) const override { return state().shard_of(region, page); }
  ShardCopies copies(RegionId region, ShardNo shard) const override {
    const auto& table = copies_of(region);
    const auto it = table.find(shard);
    return it == table.end() ? ShardCopies{} : it->second;
  }
  Version floor(RegionId region) const override { return control_.floor(region); }
  bool draining() const override {
    const auto* record = state().node(self());
    return record != nullptr && record->draining;
  }
  std::uint64_t reserved_bytes() const override {
    const auto* record = state().node(self());
    return record ? record->reserved_bytes : 0;
  }

  Task<Result<std::vector<Result<std::vector<RegionVersion>>>>> commit(Epoch epoch, std::vector<TxnCommit> txns,
                                                                       Instant deadline) override {
    wire::CommandBody body;
    auto* command = body.mutable_commit();
    command->set_epoch(epoch.value);
    for (const auto& txn : txns) {
      auto* entry = command->add_txns();
      entry->mutable_txn()->set_node(txn.txn.node.value);
      entry->mutable_txn()->set_incarnation(txn.txn.incarnation);
      entry->mutable_txn()->set_sequence(txn.txn.sequence);
      for (const auto& region : txn.regions) {
        auto* pages = entry->add_regions();
        pages->set_region(region.region.value);
        to_wire(region.pages, *pages);
      }
      for (const auto region : txn.bump_only) entry->add_bump_only(region.value);
    }
    const auto asked = txns.size();
    HOLO_CO_ASSIGN(result, co_await control_.propose(std::move(body), deadline));
    if (static_cast<std::size_t>(result.txns_size()) != asked) {
      co_return fail(Errc::internal, "a commit was answered for another number of transactions");
    }
    std::vector<Result<std::vector<RegionVersion>>> out;
    for (const auto& txn : result.txns()) {
      if (txn.error().code() != 0) {
        out.emplace_back(std::unexpected(from_wire(txn.error())));
        continue;
      }
      std::vector<RegionVersion> versions;
      for (const auto& v : txn.versions()) versions.push_back({RegionId(v.region()), Version(v.version())});
      out.emplace_back(std::move(versions));
    }
    co_return out;
  }

  std::vector<std::pair<ShardNo, ShardCopies>> moves(RegionId region) const override {
    std::vector<std::pair<ShardNo, ShardCopies>> out;
    state().for_each_move(region, [&](const control::State::ShardView& view) {
      if (view.filling || view.unproven) out.emplace_back(view.shard, copies_from(view));
    });
    return out;
  }
  Task<Status> shards_copied(std::vector<ShardMove> moves, Instant deadline) override {
    wire::CommandBody body;
    for (const ShardMove& m : moves) to_wire(m, *body.mutable_shards_copied()->add_moves());
    HOLO_CO_TRY(co_await control_.propose(std::move(body), deadline));
    co_return Status{};
  }
  Task<Status> shards_whole(std::vector<ShardMove> moves, Instant deadline) override {
    wire::CommandBody body;
    for (const ShardMove& m : moves) to_wire(m, *body.mutable_shards_whole()->add_moves());
    HOLO_CO_TRY(co_await control_.propose(std::move(body), deadline));
    co_return Status{};
  }
  std::vector<NodeId> cut_off() const override {
    std::vector<NodeId> out;
    for (const auto& [from, to] : state().cut_paths()) {
      if (from == self()) out.push_back(to);
    }
    return out;
  }
  Task<Status> path_changed(NodeId to, bool cut, Instant deadline) override {
    wire::CommandBody body;
    body.mutable_path_changed()->set_from(self().value);
    body.mutable_path_changed()->set_to(to.value);
    body.mutable_path_changed()->set_cut(cut);
    HOLO_CO_TRY(co_await control_.propose(std::move(body), deadline));
    co_return Status{};
  }

 private:
  using CopiesTable = std::unordered_map<ShardNo, ShardCopies>;

  [[nodiscard]] const control::State& state() const { return control_.state(); }

  /// Kept until placement moves: every page that is read or staged asks for its shard's list.
  const CopiesTable& copies_of(RegionId region) const {
    const auto [it, fresh] = copies_.try_emplace(region);
    if (fresh) {
      state().for_each_shard(
          region, [&](const control::State::ShardView& view) { it->second[view.shard] = copies_from(view); });
    }
    return it->second;
  }

  void on_commit(RegionId region, Version version, TxnId txn, std::span<const control::PageRange> pages) override {
    CommitEvent event{.index = state().applied(), .txn = txn, .region = region, .version = version, .pages = {}};
    for (const auto& range : pages) event.pages.push_back({.first = PageNo(range.first), .count = range.count});
    for (const auto& o : observers_) {
      if (o.on_commit) o.on_commit(event);
    }
  }
  void on_region_created(RegionId id) override {
    copies_.erase(id);
    const auto shape = region(id);
    for (const auto& o : observers_) {
      if (o.on_region_created && shape) o.on_region_created(*shape);
    }
  }
  void on_region_freed(RegionId id) override {
    copies_.erase(id);
    for (const auto& o : observers_) {
      if (o.on_region_freed) o.on_region_freed(id);
    }
  }
  void placement_moved() {
    copies_.clear();
    for (const auto& o : observers_) {
      if (o.on_nodes_changed) o.on_nodes_changed();
    }
  }
  void on_nodes_changed(Epoch, NodeId) override { placement_moved(); }
  void on_placement_changed(RegionId id) override {
    copies_.erase(id);
    for (const auto& o : observers_) {
      if (o.on_placement_changed) o.on_placement_changed(id);
    }
  }
  void on_restored() override {
    copies_.clear();
    for (const auto& o : observers_) {
      if (o.on_restored) o.on_restored();
    }
  }

  ControlService& control_;
  ClusterId remembered_;
  std::vector<MemoryObserver> observers_;
  mutable std::unordered_map<RegionId, CopiesTable> copies_;
};

}  // namespace

std::unique_ptr<MemoryControl> make_memory_control(ControlService& control, ClusterId remembered) {
  return std::make_unique<Adapter>(control, remembered);
}

}  // namespace holo::node
