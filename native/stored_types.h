// Numbers as weights and caches store them, read as float32.
#pragma once

#include "simd.h"
#include "weights.h"

namespace bluejay::BLUEJAY_ISA {

typedef int8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

struct StoredFloat32 {
  typedef float Stored;
  static BLUEJAY_INLINE Floats read(const float* p) { return load(p); }
  static BLUEJAY_INLINE float widen(float x) { return x; }
};

struct StoredFloat16 {
  typedef uint16_t Stored;
  static BLUEJAY_INLINE Floats read(const uint16_t* p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__ARM_FEATURE_DOTPROD)
    return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
    Floats wide;
    for (int i = 0; i < kLanes; ++i) wide[i] = half_to_float(p[i]);
    return wide;
#endif
  }
  static BLUEJAY_INLINE float widen(uint16_t x) { return half_to_float(x); }
  static BLUEJAY_INLINE void write(uint16_t* p, Floats x) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__ARM_FEATURE_DOTPROD)
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
#else
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(x[i]);
#endif
  }
};

struct StoredBfloat16 {
  typedef uint16_t Stored;
  static BLUEJAY_INLINE Floats read(const uint16_t* p) {
    Halves narrow;
    std::memcpy(&narrow, p, sizeof(narrow));
    return (Floats)(__builtin_convertvector(narrow, Words) << 16);
  }
  static BLUEJAY_INLINE float widen(uint16_t x) { return bfloat16_to_float(x); }
};

struct StoredInt8 {
  typedef int8_t Stored;
  static BLUEJAY_INLINE Floats read(const int8_t* p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif defined(__ARM_FEATURE_DOTPROD)
    int32_t four;
    std::memcpy(&four, p, sizeof(four));
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return (Floats)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
#else
    Bytes narrow;
    std::memcpy(&narrow, p, sizeof(narrow));
    return __builtin_convertvector(narrow, Floats);
#endif
  }
  static BLUEJAY_INLINE float widen(int8_t x) { return x; }
};

// `count` stored numbers as float32, each times `scale`.
template <typename Kind>
BLUEJAY_INLINE void widen_all(float* to, const typename Kind::Stored* from, int64_t count,
                              float scale) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, Kind::read(from + i) * scale);
  for (; i < count; ++i) to[i] = Kind::widen(from[i]) * scale;
}

}  // namespace bluejay::BLUEJAY_ISA
