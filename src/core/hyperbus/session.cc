#include "core/hyperbus/session.h"

#include <utility>

#include "base/strings.h"

namespace holo::hyperbus {

std::uint64_t SessionConfig::streams() const {
  std::uint64_t sum = 0;
  for (const ClassWindow& window : windows) sum += window.requests;
  return sum;
}

Session::Session(Role role, std::shared_ptr<const SessionConfig> config)
    : role_(role), config_(std::move(config)), exchange_(config_->windows, *this, events_) {}
Session::~Session() = default;

std::optional<Event> Session::next_event() {
  if (events_.empty()) return std::nullopt;
  Event event = std::move(events_.front());
  events_.pop_front();
  return event;
}

Result<StreamId> Session::request(Instant now, StreamClass klass, env::Request request, Instant deadline) {
  if (over_) return fail(Errc::unavailable, "the connection is closed");
  return exchange_.request(now, klass, std::move(request), deadline);
}

void Session::cancel(StreamId call, Error error) { exchange_.cancel(call, std::move(error)); }
void Session::reply(StreamId stream, Result<env::Reply> result) { exchange_.reply(stream, std::move(result)); }

void Session::announce() {
  established_ = true;
  events_.push_back(Established{.peer = agreed_.peer,
                                .peer_key = agreed_.peer_key,
                                .version = agreed_.version,
                                .features = agreed_.features,
                                .aead = agreed_.aead,
                                .handshake_hash = agreed_.handshake_hash});
  exchange_.on_established();
}

void Session::conclude(Error error, RefusalKind kind) {
  if (std::exchange(over_, true)) return;
  established_ = false;
  Error for_requests = error;
  if (error.code == Errc::malformed || error.code == Errc::corrupt) {  // Of the connection, not of any request.
    for_requests.code = Errc::unavailable;
    for_requests.retryable = true;
  }
  exchange_.close(for_requests);
  events_.push_back(Closed{.error = std::move(error), .kind = kind});
}

std::string Session::peer_name() const {
  return agreed_.peer ? str("node ", agreed_.peer) : std::string("the other node");
}

}  // namespace holo::hyperbus
