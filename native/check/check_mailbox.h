// A call that posts its steps while a host reads them: nothing torn, nothing lost, an end for both.
#pragma once

#include <numeric>
#include <thread>
#include <vector>

#include "../mailbox.h"

namespace bluejay::check {

// How many steps of so many calls were not read as they were posted, or not at all. Every third call is
// halted from a third thread, and may then end before its last step.
inline int wrong_steps(int64_t calls, int64_t steps, int64_t words) {
  std::vector<int32_t> memory(steps * words), numbers(words);
  Mailbox mail(memory.data(), steps, words);
  int wrong = 0;
  for (int64_t call = 0; call < calls; ++call) {
    mail.clear();
    mail.halt(false);
    std::thread device([&] {
      for (int64_t step = 0;; ++step) {
        std::iota(numbers.begin(), numbers.end(), static_cast<int32_t>(call * steps + step));
        const auto posted = mail.post(numbers.data(), words, step + 1 < steps);
        if (posted != Mailbox::Posted::kGoOn) return;
      }
    });
    std::thread somebody([&] { mail.halt(call % 3 == 0); });
    int64_t seen = 0;
    for (bool is_last = false; !is_last;) {
      const std::chrono::microseconds pause(call % 2 == 0 ? 0 : 20);
      const int64_t found = mail.wait(seen, pause, std::chrono::seconds(1));
      is_last = found % 2 != 0;
      for (; seen < found / 2; ++seen)
        for (int64_t word = 0; word < words; ++word)
          wrong += memory[seen * words + word] != static_cast<int32_t>(call * steps + seen + word);
    }
    device.join();
    somebody.join();
    wrong += call % 3 != 0 && seen != steps;
  }
  wrong += mail.post(numbers.data(), words + 1, true) != Mailbox::Posted::kNoRoom;
  return wrong;
}

}  // namespace bluejay::check
