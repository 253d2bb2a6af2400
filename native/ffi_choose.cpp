// The handler that chooses ids from logits.
#include "ffi_checks.h"
#include "ffi_clock.h"
#include "kernels.h"

namespace {

using namespace bluejay::checks;
using Matrix = ffi::Buffer<ffi::F32>;
using Flags = ffi::Buffer<ffi::PRED>;
using Row = ffi::Buffer<ffi::F32>;
using WholeRow = ffi::Buffer<ffi::S32>;
using BitsRow = ffi::Buffer<ffi::U32>;
using RowOut = ffi::ResultBuffer<ffi::F32>;
using WholeOut = ffi::ResultBuffer<ffi::S32>;

ffi::Error choose(Matrix raw, Matrix processed, Flags allowed, Row temperature, Row top_p,
                  Row min_p, Row typical_p, WholeRow top_k, BitsRow bits, WholeOut ids,
                  RowOut largest, RowOut log_sum) {
  const bluejay::DecodingClock clock;
  if (raw.dimensions().size() != 2 || raw.dimensions()[1] < 1)
    return wrong("a choice takes rows of logits");
  const int64_t rows = raw.dimensions()[0], width = raw.dimensions()[1];
  bool is_fit = has_shape(processed, {rows, width}) && has_shape(allowed, {rows, width}) &&
                has_shape(top_k, {rows}) && has_shape(bits, {rows}) && has_shape(*ids, {rows});
  for (const Row& x : {temperature, top_p, min_p, typical_p}) is_fit &= has_shape(x, {rows});
  for (RowOut x : {largest, log_sum}) is_fit &= has_shape(*x, {rows});
  if (!is_fit || width >= int64_t{1} << 31)
    return wrong("the shapes of a choice's rows do not fit together");
  return done(bluejay::kernels().choose(
      {raw.typed_data(), processed.typed_data(),
       reinterpret_cast<const uint8_t*>(allowed.typed_data()), temperature.typed_data(),
       top_p.typed_data(), min_p.typed_data(), typical_p.typed_data(), top_k.typed_data(),
       bits.typed_data(), ids->typed_data(), largest->typed_data(),
       log_sum->typed_data(), rows, width}));
}

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(bluejay_choose, choose,
                              ffi::Ffi::Bind()
                                  .Arg<Matrix>()
                                  .Arg<Matrix>()
                                  .Arg<Flags>()
                                  .Arg<Row>()
                                  .Arg<Row>()
                                  .Arg<Row>()
                                  .Arg<Row>()
                                  .Arg<WholeRow>()
                                  .Arg<BitsRow>()
                                  .Ret<WholeRow>()
                                  .Ret<Row>()
                                  .Ret<Row>());

#pragma GCC visibility pop
