// The sizes of the middle of a GPT-J block.
#pragma once

#include <cstdint>

namespace bluejay {

// Rows are batch * length positions. A row of the first product holds query, key and value of every
// head, then the feed-forward layer before its bias; a row of the middle's result holds the mixed
// values of every head, then the activations.
struct BlockShape {
  int64_t batch, length, heads, width, pairs, wide;

  int64_t embed() const { return heads * width; }
  int64_t in_stride() const { return 3 * embed() + wide; }
  int64_t out_stride() const { return embed() + wide; }
};

struct MiddleInputs {
  const float *in, *bias, *cos, *sin;  // [rows, in_stride], [wide], [length, pairs] twice
};

}  // namespace bluejay
