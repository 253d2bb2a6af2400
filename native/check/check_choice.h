// Choosing an id against sorting in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "../kernels.h"

namespace bluejay::check {

// Rows of one width, chosen together by the kernel and one by one here.
class ChoiceCase {
 public:
  ChoiceCase(int64_t rows, int64_t width, float spread, unsigned seed)
      : rows_(rows), width_(width), raw_(rows * width), allowed_(rows * width) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> draw(0.0f, spread);
    for (float& x : raw_) x = draw(engine);
    for (uint8_t& may : allowed_) may = engine() % 8 != 0;
    for (int64_t r = 0; r < rows; ++r) allowed_[r * width] = 1;
    processed_ = raw_;
    for (size_t i = 0; i < processed_.size(); i += 3) processed_[i] += 1.0f;
    for (int64_t r = 0; r < rows; ++r) {
      temperature_.push_back(r % 3 == 0 ? 0.0f : r % 3 == 1 ? 1.0f : 0.7f);
      top_p_.push_back(r % 2 == 0 ? 1.0f : 0.9f);
      top_k_.push_back(r % 4 < 2 ? 0 : static_cast<int32_t>(1 + engine() % width));
      min_p_.push_back(r % 5 == 4 ? 0.05f : 0.0f);
      bits_.push_back(static_cast<uint32_t>(engine()));
    }
    neutral_.assign(rows, 1.0f);
  }

  // How many rows chose an id that lies further from its place than rounding explains, or report a wrong
  // sum of exponentials.
  int wrong_rows() const {
    std::vector<int32_t> ids(rows_, -1);
    std::vector<float> largest(rows_), log_sum(rows_);
    kernels().choose({raw_.data(), processed_.data(), allowed_.data(), temperature_.data(),
                      top_p_.data(), min_p_.data(), neutral_.data(), top_k_.data(), bits_.data(),
                      ids.data(), largest.data(), log_sum.data(), rows_, width_});
    int wrong = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      double sum = 0.0;
      for (int64_t i = 0; i < width_; ++i)
        if (allowed_[r * width_ + i]) sum += std::exp(double(raw_[r * width_ + i]));
      const double found = double(largest[r]) + log_sum[r];
      wrong += !is_possible(r, ids[r]) || !(std::fabs(found - std::log(sum)) < 1e-5);
    }
    return wrong;
  }

 private:
  bool is_possible(int64_t r, int32_t id) const {
    if (id < 0 || id >= width_ || !allowed_[r * width_ + id]) return false;
    const double temperature = temperature_[r] == 0.0f ? 1.0 : temperature_[r];
    std::vector<double> part(width_, 0.0);
    std::vector<int32_t> best;
    for (int64_t i = 0; i < width_; ++i)
      if (allowed_[r * width_ + i]) {
        part[i] = std::exp(processed_[r * width_ + i] / temperature);
        best.push_back(static_cast<int32_t>(i));
      }
    std::stable_sort(best.begin(), best.end(), [&](int32_t a, int32_t b) {
      return processed_[r * width_ + a] > processed_[r * width_ + b];
    });
    if (temperature_[r] == 0.0f) return id == best[0];
    size_t kept = best.size();
    if (top_k_[r] > 0) kept = std::min(kept, static_cast<size_t>(top_k_[r]));
    kept = cut_at_top_p(best, part, kept, top_p_[r]);
    std::vector<double> left(width_, 0.0);
    for (size_t i = 0; i < kept; ++i)
      if (part[best[i]] >= min_p_[r] * part[best[0]]) left[best[i]] = part[best[i]];
    const double total = std::accumulate(left.begin(), left.end(), 0.0);
    const double before = std::accumulate(left.begin(), left.begin() + id, 0.0);
    const double target = bits_[r] / 4294967296.0 * total, slack = 1e-5 * total;
    return before <= target + slack && target <= before + left[id] + slack;
  }

  static size_t cut_at_top_p(const std::vector<int32_t>& best, const std::vector<double>& part,
                             size_t kept, double p) {
    double total = 0.0, reached = 0.0;
    for (size_t i = 0; i < kept; ++i) total += part[best[i]];
    for (size_t i = 0; i < kept; ++i) {
      reached += part[best[i]];
      if (reached >= p * total) return i + 1;
    }
    return kept;
  }

  int64_t rows_, width_;
  std::vector<float> raw_, processed_, temperature_, top_p_, min_p_, neutral_;
  std::vector<uint8_t> allowed_;
  std::vector<int32_t> top_k_;
  std::vector<uint32_t> bits_;
};

}  // namespace bluejay::check
