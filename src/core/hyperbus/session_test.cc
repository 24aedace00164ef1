// Two sessions back to back in memory: what they promise, and what hostile or broken peers cannot do.
#include "core/hyperbus/session.h"

#include <gtest/gtest.h>

#include "core/hyperbus/test_support.h"

namespace holo::hyperbus {
namespace {

using testing::config_of;
using testing::End;
using testing::joined;
using testing::Link;
using testing::pattern;
using testing::session_config;

env::Request request_of(std::uint16_t type, std::string header, Bytes payload = {}) {
  env::Request out{.type = type, .header = std::move(header)};
  if (!payload.empty()) out.payload.emplace_back(std::move(payload));
  return out;
}

TEST(Session, BothSidesLearnWhoTheOtherIs) {
  Link link;
  link.settle();
  const auto* at_dialler = link.dialler.only<Established>();
  const auto* at_listener = link.listener.only<Established>();
  ASSERT_TRUE(at_dialler && at_listener);
  EXPECT_EQ(at_dialler->peer, testing::identity_of(2).node());
  EXPECT_EQ(at_listener->peer, testing::identity_of(1).node());
  EXPECT_EQ(at_dialler->handshake_hash, at_listener->handshake_hash);
  EXPECT_EQ(at_dialler->version, kNewestVersion);
  EXPECT_TRUE(link.dialler.session.established() && link.listener.session.established());
}

TEST(Session, CarriesARequestAndItsReply) {
  Link link;
  // Asked before the handshake: it waits.
  const Bytes payload = pattern(300'000);
  const auto stream = link.dialler.session.request(link.now, StreamClass::data, request_of(7, "header", payload),
                                                   link.now + seconds(3));
  ASSERT_TRUE(stream);
  link.settle();
  auto* arrived = link.listener.only<RequestArrived>();
  ASSERT_TRUE(arrived);
  EXPECT_EQ(arrived->request.type, 7);
  EXPECT_EQ(arrived->request.header, "header");
  EXPECT_EQ(arrived->klass, StreamClass::data);
  EXPECT_EQ(arrived->time_left, seconds(3));
  ASSERT_EQ(arrived->request.payload.size(), 1U);
  EXPECT_EQ(joined(arrived->request.payload), payload);

  env::Reply reply{.header = "answer", .payload = {Buffer(pattern(10, 2)), Buffer(pattern(70'000, 3)), Buffer(pattern(5, 4))}};
  const Bytes expected = joined(reply.payload);
  link.listener.session.reply(arrived->stream, std::move(reply));
  link.settle();
  auto* answer = link.dialler.only<ReplyArrived>();
  ASSERT_TRUE(answer && answer->result);
  EXPECT_EQ(answer->stream, *stream);
  EXPECT_EQ(answer->result->header, "answer");
  EXPECT_EQ(joined(answer->result->payload), expected);
  EXPECT_EQ(link.dialler.session.class_status(StreamClass::data).in_flight, 0U);
  EXPECT_EQ(link.listener.session.class_status(StreamClass::data).serving, 0U);
}

}  // namespace
}  // namespace holo::hyperbus
