// Regions, as local processes ask for them.
#include "base/limits.h"
#include "base/strings.h"
#include "core/control/results.h"
#include "node/control_impl.h"

namespace holo::node {
namespace {

constexpr Duration kRegionDeadline = seconds(10);
constexpr Duration kBarrierDeadline = seconds(2);

template <class Message>
Result<Message> parse(const LocalRequest& request) {
  Message m;
  if (!m.ParseFromString(request.header)) return fail(Errc::malformed, "a local message does not decode");
  return m;
}

LocalReply reply_of(const google::protobuf::MessageLite& message) {
  LocalReply reply;
  reply.header = message.SerializeAsString();
  return reply;
}

Error no_region(const std::string& name) {
  return Error{.code = Errc::not_found,
               .message = str("there is no region \"", name.substr(0, limits::kMaxRegionName), "\""),
               .hint = "holo regions lists them"};
}

}  // namespace

wire::RegionInfo ControlService::region_info(RegionId id) const {
  wire::RegionInfo out;
  const auto* r = state_.region(id);
  if (r == nullptr) return out;
  out.set_region(r->id.value);
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
  for (const auto& [node, pages] : state_.pages_by_node(id)) {
    auto* share = out.add_pages_by_node();
    share->set_node(node.value);
    share->set_pages(pages);
  }
  return out;
}

Task<Result<LocalReply>> ControlService::Impl::create_region(std::shared_ptr<LocalSession> session,
                                                             LocalRequest request) {
  HOLO_CO_ASSIGN(asked, parse<wire::RegionCreate>(request));
  wire::CommandBody body;
  *body.mutable_create_region()->mutable_region() = std::move(asked);
  body.mutable_create_region()->set_owner_uid(session->uid());
  const Instant deadline = ports.loop->now() + kRegionDeadline;
  HOLO_CO_ASSIGN(result, co_await self.propose(std::move(body), deadline));
  co_return reply_of(self.region_info(RegionId(result.region())));
}

Task<Result<LocalReply>> ControlService::Impl::open_region(LocalRequest request) {
  HOLO_CO_ASSIGN(asked, parse<wire::RegionOpen>(request));
  // A region that another node has just made, or written, is seen: nothing committed before this call is missed.
  const Instant deadline = ports.loop->now() + kBarrierDeadline;
  HOLO_CO_TRY(co_await self.barrier(deadline));
  const auto* region = self.state_.region_by_name(asked.name());
  if (region == nullptr) co_return std::unexpected(no_region(asked.name()));
  co_return reply_of(self.region_info(region->id));
}

Task<Result<LocalReply>> ControlService::Impl::list_regions() {
  // Without a quorum the list is what this node has applied: better to look at than nothing.
  const Instant deadline = ports.loop->now() + kBarrierDeadline;
  (void)co_await self.barrier(deadline);
  wire::RegionListReply reply;
  for (const RegionId id : self.state_.regions()) *reply.add_regions() = self.region_info(id);
  co_return reply_of(reply);
}

Task<Result<LocalReply>> ControlService::Impl::free_region(std::shared_ptr<LocalSession> session,
                                                           LocalRequest request) {
  HOLO_CO_ASSIGN(asked, parse<wire::RegionFree>(request));
  wire::CommandBody body;
  body.mutable_free_region()->set_name(asked.name());
  body.mutable_free_region()->set_uid(session->uid());
  const Instant deadline = ports.loop->now() + kRegionDeadline;
  HOLO_CO_TRY(co_await self.propose(std::move(body), deadline));
  co_return LocalReply{};
}

void ControlService::register_local(LocalApi& api) {
  Impl* i = impl_.get();
  api.serve(wire::REGION_CREATE, [i](std::shared_ptr<LocalSession> session, LocalRequest request) {
    return i->create_region(std::move(session), std::move(request));
  });
  api.serve(wire::REGION_OPEN,
            [i](std::shared_ptr<LocalSession>, LocalRequest request) { return i->open_region(std::move(request)); });
  api.serve(wire::REGION_LIST, [i](std::shared_ptr<LocalSession>, LocalRequest) { return i->list_regions(); });
  api.serve(wire::REGION_FREE, [i](std::shared_ptr<LocalSession> session, LocalRequest request) {
    return i->free_region(std::move(session), std::move(request));
  });
}

}  // namespace holo::node
