// What lies between the two products of a GPT-J block: rotary causal attention and bias + GELU, forward
// and backward, for whole sequences.
//
#pragma once

#include "attention_blocks.h"
#include "block_shape.h"
#include "gelu.h"
#include "rows.h"

namespace bluejay::BLUEJAY_ISA {

// Buffers of one head of one sequence, carved out of one piece of memory.
class HeadBuffers {
 public:
  static HeadBuffers make(const BlockShape& s, bool is_backward) {
    HeadBuffers b(s);
    auto* memory = static_cast<float*>(
        scratch(Slot::kSpare, sizeof(float) * static_cast<size_t>(b.carve(nullptr, is_backward))));
    if (memory != nullptr) b.carve(memory, is_backward);
    b.is_complete = memory != nullptr;
    return b;
  }

  HeadPanels panels() const {
    return {keys_left, values_right, scores, packed_left, packed_right, mixed};
  }
  HeadQueries queries() const { return {query, s_.width, 0, s_.length, s_.width}; }

  bool is_complete = false;
  float *query, *key;                                    // [T, H] turned; queries scaled
  float *scores, *packed_left, *packed_right, *mixed;    // of one block of queries
  float *keys_left, *values_right;                       // packed, of all keys
  float *values_left, *keys_right;                       // backward only, as what follows
  float *dscores, *dquery, *dkey, *dvalue, *delta, *packed_scores, *packed_queries;

 private:
  explicit HeadBuffers(const BlockShape& s) : s_(s) {}

  int64_t carve(float* memory, bool is_backward) {
    using P = SmallProduct;
    int64_t used = 0;
    const auto take = [&](float*& p, int64_t count) {
      p = memory == nullptr ? nullptr : memory + used;
      used += round_up(count, 16);
    };
    const int64_t t = s_.length, h = s_.width;
    take(query, t * h);
    take(key, t * h);
    take(scores, round_up(t, P::kRows) * kQueries);
    take(packed_left, P::left_size(kQueries, t));
    take(packed_right, P::right_size(kQueries, h));
    take(mixed, kQueries * h);
    take(keys_left, P::left_size(t, h));
    take(values_right, P::right_size(h, t));
    if (!is_backward) return used;
    take(values_left, P::left_size(t, h));
    take(keys_right, P::right_size(h, t));
    take(dscores, round_up(t, P::kRows) * kQueries);
    take(dquery, t * h);
    take(dkey, t * h);
    take(dvalue, t * h);
    take(delta, kQueries);
    take(packed_scores, P::left_size(t, kQueries));
    take(packed_queries, P::right_size(h, kQueries));
    return used;
  }

  BlockShape s_;
};

// Turns the first 2 * pairs values of a row of H by its angle, interleaved pairs, and scales all.
// A negative direction turns back.
BLUEJAY_INLINE void turn(float* to, const float* from, const float* cos, const float* sin,
                         const BlockShape& s, float scale, float direction) {
  for (int64_t p = 0; p < s.pairs; ++p) {
    const float a = from[2 * p], b = from[2 * p + 1], c = cos[p], d = direction * sin[p];
    to[2 * p] = (a * c - b * d) * scale;
    to[2 * p + 1] = (b * c + a * d) * scale;
  }
  for (int64_t i = 2 * s.pairs; i < s.width; ++i) to[i] = from[i] * scale;
}

inline void prepare_head(const HeadBuffers& b, const MiddleInputs& x, const BlockShape& s,
                         const float* query) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.width));
  const int64_t stride = s.in_stride(), embed = s.embed();
  for (int64_t t = 0; t < s.length; ++t) {
    const float* row = query + t * stride;
    const float *cos = x.cos + t * s.pairs, *sin = x.sin + t * s.pairs;
    turn(b.query + t * s.width, row, cos, sin, s, scale, 1.0f);
    turn(b.key + t * s.width, row + embed, cos, sin, s, 1.0f, 1.0f);
  }
  SmallProduct::pack_left(b.keys_left, {b.key, s.width, 1}, s.length, s.width);
  SmallProduct::pack_right(b.values_right, {query + 2 * embed, 1, stride}, s.width, s.length);
}

