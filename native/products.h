// Products of rows with weights of any kind: all products of one phase of a block share one round of the
// threads.
#pragma once

#include "dense.h"
#include "quantized.h"

namespace bluejay::BLUEJAY_ISA {

// From this many rows on, plain weights are multiplied as packed panels.
inline constexpr int64_t kManyRows = 17;

struct Product {
  RowTarget to;
  InputRows x;
  Weights w;

  bool takes_panels() const { return !w.is_quantized() && x.count >= kManyRows; }
};

BLUEJAY_INLINE void multiply_groups(const Product& p, int64_t first, int64_t last) {
  if (p.w.is_quantized())
    multiply_codes(p.to, p.x, p.w, first, last);
  else
    multiply_dense(p.to, p.x, p.w, first, last);
}

// A product of many rows with plain weights.
inline bool multiply_panels_of(const Product& p) {
  const float* weights = widened(p.w);
  if (weights == nullptr) return false;
  const int64_t rows = p.x.count, outputs = p.w.outputs, depth = p.w.inputs;
  const Operand left{p.x.values, depth, 1}, right{weights, depth, 1};
  float* out = p.to.out;
  if (p.to.added == out) {
    const auto bytes = sizeof(float) * static_cast<size_t>(rows * outputs);
    out = static_cast<float*>(scratch(Slot::kProduct, bytes));
    if (out == nullptr) return false;
  }
  if (!matmul<ProductFloat32>(out, left, right, rows, outputs, depth)) return false;
  if (p.to.added == nullptr && p.to.bias == nullptr) return true;
  parallel_for(static_cast<size_t>(rows), [&](size_t index) {
    const int64_t at = static_cast<int64_t>(index) * outputs;
    for (int64_t i = 0; i < outputs; ++i) {
      float value = out[at + i];
      if (p.to.bias != nullptr) value += p.to.bias[i];
      if (p.to.added != nullptr) value += p.to.added[at + i];
      p.to.out[at + i] = value;
    }
  });
  return true;
}

// Groups a task takes: enough to be worth taking, few enough that the threads end together.
inline int64_t task_groups(int64_t groups) {
  return std::max<int64_t>(1, groups / (8 * num_threads()));
}

// Independent products, such as query, key and value of one input.
template <int kCount>
bool multiply_all(const Product (&products)[kCount], int count) {
  int64_t groups = 0;
  for (int i = 0; i < count; ++i) {
    if (products[i].takes_panels()) {
      if (!multiply_panels_of(products[i])) return false;
    } else {
      groups += products[i].w.groups();
    }
  }
  const int64_t chunk = task_groups(groups);
  parallel_for(static_cast<size_t>((groups + chunk - 1) / chunk), [&](size_t task) {
    int64_t begin = static_cast<int64_t>(task) * chunk, end = std::min(groups, begin + chunk);
    for (int i = 0; i < count && end > 0; ++i) {
      if (products[i].takes_panels()) continue;
      const int64_t own = products[i].w.groups();
      if (begin < own) multiply_groups(products[i], begin, std::min(own, end));
      begin = std::max<int64_t>(0, begin - own);
      end -= own;
    }
  });
  return true;
}

// Products whose results add up in one output, in their order.
template <int kCount>
bool multiply_sum(const Product (&products)[kCount]) {
  bool takes_panels = false;
  for (const Product& p : products) takes_panels = takes_panels || p.takes_panels();
  if (takes_panels) {
    for (const Product& p : products) {
      const Product one[] = {p};
      if (!multiply_all(one, 1)) return false;
    }
    return true;
  }
  const int64_t groups = products[0].w.groups(), chunk = task_groups(groups);
  parallel_for(static_cast<size_t>((groups + chunk - 1) / chunk), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * chunk;
    for (const Product& p : products) multiply_groups(p, begin, std::min(groups, begin + chunk));
  });
  return true;
}

// Calls f(row) for every row, by all threads where there are many.
template <typename Function>
void each_row(int64_t rows, Function&& f) {
  if (rows <= 4) {
    for (int64_t r = 0; r < rows; ++r) f(r);
    return;
  }
  parallel_for(static_cast<size_t>(rows), [&](size_t row) { f(static_cast<int64_t>(row)); });
}

// out [count, outputs] = x [count, inputs] . weights^T.
inline bool multiply_weights(float* out, const float* x, int64_t count, Weights w) {
  uint8_t* rounded = nullptr;
  if (w.is_quantized()) {
    rounded = static_cast<uint8_t*>(scratch(Slot::kRounded, rounded_bytes(count, w.inputs)));
    if (rounded == nullptr) return false;
  }
  const InputRows rows{x, count, w.inputs, rounded};
  each_row(count, [&](int64_t r) { round_row(rows, r); });
  const Product products[1] = {{{out, w.outputs, nullptr, nullptr}, rows, w}};
  return multiply_all(products, 1);
}

}  // namespace bluejay::BLUEJAY_ISA
