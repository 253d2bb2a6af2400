// The key/value cache in float32, float16, or signed bytes with one scale per position and head.
#pragma once

#include "decoder_layer.h"
#include "input_rows.h"

namespace bluejay::BLUEJAY_ISA {

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
    for (; i + kLanes <= width; i += kLanes) StoredFloat16::write(halves + i, load(from + i));
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
    widen_all<Kind>(to + row * width, p + row * width, width, scale);
  }
}

}  // namespace bluejay::BLUEJAY_ISA
