// Attention of many new positions over the cache.
#pragma once

#include <atomic>

#include "attention_blocks.h"
#include "cache.h"

namespace bluejay::BLUEJAY_ISA {

inline void widen_heads_of(float* to, const CachePart& from, CacheKind kind, int64_t place,
                           int64_t count, int64_t width) {
  switch (kind) {
    case CacheKind::kFloat32: return widen_heads<StoredFloat32>(to, from, place, count, width);
    case CacheKind::kFloat16: return widen_heads<StoredFloat16>(to, from, place, count, width);
    default: return widen_heads<StoredInt8>(to, from, place, count, width);
  }
}

// Buffers of one head, carved out of one piece of memory of the working thread.
struct PromptBuffers {
  HeadPanels panels;
  float *rows, *log_sum;

  static int64_t carve(PromptBuffers* to, float* memory, const DecoderLayer& l, int64_t end) {
    using P = SmallProduct;
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* p = memory == nullptr ? nullptr : memory + used;
      used += round_up(count, 16);
      return p;
    };
    to->panels = {take(P::left_size(end, l.width)),       take(P::right_size(l.width, end)),
                  take(round_up(end, P::kRows) * kQueries), take(P::left_size(kQueries, end)),
                  take(P::right_size(kQueries, l.width)),  take(kQueries * l.width)};
    to->rows = take(end * l.width);
    to->log_sum = take(l.length);
    return used;
  }
};

// One query head of one sequence; `query` and `mixed` have rows of heads * width.
inline void attend_head(float* mixed, const float* query, const DecoderLayer& l,
                        const PromptBuffers& b, int64_t place, int64_t start) {
  const int64_t h = l.width, stride = l.heads * l.width;
  const HeadQueries queries{query, stride, start, l.length, h};
  widen_heads_of(b.rows, l.keys, l.cache, place, queries.end(), h);
  SmallProduct::pack_left(b.panels.keys, {b.rows, h, 1}, queries.end(), h);
  widen_heads_of(b.rows, l.values, l.cache, place, queries.end(), h);
  SmallProduct::pack_right(b.panels.values, {b.rows, 1, h}, h, queries.end());
  attend_blocks(mixed, stride, b.log_sum, b.panels, queries);
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
        sizeof(float) * static_cast<size_t>(PromptBuffers::carve(&b, nullptr, l, end));
    auto* memory = static_cast<float*>(scratch(Slot::kSpare, bytes));
    if (memory == nullptr) {
      is_complete.store(false);
      return;
    }
    PromptBuffers::carve(&b, memory, l, end);
    const int64_t place = (l.cache_row(sequence) * l.kv_heads + head / group) * l.capacity;
    const int64_t at = (sequence * l.length * l.heads + head) * l.width;
    attend_head(mixed + at, query + at, l, b, place, start);
  });
  return is_complete.load();
}

}  // namespace bluejay::BLUEJAY_ISA
