#include "driver/raft/raft_message.h"

#include <algorithm>
#include <cstring>

#include "base/strings.h"
#include "crypto/hash.h"
#include "driver/raft/raft_members.h"
#include "wire/message_types.h"

namespace holo::driver {
namespace {

constexpr std::size_t kMaxMessageEntries = 4096;  // So that the header stays below limits::kMaxHeaderBytes.

env::Request request_of(const wire::RaftMessage& header, std::vector<Buffer> payload) {
  env::Request r;
  r.type = static_cast<std::uint16_t>(wire::PeerMessage::raft);
  r.header = header.SerializeAsString();
  r.payload = std::move(payload);
  return r;
}

ByteSpan span_of(const raft_buffer& b) { return {static_cast<const std::byte*>(b.base), b.len}; }

auto malformed(const char* what) {
  return fail(Errc::malformed, str("a message of the log that does not decode: ", what));
}

void* copy_of(ByteSpan bytes) {
  void* out = raft_malloc(std::max<std::size_t>(bytes.size(), 1));
  HOLO_ASSERT(out != nullptr, "out of memory");
  if (!bytes.empty()) std::memcpy(out, bytes.data(), bytes.size());
  return out;
}

void encode_entries(const raft_append_entries& in, wire::RaftMessage& header, std::vector<Buffer>& payload) {
  Bytes all;
  std::size_t n = 0;
  std::size_t bytes = 0;
  while (n < in.n_entries && n < kMaxMessageEntries && (n == 0 || bytes + in.entries[n].buf.len <= kMaxMessageBytes)) {
    bytes += in.entries[n++].buf.len;
  }
  all.reserve(bytes);
  for (std::size_t i = 0; i < n; ++i) {
    const raft_entry& e = in.entries[i];
    auto* out = header.add_entries();
    out->set_term(e.term);
    out->set_type(e.type);
    out->set_bytes(e.buf.len);
    const ByteSpan data = span_of(e.buf);
    all.insert(all.end(), data.begin(), data.end());
  }
  if (!all.empty()) payload.emplace_back(std::move(all));
}

Status decode_entries(const wire::RaftMessage& header, ByteSpan payload, raft_append_entries& out) {
  const auto n = static_cast<std::size_t>(header.entries_size());
  if (n > kMaxMessageEntries) return malformed("too many entries");
  std::uint64_t left = payload.size();
  for (const wire::RaftEntry& e : header.entries()) {
    if (e.bytes() > left || e.type() < RAFT_COMMAND || e.type() > RAFT_CHANGE) return malformed("an entry");
    if (e.type() == RAFT_CHANGE) HOLO_TRY(decode_raft_change(payload.subspan(payload.size() - left, e.bytes())));
    left -= e.bytes();
  }
  if (left != 0) return malformed("bytes after the last entry");
  if (n == 0) return {};
  out.entries = static_cast<raft_entry*>(raft_calloc(n, sizeof(raft_entry)));
  HOLO_ASSERT(out.entries != nullptr, "out of memory");
  out.n_entries = static_cast<unsigned>(n);
  // libraft frees the batch with the last entry that lies in it.
  auto* batch = static_cast<std::byte*>(copy_of(payload));
  std::size_t at = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const wire::RaftEntry& e = header.entries(static_cast<int>(i));
    out.entries[i].term = e.term();
    out.entries[i].type = static_cast<unsigned short>(e.type());
    out.entries[i].buf = {batch + at, static_cast<std::size_t>(e.bytes())};
    out.entries[i].batch = batch;
    at += e.bytes();
  }
  return {};
}

}  // namespace

std::string raft_address(NodeId node) { return to_hex(node.value); }

