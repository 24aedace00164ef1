#include "node/health.h"

#include <algorithm>
#include <vector>

#include "base/log.h"

namespace holo::node {
namespace {

constexpr Duration kTick = milliseconds(500);  // A timer whose lateness is that of the loop.
constexpr Duration kSlack = milliseconds(100);

}  // namespace

struct HealthService::Impl {
  using Self = std::shared_ptr<Impl>;
  explicit Impl(Ports p) : ports(std::move(p)) {}

  Ports ports;
  bool stopped = false;
  std::vector<membership::HealthSample> samples;
  membership::Health health;

  static Task<void> watch(Self me) {
    std::uint64_t unanswered = me->ports.unanswered ? me->ports.unanswered() : 0;
    for (;;) {
      membership::HealthSample sample;
      for (Duration spent{}; spent < kSampleEvery; spent = spent + kTick) {
        const Instant due = me->ports.loop->now() + kTick;
        const bool going_on = co_await env::sleep_until(*me->ports.loop, due, kSlack);
        if (!going_on || me->stopped) co_return;
        sample.late = std::max(sample.late, me->ports.loop->now() - due - kSlack);
      }
      if (me->ports.look) {
        const auto seen = co_await env::offload<env::MachineReading>(*me->ports.loop, me->ports.look);
        if (me->stopped) co_return;
        sample.memory_pressure = seen.memory_pressure;
        sample.memory_available = seen.memory_available;
        sample.heat = seen.heat;
        sample.disk_failing = seen.disk_failing;
      }
      const std::uint64_t now = me->ports.unanswered ? me->ports.unanswered() : 0;
      sample.unanswered = static_cast<std::uint32_t>(std::min<std::uint64_t>(now - std::min(now, unanswered), 1000));
      unanswered = now;
      me->take(sample);
    }
  }

  void take(const membership::HealthSample& sample) {
    if (samples.size() == membership::kHealthSamples) samples.erase(samples.begin());
    samples.push_back(sample);
    const std::uint32_t before = health.score;
    health = membership::assess(samples);
    // Down by a good deal, or well again: not each step.
    constexpr std::uint32_t kLow = 70;
    if (before >= kLow && health.score < kLow) {
      log_warn("health", "this node's health is ", health.score, " of 100: ", health.reasons.front());
    } else if (before < kLow && health.score >= kLow) {
      log_info("health", "this node's health is ", health.score, " of 100 again");
    }
  }
};

HealthService::HealthService(Ports ports) : impl_(std::make_shared<Impl>(std::move(ports))) {}
HealthService::~HealthService() { impl_->stopped = true; }
void HealthService::start() { impl_->ports.loop->spawn(Impl::watch(impl_)); }
const membership::Health& HealthService::health() const { return impl_->health; }

}  // namespace holo::node
