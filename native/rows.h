// Work on rows in chunks of a fixed size, with sums over all rows added up in the order of the chunks:
// the result does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"
#include "thread_pool.h"

namespace bluejay::BLUEJAY_ISA {

inline constexpr int64_t kChunk = 32;

constexpr int64_t num_chunks(int64_t rows) { return (rows + kChunk - 1) / kChunk; }

// Calls f(vector index, count of live lanes) for every vector of a row of `width` values.
template <typename Function>
BLUEJAY_INLINE void each_vector(int64_t width, Function&& f) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) f(i, kLanes);
  if (i < width) f(i, static_cast<int>(width - i));
}

BLUEJAY_INLINE Floats load_up_to(const float* p, int count) {
  return count == kLanes ? load(p) : load_some(p, count);
}

BLUEJAY_INLINE void store_up_to(float* p, Floats v, int count) {
  if (count == kLanes)
    store(p, v);
  else
    store_some(p, v, count);
}

// out[width] = the sum over `count` rows of `partial`.
inline void add_rows(float* out, const float* partial, int64_t count, int64_t width) {
  each_vector(width, [&](int64_t i, int lanes) {
    Floats total{};
    for (int64_t r = 0; r < count; ++r) total += load_up_to(partial + r * width + i, lanes);
    store_up_to(out + i, total, lanes);
  });
}

}  // namespace bluejay::BLUEJAY_ISA
