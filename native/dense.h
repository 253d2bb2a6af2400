// Products of a few rows with weights of plain floats: one pass over the weights, which are widened to
// float32 as they are read; sums in float32.
#pragma once

#include "input_rows.h"
#include "matmul.h"

namespace bluejay::BLUEJAY_ISA {

// kOutputs outputs of kRows rows: lanes run along the inputs, and each sum is taken alike whatever
// stands beside it.
template <typename Kind, int kOutputs, int kRows>
BLUEJAY_INLINE void multiply_some(float (&out)[kRows][kGroup], int at, const float* x,
                                  const typename Kind::Stored* w, int64_t inputs) {
  Floats sums[kRows][kOutputs] = {};
  int64_t i = 0;
  for (; i + kLanes <= inputs; i += kLanes) {
    Floats weights[kOutputs];
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) {
      weights[o] = Kind::read(w + o * inputs + i);
      // The rows after these: the hardware's own prefetching stops at the end of each page.
      __builtin_prefetch(w + (kOutputs + o) * inputs + i, 0, 2);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Floats values = load(x + r * inputs + i);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) sums[r][o] += values * weights[o];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o) {
      float total = sum(sums[r][o]);
      for (int64_t rest = i; rest < inputs; ++rest)
        total += x[r * inputs + rest] * Kind::widen(w[o * inputs + rest]);
      out[r][at + o] = total;
    }
}

template <typename Kind, int kRows>
BLUEJAY_INLINE void multiply_dense_group(const RowTarget& to, const float* x, const Weights& w,
                                         int64_t group) {
  const int64_t inputs = w.inputs;
  const int live = static_cast<int>(std::min<int64_t>(kGroup, w.outputs - group * kGroup));
  const auto* from = static_cast<const typename Kind::Stored*>(w.data) + group * kGroup * inputs;
  alignas(64) float out[kRows][kGroup];
  int o = 0;
  for (; o + 4 <= live; o += 4) multiply_some<Kind, 4, kRows>(out, o, x, from + o * inputs, inputs);
  for (; o < live; ++o) multiply_some<Kind, 1, kRows>(out, o, x, from + o * inputs, inputs);
  for (int r = 0; r < kRows; ++r) put_group(to, r, group, out[r], live);
}

template <typename Kind>
void multiply_dense_kind(const RowTarget& to, const InputRows& x, const Weights& w, int64_t first,
                         int64_t last) {
  for (int64_t g = first; g < last; ++g) {
    int64_t row = 0;
    for (; row + 4 <= x.count; row += 4)
      multiply_dense_group<Kind, 4>(to.from_row(row), x.values + row * x.inputs, w, g);
    for (; row < x.count; ++row)
      multiply_dense_group<Kind, 1>(to.from_row(row), x.values + row * x.inputs, w, g);
  }
}

// Outputs [16 first, 16 last) of all rows.
inline void multiply_dense(const RowTarget& to, const InputRows& x, const Weights& w, int64_t first,
                           int64_t last) {
  switch (w.kind) {
    case WeightKind::kFloat16: return multiply_dense_kind<StoredFloat16>(to, x, w, first, last);
    case WeightKind::kBfloat16: return multiply_dense_kind<StoredBfloat16>(to, x, w, first, last);
    default: return multiply_dense_kind<StoredFloat32>(to, x, w, first, last);
  }
}

// The weights as float32 [outputs, inputs]: themselves, or a copy in the caller's scratch. Null when
// memory is out.
inline const float* widened(const Weights& w) {
  if (w.kind == WeightKind::kFloat32) return static_cast<const float*>(w.data);
  auto* copy = static_cast<float*>(
      scratch(Slot::kWidened, sizeof(float) * static_cast<size_t>(w.outputs * w.inputs)));
  if (copy == nullptr) return nullptr;
  const auto* from = static_cast<const uint16_t*>(w.data);
  parallel_for(static_cast<size_t>(w.outputs), [&](size_t index) {
    const int64_t at = static_cast<int64_t>(index) * w.inputs;
    if (w.kind == WeightKind::kFloat16)
      widen_all<StoredFloat16>(copy + at, from + at, w.inputs, 1.0f);
    else
      widen_all<StoredBfloat16>(copy + at, from + at, w.inputs, 1.0f);
  });
  return copy;
}

}  // namespace bluejay::BLUEJAY_ISA
