// NumPy's C interface, and the dtypes that kernels have.
#pragma once

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#include <nanobind/nanobind.h>
#include <numpy/arrayobject.h>

#include <algorithm>
#include <iterator>

#include "dispatch/target.hpp"

namespace nb = nanobind;

namespace normx {

struct Dtype {
  const char* name;  // NumPy's
  const char* tag;   // that of kernels.def
  int type_num;      // -1: asked of ml_dtypes when it is needed
  Storage storage;
};
inline constexpr Dtype dtypes[] = {{"float32", "f32", NPY_FLOAT, Storage::f32},
                                   {"float64", "f64", NPY_DOUBLE, Storage::f64},
                                   {"float16", "f16", NPY_HALF, Storage::f16},
                                   {"bfloat16", "bf16", -1, Storage::bf16}};

template <class F> const Dtype* find_dtype(F&& is_it) {
  const auto found = std::find_if(std::begin(dtypes), std::end(dtypes), is_it);
  return found == std::end(dtypes) ? nullptr : found;
}

inline int type_number(const Dtype& dtype) {
  if (dtype.type_num >= 0) return dtype.type_num;
  const nb::object descr = nb::module_::import_("numpy").attr("dtype")(nb::module_::import_("ml_dtypes").attr(dtype.name));
  return reinterpret_cast<PyArray_Descr*>(descr.ptr())->type_num;
}

}  // namespace normx