// One head of one sequence: out [T, H] within rows of out_stride, log_sum [T].
inline bool attend(float* out, float* log_sum, const MiddleInputs& x, const BlockShape& s,
                   const float* query) {
  const HeadBuffers b = HeadBuffers::make(s, false);
  if (!b.is_complete) return false;
  prepare_head(b, x, s, query);
  attend_blocks(out, s.out_stride(), log_sum, b.panels(), b.queries());
  return true;
}

// ---- the way back ----

struct HeadGradients {
  const float *dresult, *out, *log_sum;  // [T, H] within rows of out_stride, [T]
  float* din;                         // where the head's query stands in the first row of in_stride
};

// Scores become weights again, and dscores what is to be multiplied with keys and queries.
inline void differentiate_scores(const HeadBuffers& b, const BlockShape& s, const HeadGradients& g,
                                 int64_t begin, int64_t count, int64_t end) {
  for (int64_t q = 0; q < count; ++q) {
    const float *d = g.dresult + (begin + q) * s.out_stride(), *o = g.out + (begin + q) * s.out_stride();
    float total = 0.0f;
    for (int64_t i = 0; i < s.width; ++i) total += d[i] * o[i];
    b.delta[q] = total;
  }
  for (int64_t c = 0; c < count; c += kLanes) {
    const int live = static_cast<int>(std::min<int64_t>(kLanes, count - c));
    const Floats log_sum = load_up_to(g.log_sum + begin + c, live);
    const Floats delta = load_up_to(b.delta + c, live);
    for (int64_t k = 0; k < end; ++k) {
      float *p = b.scores + k * kQueries + c, *d = b.dscores + k * kQueries + c;
      const Floats w = exponential(load(p) - log_sum);
      store(p, w);
      store(d, w * (load(d) - delta));
    }
  }
}

// d(keys) += d(scores)^T queries and d(values) += weights^T d(out), over one block of queries.
inline void add_to_keys(const HeadBuffers& b, const BlockShape& s, float* to, const float* scores,
                        Operand queries, int64_t count, int64_t end) {
  SmallProduct::pack_left(b.packed_scores, {scores, kQueries, 1}, end, count);
  SmallProduct::pack_right(b.packed_queries, queries, s.width, count);
  SmallProduct::multiply(to, s.width, {b.packed_scores, count}, {b.packed_queries, count}, end,
                         s.width, count, true);
}

inline void write_gradients(const HeadBuffers& b, const MiddleInputs& x, const BlockShape& s,
                            float* din) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.width));
  for (int64_t t = 0; t < s.length; ++t) {
    float* row = din + t * s.in_stride();
    const float *cos = x.cos + t * s.pairs, *sin = x.sin + t * s.pairs;
    turn(row, b.dquery + t * s.width, cos, sin, s, scale, -1.0f);
    turn(row + s.embed(), b.dkey + t * s.width, cos, sin, s, 1.0f, -1.0f);
    std::memcpy(row + 2 * s.embed(), b.dvalue + t * s.width,
                sizeof(float) * static_cast<size_t>(s.width));
  }
}

inline bool attend_backward(const MiddleInputs& x, const BlockShape& s, const float* query,
                            const HeadGradients& g) {
  const HeadBuffers b = HeadBuffers::make(s, true);
  if (!b.is_complete) return false;
  const int64_t h = s.width, stride = s.in_stride();
  prepare_head(b, x, s, query);
  SmallProduct::pack_left(b.values_left, {query + 2 * s.embed(), stride, 1}, s.length, h);
  SmallProduct::pack_right(b.keys_right, {b.key, 1, h}, h, s.length);
  const auto bytes = sizeof(float) * static_cast<size_t>(s.length * h);
  std::memset(b.dkey, 0, bytes);
  std::memset(b.dvalue, 0, bytes);
  for (int64_t begin = 0; begin < s.length; begin += kQueries) {
    const int64_t count = std::min(kQueries, s.length - begin), end = begin + count;
    const float* dresult = g.dresult + begin * s.out_stride();
    score_block(b.panels(), b.queries(), begin, count);
    SmallProduct::pack_right(b.packed_right, {dresult, s.out_stride(), 1}, count, h);
    SmallProduct::multiply(b.dscores, kQueries, {b.values_left, h}, {b.packed_right, h}, end, count,
                           h, false);
    differentiate_scores(b, s, g, begin, count, end);
    SmallProduct::pack_left(b.packed_left, {b.dscores, 1, kQueries}, count, end);
    SmallProduct::multiply(b.dquery + begin * h, h, {b.packed_left, end}, {b.keys_right, s.length},
                           count, h, end, false);
    add_to_keys(b, s, b.dkey, b.dscores, {b.query + begin * h, 1, h}, count, end);
    add_to_keys(b, s, b.dvalue, b.scores, {dresult, 1, s.out_stride()}, count, end);
  }
  write_gradients(b, x, s, g.din);
  return true;
}

