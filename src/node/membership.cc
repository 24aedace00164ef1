#include "node/membership.h"

#include "core/membership/swim_wire.h"
#include "wire/message_types.h"

namespace holo::node {
namespace {

using membership::Effects;
using membership::Message;
using membership::Swim;

constexpr Duration kAnswerWithin = seconds(1);  // Longer than the core waits: a late answer still is a sign of life.
constexpr Duration kSlack = milliseconds(20);   // Well below what the core takes for a node that stood still.
constexpr std::size_t kMaxAsking = 256;  // Requests under way; above: the core hears that they were not delivered.
constexpr std::size_t kMaxAsked = 1024;  // Of others that wait here; above: overloaded.

}  // namespace

Membership::Membership(Ports ports, NodeId self, Events events)
    : ports_(ports), self_(self), events_(std::move(events)), random_(ports.entropy->u64()) {}

void Membership::serve() {
  const std::weak_ptr<Membership> weak = weak_from_this();
  ports_.transport->serve(static_cast<std::uint16_t>(wire::PeerMessage::swim),
                          [weak](NodeId from, env::Request request) -> Task<Result<env::Reply>> {
                            return serve_one(weak.lock(), from, std::move(request));
                          });
}

void Membership::start(std::uint64_t start) {
  if (swim_) {
    swim_->set_self(now(), start);
    return;
  }
  swim_ = std::make_unique<Swim>(membership::SwimConfig{}, self_, start);
}

void Membership::stop() {
  stopped_ = true;
  if (timer_ != 0) ports_.loop->cancel(std::exchange(timer_, 0));
  for (auto& [key, answer] : std::exchange(asked_, {})) answer->set(fail(Errc::unavailable, "the agent is stopping"));
}

void Membership::set_members(const std::vector<membership::Fact>& facts) {
  if (!swim_ || stopped_ || facts == facts_) return;
  facts_ = facts;
  Effects out;
  swim_->set_members(now(), facts, random_, out);
  perform(out);
}

void Membership::peer_lost(NodeId node) {
  if (!swim_ || stopped_) return;
  Effects out;
  swim_->on_lost(now(), node, out);
  perform(out);
}

std::vector<membership::View> Membership::views() const {
  return swim_ ? swim_->views(now()) : std::vector<membership::View>{};
}
membership::View Membership::view(NodeId node) const {
  return swim_ ? swim_->view(now(), node) : membership::View{.node = node};
}
std::vector<membership::Verdict> Membership::verdicts() const {
  return swim_ ? swim_->verdicts() : std::vector<membership::Verdict>{};
}
Swim::Voters Membership::voters(Duration within) const { return swim_ ? swim_->voters(now(), within) : Swim::Voters{}; }
membership::SwimCounters Membership::counters() const { return swim_ ? swim_->counters() : membership::SwimCounters{}; }

void Membership::wake_at(Instant when) {
  if (when == timer_at_) return;
  if (timer_ != 0) ports_.loop->cancel(std::exchange(timer_, 0));
  timer_at_ = when;
  if (when == kNever || stopped_ || ports_.loop->stopping()) return;
  timer_ = ports_.loop->call_between(when, when + kSlack, [weak = weak_from_this()] {
    const auto me = weak.lock();
    if (!me || me->stopped_ || me->ports_.loop->stopping()) return;
    me->timer_ = 0;
    me->timer_at_ = kNever;
    Effects out;
    me->swim_->tick(me->now(), me->random_, out);
    me->perform(out);
  });
}

void Membership::perform(Effects& out) {
  for (Effects::Send& s : out.send) {
    if (membership::is_request(s.message.kind)) {
      ports_.loop->spawn(ask(shared_from_this(), s.to, std::move(s.message)));
      continue;
    }
    const auto waiting = asked_.find({s.to, s.message.seq});
    if (waiting == asked_.end()) continue;  // Whoever asked has given up.
    env::Reply reply;
    reply.header = membership::encode(s.message);
    const Answer answer = std::move(waiting->second);
    asked_.erase(waiting);
    answer->set(std::move(reply));
  }
  wake_at(swim_->next_wake());
  if (!out.changed.empty() || out.verdicts_changed || out.said_dead) {
    ports_.loop->post([weak = weak_from_this(), changed = std::move(out.changed), verdicts = out.verdicts_changed,
                       said_dead = out.said_dead] {
      const auto me = weak.lock();
      if (!me || me->stopped_) return;
      for (const NodeId n : changed) me->events_.changed(n);
      if (verdicts) me->events_.verdicts();
      if (said_dead) me->events_.said_dead();
    });
  }
}

Task<void> Membership::ask(std::shared_ptr<Membership> me, NodeId to, Message message) {
  const std::uint32_t seq = message.seq;
  env::Request request;
  request.type = static_cast<std::uint16_t>(wire::PeerMessage::swim);
  request.header = membership::encode(message);
  env::CallOptions options;
  options.klass = env::StreamClass::control;
  options.deadline = me->now() + kAnswerWithin;
  Result<env::Reply> answer = fail(Errc::overloaded, "too many probes wait for an answer");
  if (me->asking_ < kMaxAsking) {
    ++me->asking_;
    answer = co_await me->ports_.transport->call(to, std::move(request), options);
    --me->asking_;
  }
  if (me->stopped_) co_return;
  Effects out;
  if (!answer && answer.error().code == Errc::unsupported && message.kind == membership::Kind::ping) {
    // An agent of the release before this one: it lives, and knows nothing of probes.
    const Message alive{.kind = membership::Kind::ack,
                        .seq = seq,
                        .sender = me->swim_->view(me->now(), to).incarnation,
                        .target = {},
                        .updates = {}};
    me->swim_->on_message(me->now(), to, alive, out);
  } else if (!answer) {
    me->swim_->on_undelivered(me->now(), to, seq, me->random_, out);
  } else if (auto reply = membership::decode_swim_message(as_bytes(answer->header));
             reply && !membership::is_request(reply->kind) && reply->seq == seq) {
    me->swim_->on_message(me->now(), to, *reply, out);
  } else {
    ++me->malformed_;
  }
  me->perform(out);
}

Task<Result<env::Reply>> Membership::serve_one(std::shared_ptr<Membership> me, NodeId from, env::Request request) {
  if (!me || me->stopped_) co_return fail(Errc::unavailable, "the agent is stopping");
  if (!me->swim_) co_return fail(Errc::unavailable, "this node is in no cluster");
  auto message = membership::decode_swim_message(as_bytes(request.header));
  if (!message || !membership::is_request(message->kind)) {
    ++me->malformed_;
    co_return fail(Errc::malformed, "a membership message that does not decode");
  }
  const std::pair key{from, message->seq};
  if (me->asked_.size() >= kMaxAsked || me->asked_.contains(key)) {
    co_return std::unexpected(Error{
        .code = Errc::overloaded, .message = "too many probes wait for an answer", .hint = {}, .retryable = true});
  }
  const Answer answer = std::make_shared<OneShot<Result<env::Reply>>>();
  me->asked_[key] = answer;
  Effects out;
  me->swim_->on_message(me->now(), from, *message, out);
  me->perform(out);
  if (!answer->is_set()) {
    const Instant deadline = me->now() + kAnswerWithin;
    auto waiting = await_until(*me->ports_.loop, answer, deadline, "what a member was asked to probe");
    Result<env::Reply> reply = co_await waiting;
    if (const auto it = me->asked_.find(key); it != me->asked_.end() && it->second == answer) me->asked_.erase(it);
    co_return reply;
  }
  co_return co_await *answer;
}

}  // namespace holo::node
