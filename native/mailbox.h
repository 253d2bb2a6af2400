// What a call of several steps has chosen so far, for a host that reads it while the call runs, and
// the host's word that it is enough.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>

namespace bluejay {

class Mailbox {
 public:
  // `memory` has `words` numbers for each of `steps` steps; it stays the caller's.
  Mailbox(int32_t* memory, int64_t steps, int64_t words)
      : memory_(memory), steps_(steps), words_(words) {}

  // Anything but false: a call ends with the step it is at.
  void halt(bool is_wanted) { halted_.store(is_wanted, std::memory_order_relaxed); }

  // Before a call.
  void clear() {
    const std::lock_guard guard(mutex_);
    posted_ = wanted_ = 0;
    is_last_ = false;
  }

  // A step's numbers; whether the call goes on, or nothing of that if there is no room for them.
  // `may_go_on`: the step is not the last one anyway.
  enum class Posted { kEnd, kGoOn, kNoRoom };
  Posted post(const int32_t* numbers, int64_t count, bool may_go_on) {
    const bool goes_on = may_go_on && !halted_.load(std::memory_order_relaxed);
    bool is_awaited;
    {
      const std::lock_guard guard(mutex_);
      if (posted_ == steps_ || count > words_) return Posted::kNoRoom;
      std::memcpy(memory_ + posted_ * words_, numbers, count * sizeof(int32_t));
      ++posted_;
      is_last_ = !goes_on;
      is_awaited = is_last_ || posted_ >= wanted_;
    }
    if (is_awaited) changed_.notify_one();
    return goes_on ? Posted::kGoOn : Posted::kEnd;
  }

  // Waits until more than `seen` steps are there, but not before `pause` is over or the last step is
  // there, and `patience` longer at most: twice their number, and one more if the last of them is the
  // call's last. Steps that nobody waits for yet wake nobody: the host takes its time from the kernels.
  int64_t wait(int64_t seen, std::chrono::microseconds pause, std::chrono::microseconds patience) {
    std::unique_lock guard(mutex_);
    if (pause.count() > 0) {
      wanted_ = std::numeric_limits<int64_t>::max();
      changed_.wait_for(guard, pause, [&] { return is_last_; });
    }
    wanted_ = seen + 1;
    changed_.wait_for(guard, patience, [&] { return posted_ > seen; });
    return 2 * posted_ + is_last_;
  }

 private:
  int32_t* memory_;
  int64_t steps_, words_, posted_ = 0, wanted_ = 0;
  bool is_last_ = false;
  std::atomic<bool> halted_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace bluejay
