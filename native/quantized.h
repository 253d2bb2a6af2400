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
// Activations are rounded to signed bytes per block of 32 (input_rows.h).
#pragma once

#include "input_rows.h"
#include "weights.h"

namespace bluejay::BLUEJAY_ISA {

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
#elif defined(__ARM_FEATURE_DOTPROD)
typedef uint8x16_t Codes;
typedef int32x4_t Sums;
inline constexpr int kParts = 4;
BLUEJAY_INLINE Codes load_codes(const uint8_t* p) { return vld1q_u8(p); }
BLUEJAY_INLINE Codes low_nibbles(Codes c) { return vandq_u8(c, vdupq_n_u8(15)); }
BLUEJAY_INLINE Codes high_nibbles(Codes c) { return vshrq_n_u8(c, 4); }
BLUEJAY_INLINE Sums splat_sum(int32_t x) { return vdupq_n_s32(x); }
template <int kZero>
BLUEJAY_INLINE Sums add_products(Sums sums, Codes codes, int32_t four) {
  // The instruction takes signed bytes: 128 is taken off by turning the highest bit, nibbles are small.
  if (kZero == 128) codes = veorq_u8(codes, vdupq_n_u8(128));
  return vdotq_s32(sums, vreinterpretq_s8_u8(codes), vreinterpretq_s8_s32(vdupq_n_s32(four)));
}
BLUEJAY_INLINE Floats to_floats(Sums s) { return (Floats)vcvtq_f32_s32(s); }
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

// What the sums of one block begin with, so that codes count from their zero: AVX2 and NEON take
// the zero of bytes off themselves.
template <int kZero>
BLUEJAY_INLINE int32_t first_sum(int32_t total) {
#if (defined(__AVX2__) && !defined(__AVX512VNNI__)) || defined(__ARM_FEATURE_DOTPROD)
  if (kZero == 128) return 0;
#endif
  return -kZero * total;
}

// The integer products of one block: sums[row][part] of each lane's codes with the activations.
template <int kBits, int kZero, int kRows>
BLUEJAY_INLINE void multiply_block(Sums (&sums)[kRows][kParts], const uint8_t* codes,
                                   const int8_t* activations, const int32_t* totals) {
  constexpr int kSlices = kBlock * kGroup * kBits / 8 / 64;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) sums[r][p] = splat_sum(first_sum<kZero>(totals[r]));
#pragma GCC unroll 8
  for (int s = 0; s < kSlices; ++s)
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
}

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
// Products of nibbles and bytes are so small that a whole block of them fits into 16 bits: 16 products
// of at most 15 * 127 each.
template <int kZero, int kRows>
BLUEJAY_INLINE void multiply_nibbles(Sums (&sums)[kRows][kParts], const uint8_t* codes,
                                     const int8_t* activations, const int32_t* totals) {
#pragma GCC unroll 2
  for (int p = 0; p < kParts; ++p) {
    // Sixteen registers do not hold the activations of a block: they are read again for each half.
    asm volatile("" ::: "memory");
    __m256i pairs[kRows];
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const Codes c = load_codes(codes + 64 * s + 32 * p);
      const Codes low = low_nibbles(c), high = high_nibbles(c);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t four[2];
        std::memcpy(four, activations + r * kBlock + 4 * s, 4);
        std::memcpy(four + 1, activations + r * kBlock + 4 * (s + 4), 4);
        const __m256i a = _mm256_maddubs_epi16(low, _mm256_set1_epi32(four[0]));
        const __m256i b = _mm256_maddubs_epi16(high, _mm256_set1_epi32(four[1]));
        const __m256i both = _mm256_add_epi16(a, b);
        pairs[r] = s == 0 ? both : _mm256_add_epi16(pairs[r], both);
        // In a register from here on: GCC puts the additions off, and sixty products on the stack.
        asm("" : "+x"(pairs[r]));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r][p] = _mm256_add_epi32(splat_sum(first_sum<kZero>(totals[r])),
                                    _mm256_madd_epi16(pairs[r], _mm256_set1_epi16(1)));
  }
}
#endif

BLUEJAY_INLINE void widen_group(float* to, const uint16_t* from) {
  for (int i = 0; i < kGroup; i += kLanes) store(to + i, StoredFloat16::read(from + i));
}

