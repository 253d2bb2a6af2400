// What JAX calls: handlers that check every shape before a kernel sees it, and a few plain functions for
// ctypes.
#include <optional>

#include "ffi_checks.h"
#include "kernels.h"
#include "thread_pool.h"

namespace {

using namespace bluejay::checks;
using bluejay::kernels;
// Arrays of float32 of any rank; handlers check it.
using Matrix = ffi::Buffer<ffi::F32>;
using MatrixOut = ffi::ResultBuffer<ffi::F32>;

bluejay::Operand operand(const Matrix& x, bool is_turned) {
  const auto columns = x.dimensions()[1];
  if (is_turned) return {x.typed_data(), 1, columns};
  return {x.typed_data(), columns, 1};
}

// out[m, n] = sum over k of left[m, k] right[n, k]; a turned operand is stored with k as its first axis.
ffi::Error multiply(Matrix left, Matrix right, MatrixOut out, bool left_turned, bool right_turned,
                    bool in_bfloat16) {
  const auto a = left.dimensions(), b = right.dimensions(), c = out->dimensions();
  if (a.size() != 2 || b.size() != 2 || c.size() != 2) return wrong("matmul takes matrices");
  const auto rows = a[left_turned ? 1 : 0], depth = a[left_turned ? 0 : 1];
  const auto columns = b[right_turned ? 1 : 0];
  if (b[right_turned ? 0 : 1] != depth || c[0] != rows || c[1] != columns)
    return wrong("the shapes of a matmul do not fit together");
  const auto kernel = in_bfloat16 ? kernels().matmul_bfloat16 : kernels().matmul_float32;
  if (kernel == nullptr) return wrong("this processor multiplies no bfloat16");
  return done(kernel(out->typed_data(), operand(left, left_turned), operand(right, right_turned),
                     rows, columns, depth));
}

using Targets = ffi::Buffer<ffi::S32>;

ffi::Error normalize(Matrix x, Matrix scale, Matrix bias, MatrixOut y, MatrixOut stats, float eps) {
  if (x.dimensions().size() != 2) return wrong("layer_norm takes rows");
  const auto rows = x.dimensions()[0], width = x.dimensions()[1];
  if (!has_shape(scale, {width}) || !has_shape(bias, {width}) || !has_shape(*y, {rows, width}) ||
      !has_shape(*stats, {rows, 2}))
    return wrong("the shapes of a layer_norm do not fit together");
  return done(kernels().layer_norm(y->typed_data(), stats->typed_data(), x.typed_data(),
                                   scale.typed_data(), bias.typed_data(), rows, width, eps));
}

ffi::Error normalize_backward(Matrix dy, Matrix x, Matrix stats, Matrix scale, MatrixOut dx,
                              MatrixOut dscale, MatrixOut dbias) {
  if (x.dimensions().size() != 2) return wrong("layer_norm takes rows");
  const auto rows = x.dimensions()[0], width = x.dimensions()[1];
  if (!has_shape(dy, {rows, width}) || !has_shape(stats, {rows, 2}) || !has_shape(scale, {width}) ||
      !has_shape(*dx, {rows, width}) || !has_shape(*dscale, {width}) || !has_shape(*dbias, {width}))
    return wrong("the shapes of a layer_norm do not fit together");
  return done(kernels().layer_norm_backward(dx->typed_data(), dscale->typed_data(),
                                            dbias->typed_data(), dy.typed_data(), x.typed_data(),
                                            stats.typed_data(), scale.typed_data(), rows, width));
}

// A target outside of the vocabulary would be an address outside of the logits.
bool are_within(const Targets& targets, int64_t vocabulary) {
  const int32_t* ids = targets.typed_data();
  return std::all_of(ids, ids + targets.element_count(),
                     [&](int32_t id) { return id >= 0 && id < vocabulary; });
}

ffi::Error lose(Matrix logits, Matrix bias, Targets targets, MatrixOut loss, MatrixOut log_sum,
                MatrixOut stats) {
  if (logits.dimensions().size() != 2) return wrong("cross_entropy takes rows of logits");
  const auto rows = logits.dimensions()[0], width = logits.dimensions()[1];
  if (!has_shape(bias, {width}) || !has_shape(targets, {rows}) || !has_shape(*loss, {rows}) ||
      !has_shape(*log_sum, {rows}) || !has_shape(*stats, {rows, 2}))
    return wrong("the shapes of a cross_entropy do not fit together");
  if (!are_within(targets, width)) return wrong("a target lies outside of the vocabulary");
  return done(kernels().cross_entropy(loss->typed_data(), log_sum->typed_data(),
                                      stats->typed_data(), logits.typed_data(), bias.typed_data(),
                                      targets.typed_data(), rows, width));
}

ffi::Error lose_backward(Matrix dloss, Matrix dlog_sum, Matrix logits, Matrix bias, Targets targets,
                         Matrix stats, MatrixOut dlogits, MatrixOut dbias) {
  if (logits.dimensions().size() != 2) return wrong("cross_entropy takes rows of logits");
  const auto rows = logits.dimensions()[0], width = logits.dimensions()[1];
  if (!has_shape(dloss, {rows}) || !has_shape(dlog_sum, {rows}) || !has_shape(bias, {width}) ||
      !has_shape(targets, {rows}) || !has_shape(stats, {rows, 2}) ||
      !has_shape(*dlogits, {rows, width}) || !has_shape(*dbias, {width}))
    return wrong("the shapes of a cross_entropy do not fit together");
  if (!are_within(targets, width)) return wrong("a target lies outside of the vocabulary");
  return done(kernels().cross_entropy_backward(
      dlogits->typed_data(), dbias->typed_data(), dloss.typed_data(), dlog_sum.typed_data(),
      logits.typed_data(), bias.typed_data(), targets.typed_data(), stats.typed_data(), rows,
      width));
}

// The sizes of a block, if `in` [batch, length, 3 heads width + wide] and the others have them.
std::optional<bluejay::BlockShape> block_shape(const Matrix& in, const Matrix& bias,
                                               const Matrix& cos, const Matrix& sin,
                                               int64_t heads) {
  if (in.dimensions().size() != 3 || bias.dimensions().size() != 1 ||
      cos.dimensions().size() != 2 || heads < 1)
    return std::nullopt;
  bluejay::BlockShape s{};
  s.batch = in.dimensions()[0];
  s.length = in.dimensions()[1];
  s.heads = heads;
  s.wide = bias.dimensions()[0];
  s.pairs = cos.dimensions()[1];
  const auto three = in.dimensions()[2] - s.wide;
  if (three <= 0 || three % (3 * heads) != 0) return std::nullopt;
  s.width = three / (3 * heads);
  if (2 * s.pairs > s.width || !has_shape(cos, {s.length, s.pairs}) ||
      !has_shape(sin, {s.length, s.pairs}))
    return std::nullopt;
  return s;
}

ffi::Error mix(Matrix in, Matrix bias, Matrix cos, Matrix sin, MatrixOut out, MatrixOut log_sum,
               int64_t heads) {
  const auto s = block_shape(in, bias, cos, sin, heads);
  if (!s || !has_shape(*out, {s->batch, s->length, s->out_stride()}) ||
      !has_shape(*log_sum, {s->batch, s->heads, s->length}))
    return wrong("the shapes of a block's middle do not fit together");
  return done(kernels().block_middle(
      out->typed_data(), log_sum->typed_data(),
      {in.typed_data(), bias.typed_data(), cos.typed_data(), sin.typed_data()}, *s));
}

ffi::Error mix_backward(Matrix dresult, Matrix out, Matrix log_sum, Matrix in, Matrix bias, Matrix cos,
                        Matrix sin, MatrixOut din, MatrixOut dbias, int64_t heads) {
  const auto s = block_shape(in, bias, cos, sin, heads);
  if (!s || !has_shape(dresult, {s->batch, s->length, s->out_stride()}) ||
      !has_shape(out, {s->batch, s->length, s->out_stride()}) ||
      !has_shape(log_sum, {s->batch, s->heads, s->length}) ||
      !has_shape(*din, {s->batch, s->length, s->in_stride()}) || !has_shape(*dbias, {s->wide}))
    return wrong("the shapes of a block's middle do not fit together");
  return done(kernels().block_middle_backward(
      din->typed_data(), dbias->typed_data(), dresult.typed_data(), out.typed_data(),
      log_sum.typed_data(),
      {in.typed_data(), bias.typed_data(), cos.typed_data(), sin.typed_data()}, *s));
}

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_matmul, multiply,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Attr<bool>("left_turned")
                                  .Attr<bool>("right_turned")
                                  .Attr<bool>("in_bfloat16"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_layer_norm, normalize,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>()
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_layer_norm_backward, normalize_backward,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_cross_entropy, lose,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Targets>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_cross_entropy_backward, lose_backward,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Targets>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_block_middle, mix,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>()
                                  .Attr<int64_t>("heads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_block_middle_backward, mix_backward,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Ret<Matrix>()
                                  .Ret<Matrix>()
                                  .Attr<int64_t>("heads"));

extern "C" {

const char* bluejay_instruction_set() { return kernels().name; }
int bluejay_force_instruction_set(const char* name) { return bluejay::force_kernels(name) ? 1 : 0; }
int bluejay_has_bfloat16() { return kernels().matmul_bfloat16 != nullptr ? 1 : 0; }
unsigned bluejay_read_memory(const void* data, int64_t bytes) {
  return kernels().read_memory(data, bytes);
}
int bluejay_num_threads() { return bluejay::num_threads(); }
void bluejay_set_num_threads(int count) { bluejay::set_num_threads(count); }
}

#pragma GCC visibility pop
