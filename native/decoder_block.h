// One block of a decoder over new positions and the cache, parallel (GPT-J) or sequential (Llama, GPT-2):
// norm, products, rotation, appending, attention, feed-forward, in as few rounds of the threads as the
// data allow.
#pragma once

#include "cached_attention.h"
#include "gelu.h"
#include "layer_norm.h"
#include "prompt_attention.h"

namespace bluejay::BLUEJAY_ISA {

// Sequences of more new positions than this take the attention of prompts.
inline constexpr int64_t kFewPositions = 16;

struct BlockBuffers {
  float *normed, *normed_again, *query, *key, *value, *mixed, *up, *gate, *between;
  uint8_t *rounded, *rounded_again, *rounded_mixed, *rounded_wide;

  // Sets every pointer and returns the bytes they take; without memory it only counts.
  int64_t carve(uint8_t* memory, const DecoderLayer& l) {
    const int64_t rows = l.rows();
    int64_t used = 0;
    const auto take = [&](auto*& p, int64_t bytes) {
      using Pointer = std::remove_reference_t<decltype(p)>;
      p = memory == nullptr ? nullptr : reinterpret_cast<Pointer>(memory + used);
      used += round_up(bytes, 64);
    };
    const auto floats = [&](float*& p, int64_t width) { take(p, 4 * rows * width); };
    const auto codes = [&](uint8_t*& p, int64_t width) {
      take(p, static_cast<int64_t>(rounded_bytes(rows, width)));
    };
    floats(normed, l.embed);
    floats(normed_again, l.embed);
    floats(query, l.heads * l.width);
    floats(key, l.kv_heads * l.width);
    floats(value, l.kv_heads * l.width);
    floats(mixed, l.heads * l.width);
    floats(up, l.wide);
    floats(gate, l.wide);
    floats(between, l.embed);
    codes(rounded, l.embed);
    codes(rounded_again, l.embed);
    codes(rounded_mixed, l.heads * l.width);
    codes(rounded_wide, l.wide);
    return used;
  }
};

BLUEJAY_INLINE void normalize_row(float* to, const float* from, const Norm& n, int64_t width,
                                  float eps) {
  float stats[2];
  if (n.bias != nullptr) {
    moments(from, width, eps, stats);
    each_vector(width, [&](int64_t i, int count) {
      const Floats normed = (load_up_to(from + i, count) - stats[0]) * stats[1];
      store_up_to(to + i,
                  normed * load_up_to(n.scale + i, count) + load_up_to(n.bias + i, count), count);
    });
    return;
  }
  Floats squares{};
  each_vector(width, [&](int64_t i, int count) {
    const Floats v = load_up_to(from + i, count);
    squares += v * v;
  });
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
  each_vector(width, [&](int64_t i, int count) {
    store_up_to(to + i, load_up_to(from + i, count) * scale * load_up_to(n.scale + i, count), count);
  });
}

// Turns the first 2 * pairs values of a head in place; pairs are neighbours, or i and i + pairs.
BLUEJAY_INLINE void rotate_head(float* x, const float* cos, const float* sin, int64_t pairs,
                                bool pairs_are_halves) {
  const int64_t step = pairs_are_halves ? 1 : 2, apart = pairs_are_halves ? pairs : 1;
  for (int64_t p = 0; p < pairs; ++p) {
    const float a = x[p * step], b = x[p * step + apart];
    x[p * step] = a * cos[p] - b * sin[p];
    x[p * step + apart] = b * cos[p] + a * sin[p];
  }
}

// Query and key of one row are turned, key and value appended, the query scaled for its scores.
BLUEJAY_INLINE void place_row(const BlockBuffers& m, const DecoderLayer& l, int64_t row) {
  const float *cos = l.cos + row * l.pairs, *sin = l.sin + row * l.pairs;
  const float scale = 1.0f / std::sqrt(static_cast<float>(l.width));
  for (int64_t n = 0; n < l.heads; ++n) {
    float* query = m.query + (row * l.heads + n) * l.width;
    rotate_head(query, cos, sin, l.pairs, l.pairs_are_halves);
    for (int64_t i = 0; i < l.width; ++i) query[i] *= scale;
  }
  const int64_t sequence = row / l.length, position = l.starts[sequence] + row % l.length;
  const int64_t cache_row = l.cache_row(sequence);
  for (int64_t k = 0; k < l.kv_heads; ++k) {
    const int64_t at = (row * l.kv_heads + k) * l.width;
    rotate_head(m.key + at, cos, sin, l.pairs, l.pairs_are_halves);
    const int64_t place = (cache_row * l.kv_heads + k) * l.capacity + position;
    store_head(l.keys, l.cache, place, l.width, m.key + at);
    store_head(l.values, l.cache, place, l.width, m.value + at);
  }
}

// GELU with the error function (Abramowitz and Stegun 7.1.26 is too coarse: std::erf).
BLUEJAY_INLINE float gelu_erf(float x) {
  return 0.5f * x * (1.0f + std::erf(x * 0.7071067811865476f));
}

BLUEJAY_INLINE void activate_row(const BlockBuffers& m, const DecoderLayer& l, int64_t row) {
  float* up = m.up + row * l.wide;
  const float* gate = m.gate + row * l.wide;
  if (l.activation == Activation::kGeluErf) {
    for (int64_t i = 0; i < l.wide; ++i) up[i] = gelu_erf(up[i]);
  } else if (l.activation == Activation::kGeluTanh) {
    each_vector(l.wide, [&](int64_t i, int n) { store_up_to(up + i, gelu(load_up_to(up + i, n)), n); });
  } else {
    each_vector(l.wide, [&](int64_t i, int n) {
      const Floats g = load_up_to(gate + i, n);
      store_up_to(up + i, g / (1.0f + exponential(-g)) * load_up_to(up + i, n), n);
    });
  }
}

// Runs the phases; rows of few tokens are worked on by the caller, products by all threads.
class BlockRun {
 public:
  explicit BlockRun(const DecoderLayer& layer) : l(layer) {}

