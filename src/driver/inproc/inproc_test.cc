// Streams between loops of one process: order, backpressure, ends; on one thread and across two.
#include "driver/inproc/inproc.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/random.h"
#include "driver/posix/asio_loop.h"

namespace holo::driver {
namespace {

constexpr Duration kLimit = seconds(20);

Bytes pattern(std::size_t n, std::uint64_t seed) {
  Bytes out(n);
  Random random(seed);
  for (std::byte& b : out) b = static_cast<std::byte>(random.next());
  return out;
}
std::vector<Buffer> one(Bytes bytes) {
  std::vector<Buffer> out;
  out.emplace_back(std::move(bytes));
  return out;
}

/// One end, and what it saw.
struct End {
  std::unique_ptr<env::ByteStream> stream;
  Bytes received;
  int closed = 0, writable = 0;

  void take(std::unique_ptr<env::ByteStream> s) {
    stream = std::move(s);
    stream->start({.on_bytes = [this](ByteSpan b) { received.insert(received.end(), b.begin(), b.end()); },
                   .on_writable = [this] { ++writable; },
                   .on_closed = [this](const Error&) { ++closed; }});
  }
};

Task<void> dial_into(env::Carrier& carrier, std::string address, std::optional<Error>& error, End& end) {
  auto dialled = co_await carrier.dial(std::move(address), kNever);
  if (dialled) {
    end.take(std::move(*dialled));
  } else {
    error = dialled.error();
  }
}

class InprocTest : public testing::Test {
 protected:
  void connect() {
    auto listening = carrier_.listen("", [this](std::unique_ptr<env::ByteStream> s) { far_.take(std::move(s)); });
    ASSERT_TRUE(listening);
    listener_ = std::move(*listening);
    loop_.spawn(dial_into(carrier_, listener_->address(), error_, near_));
    ASSERT_TRUE(until([this] { return near_.stream && far_.stream; }));
  }
  bool until(const std::function<bool()>& done) { return loop_.run_until(done, kLimit); }

