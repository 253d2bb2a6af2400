// The handlers of decoding: products with weights of any kind, and a whole block over its cache.
#include <optional>

#include "ffi_block.h"
#include "ffi_clock.h"
#include "kernels.h"
#include "residents.h"

namespace {

using namespace bluejay::checks;
using bluejay::CacheKind;
using bluejay::kernels;

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

// The rows that a call brings and those it gives.
struct Rows {
  Matrix x;
  Starts starts;
  Matrix cos, sin;
  MatrixOut out;
};

// Whether they fit the block, which then has them.
bool set_rows(bluejay::DecoderLayer* layer, Rows& rows) {
  bluejay::DecoderLayer& l = *layer;
  const auto shape = rows.x.dimensions(), turns = rows.cos.dimensions();
  if (shape.size() != 3 || turns.size() != 3) return false;
  l.batch = shape[0];
  l.length = shape[1];
  l.pairs = turns[2];
  l.x = rows.x.typed_data();
  l.out = rows.out->typed_data();
  l.starts = rows.starts.typed_data();
  l.cos = rows.cos.typed_data();
  l.sin = rows.sin.typed_data();
  return shape[2] == l.embed && 2 * l.pairs <= l.width && has_shape(rows.starts, {l.batch}) &&
         has_shape(rows.cos, {l.batch, l.length, l.pairs}) &&
         has_shape(rows.sin, {l.batch, l.length, l.pairs}) &&
         has_shape(*rows.out, {l.batch, l.length, l.embed});
}

// A cache that a call brings. It is worked on in place: arguments are results.
struct CacheOut {
  ArrayOut keys, values, key_scales, value_scales;
};

bool set_cache(bluejay::DecoderLayer* layer, CacheOut& cache) {
  bluejay::DecoderLayer& l = *layer;
  const auto shape = cache.keys->dimensions();
  const auto kind = cache_kind(cache.keys->element_type());
  if (shape.size() != 4 || !kind) return false;
  l.capacity = shape[2];
  l.cache = *kind;
  return cache.values->element_type() == cache.keys->element_type() &&
         set_cache_part(&l.keys, l, *cache.keys, *cache.key_scales) &&
         set_cache_part(&l.values, l, *cache.values, *cache.value_scales);
}

// New positions must lie within the cache: an index would otherwise be an address outside of it.
bool starts_fit(const bluejay::DecoderLayer& l) {
  return std::all_of(l.starts, l.starts + l.batch, [&](int32_t start) {
    return start >= 0 && start + l.length <= l.capacity;
  });
}

ffi::Error run_block(bluejay::DecoderLayer layer, Rows rows, CacheOut cache) {
  if (!set_rows(&layer, rows) || !set_cache(&layer, cache))
    return wrong("the shapes of a decoder's block do not fit together");
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
  return run_block(*layer, {x, starts, cos, sin, out}, {keys, values, key_scales, value_scales});
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
        return run_block(*found, {x, starts, cos, sin, out},
                         {keys, values, key_scales, value_scales});
      });
}

bluejay::ResidentCaches& resident_caches() {
  static auto* caches = new bluejay::ResidentCaches;  // as `resident_blocks`
  return *caches;
}

// How many rows of a call have a row of the cache, each one of its own; blank ones, whose number is
// -1, stand behind them.
std::optional<int64_t> live_rows(const int32_t* slots, int64_t batch, int64_t cache_rows) {
  const auto* end = slots + batch;
  const auto* blank = std::find(slots, end, -1);
  for (const auto* slot = slots; slot < blank; ++slot)
    if (*slot < 0 || *slot >= cache_rows || std::find(slots, slot, *slot) != slot)
      return std::nullopt;
  if (!std::all_of(blank, end, [](int32_t slot) { return slot == -1; })) return std::nullopt;
  return blank - slots;
}

// Rows of a kept cache. What blank rows give is zero, and nothing is computed for them.
ffi::Error run_slots(bluejay::DecoderLayer l, Rows rows, Starts slots,
                     const bluejay::KeptCache& cache, int64_t layer) {
  if (!set_rows(&l, rows) || !has_shape(slots, {l.batch}) || layer >= cache.layers ||
      cache.kv_heads != l.kv_heads || cache.width != l.width)
    return wrong("the shapes of a decoder's block do not fit together");
  const auto live = live_rows(slots.typed_data(), l.batch, cache.rows);
  if (!live) return wrong("rows have no cache row each of its own");
  std::fill(l.out + *live * l.length * l.embed, l.out + l.batch * l.length * l.embed, 0.0f);
  if (*live == 0) return ffi::Error::Success();
  l.batch = *live;
  l.slots = slots.typed_data();
  l.slot_rows = cache.layers;
  l.capacity = cache.capacity;
  l.cache = cache.kind;
  l.keys = cache.part(cache.keys, layer);
  l.values = cache.part(cache.values, layer);
  if (!starts_fit(l)) return wrong("a position lies outside of the cache");
  return done(kernels().decoder_block(l));
}