// ---- whole batches ----

// out [rows, out_stride]: mixed values, then gelu(in + bias); log_sum [batch, heads, length].
inline bool block_middle(float* out, float* log_sum, MiddleInputs x, BlockShape s) {
  const int64_t rows = s.batch * s.length, num_heads = s.batch * s.heads;
  std::atomic<bool> is_complete{true};
  parallel_for(static_cast<size_t>(num_heads + num_chunks(rows)), [&](size_t task) {
    const int64_t number = static_cast<int64_t>(task);
    if (number < num_heads) {
      const int64_t first = number / s.heads * s.length, head = number % s.heads * s.width;
      if (!attend(out + first * s.out_stride() + head, log_sum + number * s.length, x, s,
                  x.in + first * s.in_stride() + head))
        is_complete.store(false);
      return;
    }
    const int64_t first = (number - num_heads) * kChunk;
    for (int64_t r = first; r < std::min(rows, first + kChunk); ++r) {
      const float* from = x.in + r * s.in_stride() + 3 * s.embed();
      float* to = out + r * s.out_stride() + s.embed();
      each_vector(s.wide, [&](int64_t i, int n) {
        store_up_to(to + i, gelu(load_up_to(from + i, n) + load_up_to(x.bias + i, n)), n);
      });
    }
  });
  return is_complete.load();
}

// The gradients of `in` and of the bias.
inline bool block_middle_backward(float* din, float* dbias, const float* dresult, const float* out,
                                  const float* log_sum, MiddleInputs x, BlockShape s) {
  const int64_t rows = s.batch * s.length, num_heads = s.batch * s.heads, chunks = num_chunks(rows);
  auto* partial = static_cast<float*>(
      scratch(Slot::kRight, sizeof(float) * static_cast<size_t>(chunks * s.wide)));
  if (partial == nullptr) return false;
  std::atomic<bool> is_complete{true};
  parallel_for(static_cast<size_t>(num_heads + chunks), [&](size_t task) {
    const int64_t number = static_cast<int64_t>(task);
    if (number < num_heads) {
      const int64_t first = number / s.heads * s.length, head = number % s.heads * s.width;
      const int64_t in = first * s.in_stride() + head, to = first * s.out_stride() + head;
      if (!attend_backward(x, s, x.in + in,
                           {dresult + to, out + to, log_sum + number * s.length, din + in}))
        is_complete.store(false);
      return;
    }
    const int64_t chunk = number - num_heads, first = chunk * kChunk;
    float* db = partial + chunk * s.wide;
    std::memset(db, 0, sizeof(float) * static_cast<size_t>(s.wide));
    for (int64_t r = first; r < std::min(rows, first + kChunk); ++r) {
      const int64_t at = r * s.in_stride() + 3 * s.embed();
      const float* up = dresult + r * s.out_stride() + s.embed();
      each_vector(s.wide, [&](int64_t i, int n) {
        const Floats wide = load_up_to(x.in + at + i, n) + load_up_to(x.bias + i, n);
        const Floats d = load_up_to(up + i, n) * gelu_slope(wide);
        store_up_to(din + at + i, d, n);
        store_up_to(db + i, load_up_to(db + i, n) + d, n);
      });
    }
  });
  add_rows(dbias, partial, chunks, s.wide);
  return is_complete.load();
}

}  // namespace bluejay::BLUEJAY_ISA