env::Request encode_raft_message(const raft_message& m) {
  wire::RaftMessage h;
  h.set_type(m.type);
  std::vector<Buffer> payload;
  switch (m.type) {
    case RAFT_IO_REQUEST_VOTE: {
      const raft_request_vote& v = m.request_vote;
      h.set_term(v.term);
      h.set_candidate(v.candidate_id);
      h.set_last_log_index(v.last_log_index);
      h.set_last_log_term(v.last_log_term);
      h.set_disrupt_leader(v.disrupt_leader);
      h.set_pre_vote(v.pre_vote);
      break;
    }
    case RAFT_IO_REQUEST_VOTE_RESULT: {
      const raft_request_vote_result& v = m.request_vote_result;
      h.set_term(v.term);
      h.set_vote_granted(v.vote_granted);
      h.set_pre_vote_result(v.pre_vote);
      break;
    }
    case RAFT_IO_APPEND_ENTRIES: {
      const raft_append_entries& a = m.append_entries;
      h.set_term(a.term);
      h.set_prev_log_index(a.prev_log_index);
      h.set_prev_log_term(a.prev_log_term);
      h.set_leader_commit(a.leader_commit);
      h.set_answer_in_reply(true);
      encode_entries(a, h, payload);
      break;
    }
    case RAFT_IO_APPEND_ENTRIES_RESULT: {
      const raft_append_entries_result& a = m.append_entries_result;
      h.set_term(a.term);
      h.set_rejected(a.rejected);
      h.set_last_log_index(a.last_log_index);
      break;
    }
    case RAFT_IO_TIMEOUT_NOW: {
      const raft_timeout_now& t = m.timeout_now;
      h.set_term(t.term);
      h.set_last_log_index(t.last_log_index);
      h.set_last_log_term(t.last_log_term);
      break;
    }
    default: HOLO_ASSERT(false, "a message that is sent in another way");
  }
  return request_of(h, std::move(payload));
}

wire::RaftMessage snapshot_header(const raft_message& m) {
  const raft_install_snapshot& s = m.install_snapshot;
  wire::RaftMessage h;
  h.set_type(m.type);
  h.set_term(s.term);
  h.set_last_index(s.last_index);
  h.set_last_term(s.last_term);
  h.set_conf_index(s.conf_index);
  for (unsigned i = 0; i < s.conf.n; ++i) {
    auto* server = h.add_servers();
    server->set_id(s.conf.servers[i].id);
    server->set_role(static_cast<std::uint32_t>(s.conf.servers[i].role));
  }
  return h;
}

env::Request encode_snapshot_part(const wire::RaftMessage& base, std::uint64_t offset, std::uint64_t total,
                                  Buffer part) {
  wire::RaftMessage h = base;
  h.set_part_offset(offset);
  h.set_total_bytes(total);
  h.set_part_sum(crypto::blake3_64(part.span()));
  return request_of(h, {std::move(part)});
}

ReceivedMessage::ReceivedMessage(ReceivedMessage&& other) noexcept
    : message(other.message), owned_(std::exchange(other.owned_, false)) {}

raft_message* ReceivedMessage::release() {
  owned_ = false;
  return &message;
}

ReceivedMessage::~ReceivedMessage() {
  if (!owned_) return;
  if (message.type == RAFT_IO_APPEND_ENTRIES && message.append_entries.n_entries > 0) {
    raft_free(message.append_entries.entries[0].batch);
    raft_free(message.append_entries.entries);
  }
  if (message.type == RAFT_IO_INSTALL_SNAPSHOT) {
    raft_configuration_close(&message.install_snapshot.conf);
    raft_free(message.install_snapshot.data.base);
  }
}

Result<wire::RaftMessage> decode_raft_header(const env::Request& request) {
  wire::RaftMessage h;
  if (!h.ParseFromString(request.header)) return malformed("its header");
  if (request.payload.size() > 1) return malformed("its payload");
  return h;
}

