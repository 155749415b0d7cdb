// normx_native._core: NumPy arrays to operands, and the choices of dispatch/ and parallel/ as functions.
//
// NumPy's C interface, not the buffer protocol: a (1, 64) call spends less on reading three arrays' fields than one
// PyObject_GetBuffer would take, and bfloat16 arrays (ml_dtypes) have no buffer at all.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bind/arrays.hpp"
#include "bind/call_cache.hpp"
#include "bind/gil.hpp"
#include "bind/xla_handler.hpp"
#include "dispatch/call.hpp"
#include "dispatch/rows_call.hpp"
#include "dispatch/target.hpp"
#include "dispatch/topk.hpp"
#include "dispatch/vjp.hpp"
#include "memory/cache.hpp"
#include "parallel/pool.hpp"

using namespace nb::literals;

namespace normx {
namespace {

const Dtype& dtype_of(PyArrayObject* a, const char* name) {
  const int type_num = PyArray_TYPE(a);
  const Dtype* const dtype = find_dtype([&](const Dtype& d) { return d.type_num == type_num || (d.type_num < 0 && type_number(d) == type_num); });
  if (!dtype) throw nb::type_error((std::string(name) + ": an array of float16, bfloat16, float32 or float64 was wanted").c_str());
  return *dtype;
}

// "softmax_f32_reload__avx512" for every kernel of every target, made once: run() returns them without making a string.
struct KernelLabels {
  std::vector<std::vector<nb::object>> of_target;

  KernelLabels() {
    for (const Target& target : targets()) {
      auto& labels = of_target.emplace_back();
      for (const KernelName& k : kernel_names()) {
        const std::string label = std::string(k.op) + "_" + std::string(k.dtype) + "_" + std::string(k.algorithm) + "__" + target.name;
        labels.push_back(nb::str(label.c_str()));
      }
    }
  }
};
KernelLabels* labels;  // lives as long as the module: its strings are never given back

// Large results are ordinary arrays that own their memory, NumPy being told (NEP 49) where it comes from and goes to.
PyDataMem_Handler cached_memory = {
    "normx",
    1,
    {nullptr, [](void*, std::size_t bytes) { return take_buffer(bytes); },
     [](void*, std::size_t count, std::size_t size) {
       void* const zeros = size && count > SIZE_MAX / size ? nullptr : take_buffer(count * size);
       return zeros ? std::memset(zeros, 0, count * size) : nullptr;
     },
     [](void*, void* old, std::size_t bytes) {  // ndarray.resize
       void* const fresh = take_buffer(bytes);
       if (fresh && old) {
         std::memcpy(fresh, old, std::min(bytes, capacity_of(old)));
         give_back(old);
       }
       return fresh;
     },
     [](void*, void* buffer, std::size_t) {
       if (buffer) give_back(buffer);
     }}};

nb::object empty(const std::vector<npy_intp>& shape, nb::handle dtype) {
  cache_limit();  // a wrong NORMX_CACHE_MIB is told here, where it can be
  static PyObject* const handler = PyCapsule_New(&cached_memory, "mem_handler", nullptr);
  PyArray_Descr* descr = nullptr;
  if (!handler || !PyArray_DescrConverter(dtype.ptr(), &descr)) throw nb::python_error();
  PyObject* const usual = PyDataMem_SetHandler(handler);
  if (!usual) {
    Py_DECREF(descr);
    throw nb::python_error();
  }
  PyObject* const array = PyArray_NewFromDescr(&PyArray_Type, descr, static_cast<int>(shape.size()), shape.data(), nullptr, nullptr, 0, nullptr);
  Py_XDECREF(PyDataMem_SetHandler(usual));
  Py_DECREF(usual);
  if (!array) throw nb::python_error();
  return nb::steal(array);
}

class PyCall final : public Compiled {
 public:
  PyCall(std::string_view op, std::string_view dtype, std::vector<std::int64_t> shape, std::vector<int> axes, bool has_where,
         std::string_view empty, std::string_view algorithm)
      : dtype_(known(dtype)), call_(op, dtype_.tag, std::move(shape), std::move(axes), parse_empty(empty), algorithm),
        type_num_(type_number(dtype_)), has_where_(has_where) {}

