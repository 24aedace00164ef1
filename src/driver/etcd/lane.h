// A thread that does blocking requests, one after the other, for the loop.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "base/task.h"
#include "driver/etcd/client.h"
#include "env/loop.h"

namespace holo::driver::etcd {

/// Thread: loop, but for what it runs.
class Lane {
 public:
  Lane(env::Loop& loop, Endpoints endpoints)
      : loop_(loop), client_(std::move(endpoints)), thread_([this] { work(); }) {}
  /// Waits for the request under way, which is cut short.
  ~Lane() {
    end();
    thread_.join();
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  /// Runs `work` on the thread, in the order asked; its result comes back on the loop thread. What has not begun when
  /// the lane ends comes back as `cancelled`.
  template <class T>
  std::shared_ptr<OneShot<Result<T>>> run(std::function<Result<T>(Client&)> work) {
    auto shot = std::make_shared<OneShot<Result<T>>>();
    post([this, shot, work = std::move(work)](bool ended) {
      auto result = std::make_shared<Result<T>>(ended ? Result<T>(fail(Errc::cancelled, "the agent is stopping"))
                                                      : work(client_));
      loop_.post([shot, result] { shot->set(std::move(*result)); });
    });
    return shot;
  }

  /// No further request is begun, and the one under way is cut short.
  void end() {
    client_.abort();
    {
      const std::scoped_lock lock(mutex_);
      ended_ = true;
    }
    wake_.notify_all();
  }

 private:
  using Job = std::function<void(bool ended)>;

  void post(Job job) {
    {
      const std::scoped_lock lock(mutex_);
      if (!ended_) {
        queue_.push_back(std::move(job));
        wake_.notify_one();
        return;
      }
    }
    job(true);
  }
  void work() {
    for (;;) {
      Job job;
      bool ended = false;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return ended_ || !queue_.empty(); });
        ended = ended_;
        if (queue_.empty()) return;
        job = std::move(queue_.front());
        queue_.pop_front();
      }
      job(ended);
    }
  }

  env::Loop& loop_;
  Client client_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;
  bool ended_ = false;
  std::thread thread_;  // Last: it uses the others.
};

}  // namespace holo::driver::etcd
