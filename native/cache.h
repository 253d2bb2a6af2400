// The key/value cache in float32, float16, or signed bytes with one scale per position and head.
#pragma once

#include "decoder_layer.h"
#include "input_rows.h"

namespace bluejay::BLUEJAY_ISA {

struct Float32Cache {
  typedef float Stored;
  static BLUEJAY_INLINE Floats read(const float* p) { return load(p); }
  static BLUEJAY_INLINE float widen(float x) { return x; }
};

struct Float16Cache {
  typedef uint16_t Stored;
  static BLUEJAY_INLINE Floats read(const uint16_t* p) { return load_halves(p); }
  static BLUEJAY_INLINE float widen(uint16_t x) { return half_to_float(x); }
};

struct Int8Cache {
  typedef int8_t Stored;
  static BLUEJAY_INLINE Floats read(const int8_t* p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    Bytes narrow;
    std::memcpy(&narrow, p, sizeof(narrow));
    return __builtin_convertvector(narrow, Floats);
#endif
  }
  static BLUEJAY_INLINE float widen(int8_t x) { return x; }
};

// Writes one head's row of `width` values to its place; what is not finite spoils the row.
BLUEJAY_INLINE void store_head(const CachePart& to, CacheKind kind, int64_t place, int64_t width,
                               const float* from) {
  if (kind == CacheKind::kFloat32) {
    std::memcpy(static_cast<float*>(to.data) + place * width, from,
                sizeof(float) * static_cast<size_t>(width));
    return;
  }
  if (kind == CacheKind::kFloat16) {
    auto* halves = static_cast<uint16_t*>(to.data) + place * width;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store_halves(halves + i, load(from + i));
    for (; i < width; ++i) halves[i] = float_to_half(from[i]);
    return;
  }
  float most = 0.0f, damage = 0.0f;
  for (int64_t i = 0; i < width; ++i) {
    most = std::max(most, __builtin_fabsf(from[i]));
    damage += from[i] * 0.0f;
  }
  const float inverse = most > 0.0f && most < __builtin_inff() ? 127.0f / most : 0.0f;
  to.scales[place] = most / 127.0f + damage;
  auto* codes = static_cast<int8_t*>(to.data) + place * width;
  for (int64_t i = 0; i < width; ++i) {
    const float whole = __builtin_nearbyintf(from[i] * inverse);
    codes[i] = whole == whole ? static_cast<int8_t>(whole) : int8_t{0};
  }
}

// `count` rows of one head from `place` on, as float32 [count, width].
template <typename Kind>
void widen_heads(float* to, const CachePart& from, int64_t place, int64_t count, int64_t width) {
  const auto* p = static_cast<const typename Kind::Stored*>(from.data) + place * width;
  for (int64_t row = 0; row < count; ++row) {
    const float scale = from.scales == nullptr ? 1.0f : from.scales[place + row];
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes)
      store(to + row * width + i, Kind::read(p + row * width + i) * scale);
    for (; i < width; ++i) to[row * width + i] = Kind::widen(p[row * width + i]) * scale;
  }
}

}  // namespace bluejay::BLUEJAY_ISA
