// One id per row: filters, draw and report of bluejay.generation.sampling, without passes over the
// vocabulary beyond the few that they need. Bias and penalties have been applied by the caller.
//
// A filter looks at candidates alone: those within some distance of the largest score, a distance that
// grows until they suffice.
#pragma once

#include <algorithm>
#include <atomic>

#include "choice.h"
#include "probability.h"
#include "stored_types.h"

namespace bluejay::BLUEJAY_ISA {

// What is left of a row, in the order of ids. All of the vocabulary at first, removed ids at -inf.
struct Kept {
  Scores scores;
  int32_t* ids;      // of the scores, once they are a selection
  bool is_selected;

  int32_t id(int64_t at) const { return is_selected ? ids[at] : static_cast<int32_t>(at); }
};

// A place in the list by its rank: smaller is better, equal ones by place.
struct Ranked {
  uint32_t order;
  int32_t at;
};

struct Room {  // working memory of a row
  float* values;
  int32_t *weights, *ids;
  Ranked* ranked;
  uint8_t* is_kept;
};

inline size_t room_bytes(int64_t width) {
  const auto w = static_cast<size_t>(width + kLanes);
  return w * (sizeof(float) + 2 * sizeof(int32_t) + sizeof(Ranked) + 1);
}

inline Room room_in(void* memory, int64_t width) {
  const int64_t w = width + kLanes;
  auto* ranked = static_cast<Ranked*>(memory);
  auto* values = reinterpret_cast<float*>(ranked + w);
  auto* weights = reinterpret_cast<int32_t*>(values + w);
  return {values, weights, weights + w, ranked, reinterpret_cast<uint8_t*>(weights + 2 * w)};
}

// Whole numbers that are smaller for larger scores, and equal for equal ones.
BLUEJAY_INLINE uint32_t order_of(float score) {
  if (score == 0.0f) score = 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return ~((bits >> 31) != 0 ? ~bits : bits | 0x80000000u);
}

// Appends the places of all scores of at least `least`; the number of them.
inline int64_t rank_above(const Scores& s, float least, Ranked* to) {
  int64_t found = 0;
  each_vector(s.count, [&](int64_t i, int live) {
    const Floats x = load_up_to(s.values + i, live);
    const Ints hits = x >= splat(least);
    if (add_lanes(hits) == 0) return;
    for (int lane = 0; lane < live; ++lane)
      if (hits[lane] != 0) to[found++] = {order_of(x[lane]), static_cast<int32_t>(i + lane)};
  });
  return found;
}

// Sorts the places so far that the leading ones, fewest that weigh `needed`, come first; how many those
// are. `weight_of` gives a place's weight. All of them if they weigh less.
template <typename WeightOf>
inline int64_t lead(Ranked* ranked, int64_t count, int64_t needed, WeightOf weight_of) {
  const auto is_better = [](const Ranked& a, const Ranked& b) {
    return a.order != b.order ? a.order < b.order : a.at < b.at;
  };
  int64_t begin = 0, end = count, before = 0;
  while (end - begin > 64) {
    const int64_t middle = begin + (end - begin) / 2;
    std::nth_element(ranked + begin, ranked + middle, ranked + end, is_better);
    int64_t half = 0;
    for (int64_t i = begin; i < middle; ++i) half += weight_of(ranked[i].at);
    if (before + half >= needed) {
      end = middle;
    } else {
      before += half;
      begin = middle;
    }
  }
  std::sort(ranked + begin, ranked + end, is_better);
  while (begin < end && before < needed) before += weight_of(ranked[begin++].at);
  return begin;
}

// Candidates that weigh `needed`, or all; the leading of them as in `lead`.
template <typename WeightOf>
inline int64_t lead_all(const Scores& s, float most, int64_t needed, Ranked* ranked,
                        WeightOf weight_of) {
  for (float distance : {6.0f, 12.0f, 24.0f, 48.0f, __builtin_inff()}) {
    // What was removed stays so: the lowest float is below every score that is left.
    const float least = std::max(most - distance, -3.4028234e38f);
    const int64_t count = rank_above(s, least, ranked);
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += weight_of(ranked[i].at);
    if (sum >= needed || distance > 48.0f) return lead(ranked, count, needed, weight_of);
  }
  return 0;
}

// Only places with a mark are left, in their order.
inline void keep_marked(Kept& kept, const Room& room) {
  int64_t to = 0;
  for (int64_t at = 0; at < kept.scores.count; ++at)
    if (room.is_kept[at] != 0) {
      room.ids[to] = kept.id(at);
      kept.scores.values[to++] = kept.scores.values[at];
    }
  kept.scores.count = to;
  kept.ids = room.ids;
  kept.is_selected = true;
}

inline void keep_leading(Kept& kept, const Room& room, int64_t count) {
  std::memset(room.is_kept, 0, static_cast<size_t>(kept.scores.count));
  for (int64_t i = 0; i < count; ++i) room.is_kept[room.ranked[i].at] = 1;
  keep_marked(kept, room);
}

BLUEJAY_INLINE int64_t share_of(int32_t total, float p) {
  const auto needed = static_cast<int64_t>(std::ceil(static_cast<float>(total) * p));
  return std::clamp<int64_t>(needed, 1, total);
}

inline void keep_top_k(Kept& kept, const Room& room, int32_t k) {
  const float most = largest_of(kept.scores.values, kept.scores.count);
  keep_leading(kept, room,
               lead_all(kept.scores, most, k, room.ranked, [](int32_t) { return 1; }));
}

inline void keep_top_p(Kept& kept, const Room& room, float p, int64_t width) {
  const Softmax all = weigh(kept.scores, width);
  const int32_t* weights = kept.scores.weights;
  keep_leading(kept, room,
               lead_all(kept.scores, all.largest, share_of(all.total, p), room.ranked,
                        [weights](int32_t at) { return weights[at]; }));
}

inline void keep_min_p(Kept& kept, const Room& room, float p) {
  const float most = largest_of(kept.scores.values, kept.scores.count), least = std::log(p);
  for (int64_t at = 0; at < kept.scores.count; ++at)
    room.is_kept[at] = kept.scores.values[at] - most >= least;
  keep_marked(kept, room);
}

// Equally near ids stay or go together (Meister et al. 2022).
inline void keep_typical(Kept& kept, const Room& room, float p, int64_t width) {
  const Softmax all = weigh(kept.scores, width);
  const Scores& s = kept.scores;
  int64_t left = 0;
  uint32_t units = 0;
  for (int64_t at = 0; at < s.count; ++at) {
    if (s.weights[at] == 0) continue;  // adds nothing
    const float surprise = -(s.values[at] - all.largest - all.log_sum) *
                           (static_cast<float>(s.weights[at]) / static_cast<float>(all.total));
    units += static_cast<uint32_t>(static_cast<int32_t>(std::nearbyint(surprise * 67108864.0f)));
  }
  const float entropy = static_cast<float>(static_cast<int32_t>(units)) * 1.4901161193847656e-8f;
  const auto nearness = [&](int64_t at) {
    return -std::fabs(s.values[at] - all.largest - all.log_sum + entropy);
  };
  for (int64_t at = 0; at < s.count; ++at)
    room.ranked[left++] = {order_of(nearness(at)), static_cast<int32_t>(at)};
  const int32_t* weights = s.weights;
  const int64_t count = lead(room.ranked, left, share_of(all.total, p),
                             [weights](int32_t at) { return weights[at]; });
  const uint32_t last = room.ranked[count - 1].order;
  for (int64_t at = 0; at < s.count; ++at) room.is_kept[at] = order_of(nearness(at)) <= last;
  keep_marked(kept, room);
}

// values = scores of allowed ids, -inf elsewhere; whether one of those is no number.
inline bool remove_disallowed(float* values, const float* scores, const uint8_t* allowed,
                              int64_t width) {
  Ints damage{};
  each_vector(width, [&](int64_t i, int live) {
    Bytes flags{};
    std::memcpy(&flags, allowed + i, static_cast<size_t>(live));
    const Ints may = __builtin_convertvector(flags, Ints) != 0;
    const Floats x = may ? load_up_to(scores + i, live) : splat(-__builtin_inff());
    damage |= x != x;
    store_up_to(values + i, x, live);
  });
  return add_lanes(damage) != 0;
}

inline int32_t first_largest(const float* values, int64_t width) {
  const float most = largest_of(values, width);
  int64_t i = 0;
  while (i + 1 < width && values[i] != most) ++i;
  return static_cast<int32_t>(i);
}

// The choice among room.values, whose largest is finite.
inline int32_t choose_id(const ChoiceRows& x, const Room& room, int64_t row) {
  const float temperature = x.temperature[row];
  if (temperature == 0.0f) return first_largest(room.values, x.width);
  if (temperature != 1.0f)
    each_vector(x.width, [&](int64_t i, int live) {
      store_up_to(room.values + i, load_up_to(room.values + i, live) / temperature, live);
    });
  Kept kept{{room.values, room.weights, x.width}, nullptr, false};
  if (x.top_k[row] > 0) keep_top_k(kept, room, x.top_k[row]);
  if (x.top_p[row] < 1.0f) keep_top_p(kept, room, x.top_p[row], x.width);
  if (x.min_p[row] > 0.0f) keep_min_p(kept, room, x.min_p[row]);
  if (x.typical_p[row] < 1.0f) keep_typical(kept, room, x.typical_p[row], x.width);
  const Softmax left = weigh(kept.scores, x.width);
  const auto target = static_cast<int32_t>(
      static_cast<uint64_t>(x.bits[row]) * static_cast<uint64_t>(left.total) >> 32);
  return kept.id(pick(kept.scores, target));
}

inline void choose_row(const ChoiceRows& x, const Room& room, int64_t row) {
  const float* raw = x.raw + row * x.width;
  const float* processed = x.processed + row * x.width;
  const uint8_t* allowed = x.allowed + row * x.width;
  const bool is_damaged = remove_disallowed(room.values, raw, allowed, x.width);
  const float most = largest_of(room.values, x.width);
  x.ids[row] = 0;
  x.largest[row] = x.log_sum[row] = __builtin_nanf("");
  if (is_damaged || !std::isfinite(most)) return;
  const Softmax all = weigh({room.values, room.weights, x.width}, x.width);
  if (processed != raw) {
    remove_disallowed(room.values, processed, allowed, x.width);
    if (!std::isfinite(largest_of(room.values, x.width))) return;
  }
  x.ids[row] = choose_id(x, room, row);
  x.largest[row] = all.largest;
  x.log_sum[row] = all.log_sum;
}

inline bool choose(const ChoiceRows& x) {
  std::atomic<bool> has_room{true};
  parallel_for(static_cast<size_t>(x.rows), [&](size_t row) {
    void* memory = scratch(Slot::kChoice, room_bytes(x.width));
    if (memory == nullptr)
      has_room.store(false);
    else
      choose_row(x, room_in(memory, x.width), static_cast<int64_t>(row));
  });
  return has_room.load();
}

}  // namespace bluejay::BLUEJAY_ISA
