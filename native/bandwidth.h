// The yardstick: how fast memory can be read, by all threads.
#pragma once

#include <atomic>

#include "simd.h"
#include "thread_pool.h"

namespace bluejay::BLUEJAY_ISA {

// Reads every byte of `bytes` (what is over a multiple of 256 is left out); the result depends on all of
// them, so that no compiler can leave one out.
inline uint32_t read_memory(const void* data, int64_t bytes) {
  constexpr int64_t kPiece = 1 << 18;
  const auto* p = static_cast<const uint8_t*>(data);
  std::atomic<uint32_t> all{0};
  parallel_for(static_cast<size_t>(bytes / kPiece), [&](size_t index) {
    const uint8_t* from = p + static_cast<int64_t>(index) * kPiece;
    Ints sums[4] = {};
    for (int64_t i = 0; i < kPiece; i += 16 * kLanes)
      for (int v = 0; v < 4; ++v) {
        __builtin_prefetch(from + i + 4 * kLanes * v + 2048);
        Ints words;
        std::memcpy(&words, from + i + 4 * kLanes * v, sizeof(words));
        sums[v] += words;
      }
    const Ints total = (sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]);
    uint32_t word = 0;
    for (int lane = 0; lane < kLanes; ++lane) word ^= static_cast<uint32_t>(total[lane]);
    all.fetch_xor(word, std::memory_order_relaxed);
  });
  return all.load();
}

}  // namespace bluejay::BLUEJAY_ISA
