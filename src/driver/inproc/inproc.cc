#include "driver/inproc/inproc.h"

#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "base/strings.h"

namespace holo::driver {

/// A loop that may be gone when another thread has something for it.
struct InprocLoop {
  std::mutex mutex;
  env::Loop* loop = nullptr;

  void post(std::function<void()> f) {
    const std::lock_guard lock(mutex);
    if (loop != nullptr) loop->post(std::move(f));
  }
};

namespace {

using env::ByteStream;
using LoopPtr = std::shared_ptr<InprocLoop>;
using OnAccept = std::function<void(std::unique_ptr<ByteStream>)>;

/// Delivered in one turn at most, so that timers and other streams get theirs.
constexpr std::size_t kTurnBytes = 256 << 10;

Error closed_error() { return {.code = Errc::unavailable, .message = "the other side closed the connection"}; }

struct Half;

/// One direction. `mutex` guards all of it.
struct Pipe {
  std::mutex mutex;
  std::deque<Bytes> chunks;
  std::size_t bytes = 0;
  bool closed = false;     // by the writer: after what is there nothing follows
  bool abandoned = false;  // by the reader: what is written is for nobody
  bool above_low = false;  // the writer waits for on_writable
  bool scheduled = false;  // the reader has been told
};

/// One side of a stream. Its own loop alone touches it, but for `pipes` and `loop`.
struct Half {
  LoopPtr loop;
  std::shared_ptr<Pipe> in, out;
  std::weak_ptr<Half> other;
  std::string peer_address;
  ByteStream::Handlers handlers;
  bool open = true;
  bool started = false;
  bool paused = false;
};
using HalfPtr = std::shared_ptr<Half>;

void deliver(const HalfPtr& half);

void tell_reader(const Half& writer) {
  const HalfPtr reader = writer.other.lock();
  if (reader) reader->loop->post([reader] { deliver(reader); });
}

void tell_writer(const Half& reader) {
  const HalfPtr writer = reader.other.lock();
  if (!writer) return;
  writer->loop->post([writer] {
    if (writer->open && writer->started) writer->handlers.on_writable();
  });
}

/// Hands over what has arrived. On the reader's loop.
void deliver(const HalfPtr& half) {
  std::deque<Bytes> chunks;
  bool more = false, ended = false, room = false;
  {
    Pipe& pipe = *half->in;
    const std::lock_guard lock(pipe.mutex);
    pipe.scheduled = false;
    if (!half->open || !half->started || half->paused) return;
    for (std::size_t taken = 0; !pipe.chunks.empty() && taken < kTurnBytes; pipe.chunks.pop_front()) {
      taken += pipe.chunks.front().size();
      pipe.bytes -= pipe.chunks.front().size();
      chunks.push_back(std::move(pipe.chunks.front()));
    }
    more = !pipe.chunks.empty();
    ended = pipe.closed && !more;
    room = pipe.above_low && pipe.bytes <= ByteStream::kLowWater;
    if (room) pipe.above_low = false;
    pipe.scheduled = more;
  }
  if (room) tell_writer(*half);
  if (more) half->loop->post([half] { deliver(half); });
  for (const Bytes& chunk : chunks) {
    if (!half->open) return;
    // A pause from inside holds back what comes later, not what is being handed over.
    half->handlers.on_bytes(chunk);
  }
  if (ended && half->open) {
    half->open = false;
    const auto on_closed = std::move(half->handlers.on_closed);
    on_closed(closed_error());
  }
}

class InprocStream final : public ByteStream {
 public:
  explicit InprocStream(HalfPtr half) : half_(std::move(half)) {}
  ~InprocStream() override { close(); }
  InprocStream(const InprocStream&) = delete;
  InprocStream& operator=(const InprocStream&) = delete;

