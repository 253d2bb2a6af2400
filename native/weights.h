// Block-quantized weights in memory; what the bytes mean stands in quantized.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace bluejay {

inline constexpr int kBlock = 32;  // inputs that share a scale
inline constexpr int kGroup = 16;  // output rows that lie interleaved

struct QuantizedWeights {
  const uint8_t* codes;     // [groups, blocks, kBlock * kGroup * bits / 8]
  const uint16_t* scales;   // [groups, blocks, kGroup] half precision
  const uint16_t* offsets;  // the same, or null
  int64_t outputs, inputs;  // inputs a multiple of kBlock
  int bits;                 // 8 or 4
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

}  // namespace bluejay
