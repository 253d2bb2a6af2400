// Time spent in the handlers of decoding: what a token takes beyond it is overhead.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace bluejay {

inline std::atomic<int64_t> decoding_nanoseconds{0};

class DecodingClock {
 public:
  ~DecodingClock() {
    const auto spent = std::chrono::steady_clock::now() - begun_;
    decoding_nanoseconds.fetch_add(
        std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count(),
        std::memory_order_relaxed);
  }

 private:
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
};

}  // namespace bluejay
