// Credits over packets: whoever counts right is never refused and never stuck, whatever the network does.
#include <gtest/gtest.h>

#include <set>

#include "base/strings.h"
#include "driver/quic/quic.h"
#include "env/entropy_testing.h"
#include "sim/datagrams.h"
#include "sim/packet_host.h"

namespace holo::sim {
namespace {

using env::StreamClass;
using hyperbus::StreamId;
using LinkPtr = PacketHost::LinkPtr;

struct Machine {
  SimLoop loop;
  env::testing::SeededEntropy entropy;
  std::unique_ptr<env::Datagrams> datagrams;
  PacketHost host;
  Machine(World& world, DatagramNetwork& network, env::QuicStack& stack, std::uint8_t who,
          const std::shared_ptr<const hyperbus::SessionConfig>& session)
      : loop(world),
        entropy(who),
        datagrams(network.attach(str("m", int{who}), loop, {str("10.0.0.", int{who})})),
        host(loop, *datagrams, stack, entropy, {.session = session, .quic = quic_config(*session)}) {}
  ~Machine() { loop.kill(); }
};

/// Two machines, one of which asks the other for as much as it may, all the time, and changes its mind often.
class Contest {
 public:
  /// Windows are full of requests, or of bytes.
  enum class Full : std::uint8_t { of_requests, of_bytes };

  Contest(std::uint64_t seed, Full full)
      : random_(mix64(seed)),
        full_(full),
        network_(world_, mix64(seed + 1)),
        asks_(world_, network_, *stack_, 1, session(1)),
        answers_(world_, network_, *stack_, 2, session(2)) {
    LinkRules& rules = network_.defaults();
    rules.lost_per_thousand = full_ == Full::of_requests ? static_cast<std::uint32_t>(random_.below(150)) : 5;
    rules.reordered_per_thousand = static_cast<std::uint32_t>(random_.below(300));
    rules.duplicated_per_thousand = static_cast<std::uint32_t>(random_.below(100));
    asks_.host.on_event = [this](const LinkPtr&, hyperbus::Event event) { on_asking(std::move(event)); };
    answers_.host.on_event = [this](const LinkPtr& link, hyperbus::Event event) {
      on_answering(link, std::move(event));
    };
  }
  ~Contest() {
    // Whoever the world still calls finds nothing.
    asks_.loop.kill();
    answers_.loop.kill();
  }

  void play(Duration time) {
    env::IpEndpoint to;
    to.ip[10] = to.ip[11] = 0xff;
    to.ip[12] = 10;
    to.ip[15] = 2;
    to.port = 7000;
    link_ = asks_.host.dial(to);
    const Instant end = world_.now() + time;
    while (world_.now() < end && !broken()) {
      top_up();
      world_.run_until(world_.now() + milliseconds(1));
      most_served_ = std::max(most_served_, served_);
    }
    world_.run_until(world_.now() + seconds(8));
  }

  [[nodiscard]] bool broken() const { return link_->closed.has_value(); }
  [[nodiscard]] hyperbus::ClassStatus status() const { return link_->session->class_status(StreamClass::data); }
  [[nodiscard]] std::string why() const { return link_->closed ? link_->closed->error.message : std::string(); }

  static constexpr std::uint32_t kRequests = 3;
  static constexpr std::uint64_t kBytes = limits::kMaxHeaderBytes + limits::kMaxPayloadBytes;
  std::uint64_t served_ = 0, most_served_ = 0;
  std::uint64_t asked_ = 0, answered_ = 0, cancelled_ = 0, refused_ = 0, other_ = 0, waited_ = 0;

 private:
  std::shared_ptr<const hyperbus::SessionConfig> session(std::uint8_t who) {
    const auto secret = [](std::uint8_t byte) {
      std::array<std::byte, 32> bytes{};
      bytes.fill(std::byte{byte});
      return crypto::Secret<32>(bytes);
    };
    auto out = std::make_shared<hyperbus::SessionConfig>();
    out->handshake = std::make_shared<const hyperbus::HandshakeConfig>(hyperbus::HandshakeConfig{
        .identity = hyperbus::Identity::from_seed(secret(who)), .keys = {hyperbus::ClusterKey(secret(77))}});
    for (hyperbus::ClassWindow& w : out->windows) {
      w = {.requests = full_ == Full::of_requests ? kRequests : 1000, .request_bytes = kBytes, .reply_bytes = kBytes};
    }
    return out;
  }

  std::size_t some_bytes() {
    if (full_ == Full::of_bytes) return 1 + random_.below(6 << 20);
    return random_.below(random_.chance(1, 5) ? 60'000 : 2'000);
  }

