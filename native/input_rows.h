// Rows of activations as products take them, and where a product's results go.
//
// For quantized weights a row is rounded to signed bytes per block of kBlock, scale = largest / 127 in
// float32. Some rows lie side by side, a tile, so that one pointer finds them all.
#pragma once

#include "rows.h"
#include "stored_types.h"

namespace bluejay::BLUEJAY_ISA {

struct InputRows {
  const float* values;  // [count, inputs]
  int64_t count, inputs;
  uint8_t* rounded;  // rounded_bytes() of memory, or null where no weight is quantized
};

inline size_t rounded_bytes(int64_t count, int64_t inputs) {
  return static_cast<size_t>(count * (inputs + 12 * (inputs / kBlock)));
}

// One tile: signed bytes [blocks, rows, kBlock], and [blocks, rows] scales, sums of the bytes, and sums of
// what the bytes stand for.
struct RoundedRows {
  int8_t* codes;
  float* scales;
  int32_t* totals;
  float* sums;
  int64_t rows;
};

// How many of `count` rows go together. A row's result does not depend on it.
BLUEJAY_INLINE int64_t tile_rows(int64_t count) {
#if defined(__AVX512VNNI__)
  if (count >= 8) return 8;
#endif
  return count >= 4 ? 4 : count >= 2 ? 2 : 1;
}

// The tile that begins with row `first`.
BLUEJAY_INLINE RoundedRows rounded_rows(const InputRows& x, int64_t first) {
  const int64_t blocks = x.inputs / kBlock, rows = tile_rows(x.count - first);
  uint8_t* begin = x.rounded + rounded_bytes(first, x.inputs);
  auto* scales = reinterpret_cast<float*>(begin + rows * x.inputs);
  auto* totals = reinterpret_cast<int32_t*>(scales + rows * blocks);
  auto* sums = reinterpret_cast<float*>(totals + rows * blocks);
  return {reinterpret_cast<int8_t*>(begin), scales, totals, sums, rows};
}

inline constexpr int kBlockVectors = kBlock / kLanes;

BLUEJAY_INLINE Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

BLUEJAY_INLINE int32_t sum(Ints v) {
  int32_t lanes[kLanes], total = 0;
  std::memcpy(lanes, &v, sizeof(v));
  for (int i = 0; i < kLanes; ++i) total += lanes[i];
  return total;
}

// NaN must not be lost in a comparison: the scale then is NaN, and so is every result. An infinite
// value gives an infinite scale and codes of 0, whose product is NaN.
BLUEJAY_INLINE void round_block(int8_t* codes, float* scale, int32_t* total, const float* from) {
  Floats x[kBlockVectors], most{}, damage{};
  for (int v = 0; v < kBlockVectors; ++v) {
    x[v] = load(from + v * kLanes);
    most = larger(magnitude(x[v]), most);
    damage += x[v] * 0.0f;
  }
  const float peak = largest(most);
  const float inverse = peak > 0.0f && peak < __builtin_inff() ? 127.0f / peak : 0.0f;
  *scale = peak / 127.0f + sum(damage);
  Ints sums{};
  for (int v = 0; v < kBlockVectors; ++v) {
    const Floats whole = round_to_whole(x[v] * inverse);
    const Ints code = whole == whole ? __builtin_convertvector(whole, Ints) : Ints{};
    const Bytes narrow = __builtin_convertvector(code, Bytes);
    std::memcpy(codes + v * kLanes, &narrow, sizeof(narrow));
    sums += code;
  }
  *total = sum(sums);
}

// Rounds one row into its tile; nothing where no weight is quantized.
BLUEJAY_INLINE void round_row(const InputRows& x, int64_t row) {
  if (x.rounded == nullptr) return;
  int64_t first = 0;
  while (row >= first + tile_rows(x.count - first)) first += tile_rows(x.count - first);
  const RoundedRows tile = rounded_rows(x, first);
  const int64_t place = row - first;
  for (int64_t b = 0; b < x.inputs / kBlock; ++b) {
    const int64_t at = b * tile.rows + place;
    round_block(tile.codes + at * kBlock, tile.scales + at, tile.totals + at,
                x.values + row * x.inputs + b * kBlock);
    tile.sums[at] = tile.scales[at] * static_cast<float>(tile.totals[at]);
  }
}

// Where results go: out = product + bias + added, each of the two optional; or out += product + bias.
struct RowTarget {
  float* out;          // [rows, stride]
  int64_t stride;
  const float* bias;   // [stride] or null
  const float* added;  // [rows, stride] or null; `out` itself adds to what is there

  BLUEJAY_INLINE RowTarget from_row(int64_t row) const {
    return {out + row * stride, stride, bias, added == nullptr ? nullptr : added + row * stride};
  }
};

BLUEJAY_INLINE void put_group(const RowTarget& to, int64_t row, int64_t group, float* lanes,
                              int live) {
  const int64_t at = group * kGroup;
  if (to.bias != nullptr)
    for (int i = 0; i < live; ++i) lanes[i] += to.bias[at + i];
  if (to.added != nullptr)
    for (int i = 0; i < live; ++i) lanes[i] += to.added[row * to.stride + at + i];
  std::memcpy(to.out + row * to.stride + at, lanes, sizeof(float) * static_cast<size_t>(live));
}

}  // namespace bluejay::BLUEJAY_ISA
