// Attention of a few new positions over the cache.
//
// Positions are taken in chunks of a fixed size, counted from 0: each gives a largest score, a sum and a
// mixed value (Milakov and Gimelshein 2018, arXiv:1805.02867), which are put together in order. So a
// result depends neither on the number of threads nor on what else is computed.
#pragma once

#include <cmath>

#include "cache.h"
#include "products.h"

namespace bluejay::BLUEJAY_ISA {

inline constexpr int64_t kPositions = 256;  // of a chunk
inline constexpr int kMostQueries = 4;      // query heads that share one reading of keys

// One chunk of one key/value head: `count` positions from `place` on, for kQueries query heads whose
// rows of `width` stand at `query`, already scaled by 1 / sqrt(width). This thread's next chunk begins
// at `next`.
struct ChunkInputs {
  const float* query;
  CachePart keys, values;
  int64_t place, count, width, next;
};

// Asks for `width` numbers that are read soon: the hardware's own prefetching stops at the end of each
// page, and asks for nothing while scores become weights.
template <typename Stored>
BLUEJAY_INLINE void ask_for(const Stored* row, int64_t width) {
  const auto* at = reinterpret_cast<const char*>(row);
  const auto bytes = static_cast<int64_t>(sizeof(Stored)) * width;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
}

// scores[q][s]; positions beyond `count` are not read.
template <typename Kind, int kQueries>
BLUEJAY_INLINE void score_chunk(float (&scores)[kQueries][kPositions], const ChunkInputs& x) {
  const auto* keys = static_cast<const typename Kind::Stored*>(x.keys.data) + x.place * x.width;
  const auto* values = static_cast<const typename Kind::Stored*>(x.values.data) + x.place * x.width;
  for (int64_t first = 0; first < x.count; first += kLanes) {
    const int live = static_cast<int>(std::min<int64_t>(kLanes, x.count - first));
    Floats square[kQueries][kLanes] = {};
    for (int s = 0; s < live; ++s) {
      const auto* key = keys + (first + s) * x.width;
      ask_for(values + (first + s) * x.width, x.width);
      // Bytes have most to do per line that they read: asking ahead cost them a fifth.
      if (sizeof(typename Kind::Stored) > 1) ask_for(key + kLanes * x.width, x.width);
      Floats sums[kQueries] = {};
      int64_t i = 0;
      for (; i + kLanes <= x.width; i += kLanes) {
        const Floats k = Kind::read(key + i);
#pragma GCC unroll 4
        for (int q = 0; q < kQueries; ++q) sums[q] += load(x.query + q * x.width + i) * k;
      }
      for (; i < x.width; ++i)
        for (int q = 0; q < kQueries; ++q)
          sums[q][0] += x.query[q * x.width + i] * Kind::widen(key[i]);
      for (int q = 0; q < kQueries; ++q) square[q][s] = sums[q];
    }
    for (int q = 0; q < kQueries; ++q) {
      transpose(square[q]);
      Floats total = square[q][0];
      for (int i = 1; i < kLanes; ++i) total += square[q][i];
      if (x.keys.scales != nullptr) total *= load_up_to(x.keys.scales + x.place + first, live);
      store(scores[q] + first, total);
    }
  }
}

// Scores become weights e^(score - most); [most, sum] go to `stats`.
BLUEJAY_INLINE void weigh_chunk(float* scores, int64_t count, float* stats) {
  for (int64_t i = count; i % kLanes != 0; ++i) scores[i] = -__builtin_inff();
  Floats most = load(scores);
  for (int64_t i = kLanes; i < count; i += kLanes) most = larger(load(scores + i), most);
  const float top = largest(most);
  Floats total{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats weights = exponential(load(scores + i) - top);
    total += weights;
    store(scores + i, weights);
  }
  stats[0] = top;
  stats[1] = sum(total);
}

// mixed[q][i] = sum over positions of weights[q][s] * value[s][i], kVectors vectors of i at a time;
// asks for the same of the `next` rows.
template <typename Kind, int kQueries, int kVectors>
BLUEJAY_INLINE void mix_vectors(float* const (&mixed)[kQueries],
                                const float (&weights)[kQueries][kPositions],
                                const typename Kind::Stored* values,
                                const typename Kind::Stored* next, int64_t count,
                                int64_t width) {
  Floats sums[kQueries][kVectors] = {};
  for (int64_t s = 0; s < count; ++s) {
    ask_for(next + s * width, kVectors * kLanes);
    Floats v[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) v[i] = Kind::read(values + s * width + i * kLanes);
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) sums[q][i] += splat(weights[q][s]) * v[i];
  }
  for (int q = 0; q < kQueries; ++q)
    for (int i = 0; i < kVectors; ++i) store(mixed[q] + i * kLanes, sums[q][i]);
}

