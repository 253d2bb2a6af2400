// Matrix products of float32 arrays: packed panels, register tiles, a fixed order of summation.
//
// The shape of the loops is that of Goto and van de Geijn (2008), "Anatomy of high-performance matrix
// multiplication". Operands are packed once into panels whose inner step is what the instruction eats:
// one float, or a pair of bfloat16 that lie behind one another along the summed axis.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "operand.h"
#include "simd.h"
#include "thread_pool.h"

namespace bluejay::BLUEJAY_ISA {

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// ---- what a product computes with ----

struct ProductFloat32 {
  typedef float Packed;
  static constexpr int kStep = 1;
#if defined(__AVX512F__)
  static constexpr int kRows = 14, kVectors = 2;
#elif defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kRows = 6, kVectors = 4;  // 24 of 32 registers are sums
#else
  static constexpr int kRows = 6, kVectors = 2;
#endif

  static BLUEJAY_INLINE Floats multiply_add(Floats sum, const float* left, Floats right) {
    return sum + splat(*left) * right;
  }
  static BLUEJAY_INLINE Floats load_right(const float* p) { return load(p); }

  // Panels hold, for each k, `width` rows; rows from `rows` on are zeros.
  static void pack(float* panel, int width, Operand from, int rows, int64_t k_count) {
    if (from.row_stride == 1 && rows == width) {
      for (int64_t k = 0; k < k_count; ++k)
        std::memcpy(panel + k * width, from.data + k * from.k_stride, sizeof(float) * width);
      return;
    }
    if (from.k_stride == 1) {
      pack_along(panel, width, from, rows, k_count);
      return;
    }
    for (int64_t k = 0; k < k_count; ++k)
      for (int r = 0; r < width; ++r)
        panel[k * width + r] = r < rows ? from.data[r + k * from.k_stride] : 0.0f;
  }

 private:
  // The summed axis is contiguous: squares of values are turned over.
  static void pack_along(float* panel, int width, Operand from, int rows, int64_t k_count) {
    for (int first = 0; first < width; first += kLanes) {
      const int kept = std::min(kLanes, width - first);
      const int filled = std::max(0, std::min(kept, rows - first));
      for (int64_t k = 0; k < k_count; k += kLanes) {
        const int left = static_cast<int>(std::min<int64_t>(kLanes, k_count - k));
        Floats square[kLanes];
        for (int r = 0; r < kLanes; ++r) {
          const float* p = from.data + (first + r) * from.row_stride + k;
          square[r] = r >= filled ? Floats{} : left == kLanes ? load(p) : load_some(p, left);
        }
        transpose(square);
        for (int i = 0; i < left; ++i) {
          float* p = panel + (k + i) * width + first;
          if (kept == kLanes)
            store(p, square[i]);
          else
            store_some(p, square[i], kept);
        }
      }
    }
  }
};

#if defined(__AVX512BF16__)
// bfloat16 operands (rounded to nearest even), float32 sums.
struct ProductBfloat16 {
  typedef uint32_t Packed;
  static constexpr int kStep = 2;
  static constexpr int kRows = 14, kVectors = 2;

  static BLUEJAY_INLINE Floats multiply_add(Floats sum, const uint32_t* left, Floats right) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int>(*left));
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)right);
  }
  static BLUEJAY_INLINE Floats load_right(const uint32_t* p) {
    return (Floats)_mm512_loadu_ps(reinterpret_cast<const float*>(p));
  }

  static void pack(uint32_t* panel, int width, Operand from, int rows, int64_t k_count) {
    for (int first = 0; first < width; first += 16) {
      const int kept = std::min(16, width - first), filled = std::clamp(rows - first, 0, kept);
      const Operand part{from.data + first * from.row_stride, from.row_stride, from.k_stride};
      if (from.row_stride == 1)
        pack_across(panel + first, width, part, kept, filled, k_count);
      else
        pack_along(panel + first, width, part, kept, filled, k_count);
    }
  }

 private:
  static BLUEJAY_INLINE __m512i pairs(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
  }

  // Rows lie side by side: two of them, of k and k + 1, are woven into one vector of pairs.
  static void pack_across(uint32_t* panel, int width, Operand from, int kept, int filled,
                          int64_t k_count) {
    alignas(64) static constexpr uint16_t kWeave[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i weave = _mm512_load_si512(kWeave);
    const __mmask16 reads = static_cast<__mmask16>((1u << filled) - 1);
    const __mmask16 writes = static_cast<__mmask16>((1u << kept) - 1);
    for (int64_t k = 0; k < k_count; k += 2) {
      const float* p = from.data + k * from.k_stride;
      const __m512 low = _mm512_maskz_loadu_ps(reads, p);
      const __m512 high = k + 1 < k_count ? _mm512_maskz_loadu_ps(reads, p + from.k_stride)
                                          : _mm512_setzero_ps();
      const __m512i woven = _mm512_permutexvar_epi16(weave, pairs(low, high));
      _mm512_mask_storeu_epi32(panel + k / 2 * width, writes, woven);
    }
  }

  // The summed axis is contiguous: 16 rows of 32 values are converted, then turned over as 16 x 16
  // pairs.
  static void pack_along(uint32_t* panel, int width, Operand from, int kept, int filled,
                         int64_t k_count) {
    const __mmask16 writes = static_cast<__mmask16>((1u << kept) - 1);
    for (int64_t k = 0; k < k_count; k += 32) {
      const int left = static_cast<int>(std::min<int64_t>(32, k_count - k));
      const __mmask16 low = static_cast<__mmask16>((1u << std::min(16, left)) - 1);
      const __mmask16 high = static_cast<__mmask16>((1u << std::max(0, left - 16)) - 1);
      Floats rows[16];
      for (int r = 0; r < 16; ++r) {
        const float* p = from.data + r * from.row_stride + k;
        rows[r] = r < filled ? (Floats)pairs(_mm512_maskz_loadu_ps(low, p),
                                             _mm512_maskz_loadu_ps(high, p + 16))
                             : Floats{};
      }
      transpose(rows);
      for (int pair = 0; pair < (left + 1) / 2; ++pair)
        _mm512_mask_storeu_epi32(panel + (k / 2 + pair) * width, writes, (__m512i)rows[pair]);
    }
  }
};
#endif