  InprocNetwork network_;
  AsioLoop loop_;
  InprocCarrier carrier_{network_, loop_};
  std::unique_ptr<env::Listener> listener_;
  End near_, far_;
  std::optional<Error> error_;
};

TEST_F(InprocTest, BytesArriveInOrderBothWays) {
  connect();
  const Bytes a = pattern(3'000'000, 1), b = pattern(700'000, 2);
  near_.stream->write(one(a));
  for (std::size_t at = 0; at < b.size(); at += 7000) {
    far_.stream->write(one(Bytes(b.begin() + static_cast<std::ptrdiff_t>(at),
                                 b.begin() + static_cast<std::ptrdiff_t>(std::min(at + 7000, b.size())))));
  }
  ASSERT_TRUE(until([&] { return far_.received.size() == a.size() && near_.received.size() == b.size(); }));
  EXPECT_TRUE(far_.received == a && near_.received == b);
  EXPECT_EQ(near_.stream->peer_address(), listener_->address());
}

TEST_F(InprocTest, AReaderThatPausesHoldsTheWriterBack) {
  connect();
  ASSERT_TRUE(until([this] { return near_.writable == 1; }));
  far_.stream->pause();
  near_.stream->write(one(Bytes(env::ByteStream::kHighWater)));
  loop_.post([this] { loop_.post([this] { far_.received.push_back(std::byte{0}); }); });
  ASSERT_TRUE(until([this] { return !far_.received.empty(); }));
  EXPECT_EQ(far_.received.size(), 1U);  // the mark of this test, and nothing else
  EXPECT_EQ(near_.stream->backlog(), env::ByteStream::kHighWater);
  EXPECT_EQ(near_.writable, 1);
  far_.stream->resume();
  ASSERT_TRUE(until([this] { return near_.writable == 2; }));
  EXPECT_LE(near_.stream->backlog(), env::ByteStream::kLowWater);
}

TEST_F(InprocTest, WhatWasWrittenBeforeTheEndArrivesBeforeIt) {
  connect();
  near_.stream->write(one(Bytes(900'000)));
  near_.stream->close();
  near_.stream.reset();
  ASSERT_TRUE(until([this] { return far_.closed == 1; }));
  EXPECT_EQ(far_.received.size(), 900'000U);
  far_.stream->write(one(Bytes(10)));  // for nobody
  far_.stream.reset();
  EXPECT_EQ(near_.closed, 0);
  EXPECT_EQ(far_.closed, 1);
}

TEST_F(InprocTest, AStreamMayGoFromItsOwnCallback) {
  connect();
  far_.stream.reset();
  ASSERT_TRUE(until([this] { return near_.closed == 1; }));
  End again;
  auto listening = carrier_.listen("", [&again](std::unique_ptr<env::ByteStream> s) {
    again.stream = std::move(s);
    again.stream->start({.on_bytes = [&again](ByteSpan) { again.stream.reset(); },
                         .on_writable = [] {},
                         .on_closed = [&again](const Error&) { ++again.closed; }});
  });
  End other;
  loop_.spawn(dial_into(carrier_, (*listening)->address(), error_, other));
  ASSERT_TRUE(until([&] { return other.stream && again.stream; }));
  other.stream->write(one(Bytes(600'000)));
  ASSERT_TRUE(until([&] { return other.closed == 1; }));
  EXPECT_FALSE(again.stream);
  EXPECT_EQ(again.closed, 0);
}

TEST_F(InprocTest, NobodyThere) {
  loop_.spawn(dial_into(carrier_, "inproc:99", error_, near_));
  ASSERT_TRUE(until([this] { return error_.has_value(); }));
  EXPECT_EQ(error_->code, Errc::unavailable);
  error_.reset();
  connect();
  const std::string address = listener_->address();
  listener_.reset();
  End late;
  loop_.spawn(dial_into(carrier_, address, error_, late));
  ASSERT_TRUE(until([this] { return error_.has_value(); }));
}

TEST_F(InprocTest, AListenerThatGoesWhileItIsDialledClosesTheDialler) {
  auto listening = carrier_.listen("", [](std::unique_ptr<env::ByteStream>) { FAIL() << "it is gone"; });
  loop_.spawn(dial_into(carrier_, (*listening)->address(), error_, near_));
  ASSERT_TRUE(near_.stream);
  listening->reset();
  ASSERT_TRUE(until([this] { return near_.closed == 1; }));
}

/// Two loops on two threads, the far one ends first.
TEST(InprocThreads, TwoThreadsTalkAndOneGoes) {
  InprocNetwork network;
  AsioLoop near_loop;
  InprocCarrier near_carrier(network, near_loop);
  End near;
  std::optional<Error> error;
  std::atomic<bool> listening = false, enough = false;
  std::string address;
  std::thread far([&] {
    AsioLoop loop;
    InprocCarrier carrier(network, loop);
    std::unique_ptr<env::ByteStream> stream;
    auto listener = carrier.listen("", [&](std::unique_ptr<env::ByteStream> s) {
      stream = std::move(s);
      stream->start({.on_bytes = [&](ByteSpan b) { stream->write({Buffer::copy(b)}); },
                     .on_writable = [] {},
                     .on_closed = [](const Error&) {}});
    });
    address = (*listener)->address();
    listening = true;
    EXPECT_TRUE(loop.run_until([&] { return enough.load(); }, kLimit));
  });
  while (!listening) std::this_thread::yield();
  near_loop.spawn(dial_into(near_carrier, address, error, near));
  ASSERT_TRUE(near_loop.run_until([&] { return near.stream != nullptr; }, kLimit));
  Bytes sent;
  for (std::uint64_t i = 0; i < 200; ++i) {
    Bytes part = pattern(1 + i * 331, i);
    sent.insert(sent.end(), part.begin(), part.end());
    near.stream->write(one(std::move(part)));
  }
  EXPECT_TRUE(near_loop.run_until([&] { return near.received.size() == sent.size(); }, kLimit));
  EXPECT_TRUE(near.received == sent);
  enough = true;
  far.join();
  EXPECT_TRUE(near_loop.run_until([&] { return near.closed == 1; }, kLimit));
  near.stream->write(one(Bytes(10)));
}

}  // namespace
}  // namespace holo::driver
