// Causal attention of one head over blocks of queries, by products of packed panels.
//
// Scores are kept transposed, [key, query]: the softmax then runs down columns, sixteen queries at a time,
// and no full score matrix exists (as in Dao et al. 2022, arXiv:2205.14135).
#pragma once

#include <cmath>

#include "matmul.h"

namespace bluejay::BLUEJAY_ISA {

// A product of small matrices by one thread, operands packed into buffers that the caller gives.
struct SmallProduct {
  typedef ProductFloat32 Product;
  static constexpr int kRows = Product::kRows, kColumns = Product::kVectors * kLanes;

  static int64_t left_size(int64_t rows, int64_t depth) { return round_up(rows, kRows) * depth; }
  static int64_t right_size(int64_t columns, int64_t depth) {
    return round_up(columns, kColumns) * depth;
  }

  static void pack_left(float* to, Operand from, int64_t rows, int64_t depth) {
    for (int64_t r = 0; r < rows; r += kRows)
      Product::pack(to + r * depth, kRows, moved(from, r),
                    static_cast<int>(std::min<int64_t>(kRows, rows - r)), depth);
  }
  static void pack_right(float* to, Operand from, int64_t columns, int64_t depth) {
    for (int64_t c = 0; c < columns; c += kColumns)
      Product::pack(to + c * depth, kColumns, moved(from, c),
                    static_cast<int>(std::min<int64_t>(kColumns, columns - c)), depth);
  }
  // Operands may have been packed deeper than the product goes.
  struct Packed {
    const float* data;
    int64_t depth;
  };

  static void multiply(float* out, int64_t stride, Packed left, Packed right, int64_t rows,
                       int64_t columns, int64_t depth, bool is_added) {
    for (int64_t c = 0; c < columns; c += kColumns)
      for (int64_t r = 0; r < rows; r += kRows)
        multiply_panels<Product>(left.data + r * left.depth, right.data + c * right.depth, depth,
                                 out + r * stride + c, stride,
                                 static_cast<int>(std::min<int64_t>(kRows, rows - r)),
                                 static_cast<int>(std::min<int64_t>(kColumns, columns - c)),
                                 is_added);
  }

 private:
  static Operand moved(Operand from, int64_t row) {
    return {from.data + row * from.row_stride, from.row_stride, from.k_stride};
  }
};

inline constexpr int64_t kQueries = 64;

// Working memory of one head: keys [end, width] and values [width, end] packed, the rest of one block.
struct HeadPanels {
  float *keys, *values, *scores, *left, *right, *mixed;
};

// `length` queries [length, stride], of which the first stands at position `start`; `end` keys.
struct HeadQueries {
  const float* data;
  int64_t stride, start, length, width;

  int64_t end() const { return start + length; }
};

// scores[key, query] of the `count` queries from number `begin` on; masked ones are -infinity.
inline void score_block(const HeadPanels& b, const HeadQueries& q, int64_t begin, int64_t count) {
  const int64_t first = q.start + begin, seen = first + count;
  SmallProduct::pack_right(b.right, {q.data + begin * q.stride, q.stride, 1}, count, q.width);
  SmallProduct::multiply(b.scores, kQueries, {b.keys, q.width}, {b.right, q.width}, seen, count,
                         q.width, false);
  for (int64_t k = first; k < seen; ++k)
    for (int64_t i = 0; i < k - first; ++i) b.scores[k * kQueries + i] = -__builtin_inff();
}

// Turns scores into weights in place, column by column; log_sum[q] of the whole head is written.
inline void softmax_columns(float* scores, int64_t end, float* totals, float* log_sum,
                            int64_t count) {
  for (int64_t c = 0; c < kQueries; c += kLanes) {
    if (c >= count) return;
    Floats most = load(scores + c);
    for (int64_t k = 1; k < end; ++k) most = larger(load(scores + k * kQueries + c), most);
    Floats total{};
    for (int64_t k = 0; k < end; ++k) {
      float* p = scores + k * kQueries + c;
      const Floats w = exponential(load(p) - most);
      total += w;
      store(p, w);
    }
    store(totals + c, total);
    for (int i = 0; i < kLanes && c + i < count; ++i)
      log_sum[c + i] = most[i] + std::log(total[i]);
  }
}

// out [length, width] in rows of `stride`, log_sum [length] of the scores. Queries are scaled already.
inline void attend_blocks(float* out, int64_t stride, float* log_sum, const HeadPanels& b,
                          const HeadQueries& queries) {
  const int64_t width = queries.width;
  for (int64_t begin = 0; begin < queries.length; begin += kQueries) {
    const int64_t count = std::min(kQueries, queries.length - begin);
    const int64_t seen = queries.start + begin + count;
    alignas(64) float totals[kQueries];
    score_block(b, queries, begin, count);
    softmax_columns(b.scores, seen, totals, log_sum + begin, count);
    SmallProduct::pack_left(b.left, {b.scores, 1, kQueries}, count, seen);
    SmallProduct::multiply(b.mixed, width, {b.left, seen}, {b.values, queries.end()}, count, width,
                           seen, false);
    for (int64_t q = 0; q < count; ++q) {
      float* to = out + (begin + q) * stride;
      for (int64_t i = 0; i < width; ++i) to[i] = b.mixed[q * width + i] / totals[q];
    }
  }
}

}  // namespace bluejay::BLUEJAY_ISA
