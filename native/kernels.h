// The table of kernels: one per instruction set, chosen once, at run time.
#pragma once

#include <cstdint>

#include "block_shape.h"
#include "choice.h"
#include "decoder_layer.h"
#include "operand.h"
#include "weights.h"

namespace bluejay {

// Kernels return false when memory for their working buffers is out. A null entry: this instruction
// set has no such operation.
struct Kernels {
  const char* name;
  bool (*matmul_float32)(float* out, Operand left, Operand right, int64_t rows, int64_t columns,
                         int64_t depth);
  bool (*matmul_bfloat16)(float* out, Operand left, Operand right, int64_t rows, int64_t columns,
                          int64_t depth);
  bool (*layer_norm)(float* y, float* stats, const float* x, const float* scale, const float* bias,
                     int64_t rows, int64_t width, float eps);
  bool (*layer_norm_backward)(float* dx, float* dscale, float* dbias, const float* dy,
                              const float* x, const float* stats, const float* scale, int64_t rows,
                              int64_t width);
  bool (*cross_entropy)(float* loss, float* log_sum, float* stats, const float* logits,
                        const float* bias, const int32_t* targets, int64_t rows, int64_t width);
  bool (*cross_entropy_backward)(float* dlogits, float* dbias, const float* dloss,
                                 const float* dlog_sum, const float* logits, const float* bias,
                                 const int32_t* targets, const float* stats, int64_t rows,
                                 int64_t width);
  bool (*block_middle)(float* out, float* log_sum, MiddleInputs x, BlockShape s);
  bool (*block_middle_backward)(float* din, float* dbias, const float* dresult, const float* out,
                                const float* log_sum, MiddleInputs x, BlockShape s);
  bool (*multiply_weights)(float* out, const float* x, int64_t count, Weights w);
  bool (*decoder_block)(const DecoderLayer& layer);
  bool (*choose)(const ChoiceRows& rows);
  uint32_t (*read_memory)(const void* data, int64_t bytes);
};

// The best table this processor can run, or the one that was forced.
const Kernels& kernels();

// Forces the table of this name ("portable", "avx2", "avx512", "avx512_bf16", "neon"). False when this processor or this build lacks it.
bool force_kernels(const char* name);

}  // namespace bluejay