  bool run() {
    auto* memory = static_cast<uint8_t*>(
        scratch(Slot::kBlock, static_cast<size_t>(m.carve(nullptr, l))));
    if (memory == nullptr) return false;
    m.carve(memory, l);
    return l.is_sequential ? run_sequential() : run_parallel();
  }

 private:
  InputRows rows_of(const float* values, int64_t inputs, uint8_t* rounded,
                    std::initializer_list<const Linear*> readers) const {
    bool is_needed = false;
    for (const Linear* w : readers) is_needed = is_needed || w->weights.is_quantized();
    return {values, l.rows(), inputs, is_needed ? rounded : nullptr};
  }

  static Product product(float* out, const InputRows& x, const Linear& w, const float* added) {
    return {{out, w.weights.outputs, w.bias, added}, x, w.weights};
  }

  void normalize(float* to, const float* from, const Norm& n, const InputRows& x) const {
    each_row(l.rows(), [&](int64_t row) {
      normalize_row(to + row * l.embed, from + row * l.embed, n, l.embed, l.eps);
      round_row(x, row);
    });
  }

  bool attend(const InputRows& mixed) const {
    each_row(l.rows(), [&](int64_t row) { place_row(m, l, row); });
    const bool is_done = l.length > kFewPositions ? attend_many(m.mixed, m.query, l)
                                                  : attend_few(m.mixed, m.query, l);
    each_row(l.rows(), [&](int64_t row) { round_row(mixed, row); });
    return is_done;
  }

  void activate(const InputRows& wide) const {
    each_row(l.rows(), [&](int64_t row) {
      activate_row(m, l, row);
      round_row(wide, row);
    });
  }

  bool run_parallel() {
    const InputRows x =
        rows_of(m.normed, l.embed, m.rounded, {&l.query, &l.key, &l.value, &l.up, &l.gate});
    normalize(m.normed, l.x, l.attention_norm, x);
    InputRows second = x;
    if (l.feed_forward_norm.scale != nullptr) {
      second = rows_of(m.normed_again, l.embed, m.rounded_again, {&l.up, &l.gate});
      normalize(m.normed_again, l.x, l.feed_forward_norm, second);
    }
    const Product into[] = {product(m.query, x, l.query, nullptr), product(m.key, x, l.key, nullptr),
                            product(m.value, x, l.value, nullptr),
                            product(m.up, second, l.up, nullptr),
                            product(m.gate, second, l.gate, nullptr)};
    if (!multiply_all(into, l.is_gated() ? 5 : 4)) return false;
    const InputRows mixed = rows_of(m.mixed, l.heads * l.width, m.rounded_mixed, {&l.mix});
    const InputRows wide = rows_of(m.up, l.wide, m.rounded_wide, {&l.down});
    if (!attend(mixed)) return false;
    activate(wide);
    const Product out[] = {product(l.out, mixed, l.mix, l.x), product(l.out, wide, l.down, l.out)};
    return multiply_sum(out);
  }

  bool run_sequential() {
    const InputRows x = rows_of(m.normed, l.embed, m.rounded, {&l.query, &l.key, &l.value});
    normalize(m.normed, l.x, l.attention_norm, x);
    const Product into[] = {product(m.query, x, l.query, nullptr), product(m.key, x, l.key, nullptr),
                            product(m.value, x, l.value, nullptr)};
    if (!multiply_all(into, 3)) return false;
    const InputRows mixed = rows_of(m.mixed, l.heads * l.width, m.rounded_mixed, {&l.mix});
    if (!attend(mixed)) return false;
    const Product out[] = {product(m.between, mixed, l.mix, l.x)};
    if (!multiply_all(out, 1)) return false;
    const InputRows second =
        rows_of(m.normed_again, l.embed, m.rounded_again, {&l.up, &l.gate});
    normalize(m.normed_again, m.between, l.feed_forward_norm, second);
    const Product wider[] = {product(m.up, second, l.up, nullptr),
                             product(m.gate, second, l.gate, nullptr)};
    if (!multiply_all(wider, l.is_gated() ? 2 : 1)) return false;
    const InputRows wide = rows_of(m.up, l.wide, m.rounded_wide, {&l.down});
    activate(wide);
    const Product narrower[] = {product(l.out, wide, l.down, m.between)};
    return multiply_all(narrower, 1);
  }

  const DecoderLayer& l;
  BlockBuffers m;
};

inline bool decoder_block(const DecoderLayer& layer) { return BlockRun(layer).run(); }

}  // namespace bluejay::BLUEJAY_ISA
