// A decoder's block: all positions at once, as prompts are run, against one after the other, as tokens are
// decoded. What the numbers have to be, the Python tests know; here the sanitizers watch both ways.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "../kernels.h"

namespace bluejay::check {

// Buffers are exactly as long as a kernel may touch.
class BlockCase {
 public:
  BlockCase(bool is_sequential, WeightKind kind, CacheKind cache) {
    l_.batch = 2;
    l_.embed = 64;
    l_.heads = 4;
    l_.kv_heads = is_sequential ? 2 : 4;
    l_.width = 32;
    l_.wide = 96;
    l_.pairs = 5;
    l_.capacity = kLength;
    l_.is_sequential = l_.pairs_are_halves = is_sequential;
    l_.activation = is_sequential ? Activation::kSiluGated : Activation::kGeluTanh;
    l_.eps = 1e-5f;
    l_.cache = cache;
    const auto scale = floats(l_.embed), bias = floats(l_.embed);
    l_.attention_norm = {scale, is_sequential ? nullptr : bias};
    if (is_sequential) l_.feed_forward_norm = {floats(l_.embed), nullptr};
    const int64_t across = l_.heads * l_.width, shared = l_.kv_heads * l_.width;
    l_.query = linear(across, l_.embed, kind);
    l_.key = linear(shared, l_.embed, kind);
    l_.value = linear(shared, l_.embed, kind);
    l_.mix = linear(l_.embed, across, kind);
    l_.up = linear(l_.wide, l_.embed, kind);
    if (is_sequential) l_.gate = linear(l_.wide, l_.embed, kind);
    l_.down = linear(l_.embed, l_.wide, kind);
  }

  // The largest difference between both ways over the largest value.
  double difference() {
    const std::vector<float> x = drawn(l_.batch * kLength * l_.embed);
    const std::vector<float> whole = run(x, kLength), single = run(x, 1);
    double most = 0.0, size = 1e-6;
    for (size_t i = 0; i < whole.size(); ++i) {
      const double apart = std::fabs(double(whole[i]) - single[i]);
      most = std::isfinite(apart) ? std::max(most, apart) : INFINITY;
      size = std::max(size, std::fabs(double(whole[i])));
    }
    return most / size;
  }

 private:
  static constexpr int64_t kLength = 70;

  std::vector<float> drawn(int64_t count) {
    std::normal_distribution<float> draw;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = draw(engine_);
    return values;
  }

  const float* floats(int64_t count) {
    kept_.push_back(drawn(count));
    return kept_.back().data();
  }

  Linear linear(int64_t outputs, int64_t inputs, WeightKind kind) {
    Weights w{kind, nullptr, nullptr, nullptr, outputs, inputs};
    if (!w.is_quantized()) {
      w.data = floats(outputs * inputs);
      return {w, floats(outputs)};
    }
    const int64_t blocks = w.groups() * (inputs / kBlock);
    std::vector<uint8_t> codes(blocks * kBlock * kGroup * w.bits() / 8);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(engine_());
    codes_.push_back(codes);
    scales_.push_back(std::vector<uint16_t>(blocks * kGroup, 0x1c00));  // 2^-8
    w.data = codes_.back().data();
    w.scales = scales_.back().data();
    return {w, nullptr};
  }

  std::vector<float> run(const std::vector<float>& x, int64_t length) {
    const int64_t places = l_.batch * l_.kv_heads * kLength;
    const int64_t bytes = l_.cache == CacheKind::kFloat32 ? 4 : l_.cache == CacheKind::kFloat16 ? 2 : 1;
    std::vector<uint8_t> keys(places * l_.width * bytes), values(keys);
    std::vector<float> key_scales(places), value_scales(places);
    const bool has_scales = l_.cache == CacheKind::kInt8;
    l_.keys = {keys.data(), has_scales ? key_scales.data() : nullptr};
    l_.values = {values.data(), has_scales ? value_scales.data() : nullptr};
    l_.length = length;
    std::vector<float> out(x.size());
    for (int64_t begin = 0; begin < kLength; begin += length) step(x, &out, begin);
    return out;
  }

  void step(const std::vector<float>& x, std::vector<float>* out, int64_t begin) {
    const int64_t size = l_.length * l_.embed;
    std::vector<float> from, to(l_.batch * size), cos, sin;
    std::vector<int32_t> starts(l_.batch, static_cast<int32_t>(begin));
    for (int64_t b = 0; b < l_.batch; ++b) {
      const auto first = x.begin() + (b * kLength + begin) * l_.embed;
      from.insert(from.end(), first, first + size);
      for (int64_t i = 0; i < l_.length * l_.pairs; ++i) {
        cos.push_back(std::cos(0.1f * static_cast<float>(begin * l_.pairs + i)));
        sin.push_back(std::sin(0.1f * static_cast<float>(begin * l_.pairs + i)));
      }
    }
    l_.x = from.data();
    l_.out = to.data();
    l_.starts = starts.data();
    l_.cos = cos.data();
    l_.sin = sin.data();
    kernels().decoder_block(l_);
    for (int64_t b = 0; b < l_.batch; ++b)
      std::copy(to.begin() + b * size, to.begin() + (b + 1) * size,
                out->begin() + (b * kLength + begin) * l_.embed);
  }

  DecoderLayer l_{};
  std::mt19937 engine_{7};
  std::vector<std::vector<float>> kept_;
  std::vector<std::vector<uint8_t>> codes_;
  std::vector<std::vector<uint16_t>> scales_;
};

}  // namespace bluejay::check
