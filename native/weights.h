// Weights in memory: plain rows of floats, or blocks of codes whose bytes quantized.h explains.
#pragma once

#include <cstdint>
#include <cstring>

namespace bluejay {

inline constexpr int kBlock = 32;  // inputs that share a scale
inline constexpr int kGroup = 16;  // output rows that lie interleaved

enum class WeightKind { kFloat32, kBfloat16, kFloat16, kInt8, kInt4 };

struct Weights {
  WeightKind kind;
  const void* data;         // [outputs, inputs], or codes [groups, blocks, kBlock * kGroup * bits / 8]
  const uint16_t* scales;   // [groups, blocks, kGroup] half precision, of codes alone
  const uint16_t* offsets;  // the same, or null
  int64_t outputs, inputs;  // inputs a multiple of kBlock where there are codes

  bool is_quantized() const { return kind == WeightKind::kInt8 || kind == WeightKind::kInt4; }
  int bits() const { return kind == WeightKind::kInt8 ? 8 : 4; }
  int64_t groups() const { return (outputs + kGroup - 1) / kGroup; }
};

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = (half >> 10) & 31;
  uint32_t mantissa = half & 1023, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | mantissa << 13;
  } else if (exponent != 0) {
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {
    const float small = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &small, 4);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Rounded to nearest, ties to even; too large is infinite.
inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (bits < 0x38800000) {  // below the smallest normal: count in steps of 2^-24
    float size;
    std::memcpy(&size, &bits, 4);
    const float steps = size * 16777216.0f + 8388608.0f;  // adding 2^23 rounds to whole steps
    uint32_t whole;
    std::memcpy(&whole, &steps, 4);
    return static_cast<uint16_t>(sign | (whole & 0x7ff));
  }
  bits += 0xfff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000) >> 13));
}

inline float bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

}  // namespace bluejay
