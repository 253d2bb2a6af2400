// LayerNorm over rows of float32, forward and backward.
#pragma once

#include <cmath>

#include "rows.h"

namespace bluejay::BLUEJAY_ISA {

// Mean and 1 / sqrt(variance + eps) of one row, as pairs in `stats`.
BLUEJAY_INLINE void moments(const float* x, int64_t width, float eps, float* stats) {
  Floats total{};
  each_vector(width, [&](int64_t i, int n) { total += load_up_to(x + i, n); });
  const float mean = sum(total) / static_cast<float>(width);
  Floats squares{};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Floats d = load(x + i) - mean;
    squares += d * d;
  }
  float rest = 0.0f;
  for (; i < width; ++i) rest += (x[i] - mean) * (x[i] - mean);
  stats[0] = mean;
  stats[1] = 1.0f / std::sqrt((sum(squares) + rest) / static_cast<float>(width) + eps);
}

// y = (x - mean) * rstd * scale + bias; stats [rows, 2] is kept for the way back.
inline bool layer_norm(float* y, float* stats, const float* x, const float* scale,
                       const float* bias, int64_t rows, int64_t width, float eps) {
  parallel_for(static_cast<size_t>(num_chunks(rows)), [&](size_t chunk) {
    const int64_t first = static_cast<int64_t>(chunk) * kChunk;
    for (int64_t r = first; r < std::min(rows, first + kChunk); ++r) {
      const float* from = x + r * width;
      moments(from, width, eps, stats + 2 * r);
      const float mean = stats[2 * r], rstd = stats[2 * r + 1];
      each_vector(width, [&](int64_t i, int n) {
        const Floats normed = (load_up_to(from + i, n) - mean) * rstd;
        store_up_to(y + r * width + i,
                    normed * load_up_to(scale + i, n) + load_up_to(bias + i, n), n);
      });
    }
  });
  return true;
}

// The gradients of x, scale and bias.
inline bool layer_norm_backward(float* dx, float* dscale, float* dbias, const float* dy,
                                const float* x, const float* stats, const float* scale,
                                int64_t rows, int64_t width) {
  const int64_t chunks = num_chunks(rows);
  auto* partial = static_cast<float*>(
      scratch(Slot::kSpare, sizeof(float) * static_cast<size_t>(2 * chunks * width)));
  if (partial == nullptr) return false;
  float* scale_sums = partial;
  float* bias_sums = partial + chunks * width;
  parallel_for(static_cast<size_t>(chunks), [&](size_t chunk) {
    const int64_t c = static_cast<int64_t>(chunk), first = c * kChunk;
    float* ds = scale_sums + c * width;
    float* db = bias_sums + c * width;
    std::memset(ds, 0, sizeof(float) * static_cast<size_t>(width));
    std::memset(db, 0, sizeof(float) * static_cast<size_t>(width));
    for (int64_t r = first; r < std::min(rows, first + kChunk); ++r) {
      const float mean = stats[2 * r], rstd = stats[2 * r + 1];
      const float *from = x + r * width, *up = dy + r * width;
      Floats total{}, along{};
      each_vector(width, [&](int64_t i, int n) {
        const Floats d = load_up_to(up + i, n);
        // Lanes beyond the width have d = 0, and so add nothing.
        const Floats normed = (load_up_to(from + i, n) - mean) * rstd;
        const Floats g = d * load_up_to(scale + i, n);
        total += g;
        along += g * normed;
        store_up_to(ds + i, load_up_to(ds + i, n) + d * normed, n);
        store_up_to(db + i, load_up_to(db + i, n) + d, n);
      });
      const float mean_g = sum(total) / static_cast<float>(width);
      const float mean_along = sum(along) / static_cast<float>(width);
      each_vector(width, [&](int64_t i, int n) {
        const Floats normed = (load_up_to(from + i, n) - mean) * rstd;
        const Floats g = load_up_to(up + i, n) * load_up_to(scale + i, n);
        store_up_to(dx + r * width + i, (g - mean_g - normed * mean_along) * rstd, n);
      });
    }
  });
  add_rows(dscale, scale_sums, chunks, width);
  add_rows(dbias, bias_sums, chunks, width);
  return true;
}

}  // namespace bluejay::BLUEJAY_ISA
