// What handlers of blocks take for parameters: weights of any kind, norms, and a whole layer of them.
#pragma once

#include <optional>

#include "decoder_layer.h"
#include "ffi_checks.h"

namespace bluejay::checks {

using Array = ffi::AnyBuffer;

// An array without elements stands for one that is not there.
inline const float* floats_or_null(const Array& x) {
  return x.element_count() == 0 ? nullptr : static_cast<const float*>(x.untyped_data());
}

// Weights of [outputs, inputs], if the three arrays have the types and shapes of such.
inline std::optional<Weights> weights_of(const Array& data, const Array& scales,
                                         const Array& offsets, int64_t outputs, int64_t inputs) {
  Weights w{WeightKind::kFloat32, data.untyped_data(), nullptr, nullptr, outputs, inputs};
  const auto type = data.element_type();
  if (type != ffi::U8) {
    if (data.element_count() != static_cast<size_t>(outputs * inputs)) return std::nullopt;
    if (type == ffi::F16)
      w.kind = WeightKind::kFloat16;
    else if (type == ffi::BF16)
      w.kind = WeightKind::kBfloat16;
    else if (type != ffi::F32)
      return std::nullopt;
    return w;
  }
  const auto shape = data.dimensions();
  const int64_t blocks = inputs / kBlock, groups = w.groups();
  if (inputs % kBlock != 0 || shape.size() != 3) return std::nullopt;
  const int64_t bytes = shape[2];
  if (bytes != kBlock * kGroup && bytes != kBlock * kGroup / 2) return std::nullopt;
  w.kind = bytes == kBlock * kGroup ? WeightKind::kInt8 : WeightKind::kInt4;
  const auto is_per_block = [&](const Array& x) {
    return x.element_type() == ffi::F16 && has_shape(x, {groups, blocks, kGroup});
  };
  if (!has_shape(data, {groups, blocks, bytes}) || !is_per_block(scales)) return std::nullopt;
  w.scales = static_cast<const uint16_t*>(scales.untyped_data());
  if (offsets.element_count() == 0) return w;
  if (w.kind == WeightKind::kInt8 || !is_per_block(offsets)) return std::nullopt;
  w.offsets = static_cast<const uint16_t*>(offsets.untyped_data());
  return w;
}

// The arguments of a block in their order. A failed check makes all that follows a no-op.
class BlockArguments {
 public:
  explicit BlockArguments(ffi::RemainingArgs arguments) : arguments_(arguments) {}

  bool is_fit() const { return is_fit_ && at_ == arguments_.size(); }

  std::optional<Array> next() {
    auto found = arguments_.get<Array>(at_++);  // an error behind the last of them
    if (!found.has_value()) {
      is_fit_ = false;
      return std::nullopt;
    }
    return *found;
  }

  // Float32 of this shape, or, where that may be, nothing at all.
  const float* floats(std::initializer_list<int64_t> shape, bool may_lack = false) {
    const auto x = next();
    if (!x || (may_lack && x->element_count() == 0)) return nullptr;
    if (x->element_type() != ffi::F32 || !has_shape(*x, shape)) is_fit_ = false;
    return floats_or_null(*x);
  }

  Linear linear(int64_t outputs, int64_t inputs, bool may_lack = false) {
    const auto data = next(), scales = next(), offsets = next();
    const float* bias = floats({outputs}, true);
    if (!data || !scales || !offsets || (may_lack && data->element_count() == 0)) return {};
    const auto w = weights_of(*data, *scales, *offsets, outputs, inputs);
    if (!w) is_fit_ = false;
    return {w.value_or(Weights{}), bias};
  }

  // RMSNorm has no bias.
  Norm norm(int64_t width, bool may_lack = false) {
    const float* scale = floats({width}, may_lack);
    return {scale, floats({width}, true)};
  }

 private:
  ffi::RemainingArgs arguments_;
  size_t at_ = 0;
  bool is_fit_ = true;
};

// Everything of a block that is the same from call to call, if its sizes and arrays fit.
struct BlockAttributes {
  int64_t embed, heads, kv_heads, width, wide;
  bool is_sequential, pairs_are_halves;
  int64_t activation;
  float eps;
};

inline std::optional<DecoderLayer> block_of(const BlockAttributes& a, ffi::RemainingArgs rest) {
  if (a.kv_heads < 1 || a.heads < 1 || a.heads % a.kv_heads != 0 || a.width < 1 || a.wide < 1 ||
      a.embed < 1 || a.activation < 0 || a.activation > 2)
    return std::nullopt;
  DecoderLayer l{};
  l.embed = a.embed;
  l.heads = a.heads;
  l.kv_heads = a.kv_heads;
  l.width = a.width;
  l.wide = a.wide;
  l.is_sequential = a.is_sequential;
  l.pairs_are_halves = a.pairs_are_halves;
  l.activation = static_cast<Activation>(a.activation);
  l.eps = a.eps;
  BlockArguments arguments(rest);
  l.attention_norm = arguments.norm(l.embed);
  l.feed_forward_norm = arguments.norm(l.embed, !l.is_sequential);
  l.query = arguments.linear(l.heads * l.width, l.embed);
  l.key = arguments.linear(l.kv_heads * l.width, l.embed);
  l.value = arguments.linear(l.kv_heads * l.width, l.embed);
  l.mix = arguments.linear(l.embed, l.heads * l.width);
  l.up = arguments.linear(l.wide, l.embed);
  l.gate = arguments.linear(l.wide, l.embed, !l.is_gated());
  l.down = arguments.linear(l.embed, l.wide);
  if (!arguments.is_fit()) return std::nullopt;
  return l;
}

}  // namespace bluejay::checks
