// The handlers of decoding: products with weights of any kind, and a whole block over its cache.
#include <optional>

#include "ffi_checks.h"
#include "ffi_clock.h"
#include "kernels.h"
#include "resident_blocks.h"

namespace {

using namespace bluejay::checks;
using bluejay::CacheKind;
using bluejay::kBlock;
using bluejay::kernels;
using bluejay::kGroup;
using bluejay::Weights;
using bluejay::WeightKind;
using Array = ffi::AnyBuffer;

// An array without elements stands for one that is not there.
const float* floats_or_null(const Array& x) {
  return x.element_count() == 0 ? nullptr : static_cast<const float*>(x.untyped_data());
}

// Weights of [outputs, inputs], if the three arrays have the types and shapes of such.
std::optional<Weights> weights_of(const Array& data, const Array& scales, const Array& offsets,
                                  int64_t outputs, int64_t inputs) {
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

using Matrix = ffi::Buffer<ffi::F32>;
using MatrixOut = ffi::ResultBuffer<ffi::F32>;

// x [rows, inputs] . weights^T.
ffi::Error multiply(Matrix x, Array data, Array scales, Array offsets, MatrixOut out) {
  if (x.dimensions().size() != 2 || out->dimensions().size() != 2)
    return wrong("a product with weights takes rows");
  const auto rows = x.dimensions()[0], inputs = x.dimensions()[1], outputs = out->dimensions()[1];
  const bluejay::DecodingClock clock;
  const auto w = weights_of(data, scales, offsets, outputs, inputs);
  if (!w || out->dimensions()[0] != rows)
    return wrong("the shapes of a product with weights do not fit together");
  return done(kernels().multiply_weights(out->typed_data(), x.typed_data(), rows, *w));
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

  bluejay::Linear linear(int64_t outputs, int64_t inputs, bool may_lack = false) {
    const auto data = next(), scales = next(), offsets = next();
    const float* bias = floats({outputs}, true);
    if (!data || !scales || !offsets || (may_lack && data->element_count() == 0)) return {};
    const auto w = weights_of(*data, *scales, *offsets, outputs, inputs);
    if (!w) is_fit_ = false;
    return {w.value_or(Weights{}), bias};
  }

  // RMSNorm has no bias.
  bluejay::Norm norm(int64_t width, bool may_lack = false) {
    const float* scale = floats({width}, may_lack);
    return {scale, floats({width}, true)};
  }

 private:
  ffi::RemainingArgs arguments_;
  size_t at_ = 0;
  bool is_fit_ = true;
};

std::optional<CacheKind> cache_kind(ffi::DataType type) {
  if (type == ffi::F32) return CacheKind::kFloat32;
  if (type == ffi::F16) return CacheKind::kFloat16;
  if (type == ffi::S8) return CacheKind::kInt8;
  return std::nullopt;
}

using Starts = ffi::Buffer<ffi::S32>;
using ArrayOut = ffi::Result<Array>;

// Keys or values and, for bytes, their scales, if they are such a cache.
bool set_cache_part(bluejay::CachePart* part, const bluejay::DecoderLayer& l, const Array& data,
                    const Array& scales) {
  if (!has_shape(data, {l.batch, l.kv_heads, l.capacity, l.width})) return false;
  part->data = data.untyped_data();
  if (l.cache != CacheKind::kInt8) return true;
  part->scales = static_cast<float*>(scales.untyped_data());
  return scales.element_type() == ffi::F32 && has_shape(scales, {l.batch, l.kv_heads, l.capacity});
}

// Everything of a block that is the same from call to call, if its sizes and arrays fit.
struct BlockAttributes {
  int64_t embed, heads, kv_heads, width, wide;
  bool is_sequential, pairs_are_halves;
  int64_t activation;
  float eps;
};

std::optional<bluejay::DecoderLayer> block_of(const BlockAttributes& a, ffi::RemainingArgs rest) {
  if (a.kv_heads < 1 || a.heads < 1 || a.heads % a.kv_heads != 0 || a.width < 1 || a.wide < 1 ||
      a.embed < 1 || a.activation < 0 || a.activation > 2)
    return std::nullopt;
  bluejay::DecoderLayer l{};
  l.embed = a.embed;
  l.heads = a.heads;
  l.kv_heads = a.kv_heads;
  l.width = a.width;
  l.wide = a.wide;
  l.is_sequential = a.is_sequential;
  l.pairs_are_halves = a.pairs_are_halves;
  l.activation = static_cast<bluejay::Activation>(a.activation);
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

// What a call brings. The four arrays of the cache are worked on in place: arguments are results.
struct BlockCall {
  Matrix x;
  Starts starts;
  Matrix cos, sin;
  MatrixOut out;
  ArrayOut keys, values, key_scales, value_scales;
};

// Whether the arrays of a call fit the block, which then has them.
bool set_call(bluejay::DecoderLayer* layer, BlockCall& call) {
  bluejay::DecoderLayer& l = *layer;
  const auto shape = call.x.dimensions(), cached = call.keys->dimensions();
  const auto turns = call.cos.dimensions();
  const auto kind = cache_kind(call.keys->element_type());
  if (shape.size() != 3 || cached.size() != 4 || turns.size() != 3 || !kind) return false;
  l.batch = shape[0];
  l.length = shape[1];
  l.capacity = cached[2];
  l.pairs = turns[2];
  l.cache = *kind;
  l.x = call.x.typed_data();
  l.out = call.out->typed_data();
  l.starts = call.starts.typed_data();
  l.cos = call.cos.typed_data();
  l.sin = call.sin.typed_data();
  return shape[2] == l.embed && 2 * l.pairs <= l.width && has_shape(call.starts, {l.batch}) &&
         has_shape(call.cos, {l.batch, l.length, l.pairs}) &&
         has_shape(call.sin, {l.batch, l.length, l.pairs}) &&
         has_shape(*call.out, {l.batch, l.length, l.embed}) &&
         call.values->element_type() == call.keys->element_type() &&
         set_cache_part(&l.keys, l, *call.keys, *call.key_scales) &&
         set_cache_part(&l.values, l, *call.values, *call.value_scales);
}

// New positions must lie within the cache: an index would otherwise be an address outside of it.
bool starts_fit(const bluejay::DecoderLayer& l) {
  return std::all_of(l.starts, l.starts + l.batch, [&](int32_t start) {
    return start >= 0 && start + l.length <= l.capacity;
  });
}

ffi::Error run_block(bluejay::DecoderLayer layer, BlockCall call) {
  if (!set_call(&layer, call)) return wrong("the shapes of a decoder's block do not fit together");
  if (!starts_fit(layer)) return wrong("a position lies outside of the cache");
  return done(kernels().decoder_block(layer));
}

ffi::Error decode_block(Matrix x, Starts starts, Matrix cos, Matrix sin, Array, Array, Array, Array,
                        ffi::RemainingArgs rest, MatrixOut out, ArrayOut keys, ArrayOut values,
                        ArrayOut key_scales, ArrayOut value_scales, int64_t heads,
                        int64_t kv_heads, int64_t wide, bool is_sequential, bool pairs_are_halves,
                        int64_t activation, float eps) {
  const bluejay::DecodingClock clock;
  if (x.dimensions().size() != 3 || keys->dimensions().size() != 4)
    return wrong("the sizes of a decoder's block do not fit together");
  const auto layer =
      block_of({x.dimensions()[2], heads, kv_heads, keys->dimensions()[3], wide, is_sequential,
                pairs_are_halves, activation, eps},
               rest);
  if (!layer) return wrong("the sizes of a decoder's block do not fit together");
  return run_block(*layer, {x, starts, cos, sin, out, keys, values, key_scales, value_scales});
}

bluejay::ResidentBlocks& resident_blocks() {
  static auto* blocks = new bluejay::ResidentBlocks;  // outlives threads that still compute at exit
  return *blocks;
}

// The caller keeps the arrays where they are until it forgets the block.
ffi::Error keep_block(ffi::RemainingArgs rest, ffi::ResultBuffer<ffi::S32> number, int64_t embed,
                      int64_t width, int64_t heads, int64_t kv_heads, int64_t wide,
                      bool is_sequential, bool pairs_are_halves, int64_t activation, float eps) {
  const auto layer = block_of({embed, heads, kv_heads, width, wide, is_sequential,
                               pairs_are_halves, activation, eps},
                              rest);
  if (!layer) return wrong("the sizes of a decoder's block do not fit together");
  if (number->element_count() != 1) return wrong("a block has one number");
  *number->typed_data() = resident_blocks().add(*layer);
  return ffi::Error::Success();
}

// The block whose number stands at `layer`.
ffi::Error decode_resident_block(Matrix x, Starts starts, Matrix cos, Matrix sin, Array, Array,
                                 Array, Array, Starts numbers, MatrixOut out, ArrayOut keys,
                                 ArrayOut values, ArrayOut key_scales, ArrayOut value_scales,
                                 int64_t layer) {
  const bluejay::DecodingClock clock;
  if (layer < 0 || layer >= static_cast<int64_t>(numbers.element_count()))
    return wrong("there is no number for this layer");
  return resident_blocks().with(
      numbers.typed_data()[layer], [&](const bluejay::DecoderLayer* found) -> ffi::Error {
        if (!found) return wrong("a block's parameters are gone");
        return run_block(*found, {x, starts, cos, sin, out, keys, values, key_scales, value_scales});
      });
}

// What the handlers of blocks take and give alike: rows, starts, turns and cache; rows and cache; form.
template <typename Binding>
auto with_call(Binding&& bind) {
  return std::move(bind)
      .template Arg<Matrix>()
      .template Arg<Starts>()
      .template Arg<Matrix>()
      .template Arg<Matrix>()
      .template Arg<Array>()
      .template Arg<Array>()
      .template Arg<Array>()
      .template Arg<Array>();
}

template <typename Binding>
auto with_results(Binding&& bind) {
  return std::move(bind)
      .template Ret<Matrix>()
      .template Ret<Array>()
      .template Ret<Array>()
      .template Ret<Array>()
      .template Ret<Array>();
}

template <typename Binding>
auto with_form(Binding&& bind) {
  return std::move(bind)
      .template Attr<int64_t>("heads")
      .template Attr<int64_t>("kv_heads")
      .template Attr<int64_t>("wide")
      .template Attr<bool>("is_sequential")
      .template Attr<bool>("pairs_are_halves")
      .template Attr<int64_t>("activation")
      .template Attr<float>("eps");
}

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_multiply_weights, multiply,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Matrix>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_decoder_block, decode_block,
                              with_form(with_results(with_call(ffi::Ffi::Bind()).RemainingArgs())));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_keep_block, keep_block,
                              with_form(ffi::Ffi::Bind()
                                            .RemainingArgs()
                                            .Ret<ffi::Buffer<ffi::S32>>()
                                            .Attr<int64_t>("embed")
                                            .Attr<int64_t>("width")));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_resident_block, decode_resident_block,
                              with_results(with_call(ffi::Ffi::Bind()).Arg<Starts>())
                                  .Attr<int64_t>("layer"));

extern "C" int bluejay_forget_block(int32_t number) {
  return resident_blocks().remove(number) ? 1 : 0;
}

extern "C" int64_t bluejay_decoding_nanoseconds() { return bluejay::decoding_nanoseconds.load(); }

#pragma GCC visibility pop
