// Products of a few rows with block-quantized weights: one pass over the weights, integer dot products.
//
// Weights lie in groups of kGroup rows. A group is a run of blocks of kBlock inputs; in a block, byte
// 4 r + j of slice s belongs to row r and input 4 s + j (8 bits), or holds input 4 s + j in its low and
// input 4 (s + 4) + j in its high nibble (4 bits). So one 64-byte load serves sixteen rows and a broadcast
// of four activations multiplies them all, on any width of vector.
//
// A weight is scale * (code - zero) + offset: code an unsigned byte or nibble, zero 128 or 8, scale and
// offset 16-bit floats per row and block. With offset 0 these are GGUF's Q8_0 and Q4_0, with zero 0 its
// Q4_1.
//
// Activations are rounded to signed bytes per block of 32, scale = largest / 127 in float32.
#pragma once

#include <cmath>

#include "rows.h"
#include "weights.h"

namespace bluejay::BLUEJAY_ISA {

// Half precision to float32, kGroup of them.
BLUEJAY_INLINE void widen_halves(float* to, const uint16_t* from) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)));
#elif defined(__F16C__)
  for (int i = 0; i < 16; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
#else
  for (int i = 0; i < kGroup; ++i) to[i] = half_to_float(from[i]);
#endif
}

// sums[lane] += the four products of lane's codes with four activations.
#if defined(__AVX512VNNI__)
typedef __m512i Codes;
typedef __m512i Sums;
inline constexpr int kParts = 1;
BLUEJAY_INLINE Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
BLUEJAY_INLINE Codes low_nibbles(Codes c) { return _mm512_and_si512(c, _mm512_set1_epi8(15)); }
BLUEJAY_INLINE Codes high_nibbles(Codes c) { return low_nibbles(_mm512_srli_epi16(c, 4)); }
BLUEJAY_INLINE Sums splat_sum(int32_t x) { return _mm512_set1_epi32(x); }
template <int kZero>
BLUEJAY_INLINE Sums add_products(Sums sums, Codes codes, int32_t four) {
  return _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(four));
}
BLUEJAY_INLINE Floats to_floats(Sums s) { return (Floats)_mm512_cvtepi32_ps(s); }
#elif defined(__AVX2__)
typedef __m256i Codes;
typedef __m256i Sums;
inline constexpr int kParts = 2;
BLUEJAY_INLINE Codes load_codes(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
BLUEJAY_INLINE Codes low_nibbles(Codes c) { return _mm256_and_si256(c, _mm256_set1_epi8(15)); }
BLUEJAY_INLINE Codes high_nibbles(Codes c) { return low_nibbles(_mm256_srli_epi16(c, 4)); }
BLUEJAY_INLINE Sums splat_sum(int32_t x) { return _mm256_set1_epi32(x); }
template <int kZero>
BLUEJAY_INLINE Sums add_products(Sums sums, Codes codes, int32_t four) {
  __m256i activations = _mm256_set1_epi32(four);
  if (kZero == 128) {
    // Bytes of full range would saturate the sums of pairs: multiply magnitudes, move the signs over.
    // 128 is counted below, as everywhere, by what the sums begin with.
    const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    codes = _mm256_abs_epi8(weights);
    activations = _mm256_sign_epi8(activations, weights);
  }
  const __m256i pairs = _mm256_maddubs_epi16(codes, activations);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
BLUEJAY_INLINE Floats to_floats(Sums s) { return (Floats)_mm256_cvtepi32_ps(s); }
#else
typedef uint8_t Codes __attribute__((vector_size(16)));
typedef int32_t Sums __attribute__((vector_size(16)));
inline constexpr int kParts = 4;
BLUEJAY_INLINE Codes load_codes(const uint8_t* p) {
  Codes c;
  std::memcpy(&c, p, sizeof(c));
  return c;
}
BLUEJAY_INLINE Codes low_nibbles(Codes c) { return c & 15; }
BLUEJAY_INLINE Codes high_nibbles(Codes c) { return c >> 4; }
BLUEJAY_INLINE Sums splat_sum(int32_t x) { return Sums{} + x; }
template <int kZero>
BLUEJAY_INLINE Sums add_products(Sums sums, Codes codes, int32_t four) {
  int8_t activations[4];
  std::memcpy(activations, &four, 4);
  for (int lane = 0; lane < 4; ++lane)
    for (int j = 0; j < 4; ++j) sums[lane] += int32_t(codes[4 * lane + j]) * activations[j];
  return sums;
}
BLUEJAY_INLINE Floats to_floats(Sums s) { return __builtin_convertvector(s, Floats); }
#endif

// What the sums of one block begin with, so that codes count from their zero: the AVX2 path takes the
// zero of bytes off itself.
template <int kZero>
BLUEJAY_INLINE int32_t first_sum(int32_t total) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  if (kZero == 128) return 0;
#endif
  return -kZero * total;
}

// Activations of some rows side by side, so that one pointer finds them all: signed bytes
// [blocks, rows, kBlock], and [blocks, rows] scales and sums of the bytes.
struct RoundedRows {
  int8_t* codes;
  float* scales;
  int32_t* totals;
  int64_t rows;
};

BLUEJAY_INLINE void round_row(const RoundedRows& to, int64_t row, const float* x, int64_t inputs) {
  for (int64_t b = 0; b < inputs / kBlock; ++b) {
    const float* from = x + b * kBlock;
    int8_t* codes = to.codes + (b * to.rows + row) * kBlock;
    float most = 0.0f;
    // NaN must not be lost in a comparison: the scale then is NaN, and so is every result.
    bool is_number = true;
    for (int i = 0; i < kBlock; ++i) {
      most = std::max(most, std::fabs(from[i]));
      is_number = is_number && from[i] == from[i];
    }
    const float scale = is_number ? most / 127.0f : __builtin_nanf("");
    const float inverse = most > 0.0f && most < __builtin_inff() ? 127.0f / most : 0.0f;
    int32_t total = 0;
    for (int i = 0; i < kBlock; ++i) {
      const float rounded = is_number ? std::nearbyint(from[i] * inverse) : 0.0f;
      const int8_t code = static_cast<int8_t>(std::isfinite(rounded) ? rounded : 0.0f);
      codes[i] = code;
      total += code;
    }
    // An infinite value times zero is NaN, as the reference has it where signs differ.
    to.scales[b * to.rows + row] = scale;
    to.totals[b * to.rows + row] = total;
  }
}

// One group of kGroup outputs for kRows rows. Sums over blocks run in float32, in the order of blocks.
template <int kBits, int kZero, bool kHasOffset, int kRows>
BLUEJAY_INLINE void multiply_group(float* out, int64_t stride, int live, const RoundedRows& x,
                                   const QuantizedWeights& w, int64_t group) {
  constexpr int kBytes = kBlock * kGroup * kBits / 8;
  const int64_t blocks = w.inputs / kBlock;
  const uint8_t* codes = w.codes + group * blocks * kBytes;
  const uint16_t* scales = w.scales + group * blocks * kGroup;
  const uint16_t* offsets = kHasOffset ? w.offsets + group * blocks * kGroup : nullptr;
  const int8_t* activations = x.codes;
  Floats total[kRows][kParts] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    Sums sums[kRows][kParts];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p)
        sums[r][p] = splat_sum(first_sum<kZero>(x.totals[b * kRows + r]));
#pragma GCC unroll 8
    for (int s = 0; s < kBytes / 64; ++s)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        const Codes c = load_codes(codes + 64 * s + 64 / kParts * p);
        const Codes low = kBits == 8 ? c : low_nibbles(c);
        const Codes high = kBits == 8 ? c : high_nibbles(c);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          int32_t four;
          std::memcpy(&four, activations + r * kBlock + 4 * s, 4);
          sums[r][p] = add_products<kZero>(sums[r][p], low, four);
          if (kBits == 4) {
            std::memcpy(&four, activations + r * kBlock + 4 * (s + 4), 4);
            sums[r][p] = add_products<kZero>(sums[r][p], high, four);
          }
        }
      }
    alignas(64) float scale[kGroup], offset[kGroup];
    widen_halves(scale, scales + b * kGroup);
    if (kHasOffset) widen_halves(offset, offsets + b * kGroup);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const float step = x.scales[b * kRows + r];
      const float moved = step * static_cast<float>(x.totals[b * kRows + r]);
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        total[r][p] += to_floats(sums[r][p]) * (load(scale + kLanes * p) * step);
        if (kHasOffset) total[r][p] += load(offset + kLanes * p) * moved;
      }
    }
    codes += kBytes;
    activations += kRows * kBlock;
  }
  for (int r = 0; r < kRows; ++r) {
    alignas(64) float lanes[kGroup];
    for (int p = 0; p < kParts; ++p) store(lanes + kLanes * p, total[r][p]);
    std::memcpy(out + r * stride, lanes, sizeof(float) * static_cast<size_t>(live));
  }
}