  // x may be an address: that of scores that lie side by side, in what is an array to others but not to NumPy. A view of it would
  // take longer than a small call.
  nb::object run(nb::handle x, nb::handle out, nb::handle where) const {
    PyArrayObject* const xa = PyLong_CheckExact(x.ptr()) ? nullptr : array(x, "x", type_num_, dtype_.name, call_.shape());
    PyArrayObject* const ya = array(out, "out", type_num_, dtype_.name, call_.out_shape());
    if (!PyArray_ISWRITEABLE(ya)) throw nb::value_error("out: the array is read-only");
    PyArrayObject* wa = nullptr;
    if (has_where_ != !where.is_none()) {
      throw nb::type_error(has_where_ ? "where: this call was planned with a mask, and got none" : "where: this call was planned without a mask");
    }
    if (has_where_) wa = array(where, "where", NPY_BOOL, "bool", call_.shape());

    char* const y = PyArray_BYTES(ya);
    const char* const from = xa ? PyArray_BYTES(xa) : static_cast<const char*>(PyLong_AsVoidPtr(x.ptr()));
    const bool contiguous = !wa && (!xa || PyArray_IS_C_CONTIGUOUS(xa)) && PyArray_IS_C_CONTIGUOUS(ya);
    if (!xa && !contiguous) throw nb::value_error("x: an address goes with a contiguous result and no mask");
    const Call::Ran ran = [&] {
      const GilReleased released(call_.elements() >= release_from);
      if (contiguous) return call_.run_contiguous(from, y);
      return call_.run({from, PyArray_STRIDES(xa), y, PyArray_STRIDES(ya), wa ? PyArray_BYTES(wa) : nullptr, wa ? PyArray_STRIDES(wa) : nullptr});
    }();
    return labels->of_target[static_cast<std::size_t>(ran.target - targets().data())][static_cast<std::size_t>(ran.kernel)];
  }

  bool run_contiguous(const char* x, char* y, bool, Storage) const override {
    call_.run_contiguous(x, y);
    return true;
  }
  bool in_place() const override { return !call_.reduces(); }

 private:
  static const Dtype& known(std::string_view name) {
    if (const Dtype* dtype = find_dtype([&](const Dtype& d) { return name == d.name; })) return *dtype;
    throw nb::value_error(("dtype '" + std::string(name) + "' is unknown; kernels() lists those that exist").c_str());
  }

  // The array if it is what the plan says.
  static PyArrayObject* array(nb::handle h, const char* name, int type_num, const char* dtype, const std::vector<std::int64_t>& shape) {
    PyArrayObject* const a = reinterpret_cast<PyArrayObject*>(h.ptr());
    if (!PyArray_Check(h.ptr()) || PyArray_TYPE(a) != type_num || !PyArray_ISNOTSWAPPED(a)) [[unlikely]] {
      throw nb::type_error((std::string(name) + ": a NumPy array of native " + dtype + " was wanted").c_str());
    }
    if (PyArray_NDIM(a) != static_cast<int>(shape.size()) || !std::equal(shape.begin(), shape.end(), PyArray_DIMS(a))) [[unlikely]] {
      throw nb::value_error((std::string(name) + ": its shape is not the planned one").c_str());
    }
    return a;
  }

  const Dtype& dtype_;
  const Call call_;
  const int type_num_;
  const bool has_where_;
};

// A call of a row program. Its arrays are given by the names of their operands; what has a value per row is an array of doubles
// with size 1 along the reduced axes, so that NumPy's own strides say it all.
class PyRowsCall final : public Compiled {
 public:
  PyRowsCall(std::string_view program, std::vector<std::int64_t> shape, std::vector<int> axes, bool backward, bool gives_up_empty,
             double softcap, std::vector<double> constants, std::vector<std::optional<double>> numbers)
      : axes_(axes), numbers_(std::move(numbers)), call_(program, std::move(shape), std::move(axes), backward, gives_up_empty, softcap, std::move(constants)) {
    if (numbers_.size() > 5) throw nb::value_error("more than four parameters");
  }