  void top_up() {
    if (!link_->session) return;
    while (calls_.size() < 4 * kRequests) {
      env::Request request{.type = 7, .header = "q"};
      if (const std::size_t bytes = some_bytes(); bytes > 0) request.payload.emplace_back(Bytes(bytes));
      const Instant now = asks_.loop.now();
      const auto patience =
          random_.chance(1, 4) ? microseconds(static_cast<std::int64_t>(random_.below(5'000))) : Duration(seconds(5));
      const auto id =
          link_->session->request(now, StreamClass::data, std::move(request), now + patience + nanoseconds(1));
      ASSERT_TRUE(id);
      calls_.insert(id->value);
      ++asked_;
      if (random_.chance(1, 3)) {
        asks_.loop.call_at(now + microseconds(static_cast<std::int64_t>(random_.below(4'000))), [this, one = *id] {
          if (!link_->session) return;
          link_->session->cancel(one, {.code = Errc::cancelled});
          asks_.host.pump(link_);
        });
      }
    }
    if (status().queued > 0) ++waited_;
    asks_.host.pump(link_);
  }

  void on_asking(hyperbus::Event event) {
    const auto* reply = std::get_if<hyperbus::ReplyArrived>(&event);
    if (reply == nullptr) return;
    EXPECT_EQ(calls_.erase(reply->stream.value), 1U) << "a request ends once";
    if (reply->result) {
      ++answered_;
    } else if (reply->result.error().code == Errc::cancelled || reply->result.error().code == Errc::deadline_exceeded) {
      ++cancelled_;
    } else {
      ++(reply->result.error().code == Errc::overloaded ? refused_ : other_);
    }
  }

  void on_answering(const LinkPtr& link, hyperbus::Event event) {
    if (auto* arrived = std::get_if<hyperbus::RequestArrived>(&event)) {
      ++served_;
      working_.insert(arrived->stream.value);
      env::Reply reply{.header = "a"};
      if (const std::size_t bytes = some_bytes(); bytes > 0) reply.payload.emplace_back(Bytes(bytes));
      auto held = std::make_shared<env::Reply>(std::move(reply));
      const auto work = microseconds(static_cast<std::int64_t>(random_.below(random_.chance(1, 3) ? 4'000 : 50)));
      answers_.loop.call_at(answers_.loop.now() + work,
                            [this, link, id = arrived->stream, held] { finish(link, id, std::move(*held)); });
    } else if (const auto* cancelled = std::get_if<hyperbus::RequestCancelled>(&event)) {
      finish(link, cancelled->stream, fail(Errc::cancelled, "nobody wants it"));
    }
  }
  void finish(const LinkPtr& link, StreamId id, Result<env::Reply> reply) {
    if (!link->session || working_.erase(id.value) == 0) return;
    --served_;
    link->session->reply(id, std::move(reply));
    // Not now: it may be within what drains the events.
    answers_.loop.post([this, link] { answers_.host.pump(link); });
  }

  Random random_;
  Full full_;
  World world_;
  DatagramNetwork network_;
  std::unique_ptr<env::QuicStack> stack_ = driver::quic::make_stack();
  Machine asks_, answers_;
  LinkPtr link_;
  std::set<std::uint64_t> calls_;
  std::set<std::uint64_t> working_;
};

/// Credit is what is under way, counted by both sides alike: to the last slot and byte, and no further.
void check(const Contest& contest, std::uint64_t seed, std::uint64_t slots) {
  ASSERT_FALSE(contest.broken()) << "seed " << seed << ": " << contest.why();
  EXPECT_EQ(contest.refused_, 0U) << "seed " << seed;
  EXPECT_EQ(contest.other_, 0U) << "seed " << seed;
  EXPECT_EQ(contest.answered_ + contest.cancelled_, contest.asked_) << "seed " << seed;
  EXPECT_GT(contest.answered_, 0U) << "seed " << seed;
  EXPECT_GT(contest.waited_, 0U) << "seed " << seed << ": the window was never full";
  EXPECT_EQ(contest.status().request_credit, slots) << "seed " << seed << ": slots that never came back";
  EXPECT_EQ(contest.status().byte_credit, Contest::kBytes) << "seed " << seed << ": bytes that never came back";
  EXPECT_EQ(contest.served_, 0U) << "seed " << seed;
}

TEST(Credits, AFullWindowOfRequestsIsNeverExceededAndNeverStuck) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    Contest contest(seed, Contest::Full::of_requests);
    contest.play(seconds(2));
    check(contest, seed, Contest::kRequests);
    EXPECT_LE(contest.most_served_, Contest::kRequests);
  }
}

TEST(Credits, AFullWindowOfBytesIsNeverExceededAndNeverStuck) {
  for (std::uint64_t seed = 1; seed <= 1; ++seed) {
    Contest contest(seed, Contest::Full::of_bytes);
    contest.play(milliseconds(60));
    check(contest, seed, 1000);
  }
}

}  // namespace
}  // namespace holo::sim
