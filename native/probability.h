// Softmax in whole numbers, as bluejay.generation.weights defines it: sums of whole numbers do not depend
// on their order, so what is kept and drawn from them does not depend on who adds them up.
#pragma once

#include <cmath>

#include "rows.h"

namespace bluejay::BLUEJAY_ISA {

// A list of scores: -inf is a removed one, `weights` has room for as many whole numbers.
struct Scores {
  float* values;
  int32_t* weights;
  int64_t count;
};

struct Softmax {
  int32_t total;
  float largest, log_sum;  // log sum exp, in two parts
};

BLUEJAY_INLINE int32_t add_lanes(Ints v) {
  int32_t lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  uint32_t total = 0;  // wraps where the reference's does
  for (int i = 0; i < kLanes; ++i) total += static_cast<uint32_t>(lanes[i]);
  return static_cast<int32_t>(total);
}

inline float largest_of(const float* values, int64_t count) {
  Floats most = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) most = larger(load(values + i), most);
  float found = largest(most);
  for (; i < count; ++i) found = values[i] > found ? values[i] : found;
  return found;
}

// 2^30 shared out by exp(score); `vocabulary` sets how finely, the same for every list of a row.
inline Softmax weigh(const Scores& s, int64_t vocabulary) {
  const int bits = 64 - __builtin_clzll(static_cast<unsigned long long>(vocabulary));
  const float resolution = std::ldexp(1.0f, bits < 2 ? 30 : 32 - bits);
  const float most = largest_of(s.values, s.count);
  auto* parts = reinterpret_cast<float*>(s.weights);
  Ints coarse{};
  each_vector(s.count, [&](int64_t i, int live) {
    Floats x = load_up_to(s.values + i, live) - most;
    if (live < kLanes)
      for (int lane = live; lane < kLanes; ++lane) x[lane] = -__builtin_inff();
    const Floats part = exponential(x), scaled = part * resolution;
    const Floats whole = round_to_whole(scaled);
    const Floats up = whole < scaled ? whole + 1.0f : whole;
    coarse += __builtin_convertvector(up, Ints);
    store_up_to(parts + i, part, live);
  });
  const auto counted = static_cast<float>(static_cast<uint32_t>(add_lanes(coarse)));
  const float scale = resolution * 1073741824.0f / counted;
  Ints sums{};
  each_vector(s.count, [&](int64_t i, int live) {
    const Ints weight =
        __builtin_convertvector(round_to_whole(load_up_to(parts + i, live) * scale), Ints);
    std::memcpy(s.weights + i, &weight, sizeof(int32_t) * static_cast<size_t>(live));
    sums += weight;
  });
  const int32_t total = add_lanes(sums);
  return {total, most, std::log(static_cast<float>(total) / scale)};
}

// The first place whose weight, added to those before it, exceeds the target.
inline int64_t pick(const Scores& s, int32_t target) {
  constexpr int64_t kStep = 16 * kLanes;
  int64_t i = 0;
  int32_t before = 0;
  for (; i + kStep < s.count; i += kStep) {
    Ints sums{};
    for (int64_t v = 0; v < kStep; v += kLanes) {
      Ints weight;
      std::memcpy(&weight, s.weights + i + v, sizeof(weight));
      sums += weight;
    }
    const int32_t here = add_lanes(sums);
    if (before + here > target) break;
    before += here;
  }
  for (; i + 1 < s.count; ++i) {
    before += s.weights[i];
    if (before > target) break;
  }
  return i;
}

}  // namespace bluejay::BLUEJAY_ISA