  nb::str run(nb::handle x, nb::handle y, nb::handle flag, nb::handle where, nb::handle g, nb::handle result, nb::handle temperature, nb::handle sink,
              const std::vector<nb::object>& parameters, nb::handle dtemperature, nb::handle dsink,
              const std::vector<nb::object>& dparameters) const {
    if (parameters.size() > 4 || dparameters.size() > 4) throw nb::value_error("more than four parameters");
    RowsOperand operands[operand::count];
    Storage storage[operand::count] = {};
    const auto take = [&](int o, nb::handle h, int type_num, const char* name) {
      if (h.is_none()) return;
      operands[o] = of(h, type_num, name);
      if (type_num < 0) storage[o] = dtype_of(reinterpret_cast<PyArrayObject*>(h.ptr()), name).storage;
    };
    take(operand::x, x, -1, "x");
    take(operand::y, y, -1, "y");
    take(operand::g, g, -1, "g");
    take(operand::result, result, -1, "result");
    take(operand::where, where, NPY_BOOL, "where");
    take(operand::flag, flag, NPY_BOOL, "flag");
    take(operand::temperature, temperature, NPY_DOUBLE, "temperature");
    take(operand::dtemperature, dtemperature, NPY_DOUBLE, "dtemperature");
    for (std::size_t i = 0; i < parameters.size(); ++i) take(operand::parameter + static_cast<int>(i), parameters[i], NPY_DOUBLE, "parameters");
    for (std::size_t i = 0; i < dparameters.size(); ++i) take(operand::dparameter + static_cast<int>(i), dparameters[i], NPY_DOUBLE, "dparameters");
    RowsCall::Sinks sinks;
    for (const auto& [o, h] : {std::pair{operand::sink, sink}, std::pair{operand::dsink, dsink}}) {
      if (h.is_none()) continue;
      operands[o] = of(h, NPY_DOUBLE, "sink", 1);
      const auto a = reinterpret_cast<PyArrayObject*>(h.ptr());
      if (o == operand::sink) sinks = {PyArray_DIM(a, PyArray_NDIM(a) - 1), PyArray_STRIDE(a, PyArray_NDIM(a) - 1)};  // dsink's lie side by side
    }
    const Target* target;
    {
      const GilReleased released(call_.elements() >= release_from);
      target = &call_.run(operands, storage, sinks);
    }
    return nb::str((std::string(call_.program().name) + "_rows__" + target->name).c_str());
  }

  bool run_contiguous(const char* x, char* y, bool reduces, Storage storage) const override {
    const int item = item_size(storage);
    const std::size_t axes = call_.shape().size();
    std::vector<std::ptrdiff_t> of_x(axes), of_row(axes), of_y(axes), of_all(axes);
    std::ptrdiff_t step = item, rows = 1;
    for (std::size_t i = axes; i-- > 0; step *= call_.shape()[i]) {
      of_x[i] = step;
      if (std::find(axes_.begin(), axes_.end(), static_cast<int>(i)) != axes_.end()) continue;
      of_row[i] = rows;
      rows *= call_.shape()[i];
    }
    for (std::size_t i = 0; i < axes; ++i) of_y[i] = reduces ? of_row[i] * item : of_x[i];
    std::vector<char> left(static_cast<std::size_t>(rows));
    RowsOperand operands[operand::count];
    operands[operand::x] = {const_cast<char*>(x), of_x.data()};
    operands[operand::y] = {y, of_y.data()};
    operands[operand::flag] = {left.data(), of_row.data()};
    for (std::size_t i = 0; i < numbers_.size(); ++i) {
      if (!numbers_[i]) continue;
      const double* const number = &*numbers_[i];
      operands[i ? operand::parameter + static_cast<int>(i) - 1 : operand::temperature] = {const_cast<char*>(reinterpret_cast<const char*>(number)), of_all.data()};
    }
    Storage storages[operand::count] = {};
    storages[operand::x] = storages[operand::y] = storage;
    call_.run(operands, storages, {});
    return std::find(left.begin(), left.end(), 1) == left.end();
  }
  bool in_place() const override { return false; }  // who computes the rows that are left reads them again