Result<Buffer> decode_snapshot_part(const wire::RaftMessage& h, const env::Request& request) {
  if (request.payload.size() != 1 || request.payload[0].size() > kMaxMessageBytes || request.payload[0].empty()) {
    return malformed("a part of a snapshot");
  }
  const std::uint64_t left = h.total_bytes() - std::min(h.part_offset(), h.total_bytes());
  if (h.total_bytes() > kMaxSnapshotBytes || request.payload[0].size() > left) {
    return malformed("a snapshot that is too large");
  }
  if (crypto::blake3_64(request.payload[0].span()) != h.part_sum()) return malformed("a damaged part of a snapshot");
  return request.payload[0];
}

Result<ReceivedMessage> decode_snapshot(NodeId from, const wire::RaftMessage& h, std::uint64_t handle) {
  RaftServers servers;
  for (const wire::RaftServer& s : h.servers()) servers.push_back({.node = NodeId{s.id()}, .role = s.role()});
  HOLO_TRY(check_raft_servers(servers));
  ReceivedMessage out;
  raft_message& m = out.message;
  m.server_id = from.value;
  raft_install_snapshot& s = m.install_snapshot;
  s.term = h.term();
  s.last_index = h.last_index();
  s.last_term = h.last_term();
  s.conf_index = h.conf_index();
  s.data = {nullptr, 0};
  raft_configuration_init(&s.conf);
  m.type = RAFT_IO_INSTALL_SNAPSHOT;  // From here on the destructor frees it.
  for (const wire::RaftServer& server : h.servers()) {
    if (server.role() > RAFT_SPARE || server.id() == 0 ||
        raft_configuration_add(&s.conf, server.id(), raft_address(NodeId{server.id()}).c_str(),
                               static_cast<int>(server.role())) != 0) {
      return malformed("a server");
    }
  }
  s.data = {copy_of(std::as_bytes(std::span(&handle, 1))), sizeof handle};
  return out;
}

Result<ReceivedMessage> decode_raft_message(NodeId from, const wire::RaftMessage& h, const env::Request& request) {
  const ByteSpan payload = request.payload.empty() ? ByteSpan{} : request.payload[0].span();
  ReceivedMessage out;
  raft_message& m = out.message;
  m.server_id = from.value;
  switch (h.type()) {
    case RAFT_IO_REQUEST_VOTE:
      // A vote is asked for by the candidate itself.
      if (h.candidate() != from.value) return malformed("a vote for another");
      m.request_vote = {.term = h.term(),
                        .candidate_id = h.candidate(),
                        .last_log_index = h.last_log_index(),
                        .last_log_term = h.last_log_term(),
                        .disrupt_leader = h.disrupt_leader(),
                        .pre_vote = h.pre_vote()};
      break;
    case RAFT_IO_REQUEST_VOTE_RESULT:
      if (h.pre_vote_result() > raft_tribool_false) return malformed("a vote");
      m.request_vote_result = {.term = h.term(),
                               .vote_granted = h.vote_granted(),
                               .pre_vote = static_cast<raft_tribool>(h.pre_vote_result())};
      break;
    case RAFT_IO_APPEND_ENTRIES:
      m.append_entries = {.term = h.term(),
                          .prev_log_index = h.prev_log_index(),
                          .prev_log_term = h.prev_log_term(),
                          .leader_commit = h.leader_commit(),
                          .entries = nullptr,
                          .n_entries = 0};
      HOLO_TRY(decode_entries(h, payload, m.append_entries));
      break;
    case RAFT_IO_APPEND_ENTRIES_RESULT:
      m.append_entries_result = {.term = h.term(), .rejected = h.rejected(), .last_log_index = h.last_log_index()};
      break;
    case RAFT_IO_TIMEOUT_NOW:
      m.timeout_now = {.term = h.term(), .last_log_index = h.last_log_index(), .last_log_term = h.last_log_term()};
      break;
    default: return malformed("its type");
  }
  m.type = static_cast<unsigned short>(h.type());
  return out;
}

}  // namespace holo::driver