// How many of `count` rows go together. A row's result does not depend on it.
BLUEJAY_INLINE int64_t tile_rows(int64_t count) {
#if defined(__AVX512VNNI__)
  if (count >= 8) return 8;
#endif
  return count >= 4 ? 4 : count >= 2 ? 2 : 1;
}

template <int kBits, int kZero, bool kHasOffset>
BLUEJAY_INLINE void multiply_tile_rows(float* out, int64_t stride, int live, const RoundedRows& x,
                                       const QuantizedWeights& w, int64_t group) {
  switch (x.rows) {
#if defined(__AVX512VNNI__)
    case 8: return multiply_group<kBits, kZero, kHasOffset, 8>(out, stride, live, x, w, group);
#endif
    case 4: return multiply_group<kBits, kZero, kHasOffset, 4>(out, stride, live, x, w, group);
    case 2: return multiply_group<kBits, kZero, kHasOffset, 2>(out, stride, live, x, w, group);
    default: return multiply_group<kBits, kZero, kHasOffset, 1>(out, stride, live, x, w, group);
  }
}

// Where the tile that begins with row `first` lies within memory for all rows.
inline RoundedRows rounded_rows(uint8_t* memory, int64_t first, int64_t rows, int64_t inputs) {
  const int64_t blocks = inputs / kBlock;
  uint8_t* begin = memory + first * (inputs + 8 * blocks);
  auto* scales = reinterpret_cast<float*>(begin + rows * inputs);
  auto* totals = reinterpret_cast<int32_t*>(scales + rows * blocks);
  return {reinterpret_cast<int8_t*>(begin), scales, totals, rows};
}

