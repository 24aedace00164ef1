#include "env/loop.h"

namespace holo::env {

Task<bool> sleep_until(Loop& loop, Instant when, Duration slack) {
  if (loop.stopping()) co_return false;
  auto shot = std::make_shared<OneShot<bool>>();
  loop.call_between(when, when + slack, [shot] { shot->set(true); });
  co_await *shot;
  co_return !loop.stopping();
}

}  // namespace holo::env
