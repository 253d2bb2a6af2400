// Vectors of float as wide as the instruction set of the including file, by GCC's and Clang's vector
// extensions: one text for SSE, AVX2, AVX-512 and NEON.
//
// Every file that includes this is compiled for one instruction set, which BLUEJAY_ISA names; what
// is defined here lives in a namespace of that name, so that the linker never mixes two of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#ifndef BLUEJAY_ISA
#error "BLUEJAY_ISA names the instruction set of this file"
#endif

#define BLUEJAY_INLINE inline __attribute__((always_inline))

namespace bluejay::BLUEJAY_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

BLUEJAY_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

BLUEJAY_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof(v)); }

BLUEJAY_INLINE Floats splat(float x) { return Floats{} + x; }

// The first `count` lanes, zeros behind them; no byte beyond is read.
BLUEJAY_INLINE Floats load_some(const float* p, int count) {
  alignas(64) float lanes[kLanes] = {};
  std::memcpy(lanes, p, sizeof(float) * static_cast<size_t>(count));
  return load(lanes);
}

BLUEJAY_INLINE void store_some(float* p, Floats v, int count) {
  std::memcpy(p, &v, sizeof(float) * static_cast<size_t>(count));
}

// Lanes are added in a fixed tree, so that a sum never depends on the compiler's mood.
BLUEJAY_INLINE float sum(Floats v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

BLUEJAY_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

BLUEJAY_INLINE float largest(Floats v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

// To the nearest whole number, ties to even: as an instruction, which no multiplication before it can be
// contracted with.
BLUEJAY_INLINE Floats round_to_whole(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (Floats)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__ARM_FEATURE_DOTPROD)
  return (Floats)vrndnq_f32((float32x4_t)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_nearbyintf(x[i]);
  return x;
#endif
}

// e^x with a relative error below 2e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (coefficients of
// Cephes' expf). Below -87 the result is 0, above 88.7 infinite; NaN stays NaN.
BLUEJAY_INLINE Floats exponential(Floats x) {
  const Floats low = splat(-87.0f), high = splat(89.0f);
  const Floats kept = x < low ? low : (x > high ? high : x);
  const Floats shifted = kept * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23 rounds
  const Floats n = shifted - 12582912.0f;
  Floats r = kept - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Floats y = p * (r * r) + r + 1.0f;
  // In two factors, for 2^128 has no bits of its own.
  const Ints whole = __builtin_convertvector(n, Ints);
  const Ints half = whole >> 1;
  const Ints first = (half + 127) << 23, second = (whole - half + 127) << 23;
  const Floats scaled = y * (Floats)first * (Floats)second;
  return x != x ? x : (x < low ? Floats{} : scaled);
}

// Rows and columns of a square of kLanes x kLanes values change places.
BLUEJAY_INLINE void transpose(Floats (&m)[kLanes]) {
#if defined(__AVX512F__)
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps((__m512)m[i], (__m512)m[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps((__m512)m[i], (__m512)m[i + 1]);
  }
  __m512 u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm512_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
      u[i + 2 * j + 1] = _mm512_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
    }
    // u[4a + c] holds, in quarter l, the column 4l + c of rows 4a to 4a + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
    const __m512 d = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    const __m512 e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
    m[c] = (Floats)_mm512_shuffle_f32x4(a, d, 0x88);
    m[8 + c] = (Floats)_mm512_shuffle_f32x4(a, d, 0xdd);
    m[4 + c] = (Floats)_mm512_shuffle_f32x4(b, e, 0x88);
    m[12 + c] = (Floats)_mm512_shuffle_f32x4(b, e, 0xdd);
  }
#elif defined(__AVX2__)
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps((__m256)m[i], (__m256)m[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps((__m256)m[i], (__m256)m[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
    }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    m[c] = (Floats)_mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
    m[4 + c] = (Floats)_mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
  }
#elif defined(__ARM_FEATURE_DOTPROD)
  // Pairs of rows exchange single values, then both pairs exchange halves.
  float64x2_t t[4];
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) {
    t[i] = (float64x2_t)vtrn1q_f32((float32x4_t)m[i], (float32x4_t)m[i + 1]);
    t[i + 1] = (float64x2_t)vtrn2q_f32((float32x4_t)m[i], (float32x4_t)m[i + 1]);
  }
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    m[c] = (Floats)vzip1q_f64(t[c], t[2 + c]);
    m[2 + c] = (Floats)vzip2q_f64(t[c], t[2 + c]);
  }
#else
  float square[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) store(square[i], m[i]);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) m[i][j] = square[j][i];
#endif
}

}  // namespace bluejay::BLUEJAY_ISA
