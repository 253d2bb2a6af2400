// Cross-entropy over a vocabulary, forward and backward, the head's bias included: one pass each.
#pragma once

#include <cmath>

#include "rows.h"

namespace bluejay::BLUEJAY_ISA {

// loss[r] = -log softmax(logits[r] + bias)[target], log_sum[r] = log sum exp(logits + bias - highest).
// stats [rows, 2] keeps highest and log_sum. Targets must lie within the vocabulary.
inline bool cross_entropy(float* loss, float* log_sum, float* stats, const float* logits,
                          const float* bias, const int32_t* targets, int64_t rows, int64_t width) {
  parallel_for(static_cast<size_t>(num_chunks(rows)), [&](size_t chunk) {
    const int64_t first = static_cast<int64_t>(chunk) * kChunk;
    for (int64_t r = first; r < std::min(rows, first + kChunk); ++r) {
      const float* x = logits + r * width;
      Floats most = splat(-__builtin_inff());
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes) most = larger(load(x + i) + load(bias + i), most);
      float highest = largest(most);
      for (; i < width; ++i) highest = std::max(highest, x[i] + bias[i]);
      Floats total{};
      for (i = 0; i + kLanes <= width; i += kLanes)
        total += exponential(load(x + i) + load(bias + i) - highest);
      float rest = 0.0f;
      for (; i < width; ++i) rest += std::exp(x[i] + bias[i] - highest);
      const int32_t target = targets[r];
      log_sum[r] = std::log(sum(total) + rest);
      loss[r] = log_sum[r] - (x[target] + bias[target] - highest);
      stats[2 * r] = highest;
      stats[2 * r + 1] = log_sum[r];
    }
  });
  return true;
}

// The gradients of logits and bias, given those of loss and log_sum (`highest` is held constant there).
inline bool cross_entropy_backward(float* dlogits, float* dbias, const float* dloss,
                                   const float* dlog_sum, const float* logits, const float* bias,
                                   const int32_t* targets, const float* stats, int64_t rows,
                                   int64_t width) {
  const int64_t chunks = num_chunks(rows);
  auto* partial = static_cast<float*>(
      scratch(Slot::kSpare, sizeof(float) * static_cast<size_t>(chunks * width)));
  if (partial == nullptr) return false;
  parallel_for(static_cast<size_t>(chunks), [&](size_t chunk) {
    const int64_t c = static_cast<int64_t>(chunk), first = c * kChunk;
    float* db = partial + c * width;
    std::memset(db, 0, sizeof(float) * static_cast<size_t>(width));
    for (int64_t r = first; r < std::min(rows, first + kChunk); ++r) {
      const float* x = logits + r * width;
      float* dx = dlogits + r * width;
      const float highest = stats[2 * r], log_sum = stats[2 * r + 1];
      const float factor = dloss[r] + dlog_sum[r];
      const int32_t target = targets[r];
      each_vector(width, [&](int64_t i, int n) {
        const Floats shifted = load_up_to(x + i, n) + load_up_to(bias + i, n) - highest;
        const Floats p = exponential(shifted - log_sum) * factor;
        store_up_to(dx + i, p, n);
        store_up_to(db + i, load_up_to(db + i, n) + p, n);
      });
      dx[target] -= dloss[r];
      db[target] -= dloss[r];
    }
  });
  add_rows(dbias, partial, chunks, width);
  return true;
}

}  // namespace bluejay::BLUEJAY_ISA
