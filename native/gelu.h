// The tanh approximation of GELU (Hendrycks and Gimpel 2016) and its derivative.
#pragma once

#include "simd.h"

namespace bluejay::BLUEJAY_ISA {

inline constexpr float kGeluScale = 0.7978845608028654f;  // sqrt(2 / pi)
inline constexpr float kGeluCube = 0.044715f;

// tanh(u) = 1 - 2 / (e^(2u) + 1): absolute error below 3e-7, which is what a GELU needs.
BLUEJAY_INLINE Floats gelu_tanh(Floats x) {
  return 1.0f - 2.0f / (exponential(2.0f * kGeluScale * (x + kGeluCube * x * x * x)) + 1.0f);
}

BLUEJAY_INLINE Floats gelu(Floats x) { return 0.5f * x * (1.0f + gelu_tanh(x)); }

BLUEJAY_INLINE Floats gelu_slope(Floats x) {
  const Floats t = gelu_tanh(x);
  const Floats inner = kGeluScale * (1.0f + 3.0f * kGeluCube * x * x);
  return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
}

}  // namespace bluejay::BLUEJAY_ISA
