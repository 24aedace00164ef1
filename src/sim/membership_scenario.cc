#include "sim/membership_scenario.h"

#include <algorithm>
#include <chrono>

#include "base/strings.h"
#include "sim/membership_world.h"

namespace holo::sim {
namespace {

/// The first promise that does not hold, if any.
Status verdict(const MembershipWorld& w) {
  if (!w.broken().empty()) return fail(Errc::internal, w.broken());
  for (const MembershipWorld::Death& d : w.deaths()) {
    if (d.votes * 2 <= d.voters)
      return fail(Errc::internal, str("node ", d.node, " was declared dead by ", d.votes, " of ", d.voters));
    if (!d.deserved) return fail(Errc::internal, str("node ", d.node, " was declared dead and had nothing"));
  }
  return {};
}

Duration in_milliseconds(Random& r, std::uint64_t low, std::uint64_t high) {
  return milliseconds(static_cast<std::int64_t>(low + r.below(high - low + 1)));
}

/// One fault of some kind somewhere.
void strike(MembershipWorld& w, Random& random, Tally& tally) {
  const auto node = static_cast<unsigned>(random.below(w.nodes()));
  switch (random.below(8)) {
    case 0:
      w.crash(node);
      ++tally["crashes"];
      break;
    case 1:
    case 2:
      w.restart(node);
      ++tally["restarts"];
      break;
    case 3:
      w.pause(node, in_milliseconds(random, 50, 20'000));
      ++tally["pauses"];
      break;
    case 4:
      for (unsigned i = 0; i < w.nodes(); ++i) w.set_group(i, static_cast<unsigned>(random.below(2)));
      ++tally["partitions"];
      break;
    case 5:
      for (unsigned i = 0; i < w.nodes(); ++i) w.set_group(i, 0);
      ++tally["heals"];
      break;
    case 6:
      w.set_slow(node, random.chance(1, 2));
      ++tally["slow"];
      break;
    default: w.set_loss(static_cast<std::uint32_t>(random.below(51))); break;
  }
}

}  // namespace

Status run_membership(std::uint64_t seed, Tally& tally) {
  Random random(mix64(seed));
  MembershipOptions options;
  options.nodes = 3 + static_cast<unsigned>(random.chance(1, 8) ? random.below(46) : random.below(8));
  options.seed = random.next();
  options.loss_per_thousand = static_cast<std::uint32_t>(random.below(51));
  options.measure_bytes = true;
  MembershipWorld w(options);
  if (!w.run_until([&w] { return w.all_well(); }, seconds(20)))
    return fail(Errc::internal, "the members never saw each other");

  // A crash when all is well: everybody knows within the bound, and nobody else dies.
  const auto victim = static_cast<unsigned>(random.below(w.nodes()));
  if (random.chance(1, 3)) w.set_slow((victim + 1) % w.nodes(), true);
  w.run_for(seconds(5));
  if (!w.deaths().empty()) return fail(Errc::internal, "somebody died of nothing");
  w.crash(victim);
  if (!w.run_until([&] { return w.known_dead(victim); }, seconds(6))) {
    return fail(Errc::internal, str("the crash of node ", victim, " of ", w.nodes(), " is not known by all after 6 s"));
  }
  ++tally["crashes"];
  w.restart(victim);

  const Instant end = w.now() + seconds(30);
  while (w.now() < end) {
    w.run_for(in_milliseconds(random, 20, 3000));
    strike(w, random, tally);
    HOLO_TRY(verdict(w));
  }
  for (unsigned i = 0; i < w.nodes(); ++i) {
    w.set_group(i, 0);
    w.set_slow(i, false);
    w.restart(i);
  }
  w.set_loss(10);
  w.run_for(seconds(20));  // The last pause ends meanwhile.
  if (!w.run_until([&w] { return w.all_well(); }, seconds(60)))
    return fail(Errc::internal, "all is not well a minute after the last fault");
  const std::size_t deaths = w.deaths().size();
  w.run_for(seconds(10));
  if (w.deaths().size() != deaths) return fail(Errc::internal, "somebody died after the faults had ended");
  HOLO_TRY(verdict(w));
  tally["deaths"] += deaths;
  tally["false suspicions"] += w.false_suspicions();
  tally["messages"] += w.messages();
  tally["trace"] ^= w.trace() & 0xFFFFFF;
  return {};
}

void print_membership_table(unsigned trials, std::uint64_t seed) {
  std::printf(
      "| nodes | loss | slow members | crash known by all: p50 | max | deaths of healthy members | suspicions taken "
      "back, per node and hour "
      "| messages per node and s | bytes per node and s |\n|---|---|---|---|---|---|---|---|---|\n");
  for (const unsigned nodes : {4U, 16U, 64U, 256U, 1000U}) {
    for (const auto& [loss, slow] : {std::pair{0U, false}, {10U, false}, {50U, false}, {10U, true}}) {
      MembershipOptions options;
      options.nodes = nodes;
      options.seed = seed;
      options.loss_per_thousand = loss;
      options.measure_bytes = true;
      MembershipWorld w(options);
      const unsigned slow_members = slow ? std::max(1U, nodes / 10) : 0;
      for (unsigned i = 0; i < slow_members; ++i) w.set_slow(nodes - 1 - i * (nodes / slow_members), true);
      (void)w.run_until([&w] { return w.all_well(); }, seconds(30));
      w.run_for(seconds(5));
      const auto messages = w.messages(), bytes = w.bytes();
      const auto suspicions = w.false_suspicions();
      const Duration calm = seconds(20);
      w.run_for(calm);
      const double per = static_cast<double>(nodes) * calm.seconds();
      const double message_rate = static_cast<double>(w.messages() - messages) / per;
      const double byte_rate = static_cast<double>(w.bytes() - bytes) / per;
      const double suspicion_rate = static_cast<double>(w.false_suspicions() - suspicions) / per * 3600;
      Random random(seed);
      std::vector<double> took;
      unsigned missed = 0;
      for (unsigned t = 0; t < trials; ++t) {
        const auto victim = static_cast<unsigned>(random.below(nodes));
        w.run_for(in_milliseconds(random, 4000, 4400));
        const Instant from = w.now();
        w.crash(victim);
        if (w.run_until([&] { return w.known_dead(victim); }, seconds(30))) {
          took.push_back((w.now() - from).seconds());
        } else {
          ++missed;
        }
        w.restart(victim);
      }
      const auto wrong = std::ranges::count_if(w.deaths(), [](const auto& d) { return !d.deserved; });
      std::sort(took.begin(), took.end());
      if (took.empty()) took.push_back(0);
      std::printf("| %u | %.0f %% | %s | %.2f s | %.2f s%s | %ld | %.2f | %.1f | %.0f |\n", nodes, loss / 10.0,
                  slow_members == 0 ? "none" : str(slow_members, " at 10 %").c_str(), took[took.size() / 2],
                  took.back(), missed == 0 ? "" : str(" (", missed, " not within 30 s)").c_str(),
                  static_cast<long>(wrong), suspicion_rate, message_rate, byte_rate);
      std::fflush(stdout);
    }
  }
}

bool run_membership_days(unsigned days, std::uint64_t seed) {
  MembershipOptions options;
  options.nodes = 5;
  options.seed = seed;
  options.loss_per_thousand = 10;
  MembershipWorld w(options);
  w.set_slow(4, true);
  const auto from = std::chrono::steady_clock::now();
  for (unsigned hour = 0; hour < days * 24; ++hour) w.run_for(seconds(3600));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - from;
  const double simulated = days * 86400.0;
  std::printf(
      "%u days, 5 members, 1 %% loss, one member at 10 %%: %zu deaths, %llu suspicions taken back, %llu messages; %.0f "
      "s, %.0f : 1\n",
      days, w.deaths().size(), static_cast<unsigned long long>(w.false_suspicions()),
      static_cast<unsigned long long>(w.messages()), took.count(), simulated / took.count());
  return w.deaths().empty();
}

}  // namespace holo::sim
