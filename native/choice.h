// What a choice of ids is given and gives; bluejay.generation.sampling says what each is.
#pragma once

#include <cstdint>

namespace bluejay {

struct ChoiceRows {
  const float* raw;        // [rows, width] the model's, which are reported
  const float* processed;  // [rows, width] after bias and penalties, which are chosen from; perhaps the same
  const uint8_t* allowed;  // [rows, width]
  const float *temperature, *top_p, *min_p, *typical_p;  // [rows]
  const int32_t* top_k;                                   // [rows]
  const uint32_t* bits;                                   // [rows] random
  int32_t* ids;                                           // [rows]
  float *largest, *log_sum;  // [rows] of raw: log sum exp in two parts, NaN where a logit is no number
  int64_t rows, width;
};

}  // namespace bluejay