template <typename Kind, int kQueries>
BLUEJAY_INLINE void mix_chunk(float* const (&mixed)[kQueries], float (&weights)[kQueries][kPositions],
                              const ChunkInputs& x) {
  if (x.values.scales != nullptr)
    for (int q = 0; q < kQueries; ++q)
      each_vector(x.count, [&](int64_t i, int n) {
        store_up_to(weights[q] + i,
                    load_up_to(weights[q] + i, n) * load_up_to(x.values.scales + x.place + i, n), n);
      });
  const auto* values = static_cast<const typename Kind::Stored*>(x.values.data) + x.place * x.width;
  const auto* next = static_cast<const typename Kind::Stored*>(x.keys.data) + x.next * x.width;
  float* at[kQueries];
  int64_t i = 0;
  const auto move = [&](int64_t to) {
    for (int q = 0; q < kQueries; ++q) at[q] = mixed[q] + to;
  };
  for (; i + 4 * kLanes <= x.width; i += 4 * kLanes) {
    move(i);
    mix_vectors<Kind, kQueries, 4>(at, weights, values + i, next + i, x.count, x.width);
  }
  for (; i + kLanes <= x.width; i += kLanes) {
    move(i);
    mix_vectors<Kind, kQueries, 1>(at, weights, values + i, next + i, x.count, x.width);
  }
  for (; i < x.width; ++i)
    for (int q = 0; q < kQueries; ++q) {
      float total = 0.0f;
      for (int64_t s = 0; s < x.count; ++s)
        total += weights[q][s] * Kind::widen(values[s * x.width + i]);
      mixed[q][i] = total;
    }
}

// A partial result: [most, sum], then `width` mixed values.
inline int64_t partial_size(int64_t width) { return round_up(width + 2, 16); }

template <typename Kind, int kQueries>
void attend_chunk(float* partials, int64_t stride, const ChunkInputs& x) {
  alignas(64) float scores[kQueries][kPositions];
  float* mixed[kQueries];
  score_chunk<Kind, kQueries>(scores, x);
  for (int q = 0; q < kQueries; ++q) {
    weigh_chunk(scores[q], x.count, partials + q * stride);
    mixed[q] = partials + q * stride + 2;
  }
  mix_chunk<Kind, kQueries>(mixed, scores, x);
}

template <typename Kind>
void attend_chunk_of(int queries, float* partials, int64_t stride, const ChunkInputs& x) {
  switch (queries) {
    case 4: return attend_chunk<Kind, 4>(partials, stride, x);
    case 3: return attend_chunk<Kind, 3>(partials, stride, x);
    case 2: return attend_chunk<Kind, 2>(partials, stride, x);
    default: return attend_chunk<Kind, 1>(partials, stride, x);
  }
}

