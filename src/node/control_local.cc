// What processes of this machine ask of the control state: regions by name.
#include "base/strings.h"
#include "core/control/results.h"
#include "node/control_impl.h"

namespace holo::node {
namespace {

using Impl = ControlService::Impl;

constexpr Duration kChange = seconds(15);  // To create or free a region.
constexpr Duration kLook = seconds(10);    // To be sure that this node's view is the newest.

LocalReply reply_of(const std::string& header) {
  LocalReply r;
  r.header = header;
  return r;
}

Error no_such_region(const std::string& name) {
  return {
      .code = Errc::not_found, .message = str("there is no region named ", name), .hint = "holo regions lists them"};
}

wire::RegionInfo info_of(const control::State& state, RegionId id) {
  wire::RegionInfo out;
  const control::RegionRecord* r = state.region(id);
  if (r == nullptr) return out;
  out.set_region(id.value);
  out.set_name(r->name);
  out.set_type(r->type);
  out.set_element_bytes(r->element_bytes);
  out.set_count(r->count);
  out.set_bytes(r->bytes);
  out.set_page_bytes(r->page_bytes);
  out.set_mode(r->mode);
  out.set_replication(r->replication);
  out.set_version(r->version.value);
  out.set_owner_uid(r->owner_uid);
  out.set_block_pages(r->block_pages);
  for (const auto& [node, pages] : state.pages_by_node(id)) {
    auto* share = out.add_pages_by_node();
    share->set_node(node.value);
    share->set_pages(pages);
  }
  return out;
}

Task<Status> look(std::shared_ptr<Impl> me) {
  if (auto refusal = me->removal()) co_return std::unexpected(std::move(*refusal));
  if (!me->log) co_return fail(Errc::unavailable, "this node is in no cluster");
  const Instant deadline = me->now() + kLook;
  co_return co_await me->log->barrier(deadline);
}

Task<Result<LocalReply>> create(std::shared_ptr<Impl> me, std::shared_ptr<LocalSession> session, LocalRequest request) {
  wire::CommandBody body;
  if (!body.mutable_create_region()->mutable_region()->ParseFromString(request.header)) {
    co_return fail(Errc::malformed, "a request that does not decode");
  }
  body.mutable_create_region()->set_owner_uid(session->uid());
  const Instant deadline = me->now() + kChange;
  HOLO_CO_ASSIGN(result, co_await Impl::propose(me, std::move(body), deadline));
  const RegionId id{result.region()};
  if (me->state.region(id) == nullptr) co_return fail(Errc::not_found, "the region was freed at once by someone else");
  co_return reply_of(info_of(me->state, id).SerializeAsString());
}

Task<Result<LocalReply>> open(std::shared_ptr<Impl> me, std::shared_ptr<LocalSession>, LocalRequest request) {
  wire::RegionOpen ask;
  if (!ask.ParseFromString(request.header)) co_return fail(Errc::malformed, "a request that does not decode");
  HOLO_CO_TRY(co_await look(me));
  const control::RegionRecord* r = me->state.region_by_name(ask.name());
  if (r == nullptr) co_return std::unexpected(no_such_region(ask.name()));
  co_return reply_of(info_of(me->state, r->id).SerializeAsString());
}

Task<Result<LocalReply>> list(std::shared_ptr<Impl> me, std::shared_ptr<LocalSession>, LocalRequest) {
  HOLO_CO_TRY(co_await look(me));
  wire::RegionListReply out;
  for (const RegionId id : me->state.regions()) *out.add_regions() = info_of(me->state, id);
  co_return reply_of(out.SerializeAsString());
}

Task<Result<LocalReply>> free_region(std::shared_ptr<Impl> me, std::shared_ptr<LocalSession> session,
                                     LocalRequest request) {
  wire::RegionFree ask;
  if (!ask.ParseFromString(request.header)) co_return fail(Errc::malformed, "a request that does not decode");
  wire::CommandBody body;
  body.mutable_free_region()->set_name(ask.name());
  body.mutable_free_region()->set_uid(session->uid());
  const Instant deadline = me->now() + kChange;
  HOLO_CO_TRY(co_await Impl::propose(me, std::move(body), deadline));
  co_return LocalReply{};
}

}  // namespace

void ControlService::register_local(LocalApi& api) {
  const std::shared_ptr<Impl> me = impl_;
  api.serve(wire::REGION_CREATE,
            [me](std::shared_ptr<LocalSession> s, LocalRequest r) { return create(me, std::move(s), std::move(r)); });
  api.serve(wire::REGION_OPEN,
            [me](std::shared_ptr<LocalSession> s, LocalRequest r) { return open(me, std::move(s), std::move(r)); });
  api.serve(wire::REGION_LIST,
            [me](std::shared_ptr<LocalSession> s, LocalRequest r) { return list(me, std::move(s), std::move(r)); });
  api.serve(wire::REGION_FREE, [me](std::shared_ptr<LocalSession> s, LocalRequest r) {
    return free_region(me, std::move(s), std::move(r));
  });
}

wire::RegionInfo ControlService::region_info(RegionId id) const { return info_of(impl_->state, id); }

}  // namespace holo::node
