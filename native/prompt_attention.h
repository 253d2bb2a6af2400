// Attention of many new positions over the cache: products of packed panels over blocks of queries, no
// full score matrix (as in Dao et al. 2022, arXiv:2205.14135).
#pragma once

#include <atomic>

#include "block_middle.h"
#include "cache.h"

namespace bluejay::BLUEJAY_ISA {

inline void widen_heads_of(float* to, const CachePart& from, CacheKind kind, int64_t place,
                           int64_t count, int64_t width) {
  switch (kind) {
    case CacheKind::kFloat32: return widen_heads<Float32Cache>(to, from, place, count, width);
    case CacheKind::kFloat16: return widen_heads<Float16Cache>(to, from, place, count, width);
    default: return widen_heads<Int8Cache>(to, from, place, count, width);
  }
}

// Buffers of one head, carved out of one piece of memory of the working thread.
struct PromptBuffers {
  float *rows, *keys, *values, *scores, *left, *right, *mixed, *totals;

  static int64_t carve(PromptBuffers* to, float* memory, int64_t end, int64_t width) {
    using P = SmallProduct;
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* p = memory == nullptr ? nullptr : memory + used;
      used += round_up(count, 16);
      return p;
    };
    *to = {take(end * width),
           take(P::left_size(end, width)),
           take(P::right_size(width, end)),
           take(round_up(end, P::kRows) * kQueries),
           take(P::left_size(kQueries, end)),
           take(P::right_size(kQueries, width)),
           take(kQueries * width),
           take(2 * kQueries)};
    return used;
  }
};

// One query head of one sequence; `query` and `mixed` have rows of heads * width.
inline void attend_head(float* mixed, const float* query, const DecoderLayer& l,
                        const PromptBuffers& b, int64_t place, int64_t start) {
  const int64_t end = start + l.length, h = l.width, stride = l.heads * l.width;
  widen_heads_of(b.rows, l.keys, l.cache, place, end, h);
  SmallProduct::pack_left(b.keys, {b.rows, h, 1}, end, h);
  widen_heads_of(b.rows, l.values, l.cache, place, end, h);
  SmallProduct::pack_right(b.values, {b.rows, 1, h}, h, end);
  for (int64_t begin = 0; begin < l.length; begin += kQueries) {
    const int64_t count = std::min(kQueries, l.length - begin), seen = start + begin + count;
    SmallProduct::pack_right(b.right, {query + begin * stride, stride, 1}, count, h);
    SmallProduct::multiply(b.scores, kQueries, {b.keys, h}, {b.right, h}, seen, count, h, false);
    for (int64_t k = start + begin; k < seen; ++k)
      for (int64_t q = 0; q < k - start - begin; ++q)
        b.scores[k * kQueries + q] = -__builtin_inff();
    softmax_columns(b.scores, seen, b.totals, b.totals + kQueries, count);
    SmallProduct::pack_left(b.left, {b.scores, 1, kQueries}, count, seen);
    SmallProduct::multiply(b.mixed, h, {b.left, seen}, {b.values, end}, count, h, seen, false);
    for (int64_t q = 0; q < count; ++q) {
      float* to = mixed + (begin + q) * stride;
      for (int64_t i = 0; i < h; ++i) to[i] = b.mixed[q * h + i] / b.totals[q];
    }
  }
}

// mixed [rows, heads * width] as attend_few. False when memory is out.
inline bool attend_many(float* mixed, const float* query, const DecoderLayer& l) {
  std::atomic<bool> is_complete{true};
  const int64_t group = l.heads / l.kv_heads;
  parallel_for(static_cast<size_t>(l.batch * l.heads), [&](size_t task) {
    const int64_t head = static_cast<int64_t>(task) % l.heads;
    const int64_t sequence = static_cast<int64_t>(task) / l.heads, start = l.starts[sequence];
    const int64_t end = start + l.length;
    PromptBuffers b{};
    const auto bytes =
        sizeof(float) * static_cast<size_t>(PromptBuffers::carve(&b, nullptr, end, l.width));
    auto* memory = static_cast<float*>(scratch(Slot::kSpare, bytes));
    if (memory == nullptr) {
      is_complete.store(false);
      return;
    }
    PromptBuffers::carve(&b, memory, end, l.width);
    const int64_t place = (sequence * l.kv_heads + head / group) * l.capacity;
    const int64_t at = (sequence * l.length * l.heads + head) * l.width;
    attend_head(mixed + at, query + at, l, b, place, start);
  });
  return is_complete.load();
}

}  // namespace bluejay::BLUEJAY_ISA
