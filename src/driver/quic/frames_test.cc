#include "driver/quic/frames.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace holo::driver::quic {
namespace {

Bytes bytes(std::initializer_list<int> values) {
  Bytes out;
  for (const int v : values) out.push_back(static_cast<std::byte>(v));
  return out;
}

const Bytes kStop = bytes({0x05, 0x40, 0x44, 0x80, 0x00, 0x01, 0x00});  // stream 68, code 256

std::vector<StopSending> found_in(ByteSpan payload) {
  FoundFrames out;
  find_frames(payload, out);
  return out.stops;
}

/// One of every kind in RFC 9000, section 19, but for STREAM without a length, which is always the last.
TEST(Frames, StopSendingIsFoundBehindAllOthers) {
  const std::vector<Bytes> kinds = {
      bytes({0x00, 0x00, 0x00}),                                            // PADDING
      bytes({0x01}),                                                        // PING
      bytes({0x02, 0x41, 0x05, 0x10, 0x02, 0x05, 0x01, 0x05, 0x01, 0x05}),  // ACK with two more ranges
      bytes({0x03, 0x05, 0x05, 0x01, 0x05, 0x05, 0x05, 0x05, 0x05, 0x05}),  // ACK with ECN
      bytes({0x04, 0x05, 0x05, 0x05}),                                      // RESET_STREAM
      bytes({0x06, 0x05, 0x02, 0x05, 0x05}),                                // CRYPTO
      bytes({0x07, 0x02, 0x05, 0x05}),                                      // NEW_TOKEN
      bytes({0x0a, 0x05, 0x03, 0x05, 0x05, 0x05}),                          // STREAM
      bytes({0x0f, 0x05, 0x05, 0x03, 0x05, 0x05, 0x05}),                    // STREAM with an offset, the end
      bytes({0x0b, 0x05, 0x00}),                                            // STREAM, nothing but the end
      bytes({0x10, 0x05}),                                                  // MAX_DATA
      bytes({0x11, 0x05, 0x05}),                                            // MAX_STREAM_DATA
      bytes({0x12, 0x05}),                                                  // MAX_STREAMS
      bytes({0x13, 0x05}),                                                  //
      bytes({0x14, 0x05}),                                                  // DATA_BLOCKED
      bytes({0x15, 0x05, 0x05}),                                            // STREAM_DATA_BLOCKED
      bytes({0x16, 0x05}),                                                  // STREAMS_BLOCKED
      bytes({0x17, 0x05}),                                                  //
      bytes({0x18, 0x05, 0x00, 0x02, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5}),  // NEW_CONNECTION_ID
      bytes({0x19, 0x05}),                                                                    // RETIRE_CONNECTION_ID
      bytes({0x1a, 5, 5, 5, 5, 5, 5, 5, 5}),                                                  // PATH_CHALLENGE
      bytes({0x1b, 5, 5, 5, 5, 5, 5, 5, 5}),                                                  // PATH_RESPONSE
      bytes({0x1c, 0x05, 0x05, 0x02, 5, 5}),                                                  // CONNECTION_CLOSE
      bytes({0x1d, 0x05, 0x02, 5, 5}),                                                        //
      bytes({0x1e}),                                                                          // HANDSHAKE_DONE
  };
  Bytes all;
  for (const Bytes& frame : kinds) {
    Bytes payload = frame;
    payload.insert(payload.end(), kStop.begin(), kStop.end());
    EXPECT_EQ(found_in(payload), (std::vector<StopSending>{{68, 256}})) << std::to_integer<int>(frame.front());
    all.insert(all.end(), payload.begin(), payload.end());
  }
  EXPECT_EQ(found_in(all).size(), kinds.size());
  for (std::size_t n = 0; n < all.size(); ++n) EXPECT_LE(found_in(ByteSpan(all).first(n)).size(), kinds.size());
}

TEST(Frames, ContentIsNotTakenForFrames) {
  EXPECT_TRUE(found_in(bytes({0x08, 0x04, 0x05, 0x05, 0x05})).empty());        // STREAM to the end of the packet
  EXPECT_TRUE(found_in(bytes({0x0c, 0x04, 0x05, 0x05, 0x05, 0x05})).empty());  // likewise, with an offset
  EXPECT_TRUE(found_in(bytes({0x21, 0x05, 0x05, 0x05})).empty());              // unknown: the connection ends
  EXPECT_TRUE(found_in(bytes({0x05, 0x05})).empty());                          // cut short
  EXPECT_TRUE(found_in(bytes({0x07, 0x41})).empty());
  EXPECT_TRUE(found_in({}).empty());
}

TEST(Frames, ADemandToRetireIdsIsSeen) {
  Bytes frame = bytes({0x01, 0x18, 0x05, 0x00, 0x02, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 0x01});
  for (const int retire_prior_to : {0, 1, 5, 63}) {
    frame[3] = static_cast<std::byte>(retire_prior_to);
    FoundFrames found;
    find_frames(frame, found);
    EXPECT_EQ(found.retires_ids, retire_prior_to > 0) << retire_prior_to;
  }
}

TEST(Frames, RubbishIsWalkedThrough) {
  Random random(1);
  for (int i = 0; i < 20'000; ++i) {
    Bytes payload(random.below(60));
    for (std::byte& b : payload) b = static_cast<std::byte>(random.chance(1, 2) ? random.below(32) : random.next());
    EXPECT_LE(found_in(payload).size(), payload.size());
  }
}

}  // namespace
}  // namespace holo::driver::quic
