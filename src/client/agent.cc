#include "client/agent.h"

#include <algorithm>

#include "base/limits.h"

namespace holo::client {
namespace {

constexpr std::size_t kReadStep = 4 << 20;  // Of one READ: large enough to be cheap, small enough to be fair to others.

Status stage(Agent& agent, wire::Txn& txn, wire::Stage request, ByteSpan bytes) {
  if (txn.node() != 0) *request.mutable_txn() = txn;
  const ByteSpan payload[] = {bytes};
  const auto parts = bytes.empty() ? std::span<const ByteSpan>() : std::span<const ByteSpan>(payload);
  HOLO_ASSIGN(reply, agent.call<wire::StageReply>(wire::STAGE, request, {.payload = parts}));
  txn = reply.txn();
  return {};
}

}  // namespace

Status read_region(Agent& agent, std::uint64_t region, std::optional<std::uint64_t> snapshot, const wire::Txn* txn,
                   std::uint64_t offset, MutableByteSpan out) {
  static_assert(kReadStep <= limits::kMaxPayloadBytes);
  while (!out.empty()) {
    const std::size_t n = std::min(out.size(), kReadStep);
    wire::Read request;
    request.set_region(region);
    if (snapshot) request.set_snapshot(*snapshot);
    request.set_offset(offset);
    request.set_length(n);
    if (txn && txn->node() != 0) *request.mutable_txn() = *txn;
    driver::LocalClient::Reply rest;
    HOLO_TRY(agent.call<wire::ReadReply>(wire::READ, request, {.into = out.first(n)}, &rest));
    if (rest.payload_bytes != n) return fail(Errc::malformed, "the agent answered a read with another length");
    out = out.subspan(n);
    offset += n;
  }
  return {};
}

Status stage_pages(Agent& agent, wire::Txn& txn, std::uint64_t region, std::uint64_t base,
                   std::span<const std::uint64_t> pages, ByteSpan bytes) {
  wire::Stage request;
  request.set_region(region);
  request.set_base(base);
  request.mutable_pages()->Add(pages.begin(), pages.end());
  return stage(agent, txn, std::move(request), bytes);
}

Status stage_bytes(Agent& agent, wire::Txn& txn, std::uint64_t region, std::uint64_t base, std::uint64_t offset,
                   ByteSpan bytes) {
  wire::Stage request;
  request.set_region(region);
  request.set_base(base);
  request.set_offset(offset);
  return stage(agent, txn, std::move(request), bytes);
}

}  // namespace holo::client
