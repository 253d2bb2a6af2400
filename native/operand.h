// How a product finds its operands in memory.
#pragma once

#include <cstdint>

namespace bluejay {

// A matrix: element (row, k) at data[row * row_stride + k * k_stride]; one of the strides is 1. "Rows"
// are those of the left operand, columns of the right; k is the summed axis.
struct Operand {
  const float* data;
  int64_t row_stride;
  int64_t k_stride;
};

}  // namespace bluejay