  void start(Handlers handlers) override {
    half_->handlers = std::move(handlers);
    half_->started = true;
    half_->loop->post([half = half_] {
      if (half->open) half->handlers.on_writable();
      deliver(half);
    });
  }
  void write(std::vector<Buffer> parts) override {
    // Copied: whoever made the buffers takes them back on this thread.
    Bytes joined;
    for (const Buffer& part : parts) joined.insert(joined.end(), part.span().begin(), part.span().end());
    if (joined.empty()) return;
    Pipe& pipe = *half_->out;
    const std::lock_guard lock(pipe.mutex);
    if (pipe.abandoned || pipe.closed) return;
    pipe.bytes += joined.size();
    pipe.above_low = pipe.above_low || pipe.bytes > kLowWater;
    pipe.chunks.push_back(std::move(joined));
    if (!std::exchange(pipe.scheduled, true)) tell_reader(*half_);
  }
  std::size_t backlog() const override {
    const std::lock_guard lock(half_->out->mutex);
    return half_->out->bytes;
  }
  void pause() override { half_->paused = true; }
  void resume() override {
    half_->paused = false;
    half_->loop->post([half = half_] { deliver(half); });
  }
  void close() override {
    if (std::exchange(closed_, true)) return;
    half_->open = false;
    {
      const std::lock_guard lock(half_->in->mutex);
      half_->in->abandoned = true;
      half_->in->chunks.clear();
      half_->in->bytes = 0;
    }
    const std::lock_guard lock(half_->out->mutex);
    half_->out->closed = true;
    if (!std::exchange(half_->out->scheduled, true)) tell_reader(*half_);
  }
  std::string peer_address() const override { return half_->peer_address; }

 private:
  HalfPtr half_;
  bool closed_ = false;
};

struct Door {
  LoopPtr loop;
  OnAccept on_accept;
  bool open = true;  // on its own loop
};

}  // namespace

struct InprocRegistry {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Door>> doors;
  std::uint64_t next = 1;
};

namespace {

class InprocListener final : public env::Listener {
 public:
  InprocListener(std::shared_ptr<InprocRegistry> registry, std::shared_ptr<Door> door, std::string address)
      : registry_(std::move(registry)), door_(std::move(door)), address_(std::move(address)) {}
  ~InprocListener() override {
    door_->open = false;
    const std::lock_guard lock(registry_->mutex);
    registry_->doors.erase(address_);
  }
  InprocListener(const InprocListener&) = delete;
  InprocListener& operator=(const InprocListener&) = delete;
  std::string address() const override { return address_; }
  std::uint64_t turned_away() const override { return 0; }

 private:
  std::shared_ptr<InprocRegistry> registry_;
  std::shared_ptr<Door> door_;
  std::string address_;
};

}  // namespace

InprocNetwork::InprocNetwork() : registry_(std::make_shared<InprocRegistry>()) {}
InprocNetwork::~InprocNetwork() = default;

InprocCarrier::InprocCarrier(const InprocNetwork& network, env::Loop& loop)
    : registry_(network.registry_), loop_(std::make_shared<InprocLoop>()) {
  loop_->loop = &loop;
}

InprocCarrier::~InprocCarrier() {
  const std::lock_guard lock(loop_->mutex);
  loop_->loop = nullptr;
}

Task<Result<std::unique_ptr<ByteStream>>> InprocCarrier::dial(std::string address, Instant) {
  std::shared_ptr<Door> door;
  {
    const std::lock_guard lock(registry_->mutex);
    if (const auto found = registry_->doors.find(address); found != registry_->doors.end()) door = found->second;
  }
  if (!door) co_return fail(Errc::unavailable, str("nobody listens at ", address));
  const auto near = std::make_shared<Half>();
  const auto far = std::make_shared<Half>();
  near->loop = loop_;
  far->loop = door->loop;
  near->in = far->out = std::make_shared<Pipe>();
  near->out = far->in = std::make_shared<Pipe>();
  near->other = far;
  far->other = near;
  near->peer_address = address;
  far->peer_address = "inproc:0";
  // The far half lives in its stream from the start: when nobody takes it, its end closes this one.
  auto accepted = std::make_shared<std::unique_ptr<ByteStream>>(std::make_unique<InprocStream>(far));
  door->loop->post([door, accepted] {
    if (door->open) door->on_accept(std::move(*accepted));
  });
  accepted.reset();
  co_return std::unique_ptr<ByteStream>(std::make_unique<InprocStream>(near));
}

Result<std::unique_ptr<env::Listener>> InprocCarrier::listen(std::string, OnAccept on_accept) {
  auto door = std::make_shared<Door>();
  door->loop = loop_;
  door->on_accept = std::move(on_accept);
  const std::lock_guard lock(registry_->mutex);
  std::string address = str("inproc:", registry_->next++);
  registry_->doors.emplace(address, door);
  return std::make_unique<InprocListener>(registry_, std::move(door), std::move(address));
}

}  // namespace holo::driver
