#include <gtest/gtest.h>

#include "core/control/state_testing.h"

namespace holo::control {
namespace {

using testing::info;
using testing::Rig;

Bytes all_of(env::StateCut& cut, std::size_t limit) {
  Bytes out;
  for (;;) {
    const auto piece = cut.next(limit);
    EXPECT_TRUE(piece);
    if (!piece || piece->empty()) return out;
    EXPECT_LE(piece->size(), limit);
    out.insert(out.end(), piece->begin(), piece->end());
  }
}

wire::CommandResult put(Rig& rig, const std::string& key, const std::string& value) {
  wire::CommandBody b;
  auto* p = b.mutable_kv()->add_then()->mutable_put();
  p->set_key(key);
  p->set_value(value);
  return rig.send(b);
}

class StateStream : public ::testing::Test {
 protected:
  StateStream() {
    rig_.cluster(3);
    for (int i = 0; i < 3000; ++i) put(rig_, "k" + std::to_string(i % 2000), std::string(100, 'v'));
  }
  Rig rig_;
};

TEST_F(StateStream, BringsBackTheWholeStateInPiecesOfAnySize) {
  const Bytes whole = all_of(*rig_.state.cut(), 100'000);
  EXPECT_EQ(all_of(*rig_.state.cut(), 777), whole) << "equal states, equal streams";
  for (const std::size_t step : {whole.size(), std::size_t{1000}, std::size_t{7}}) {
    State copy;
    const auto load = copy.load();
    for (std::size_t at = 0; at < whole.size(); at += step) {
      ASSERT_TRUE(load->add(ByteSpan(whole).subspan(at, std::min(step, whole.size() - at))));
    }
    ASSERT_TRUE(load->finish(rig_.state.applied()));
    EXPECT_EQ(copy.snapshot(), rig_.state.snapshot());
    EXPECT_EQ(copy.applied(), rig_.state.applied());
  }
}

TEST_F(StateStream, IsOfTheMomentAtWhichItBegan) {
  const Bytes before = rig_.state.snapshot();
  const LogIndex index = rig_.state.applied();
  const auto cut = rig_.state.cut();
  State copy;
  const auto load = copy.load();
  for (int i = 0;; ++i) {
    const auto piece = cut->next(20'000);
    ASSERT_TRUE(piece);
    if (piece->empty()) break;
    ASSERT_TRUE(load->add(*piece));
    put(rig_, "k" + std::to_string(i * 37 % 2500), "changed");
    rig_.join(static_cast<std::uint64_t>(10 + i));
  }
  ASSERT_TRUE(load->finish(index));
  EXPECT_EQ(copy.snapshot(), before);
}

TEST_F(StateStream, WhatIsCutShortOrDamagedChangesNothing) {
  const Bytes whole = all_of(*rig_.state.cut(), 100'000);
  State other;
  const auto refused = [&](Bytes bytes) {
    const auto load = other.load();
    const Status added = load->add(bytes);
    if (!added) return added.error().code == Errc::corrupt;
    const Status s = load->finish(LogIndex{9});
    return !s && s.error().code == Errc::corrupt && other.applied() == LogIndex{};
  };
  for (const std::size_t cut : {std::size_t{0}, std::size_t{1}, std::size_t{10}, whole.size() / 2, whole.size() - 1}) {
    EXPECT_TRUE(refused(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(cut)))) << cut;
  }
  Bytes longer = whole;
  longer.insert(longer.end(), whole.begin(), whole.end());
  EXPECT_TRUE(refused(longer));
  Bytes huge(8, std::byte{0xff});
  EXPECT_TRUE(refused(huge));
}

TEST_F(StateStream, EndsWhenTheStateIsReplaced) {
  const auto cut = rig_.state.cut();
  ASSERT_TRUE(cut->next(10));
  ASSERT_TRUE(rig_.state.restore(LogIndex{}, {}));
  Result<Bytes> piece = Bytes(1);
  for (int i = 0; i < 1000 && piece && !piece->empty(); ++i) piece = cut->next(1000);
  ASSERT_FALSE(piece) << "never a stream that only looks whole";
  EXPECT_EQ(piece.error().code, Errc::cancelled);
}

}  // namespace
}  // namespace holo::control
