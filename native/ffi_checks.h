// What the handlers for JAX share: errors, and questions about the shape of an array.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bluejay::checks {

inline ffi::Error wrong(const std::string& what) {
  return ffi::Error::InvalidArgument("bluejay: " + what);
}

inline ffi::Error done(bool is_done) {
  if (is_done) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "bluejay: no memory for packed operands");
}

template <typename Array>
bool has_shape(const Array& x, std::initializer_list<int64_t> shape) {
  const auto found = x.dimensions();
  return found.size() == shape.size() && std::equal(shape.begin(), shape.end(), found.begin());
}

}  // namespace bluejay::checks