// ---- the product ----

// One tile of kRows x (kVectors * kLanes) sums over k_count packed steps, added to `out` when asked.
template <typename Product>
BLUEJAY_INLINE void multiply_tile(const typename Product::Packed* left,
                                  const typename Product::Packed* right, int64_t k_count,
                                  float* out, int64_t stride, bool is_added) {
  constexpr int kRows = Product::kRows, kVectors = Product::kVectors;
  constexpr int kColumns = kVectors * kLanes;
  Floats sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = is_added ? load(out + r * stride + v * kLanes) : Floats{};
  for (int64_t k = 0; k < k_count; ++k) {
    Floats columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) columns[v] = Product::load_right(right + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sums[r][v] = Product::multiply_add(sums[r][v], left + r, columns[v]);
    left += kRows;
    right += kColumns;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(out + r * stride + v * kLanes, sums[r][v]);
}

template <typename Product>
void multiply_panels(const typename Product::Packed* left, const typename Product::Packed* right,
                     int64_t k_count, float* out, int64_t stride, int rows, int columns,
                     bool is_added) {
  constexpr int kRows = Product::kRows, kColumns = Product::kVectors * kLanes;
  if (rows == kRows && columns == kColumns) {
    multiply_tile<Product>(left, right, k_count, out, stride, is_added);
    return;
  }
  alignas(64) float tile[kRows * kColumns] = {};
  if (is_added)
    for (int r = 0; r < rows; ++r)
      std::memcpy(tile + r * kColumns, out + r * stride, sizeof(float) * columns);
  multiply_tile<Product>(left, right, k_count, tile, kColumns, is_added);
  for (int r = 0; r < rows; ++r)
    std::memcpy(out + r * stride, tile + r * kColumns, sizeof(float) * columns);
}

// out[rows, columns] = left[rows, depth] . right[columns, depth]^T, all sums in float32 and in the order
// of k. False when memory for the packed operands is out.
template <typename Product>
bool matmul(float* out, Operand left, Operand right, int64_t rows, int64_t columns, int64_t depth) {
  typedef typename Product::Packed Packed;
  constexpr int kRows = Product::kRows, kColumns = Product::kVectors * kLanes;
  constexpr int64_t kDepth = 512, kPanels = 8, kStep = Product::kStep;
  if (rows == 0 || columns == 0) return true;
  const int64_t num_right = (columns + kColumns - 1) / kColumns;
  const int64_t num_blocks = (rows + kRows * kPanels - 1) / (kRows * kPanels);
  const int64_t num_depths = std::max<int64_t>(1, (depth + kDepth - 1) / kDepth);
  const int64_t slice = round_up((depth + num_depths - 1) / num_depths, kStep);
  const int64_t steps = slice / kStep;
  auto* packed = static_cast<Packed*>(
      scratch(Slot::kRight, sizeof(Packed) * static_cast<size_t>(num_right * kColumns * steps)));
  if (packed == nullptr) return false;
  std::atomic<bool> is_complete{true};
  for (int64_t begin = 0; begin == 0 || begin < depth; begin += slice) {
    const int64_t length = std::min(slice, depth - begin), used = (length + kStep - 1) / kStep;
    parallel_for(static_cast<size_t>(num_right), [&](size_t index) {
      const int64_t first = static_cast<int64_t>(index) * kColumns;
      const Operand from{right.data + first * right.row_stride + begin * right.k_stride,
                         right.row_stride, right.k_stride};
      Product::pack(packed + static_cast<int64_t>(index) * kColumns * steps, kColumns, from,
                    static_cast<int>(std::min<int64_t>(kColumns, columns - first)), length);
    });
    parallel_for(static_cast<size_t>(num_blocks), [&](size_t index) {
      auto* block = static_cast<Packed*>(
          scratch(Slot::kLeft, sizeof(Packed) * static_cast<size_t>(kPanels * kRows * steps)));
      if (block == nullptr) {
        is_complete.store(false);
        return;
      }
      const int64_t top = static_cast<int64_t>(index) * kRows * kPanels;
      const int64_t panels = std::min(kPanels, (rows - top + kRows - 1) / kRows);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t first = top + p * kRows;
        const Operand from{left.data + first * left.row_stride + begin * left.k_stride,
                           left.row_stride, left.k_stride};
        Product::pack(block + p * kRows * steps, kRows, from,
                      static_cast<int>(std::min<int64_t>(kRows, rows - first)), length);
      }
      for (int64_t c = 0; c < num_right; ++c)
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t first = top + p * kRows, column = c * kColumns;
          multiply_panels<Product>(block + p * kRows * steps, packed + c * kColumns * steps, used,
                                   out + first * columns + column, columns,
                                   static_cast<int>(std::min<int64_t>(kRows, rows - first)),
                                   static_cast<int>(std::min<int64_t>(kColumns, columns - column)),
                                   begin > 0);
        }
    });
  }
  return is_complete.load();
}

}  // namespace bluejay::BLUEJAY_ISA
