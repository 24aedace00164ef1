// Snapshots: libraft sees a handle of eight bytes; the state itself goes from its cut to the disk, from the disk to a
// follower, and from there to the disk and the state, piece by piece, while the log goes on.
#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/strings.h"
#include "driver/raft/raft_io.h"

namespace holo::driver {
namespace {

constexpr std::size_t kPieceBytes = 128 << 10;       // What the loop encodes in one turn: about a millisecond.
constexpr Duration kSnapshotDeadline = seconds(10);  // For each part.
constexpr std::size_t kMaxReaders = 16;              // Opened for libraft and not sent yet; beyond, the oldest goes.

}  // namespace

// ---- The stream

Bytes SnapshotSink::header(std::uint64_t index, std::int64_t wall) {
  Bytes out(kHeaderBytes);
  std::memcpy(out.data(), &index, 8);
  std::memcpy(out.data() + 8, &wall, 8);
  return out;
}

Status SnapshotSink::add(ByteSpan bytes) {
  if (header_.size() < kHeaderBytes) {
    const ByteSpan first = bytes.first(std::min(bytes.size(), kHeaderBytes - header_.size()));
    header_.insert(header_.end(), first.begin(), first.end());
    bytes = bytes.subspan(first.size());
  }
  return bytes.empty() ? Status{} : load_->add(bytes);
}

Status SnapshotSink::finish() {
  if (header_.size() < kHeaderBytes) return fail(Errc::corrupt, "the snapshot has no beginning");
  std::uint64_t index = 0;
  std::memcpy(&index, header_.data(), 8);
  std::memcpy(&wall_, header_.data() + 8, 8);
  index_ = LogIndex{index};
  return load_->finish(index_);
}

raft_snapshot* raft_snapshot_of(const env::LogSnapshot& s, std::uint64_t handle) {
  auto* out = static_cast<raft_snapshot*>(raft_calloc(1, sizeof(raft_snapshot)));
  HOLO_ASSERT(out != nullptr, "out of memory");
  out->index = s.index;
  out->term = s.term;
  out->configuration_index = s.configuration_index;
  raft_configuration_init(&out->configuration);
  for (const env::LogSnapshotServer& server : s.servers) {
    if (raft_configuration_add(&out->configuration, server.node.value, raft_address(server.node).c_str(),
                               static_cast<int>(server.role)) != 0) {
      raft_configuration_close(&out->configuration);
      raft_free(out);
      return nullptr;
    }
  }
  out->bufs = static_cast<raft_buffer*>(raft_malloc(sizeof(raft_buffer)));
  void* data = raft_malloc(sizeof handle);
  HOLO_ASSERT(out->bufs != nullptr && data != nullptr, "out of memory");
  std::memcpy(data, &handle, sizeof handle);
  out->n_bufs = 1;
  out->bufs[0] = {data, sizeof handle};
  return out;
}

// ---- To the disk

void RaftIo::offer(Bytes header, std::unique_ptr<env::StateCut> cut) {
  offered_header_ = std::move(header);
  offered_ = std::move(cut);
}

int RaftIo::put(unsigned trailing, raft_io_snapshot_put* request, const raft_snapshot* snapshot,
                raft_io_snapshot_put_cb cb) {
  if (closing_) return RAFT_CANCELED;
  request->cb = cb;
  Write w;
  w.kind = Write::Kind::snapshot;
  w.put = request;
  w.snapshot = std::make_shared<env::LogSnapshot>();
  w.snapshot->index = snapshot->index;
  w.snapshot->term = snapshot->term;
  w.snapshot->configuration_index = snapshot->configuration_index;
  if (trailing == 0) {
    // Taken over from a leader: nothing of the log that was here counts any more.
    if (!incoming_) return RAFT_NOTFOUND;
    for (unsigned i = 0; i < snapshot->configuration.n; ++i) {
      const raft_server& s = snapshot->configuration.servers[i];
      w.snapshot->servers.push_back({.node = NodeId{s.id}, .role = static_cast<std::uint32_t>(s.role)});
    }
    members_.restart(snapshot->configuration_index, w.snapshot->servers);
    incoming_->taken = true;
    w.data = incoming_->data;
    w.keep_after = UINT64_MAX - 1;
    next_index_ = snapshot->index + 1;
    enqueue(std::move(w));
    return 0;
  }
  // libraft would put the newest configuration into it, which may not be committed.
  const RaftServers* servers = members_.at(snapshot->index);
  HOLO_ASSERT(servers != nullptr, "entries were applied, the first of which names the members");
  w.snapshot->configuration_index = members_.index_at(snapshot->index);
  w.snapshot->servers = *servers;
  w.keep_after = snapshot->index > trailing ? snapshot->index - trailing : 0;
  ++reading_;
  ports_.loop->spawn(write_snapshot(shared_from_this(), std::move(w), std::move(offered_header_), std::move(offered_)));
  return 0;
}

/// Beside the writes of the log, which only the last step is one of.
Task<void> RaftIo::write_snapshot(std::shared_ptr<RaftIo> io, Write write, Bytes header,
                                  std::shared_ptr<env::StateCut> cut) {
  env::Loop& loop = *io->ports_.loop;
  using Opened = Result<std::shared_ptr<env::SnapshotWriter>>;
  const std::function<Opened()> open = [store = io->ports_.store]() -> Opened {
    HOLO_ASSIGN(writer, store->new_snapshot());
    return std::shared_ptr<env::SnapshotWriter>(std::move(writer));
  };
  auto opened = co_await env::offload<Opened>(loop, open);
  Status done;
  if (!opened) done = std::unexpected(opened.error());
  auto piece = std::make_shared<Bytes>(std::move(header));
  while (done && !io->closing_ && !piece->empty()) {
    const std::function<Status()> add = [writer = *opened, piece] { return writer->add(*piece); };
    done = co_await env::offload<Status>(loop, add);
    if (!done || io->closing_) break;
    auto next = cut->next(kPieceBytes);
    if (!next) {
      done = std::unexpected(next.error());
      break;
    }
    piece = std::make_shared<Bytes>(std::move(*next));
  }
  --io->reading_;
  if (done && !io->closing_) {
    write.data = *opened;
    io->enqueue(std::move(write));
    co_return;
  }
  if (!done && !io->closing_) log_error("control", "no snapshot is taken: ", done.error().to_string());
  write.put->cb(write.put, io->closing_ ? RAFT_CANCELED : RAFT_IOERR);
  if (io->closing_) {
    io->finish_close();
  } else {
    io->upward_.after_event();
  }
}

// ---- From the disk

Result<std::unique_ptr<SnapshotSink>> RaftIo::read_stored() {
  HOLO_ASSIGN(reader, ports_.store->open_snapshot());
  if (!reader) return fail(Errc::corrupt, "the log has no snapshot any more");
  auto sink = std::make_unique<SnapshotSink>(upward_.new_load());
  snapshot_bytes_ = reader->bytes();
  for (;;) {
    HOLO_ASSIGN(piece, reader->next());
    if (piece.empty()) return sink;
    HOLO_TRY(sink->add(piece));
  }
}

std::unique_ptr<SnapshotSink> RaftIo::take_received(std::uint64_t handle) {
  if (handle == 0 || !incoming_ || incoming_->handle != handle) return nullptr;
  return std::move(std::exchange(incoming_, nullptr)->sink);
}

void RaftIo::get(Get g) {
  ++reading_;
  using Opened = Result<std::unique_ptr<env::SnapshotReader>>;
  auto result = std::make_shared<std::optional<Opened>>();
  ports_.loop->offload([store = ports_.store, result] { result->emplace(store->open_snapshot()); },
                       [me = shared_from_this(), g, result] {
                         --me->reading_;
                         Opened& opened = **result;
                         raft_snapshot* s = nullptr;
                         int code = me->closing_ ? RAFT_CANCELED : RAFT_IOERR;
                         if (!me->closing_ && opened && *opened) {
                           const std::uint64_t handle = me->next_handle_++;
                           s = raft_snapshot_of((*opened)->what(), handle);
                           code = s == nullptr ? RAFT_CORRUPT : 0;
                           while (me->readers_.size() >= kMaxReaders) me->readers_.erase(me->readers_.begin());
                           me->readers_[handle] = std::move(*opened);
                         }
                         if (!opened) {
                           log_error("control", "the snapshot cannot be read: ", opened.error().to_string());
                         }
                         g.request->cb(g.request, s, code);
                         if (me->closing_) return me->finish_close();
                         me->upward_.after_event();
                       });
}

// ---- To a follower

Task<void> RaftIo::deliver_snapshot(std::shared_ptr<RaftIo> io, std::uint64_t id, NodeId peer, wire::RaftMessage header,
                                    std::shared_ptr<env::SnapshotReader> reader) {
  env::Loop& loop = *io->ports_.loop;
  const std::uint64_t total = reader->bytes();
  std::uint64_t at = 0;
  int status = 0;
  while (at < total && status == 0) {
    const std::function<Result<Bytes>()> read = [reader] { return reader->next(); };
    auto piece = co_await env::offload<Result<Bytes>>(loop, read);
    if (io->closing_) break;
    if (!piece || piece->empty()) {
      log_error("control", "the snapshot cannot be sent: ",
                piece ? std::string("its file is too short") : piece.error().to_string());
      status = RAFT_IOERR;
      break;
    }
    const std::size_t bytes = piece->size();
    env::CallOptions options;
    options.klass = env::StreamClass::bulk;
    options.deadline = loop.now() + kSnapshotDeadline;
    env::Request part = encode_snapshot_part(header, at, total, Buffer(std::move(*piece)));
    auto reply = co_await io->ports_.transport->call(peer, std::move(part), options);
    if (!reply) status = RAFT_NOCONNECTION;
    at += bytes;
  }
  io->snapshots_to_.erase(peer);
  io->sent(id, peer, status);
}

// ---- From a leader

Task<Status> RaftIo::receive_part(std::shared_ptr<RaftIo> io, NodeId from, wire::RaftMessage header,
                                  env::Request request) {
  HOLO_CO_ASSIGN(part, decode_snapshot_part(header, request));
  env::Loop& loop = *io->ports_.loop;
  const auto closing = [] { return fail(Errc::unavailable, "the log is closing"); };
  if (header.part_offset() == 0) {
    if (io->incoming_ && io->incoming_->taken) co_return fail(Errc::overloaded, "a snapshot is being taken over");
    auto begun = std::make_shared<Incoming>();
    begun->from = from;
    begun->index = header.last_index();
    begun->term = header.last_term();
    begun->total = header.total_bytes();
    begun->handle = io->next_handle_++;
    begun->sink = std::make_unique<SnapshotSink>(io->upward_.new_load());
    begun->busy = true;
    io->incoming_ = begun;
    using Opened = Result<std::unique_ptr<env::SnapshotWriter>>;
    const auto opened = std::make_shared<std::optional<Opened>>();
    const std::function<bool()> open = [store = io->ports_.store, opened] {
      opened->emplace(store->new_snapshot());
      return true;
    };
    co_await env::offload<bool>(loop, open);
    begun->busy = false;
    if (!**opened) {
      io->incoming_.reset();
      co_return std::unexpected((**opened).error());
    }
    begun->data = std::move(***opened);
  }
  const std::shared_ptr<Incoming> in = io->incoming_;
  if (!in || in->busy || in->taken || in->from != from || in->index != header.last_index() ||
      in->term != header.last_term() || in->total != header.total_bytes() || in->at != header.part_offset()) {
    co_return fail(Errc::malformed, "a part of a snapshot out of order");
  }
  in->busy = true;
  Status done = in->sink->add(part.span());
  if (done) {
    const std::function<Status()> add = [data = in->data, part] { return data->add(part.span()); };
    done = co_await env::offload<Status>(loop, add);
  }
  in->busy = false;
  if (io->closing_) co_return closing();
  if (io->incoming_ != in) co_return fail(Errc::unavailable, "another snapshot has come");
  if (!done) {
    io->incoming_.reset();
    co_return done;
  }
  in->at += part.size();
  if (in->at < in->total) co_return Status{};

  auto decoded = decode_snapshot(from, header, in->handle);
  if (!decoded) {
    io->incoming_.reset();
    co_return std::unexpected(decoded.error());
  }
  const std::string address = raft_address(from);
  decoded->message.server_address = address.c_str();
  if (Status s = io->admissible(decoded->message); !s) {
    io->incoming_.reset();
    co_return s;
  }
  io->hand_up(*decoded->release());
  const bool wanted = in->taken;
  if (!wanted && io->incoming_ == in) io->incoming_.reset();
  io->upward_.after_event();
  if (!wanted) co_return fail(Errc::overloaded, "the snapshot is not wanted now");
  co_return Status{};
}

}  // namespace holo::driver
