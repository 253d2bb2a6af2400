// One layer of a decoder as its native kernel takes it: sizes, weights, cache.
#pragma once

#include <cstdint>

#include "weights.h"

namespace bluejay {

enum class Activation { kGeluTanh, kGeluErf, kSiluGated };
enum class CacheKind { kFloat32, kFloat16, kInt8 };

struct Norm {
  const float *scale, *bias;  // [embed]; no bias: RMSNorm. No scale: there is no such norm
};

struct Linear {
  Weights weights;
  const float* bias;  // [outputs] or null
};

// Keys or values of one layer: [cache rows, kv_heads, capacity, width]. Bytes have one float32 scale
// per position and head, [cache rows, kv_heads, capacity].
struct CachePart {
  void* data;
  float* scales;
};

struct DecoderLayer {
  int64_t batch, length;  // sequences, and new positions of each
  int64_t embed, heads, kv_heads, width, wide, pairs, capacity;
  bool is_sequential, pairs_are_halves;
  Activation activation;
  float eps;

  const float* x;       // [batch, length, embed]
  float* out;           // the same
  const int32_t* starts;  // [batch]: where the first new position stands
  const int32_t* slots;   // [batch]: the cache's row of each sequence; null: its own number
  int64_t slot_rows;      // rows of [kv_heads, capacity, width] from one slot to the next
  const float *cos, *sin;  // [batch, length, pairs]; no pairs: positions are learned
  Norm attention_norm, feed_forward_norm;
  Linear query, key, value, mix, up, gate, down;
  CacheKind cache;
  CachePart keys, values;

  int64_t rows() const { return batch * length; }
  int64_t cache_row(int64_t sequence) const {
    return slots == nullptr ? sequence : slots[sequence] * slot_rows;
  }
  bool is_gated() const { return activation == Activation::kSiluGated; }
};

}  // namespace bluejay
