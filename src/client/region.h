// An open region of this process: bulk access, the mapped view, and the transaction of what was written.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <holo/detail/runtime.hpp>

#include "client/session.h"
#include "client/view.h"
#include "wire/local.pb.h"

namespace holo::client {

/// Thread: any; one call at a time does its work.
class RegionImpl final : public detail::Region {
 public:
  RegionImpl(std::shared_ptr<SessionImpl> session, wire::RegionInfo info)
      : session_(std::move(session)), info_(std::move(info)), snapshot_(info_.version()) {}
  ~RegionImpl() override;

  std::uint64_t id() const override { return info_.region(); }
  std::uint64_t count() const override { return info_.count(); }
  std::uint32_t element_bytes() const override { return info_.element_bytes(); }
  const std::string& name() const override { return info_.name(); }
  Result<RegionFacts> facts() override;
  Result<std::byte*> map(bool for_writing) override;
  Status populate(std::uint64_t offset, std::uint64_t length) override;
  Status read(std::uint64_t offset, std::span<std::byte> out) override;
  Status write(std::uint64_t offset, std::span<const std::byte> bytes) override;
  Status sync() override;
  Status refresh() override;
  std::uint64_t version() const override;

 private:
  struct Range {
    std::uint64_t offset = 0, length = 0;
  };
  Status hold_snapshot();
  Status open_view();
  Status overlay_staged();
  Status commit(const std::vector<std::uint64_t>& pages);
  Status move_to_newest();
  void abort();

  std::shared_ptr<SessionImpl> session_;
  wire::RegionInfo info_;
  mutable std::mutex mutex_;
  std::unique_ptr<View> view_;
  std::uint64_t snapshot_;  ///< What read() sees while there is no view.
  std::uint64_t hold_ = 0;  ///< A view without memory that keeps `snapshot_` readable. 0: none yet.
  bool mapped_for_writing_ = false;
  wire::Txn txn_;              ///< Of what is staged and not yet committed; node 0: none.
  std::vector<Range> staged_;  ///< Written in bulk under txn_ before there was a view.
};

}  // namespace holo::client