// Puts the chunks of one query head together.
BLUEJAY_INLINE void merge_chunks(float* out, const float* partials, int64_t chunks, int64_t width) {
  const int64_t size = partial_size(width);
  float most = partials[0];
  for (int64_t c = 1; c < chunks; ++c) {
    const float other = partials[c * size];
    most = other > most || other != other ? other : most;
  }
  Floats total{};
  for (int64_t i = 0; i < width; ++i) out[i] = 0.0f;
  for (int64_t c = 0; c < chunks; ++c) {
    const float* p = partials + c * size;
    const Floats keep = exponential(splat(p[0] - most));
    total += keep * p[1];
    each_vector(width, [&](int64_t i, int n) {
      store_up_to(out + i, load_up_to(out + i, n) + keep * load_up_to(p + 2 + i, n), n);
    });
  }
  for (int64_t i = 0; i < width; ++i) out[i] /= total[0];
}

// mixed [rows, heads * width] = attention of queries [rows, heads * width] over the cache. False when
// memory is out.
inline bool attend_few(float* mixed, const float* query, const DecoderLayer& l) {
  const int64_t rows = l.rows(), group = l.heads / l.kv_heads, size = partial_size(l.width);
  int64_t longest = 0;
  for (int64_t b = 0; b < l.batch; ++b)
    longest = std::max<int64_t>(longest, l.starts[b] + l.length);
  const int64_t chunks = (longest + kPositions - 1) / kPositions;
  const int64_t stride = chunks * size;  // from one query head to the next
  auto* partials = static_cast<float*>(
      scratch(Slot::kPartials, sizeof(float) * static_cast<size_t>(rows * l.heads * stride)));
  if (partials == nullptr) return false;
  const int64_t tasks = rows * l.kv_heads * chunks;
  // Waking the threads takes as long as some ten thousand products.
  const bool is_shared = rows * longest * l.heads * l.width >= 65536;
  const int64_t stride_of_tasks = is_shared ? num_threads() : 1;
  const auto seen = [&](int64_t row) { return l.starts[row / l.length] + row % l.length + 1; };
  const auto place_of = [&](int64_t task) {
    const int64_t head = task / chunks % l.kv_heads, row = task / chunks / l.kv_heads;
    const int64_t cache_row = l.cache_row(row / l.length);
    return (cache_row * l.kv_heads + head) * l.capacity + task % chunks * kPositions;
  };
  const auto attend = [&](size_t task) {
    const int64_t t = static_cast<int64_t>(task), chunk = t % chunks;
    const int64_t head = t / chunks % l.kv_heads, row = t / chunks / l.kv_heads;
    const int64_t count = std::min(kPositions, seen(row) - chunk * kPositions);
    if (count <= 0) return;
    const int64_t place = place_of(t);
    const int64_t next = place_of(std::min(t + stride_of_tasks, tasks - 1));
    for (int64_t q = 0; q < group; q += kMostQueries) {
      const int64_t at = row * l.heads + head * group + q;
      const ChunkInputs x{query + at * l.width, l.keys, l.values, place, count, l.width, next};
      const int queries = static_cast<int>(std::min<int64_t>(kMostQueries, group - q));
      float* to = partials + at * stride + chunk * size;
      switch (l.cache) {
        case CacheKind::kFloat32: attend_chunk_of<StoredFloat32>(queries, to, stride, x); break;
        case CacheKind::kFloat16: attend_chunk_of<StoredFloat16>(queries, to, stride, x); break;
        default: attend_chunk_of<StoredInt8>(queries, to, stride, x);
      }
    }
  };
  if (!is_shared) {
    for (int64_t task = 0; task < tasks; ++task) attend(static_cast<size_t>(task));
  } else {
    parallel_for(static_cast<size_t>(tasks), [&](size_t task) { attend(task); });
  }
  each_row(rows, [&](int64_t row) {
    const int64_t own = (seen(row) + kPositions - 1) / kPositions;
    for (int64_t head = 0; head < l.heads; ++head) {
      const int64_t at = row * l.heads + head;
      merge_chunks(mixed + at * l.width, partials + at * stride, own, l.width);
    }
  });
  return true;
}

}  // namespace bluejay::BLUEJAY_ISA
