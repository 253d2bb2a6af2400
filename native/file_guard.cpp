// Mapped files that are cut while they are read, or whose disk fails: the system then ends the process by
// SIGBUS, without a word. Here a sentence is said first. Nothing else about SIGBUS changes.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace {

constexpr int kMostGuards = 64;
constexpr size_t kLongest = 4096 + 512;  // a path, and what is said of it

// The handler reads it while others write: it is empty while `end` is 0, and whole as soon as it is not.
struct Guard {
  std::atomic<uintptr_t> begin, end;
  int exit_code;
  size_t length;
  char sentence[kLongest];
};
static_assert(std::atomic<uintptr_t>::is_always_lock_free, "a handler of signals takes no lock");

Guard guards[kMostGuards];
std::mutex writing;
std::atomic_flag is_ending = ATOMIC_FLAG_INIT;
bool is_installed = false;
struct sigaction previous;  // what to do about all other addresses

const Guard* guard_of(uintptr_t address) {
  for (const Guard& guard : guards) {
    const uintptr_t end = guard.end.load(std::memory_order_acquire);
    if (address < end && address >= guard.begin.load(std::memory_order_relaxed)) return &guard;
  }
  return nullptr;
}

[[noreturn]] void end_process(const Guard& guard) {
  // Threads that share a product touch the same file: one of them speaks.
  while (is_ending.test_and_set()) ::pause();
  for (size_t done = 0; done < guard.length;) {
    const ssize_t count = ::write(STDERR_FILENO, guard.sentence + done, guard.length - done);
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  ::_exit(guard.exit_code);
}

// Only what may be done in a handler of signals (signal-safety(7)): no memory, no locks.
void on_bus_error(int signal, siginfo_t* info, void*) {
  // One that a process sends has no address.
  const bool is_sent = info->si_code <= 0 || info->si_code == SI_USER;
  if (!is_sent) {
    const Guard* found = guard_of(reinterpret_cast<uintptr_t>(info->si_addr));
    if (found != nullptr) end_process(*found);
  }
  // As if this handler were not there: the access happens again, a signal that was sent is sent again.
  ::sigaction(signal, &previous, nullptr);
  if (is_sent) ::raise(signal);
}

bool install() {
  if (is_installed) return true;
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  is_installed = ::sigaction(SIGBUS, nullptr, &previous) == 0 &&
                 ::sigaction(SIGBUS, &action, nullptr) == 0;
  return is_installed;
}

}  // namespace

#pragma GCC visibility push(default)

extern "C" {

// From now on, whoever touches one of these bytes and cannot have it ends the process with the exit code and
// the sentence on stderr. A number to forget it by, or -1 where no more can be guarded.
int bluejay_guard_file(const void* begin, int64_t bytes, const char* sentence, int exit_code) {
  const std::lock_guard lock(writing);
  if (bytes <= 0 || !install()) return -1;
  for (Guard& guard : guards) {
    if (guard.end.load(std::memory_order_relaxed) != 0) continue;
    guard.exit_code = exit_code;
    guard.length = std::min(std::strlen(sentence), kLongest);
    std::memcpy(guard.sentence, sentence, guard.length);
    const auto address = reinterpret_cast<uintptr_t>(begin);
    guard.begin.store(address, std::memory_order_relaxed);
    guard.end.store(address + static_cast<uintptr_t>(bytes), std::memory_order_release);
    return static_cast<int>(&guard - guards);
  }
  return -1;
}

// Before the file is unmapped, or as soon as it is.
void bluejay_forget_file(int number) {
  const std::lock_guard lock(writing);
  if (number >= 0 && number < kMostGuards)
    guards[number].end.store(0, std::memory_order_release);
}
}

#pragma GCC visibility pop