// out [count, outputs] = x [count, inputs] . weights^T.
inline bool multiply_quantized(float* out, const float* x, int64_t count, QuantizedWeights w) {
  const int64_t groups = (w.outputs + kGroup - 1) / kGroup;
  const int64_t row_bytes = w.inputs + 8 * (w.inputs / kBlock);
  auto* memory =
      static_cast<uint8_t*>(scratch(Slot::kRight, static_cast<size_t>(count * row_bytes)));
  if (memory == nullptr) return false;
  for (int64_t first = 0; first < count;) {
    const RoundedRows tile = rounded_rows(memory, first, tile_rows(count - first), w.inputs);
    for (int64_t r = 0; r < tile.rows; ++r)
      round_row(tile, r, x + (first + r) * w.inputs, w.inputs);
    first += tile.rows;
  }
  // Some groups a task: enough to be worth taking, few enough that the threads end together.
  const int64_t chunk = std::max<int64_t>(1, groups / (8 * num_threads()));
  parallel_for(static_cast<size_t>((groups + chunk - 1) / chunk), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * chunk;
    for (int64_t g = begin; g < std::min(groups, begin + chunk); ++g) {
      const int live = static_cast<int>(std::min<int64_t>(kGroup, w.outputs - g * kGroup));
      for (int64_t first = 0; first < count;) {
        const RoundedRows tile = rounded_rows(memory, first, tile_rows(count - first), w.inputs);
        float* to = out + first * w.outputs + g * kGroup;
        if (w.bits == 8)
          multiply_tile_rows<8, 128, false>(to, w.outputs, live, tile, w, g);
        else if (w.offsets == nullptr)
          multiply_tile_rows<4, 8, false>(to, w.outputs, live, tile, w, g);
        else
          multiply_tile_rows<4, 0, true>(to, w.outputs, live, tile, w, g);
        first += tile.rows;
      }
    }
  });
  return true;
}

}  // namespace bluejay::BLUEJAY_ISA
