#include "client/failure.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace holo::client {
namespace {

// Read by a signal handler, so: fixed size, no lock on that side. A range is valid while `end` is not 0.
struct FailedRange {
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::array<char, 400> text{};
  std::size_t size = 0;
};
std::array<FailedRange, 1024> g_failed;
std::mutex g_mutex;
struct sigaction g_previous_segv, g_previous_bus;

void write_all(const char* text, std::size_t size) {
  while (size > 0) {
    const ssize_t n = ::write(STDERR_FILENO, text, size);
    if (n <= 0) return;
    text += n;
    size -= static_cast<std::size_t>(n);
  }
}

void on_fault(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (const auto& f : g_failed) {
    const std::uintptr_t end = f.end.load(std::memory_order_acquire);
    if (address >= f.begin.load(std::memory_order_relaxed) && address < end) {
      write_all(f.text.data(), f.size);
      ::signal(SIGBUS, SIG_DFL);
      ::raise(SIGBUS);
      ::_exit(128 + SIGBUS);
    }
  }
  // None of ours: whoever was here before decides.
  const struct sigaction& previous = signal == SIGSEGV ? g_previous_segv : g_previous_bus;
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else {
    ::signal(signal, SIG_DFL);  // The access repeats and ends the process.
  }
}

void install_handlers() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGSEGV, &action, &g_previous_segv);
    ::sigaction(SIGBUS, &action, &g_previous_bus);
  });
}

}  // namespace

void mark_failed(const std::byte* address, std::size_t length, const std::string& message) {
  install_handlers();
  const std::lock_guard lock(g_mutex);
  auto slot = std::ranges::find_if(g_failed, [](const FailedRange& f) { return f.end.load() == 0; });
  if (slot == g_failed.end()) return;  // A thousand failures: the rest end the process by SIGSEGV, without a message.
  const std::string line = "holo: " + message + "\n";
  slot->size = std::min(line.size(), slot->text.size());
  std::memcpy(slot->text.data(), line.data(), slot->size);
  slot->text[slot->size - 1] = '\n';
  slot->begin.store(reinterpret_cast<std::uintptr_t>(address), std::memory_order_relaxed);
  slot->end.store(reinterpret_cast<std::uintptr_t>(address) + length, std::memory_order_release);
}

void forget_failed(const std::byte* address, std::size_t length) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  const std::lock_guard lock(g_mutex);
  for (auto& f : g_failed) {
    if (f.end.load() != 0 && f.begin.load() >= begin && f.begin.load() < begin + length) f.end.store(0);
  }
}

}  // namespace holo::client