 private:
  // An array with the axes of the call, and `more` of its own after them. Any dtype of scores if type_num is negative.
  RowsOperand of(nb::handle h, int type_num, const char* name, int more = 0) const {
    PyArrayObject* const a = reinterpret_cast<PyArrayObject*>(h.ptr());
    if (!PyArray_Check(h.ptr()) || (type_num >= 0 && PyArray_TYPE(a) != type_num) || !PyArray_ISNOTSWAPPED(a)) {
      throw nb::type_error((std::string(name) + ": a NumPy array of another dtype was wanted").c_str());
    }
    const std::size_t axes = call_.shape().size();
    bool fits = PyArray_NDIM(a) == static_cast<int>(axes) + more;
    for (std::size_t i = 0; fits && i < axes; ++i) {
      // Of size 1: the same for all, and NumPy's stride of such an axis means nothing.
      fits = PyArray_DIM(a, static_cast<int>(i)) == call_.shape()[i];
    }
    if (!fits) throw nb::value_error((std::string(name) + ": its shape is not the planned one").c_str());
    return {PyArray_BYTES(a), PyArray_STRIDES(a)};
  }
  const std::vector<int> axes_;
  const std::vector<std::optional<double>> numbers_;  // the temperature, and the parameters in their order
  const RowsCall call_;
};

nb::str topk(nb::handle x, nb::handle values, nb::handle indices) {
  const auto array = [](nb::handle h, const char* name, int type_num) {
    PyArrayObject* const a = reinterpret_cast<PyArrayObject*>(h.ptr());
    if (!PyArray_Check(h.ptr()) || (type_num >= 0 && PyArray_TYPE(a) != type_num) || !PyArray_ISNOTSWAPPED(a) || PyArray_NDIM(a) < 1) {
      throw nb::type_error((std::string(name) + ": a NumPy array of another dtype, with an axis, was wanted").c_str());
    }
    return a;
  };
  PyArrayObject* const scores = array(x, "x", -1);
  const Dtype& dtype = dtype_of(scores, "x");
  PyArrayObject* const results[] = {array(values, "values", PyArray_TYPE(scores)), array(indices, "indices", NPY_INT64)};
  const int last = PyArray_NDIM(scores) - 1;
  if (PyArray_STRIDE(scores, last) != PyArray_ITEMSIZE(scores)) throw nb::value_error("x: the elements of a row do not lie side by side");
  for (PyArrayObject* const a : results) {
    if (PyArray_NDIM(a) != last + 1 || !std::equal(PyArray_DIMS(a), PyArray_DIMS(a) + last, PyArray_DIMS(scores)) ||
        PyArray_DIM(a, last) != PyArray_DIM(results[0], last) || !PyArray_IS_C_CONTIGUOUS(a) || !PyArray_ISWRITEABLE(a)) {
      throw nb::value_error("values, indices: writeable contiguous arrays with k for each row were wanted");
    }
  }
  const Target* target;
  {
    const GilReleased released(PyArray_SIZE(scores) >= release_from);
    target = &softmax_topk(dtype.storage, {PyArray_DIMS(scores), static_cast<std::size_t>(last) + 1}, PyArray_DIM(results[0], last),
                           {PyArray_BYTES(scores), PyArray_STRIDES(scores), PyArray_BYTES(results[0]),
                            reinterpret_cast<std::int64_t*>(PyArray_BYTES(results[1]))});
  }
  return nb::str((std::string("softmax_topk_") + dtype.tag + "__" + target->name).c_str());
}

// Rows are as long as their last axis says: what has others is reshaped by the caller. x, y and dy may be addresses, as in a call.
nb::str vjp(std::string_view function, nb::handle x, nb::handle y, nb::handle dy, nb::handle dx) {
  const int which = find_vjp(function);
  if (which < 0) throw nb::value_error("function: one of vjps was wanted");
  PyArrayObject* const result = reinterpret_cast<PyArrayObject*>(dx.ptr());
  const auto place = [result](nb::handle h) -> char* {
    if (PyLong_CheckExact(h.ptr())) return static_cast<char*>(PyLong_AsVoidPtr(h.ptr()));
    PyArrayObject* const a = reinterpret_cast<PyArrayObject*>(h.ptr());
    const bool is_one = PyArray_Check(h.ptr()) && PyArray_IS_C_CONTIGUOUS(a) && PyArray_ISALIGNED(a) && PyArray_ISNOTSWAPPED(a);
    if (!is_one || PyArray_NDIM(a) != 2 || !PyArray_SAMESHAPE(a, result) || PyArray_TYPE(a) != PyArray_TYPE(result)) {
      throw nb::type_error("x, y, dy, dx: contiguous matrices of one shape and dtype were wanted");
    }
    return PyArray_BYTES(a);
  };
  if (!PyArray_Check(dx.ptr())) throw nb::type_error("dx: an array was wanted");
  char* const to = place(dx);
  const char *const of_x = place(x), *const of_y = place(y), *const of_dy = place(dy);
  const int type = PyArray_TYPE(result);
  if (type != NPY_FLOAT && type != NPY_DOUBLE) throw nb::type_error("x: float32 or float64 was wanted");
  if (!PyArray_ISWRITEABLE(result)) throw nb::value_error("dx: the array is read-only");
  const Target* target;
  {
    const GilReleased released(PyArray_SIZE(result) >= release_from);
    target = &run_vjp(which, type == NPY_DOUBLE, {of_x, of_y, of_dy, to, PyArray_DIM(result, 1), false}, PyArray_DIM(result, 0));
  }
  return nb::str((std::string(function) + (type == NPY_DOUBLE ? "_f64_vjp__" : "_f32_vjp__") + target->name).c_str());
}

std::vector<std::tuple<std::string, std::string, std::string>> list_programs() {
  std::vector<std::tuple<std::string, std::string, std::string>> list;
  for (const Program& p : programs()) list.emplace_back(p.name, p.parameters, p.constants);
  return list;
}

std::vector<std::tuple<std::string, std::string, std::string>> list_kernels() {
  std::vector<std::tuple<std::string, std::string, std::string>> list;
  for (const KernelName& k : kernel_names()) {
    const Dtype* dtype = find_dtype([&](const Dtype& d) { return k.dtype == d.tag; });
    list.emplace_back(k.op, dtype->name, k.algorithm);
  }
  return list;
}

std::vector<std::tuple<std::string, bool, bool>> list_targets() {
  std::vector<std::tuple<std::string, bool, bool>> list;
  for (const Target& t : targets()) list.emplace_back(t.name, t.compiled(), t.supported());
  return list;
}

}  // namespace
}  // namespace normx