// The block whose number stands at `layer`, over rows of the cache with this number.
ffi::Error decode_slots(Matrix x, Starts starts, Matrix cos, Matrix sin, Starts numbers,
                        Starts cache, Starts slots, MatrixOut out, int64_t layer) {
  const bluejay::DecodingClock clock;
  if (layer < 0 || layer >= static_cast<int64_t>(numbers.element_count()) ||
      cache.element_count() != 1)
    return wrong("there is no number for this layer");
  return resident_blocks().with(
      numbers.typed_data()[layer], [&](const bluejay::DecoderLayer* block) -> ffi::Error {
        if (!block) return wrong("a block's parameters are gone");
        return resident_caches().with(
            *cache.typed_data(), [&](const bluejay::KeptCache* kept) -> ffi::Error {
              if (!kept) return wrong("a cache is gone");
              return run_slots(*block, {x, starts, cos, sin, out}, slots, *kept, layer);
            });
      });
}

// What a step chose, for the host, which may say meanwhile that it is enough: whether the call takes
// another step, which it may not in any case unless `may_go_on`.
ffi::Error post_choices(Starts cache, Starts numbers, ffi::Buffer<ffi::PRED> may_go_on,
                        ffi::ResultBuffer<ffi::PRED> goes_on) {
  if (cache.element_count() != 1 || may_go_on.element_count() != 1 || goes_on->element_count() != 1)
    return wrong("choices are those of one call over one cache");
  return resident_caches().with(*cache.typed_data(), [&](const bluejay::KeptCache* kept) {
    if (!kept) return wrong("a cache is gone");
    const auto posted =
        kept->mail->post(numbers.typed_data(), numbers.element_count(), *may_go_on.typed_data());
    if (posted == bluejay::Mailbox::Posted::kNoRoom)
      return wrong("a call has more steps or choices than there is room for");
    *goes_on->typed_data() = posted == bluejay::Mailbox::Posted::kGoOn;
    return ffi::Error::Success();
  });
}

// Null when there is no such cache. Nobody else waits while it is used.
std::shared_ptr<bluejay::Mailbox> mail_of(int32_t cache) {
  return resident_caches().with(cache, [](const bluejay::KeptCache* kept) {
    return kept ? kept->mail : nullptr;
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_slots_block, decode_slots,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Starts>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Starts>()
                                  .Arg<Starts>()
                                  .Arg<Starts>()
                                  .Ret<Matrix>()
                                  .Attr<int64_t>("layer"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bluejay_post_choices, post_choices,
    ffi::Ffi::Bind()
        .Arg<Starts>()
        .Arg<Starts>()
        .Arg<ffi::Buffer<ffi::PRED>>()
        .Ret<ffi::Buffer<ffi::PRED>>());

extern "C" int bluejay_forget_block(int32_t number) {
  return resident_blocks().remove(number) ? 1 : 0;
}

// Sizes are layers, rows, key/value heads, capacity and width, as `bluejay::KeptCache` has them, then
// steps and numbers of a step that `mail` has room for. The caller keeps the memory where it is until
// the cache is forgotten.
extern "C" int32_t bluejay_keep_cache(int32_t bytes_per_value, const int64_t* sizes, void* keys,
                                      void* values, float* key_scales, float* value_scales,
                                      int32_t* mail) {
  const auto kind = bytes_per_value == 4   ? CacheKind::kFloat32
                    : bytes_per_value == 2 ? CacheKind::kFloat16
                                           : CacheKind::kInt8;
  return resident_caches().add({kind, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                                {keys, key_scales}, {values, value_scales},
                                std::make_shared<bluejay::Mailbox>(mail, sizes[5], sizes[6])});
}

// Waits for the calls that use it.
extern "C" int bluejay_forget_cache(int32_t number) {
  return resident_caches().remove(number) ? 1 : 0;
}

extern "C" void bluejay_halt(int32_t cache, int32_t is_wanted) {
  if (const auto mail = mail_of(cache)) mail->halt(is_wanted != 0);
}

extern "C" void bluejay_clear_mail(int32_t cache) {
  if (const auto mail = mail_of(cache)) mail->clear();
}

// As `bluejay::Mailbox::wait` has it, or nothing of a cache that is gone.
extern "C" int64_t bluejay_await_mail(int32_t cache, int64_t seen, int64_t pause_microseconds,
                                      int64_t patience_microseconds) {
  using std::chrono::microseconds;
  const auto mail = mail_of(cache);
  if (!mail) return 0;
  return mail->wait(seen, microseconds(pause_microseconds), microseconds(patience_microseconds));
}

extern "C" int64_t bluejay_decoding_nanoseconds() { return bluejay::decoding_nanoseconds.load(); }

#pragma GCC visibility pop