// Bytes of codes between their prefetching and their use, and the cache they are brought to (2 the second,
// 3 the first). A single row has least to do per byte, of byte weights above all: it overtakes nearer ones,
// and lines brought to the small first cache (docs/lab-book.md).
template <int kBits, int kRows>
inline constexpr int kAheadOf = kBits == 8 && kRows == 1 ? 8192 : 2048;
template <int kBits, int kRows>
inline constexpr int kCacheOf = kBits == 8 && kRows == 1 ? 2 : 3;

// One group of kGroup outputs for kRows rows. Sums over blocks run in float32, in the order of blocks.
template <int kBits, int kZero, bool kHasOffset, int kRows>
BLUEJAY_INLINE void multiply_group(const RowTarget& to, const RoundedRows& x, const Weights& w,
                                   int64_t group) {
  constexpr int kBytes = kBlock * kGroup * kBits / 8, kAhead = kAheadOf<kBits, kRows>;
  const int64_t blocks = w.inputs / kBlock;
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + group * blocks * kBytes;
  const uint16_t* scales = w.scales + group * blocks * kGroup;
  const uint16_t* offsets = kHasOffset ? w.offsets + group * blocks * kGroup : nullptr;
  const int8_t* activations = x.codes;
  Floats total[kRows][kParts] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    Sums sums[kRows][kParts];
    // The hardware's own prefetching stops at the end of each page.
    for (int line = 0; line < kBytes; line += 64)
      __builtin_prefetch(codes + kAhead + line, 0, kCacheOf<kBits, kRows>);
    __builtin_prefetch(scales + b * kGroup + kAhead / (kBytes / kGroup));
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
    if constexpr (kBits == 4)
      multiply_nibbles<kZero, kRows>(sums, codes, activations, x.totals + b * kRows);
    else
#endif
      multiply_block<kBits, kZero, kRows>(sums, codes, activations, x.totals + b * kRows);
    alignas(64) float scale[kGroup], offset[kGroup];
    widen_group(scale, scales + b * kGroup);
    if (kHasOffset) widen_group(offset, offsets + b * kGroup);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const float step = x.scales[b * kRows + r];
      const float moved = x.sums[b * kRows + r];
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        total[r][p] += to_floats(sums[r][p]) * (load(scale + kLanes * p) * step);
        if (kHasOffset) total[r][p] += load(offset + kLanes * p) * moved;
      }
    }
    codes += kBytes;
    activations += kRows * kBlock;
  }
  const int live = static_cast<int>(std::min<int64_t>(kGroup, w.outputs - group * kGroup));
  for (int r = 0; r < kRows; ++r) {
    alignas(64) float lanes[kGroup];
    for (int p = 0; p < kParts; ++p) store(lanes + kLanes * p, total[r][p]);
    put_group(to, r, group, lanes, live);
  }
}

template <int kBits, int kZero, bool kHasOffset>
BLUEJAY_INLINE void multiply_tile_rows(const RowTarget& to, const RoundedRows& x, const Weights& w,
                                       int64_t group) {
  switch (x.rows) {
#if defined(__AVX512VNNI__)
    case 8: return multiply_group<kBits, kZero, kHasOffset, 8>(to, x, w, group);
#endif
    case 4: return multiply_group<kBits, kZero, kHasOffset, 4>(to, x, w, group);
    case 2: return multiply_group<kBits, kZero, kHasOffset, 2>(to, x, w, group);
    default: return multiply_group<kBits, kZero, kHasOffset, 1>(to, x, w, group);
  }
}

// Outputs [16 first, 16 last) of all rows.
inline void multiply_codes(const RowTarget& to, const InputRows& x, const Weights& w, int64_t first,
                           int64_t last) {
  for (int64_t g = first; g < last; ++g)
    for (int64_t row = 0; row < x.count;) {
      const RoundedRows tile = rounded_rows(x, row);
      const RowTarget at = to.from_row(row);
      if (w.kind == WeightKind::kInt8)
        multiply_tile_rows<8, 128, false>(at, tile, w, g);
      else if (w.offsets == nullptr)
        multiply_tile_rows<4, 8, false>(at, tile, w, g);
      else
        multiply_tile_rows<4, 0, true>(at, tile, w, g);
      row += tile.rows;
    }
}

}  // namespace bluejay::BLUEJAY_ISA