NB_MODULE(_core, m) {
  using namespace normx;
  if (PyArray_ImportNumPyAPI() < 0) throw nb::python_error();
  labels = new KernelLabels;

  m.def("kernels", &list_kernels, "(op, dtype, algorithm) of every kernel.");
  m.def("programs", &list_programs, "(name, parameters, constants) of every row program; the lists are separated by blanks.");
  m.def("targets", &list_targets, "(name, compiled, supported) of every CPU target, in rising order.");
  m.def("target", [] { return current_target().name; }, "The CPU target in use. Honours NORMX_CPU_TARGET at first use.");
  m.def("set_target", &set_target, "name"_a, "Use another CPU target from now on.");
  m.def("num_threads", &num_threads, "Threads a call may use. Honours NORMX_NUM_THREADS at first use.");
  m.def("set_num_threads", &set_num_threads, "k"_a);
  m.attr("large_result") = large_result;
  m.def("empty", &empty, "shape"_a, "dtype"_a, "numpy.empty, in memory that the cache lends.");
  m.def("cache_memory", &cache_memory, "Bytes kept for the next large results.");
  m.def("cache_limit", &cache_limit, "The most bytes that are kept. Honours NORMX_CACHE_MIB at first use.");
  m.def("set_cache_limit", &set_cache_limit, "size"_a);
  m.def("clear_cache", &clear_cache);

  nb::class_<Compiled>(m, "Compiled", "A call that was planned.");
  nb::class_<CallCache>(m, "CallCache", "Calls of a function on one type of arrays, kept by what their plans depend on.")
      .def(nb::init<nb::type_object, std::vector<nb::object>, std::vector<nb::object>, std::vector<std::tuple<nb::object, nb::str, nb::object>>, std::vector<nb::str>, bool>(),
           "kind"_a, "context"_a, "watches"_a, "variables"_a, "marks"_a, "takes_out"_a = true)
      .def("run", &CallCache::run, "x"_a, "keywords"_a, "The result, as a call that was kept computes it; None if no one knows how.")
      .def("keep", &CallCache::keep, "keywords"_a, "call"_a, "dtype"_a, "shape"_a, "result_shape"_a, "Keep a call for scores of a form.");

  nb::class_<PyCall, Compiled>(m, "Call", "One call of an op, planned for a shape. Immutable; any number of threads may run it.")
      .def(nb::init<std::string_view, std::string_view, std::vector<std::int64_t>, std::vector<int>, bool, std::string_view, std::string_view>(),
           "op"_a, "dtype"_a, "shape"_a, "axes"_a, nb::kw_only(), "has_where"_a = false, "empty"_a = "zero", "algorithm"_a = "auto")
      .def("run", &PyCall::run, "x"_a, "out"_a, "where"_a = nb::none(), "Compute into out; x may be the address of contiguous scores. Returns the name of the kernel that ran.");

  nb::class_<PyRowsCall, Compiled>(m, "RowsCall", "One call of a row program, planned for a shape. Immutable; any number of threads may run it.")
      .def(nb::init<std::string_view, std::vector<std::int64_t>, std::vector<int>, bool, bool, double, std::vector<double>, std::vector<std::optional<double>>>(), "program"_a,
           "shape"_a, "axes"_a, nb::kw_only(), "backward"_a = false, "gives_up_empty"_a = false, "softcap"_a = 0.0, "constants"_a = std::vector<double>{},
           "numbers"_a = std::vector<std::optional<double>>{})
      .def("run", &PyRowsCall::run, "x"_a, "y"_a, "flag"_a, nb::kw_only(), "where"_a = nb::none(), "g"_a = nb::none(), "result"_a = nb::none(),
           "temperature"_a = nb::none(), "sink"_a = nb::none(), "parameters"_a = std::vector<nb::object>{}, "dtemperature"_a = nb::none(),
           "dsink"_a = nb::none(), "dparameters"_a = std::vector<nb::object>{},
           "Compute into y. Sets flag where a row is left to the formula. Returns the name of what ran.");

  m.attr("vjps") = nb::cast(std::vector<std::string>(std::begin(vjp_functions), std::end(vjp_functions)));
  m.def("vjp", &vjp, "function"_a, "x"_a, "y"_a, "dy"_a, "dx"_a,
        "The gradient of the rows of x from the result y and the cotangent dy. Returns the name of the kernel that ran.");

  m.def("xla_handler", [] { return nb::capsule(reinterpret_cast<void*>(&xla_handler)); },
        "The kernels as XLA's typed foreign function interface calls them.");
  m.def("xla_calls", &xla_calls, "How many times XLA called them.");

  m.attr("most_k") = most_k;
  m.def("softmax_topk", &topk, "x"_a, "values"_a, "indices"_a,
        "The largest weights along the last axis, as many as values and indices have room for. Returns the name of the kernel that ran.");
}
