// Calls of one function on one type of arrays, kept by what their plans depend on: a call that was seen before is done before
// Python has looked at it.
//
// A key of Python's objects, and NumPy's view of a tensor, took most of a small call. Softmax of (1, 64) in us, AVX-512, medians:
// NumPy 0.37 instead of 0.85, torch 0.87 instead of 2.16 (expected: torch.softmax's 0.87), with `out` 0.73 instead of 7.1.
//
// NumPy's arrays are read by its C interface, those of other libraries through DLPack's exchange table. Results of the latter are
// blocks of ours, handed over with what frees them: 0.26 us for torch, where its own allocator and the same way back take 0.54
// and torch.empty_like 0.59.
//
// It answers None for everything else: what is not contiguous in host memory, keywords that are arrays, an `out` that does
// not fit or shares memory, results so large that their memory matters, rows that a program leaves to the formula. The
// dispatcher does these, and refuses what is wrong.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <span>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bind/arrays.hpp"
#include "bind/dlpack.hpp"
#include "bind/gil.hpp"

namespace normx {

// A call that was planned, for arrays that lie side by side.
class Compiled {
 public:
  virtual ~Compiled() = default;
  // Scores and results are stored alike; `reduces`: one result for each row. False if rows are left to the formula.
  virtual bool run_contiguous(const char* x, char* y, bool reduces, Storage storage) const = 0;
  virtual bool in_place() const = 0;  // whether y may be x
};

class CallCache {
 public:
  // It answers while the variables of `context` have something false. An array is its memory and nothing else while all of
  // `watches` return something false, `variables` of modules are the objects given, and its `marks`, attributes or methods, are
  // false. Python itself takes twice the time to find out.
  CallCache(nb::type_object kind, std::vector<nb::object> context, std::vector<nb::object> watches,
            const std::vector<std::tuple<nb::object, nb::str, nb::object>>& variables, const std::vector<nb::str>& marks, bool takes_out)
      : takes_out_(takes_out), kind_(std::move(kind)), exchange_(exchange_of(kind_)), context_(std::move(context)), watches_(std::move(watches)) {
    for (const auto& [module, name, value] : variables) {
      if (!PyModule_Check(module.ptr())) throw nb::type_error("variables: variables of modules were wanted");
      variables_.push_back({nb::borrow(PyModule_GetDict(module.ptr())), name, value});
    }
    for (const nb::object& variable : context_) {
      if (!PyContextVar_CheckExact(variable.ptr())) throw nb::type_error("context: context variables were wanted");
    }
    for (const nb::str& name : marks) {
      const nb::object mark = kind_.attr(name);
      const bool called = PyCallable_Check(mark.ptr());
      if (!called && !Py_TYPE(mark.ptr())->tp_descr_get) throw nb::type_error("marks: attributes or methods of arrays were wanted");
      marks_.push_back({mark, called ? nullptr : Py_TYPE(mark.ptr())->tp_descr_get});
    }
  }

  nb::object run(nb::handle x, nb::dict keywords) {
    Options options;
    Array a;
    if (!options_of(keywords, options) || !is_plain(x) || !read(x, a)) return nb::none();
    const std::shared_ptr<const Entry> entry = find(a, options);
    if (!entry) return nb::none();
    if (options.out) return run_into(*entry, a, options.out);
    if (entry->bytes >= large) return nb::none();
    return exchange_ ? fresh_of_exchange(*entry, a) : fresh_of_numpy(*entry, a, x);
  }

  // Scores of that form lie side by side wherever the call is to be answered; those that it came with need not.
  void keep(nb::dict keywords, nb::object call, std::string_view dtype, const std::vector<std::int64_t>& shape,
            std::vector<std::int64_t> result_shape) {
    const Compiled* const compiled = nb::cast<const Compiled*>(call);
    const Dtype* const known = find_dtype([&](const Dtype& d) { return dtype == d.name; });
    if (!known) throw nb::value_error("dtype: one that kernels have was wanted");
    const auto product = [](const std::vector<std::int64_t>& v) { return std::accumulate(v.begin(), v.end(), std::int64_t{1}, std::multiplies<>{}); };
    const int item = item_size(known->storage);
    Options options;
    if (shape.size() > most_axes || !product(shape) || !options_of(keywords, options)) return;
    std::int64_t words[most_words];
    const std::int64_t code = exchange_ ? code_of(known->storage == Storage::bf16 ? dlpack::bfloat : dlpack::floating, 8 * item) : type_number(*known);
    const std::span<const std::int64_t> key = key_of(code, shape, options, words);
    const bool reduces = result_shape.size() != shape.size();
    const std::int64_t bytes = product(result_shape) * item;
    auto entry = std::make_shared<const Entry>(Entry{std::move(call), compiled, known->storage, reduces, product(shape), bytes, std::move(result_shape)});
    const nb::ft_lock_guard guard(mutex_);
    entries_.insert_or_assign({key.begin(), key.end()}, std::move(entry));
  }

 private:
  // Memory of larger results comes from elsewhere, and what it costs to find it does not matter: NumPy asks for huge pages from
  // 4 MiB on.
  static constexpr std::int64_t large = std::int64_t{1} << 22;
  static constexpr int most_axes = 64;
  static constexpr int most_keywords = 8;
  static constexpr int most_words = 2 + most_axes + 3 * most_keywords;

  // Keywords with numbers and such, three words for each.
  struct Options {
    PyObject* out = nullptr;
    int count = 0;
    std::int64_t words[3 * most_keywords];
  };
  struct Array {
    char* data;
    std::span<const std::int64_t> shape;
    int item;
    std::int64_t dtype;
    dlpack::DataType dlpack_dtype;
  };
  struct Entry {
    nb::object call;  // keeps `compiled`
    const Compiled* compiled;
    Storage storage;
    bool reduces;
    std::int64_t elements, bytes;
    std::vector<std::int64_t> shape;  // of the result
  };
  struct Variable {
    nb::object names, name, value;
  };
  struct Mark {
    nb::object of;
    descrgetfunc get;  // null: a method
  };
  using Key = std::vector<std::int64_t>;
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::span<const std::int64_t> key) const {
      std::uint64_t h = 0;
      for (const std::int64_t word : key) h = (h ^ static_cast<std::uint64_t>(word)) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
      return static_cast<std::size_t>(h);
    }
  };
  struct Equal {
    using is_transparent = void;
    bool operator()(std::span<const std::int64_t> a, std::span<const std::int64_t> b) const { return std::ranges::equal(a, b); }
  };

  static const dlpack::Exchange* exchange_of(nb::handle kind) {
    if (kind.ptr() == reinterpret_cast<PyObject*>(&PyArray_Type)) return nullptr;
    const nb::object capsule = nb::getattr(kind, "__dlpack_c_exchange_api__", nb::none());
    auto header = static_cast<const dlpack::ExchangeHeader*>(capsule.is_none() ? nullptr : PyCapsule_GetPointer(capsule.ptr(), dlpack::capsule_name));
    if (PyErr_Occurred()) throw nb::python_error();
    while (header && header->version.major != dlpack::version.major) header = header->older;
    const auto exchange = reinterpret_cast<const dlpack::Exchange*>(header);
    if (!exchange || !exchange->from_object) throw nb::type_error("kind: a type of arrays with DLPack's exchange table, version 1, was wanted");
    return exchange;
  }

  static bool is_false(PyObject* answer) {
    if (!answer) throw nb::python_error();
    const bool yes = answer == Py_False || answer == Py_None || PyObject_Not(answer) == 1;
    Py_DECREF(answer);
    return yes;
  }

  bool is_marked(PyObject* x) const {
    return !std::ranges::all_of(marks_, [&](const Mark& m) {
      return is_false(m.get ? m.get(m.of.ptr(), x, kind_.ptr()) : PyObject_CallOneArg(m.of.ptr(), x));
    });
  }

  static PyObject* now(const nb::object& variable) {
    PyObject* value = nullptr;
    if (PyContextVar_Get(variable.ptr(), Py_None, &value) != 0) throw nb::python_error();
    return value;
  }

  bool is_plain(nb::handle x) const {
    if (!std::ranges::all_of(context_, [](const nb::object& variable) { return is_false(now(variable)); })) return false;
    if (reinterpret_cast<PyObject*>(Py_TYPE(x.ptr())) != kind_.ptr() || is_marked(x.ptr())) return false;
    if (!std::ranges::all_of(variables_, [](const Variable& v) { return PyDict_GetItem(v.names.ptr(), v.name.ptr()) == v.value.ptr(); })) return false;
    return std::ranges::all_of(watches_, [](const nb::object& watch) { return is_false(PyObject_CallNoArgs(watch.ptr())); });
  }

  // False for other values than plans are kept by as they are. Names and strings are words by their hashes, of 64 bits.
  bool options_of(nb::handle keywords, Options& options) const {
    static const Py_hash_t out = PyObject_Hash(nb::str("out").ptr());
    PyObject *name, *value;
    for (Py_ssize_t at = 0; PyDict_Next(keywords.ptr(), &at, &name, &value);) {
      const Py_hash_t hash = PyObject_Hash(name);
      if (takes_out_ && hash == out) {
        if (value != Py_None) options.out = value;
        continue;
      }
      if (options.count == most_keywords) return false;
      std::int64_t* const words = options.words + 3 * options.count++;
      words[0] = hash;
      words[1] = reinterpret_cast<std::intptr_t>(Py_TYPE(value));
      if (PyLong_CheckExact(value) || PyBool_Check(value)) {
        int overflow = 0;
        words[2] = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) return false;
      } else if (PyFloat_CheckExact(value)) {
        words[2] = std::bit_cast<std::int64_t>(PyFloat_AS_DOUBLE(value));
      } else if (PyUnicode_CheckExact(value)) {
        words[2] = PyObject_Hash(value);
      } else if (value == Py_None) {
        words[2] = 0;
      } else {
        return false;
      }
    }
    return true;
  }

  // False for what does not lie side by side in host memory, or is of another type.
  bool read(nb::handle h, Array& a) const {
    if (reinterpret_cast<PyObject*>(Py_TYPE(h.ptr())) != kind_.ptr()) return false;
    if (!exchange_) {
      PyArrayObject* const array = reinterpret_cast<PyArrayObject*>(h.ptr());
      if (!PyArray_ISCARRAY_RO(array) || PyArray_NDIM(array) > most_axes) return false;
      static_assert(sizeof(npy_intp) == sizeof(std::int64_t));
      const auto shape = reinterpret_cast<const std::int64_t*>(PyArray_DIMS(array));
      a = {PyArray_BYTES(array), {shape, static_cast<std::size_t>(PyArray_NDIM(array))}, static_cast<int>(PyArray_ITEMSIZE(array)),
           PyArray_TYPE(array), {}};
      return true;
    }
    dlpack::Tensor t;
    if (exchange_->from_object(h.ptr(), &t) != 0) {
      PyErr_Clear();
      return false;
    }
    if (t.device.type != dlpack::cpu || t.dtype.lanes != 1 || t.dtype.bits % 8 || t.ndim > most_axes || !t.data) return false;
    std::int64_t step = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
      if (t.shape[i] != 1 && t.strides[i] != step) return false;
      step *= t.shape[i];
    }
    a = {static_cast<char*>(t.data) + t.byte_offset, {t.shape, static_cast<std::size_t>(t.ndim)}, t.dtype.bits / 8,
         code_of(t.dtype.code, t.dtype.bits), t.dtype};
    return true;
  }

  static std::int64_t code_of(std::uint8_t code, int bits) { return code << 8 | bits; }

  static std::span<const std::int64_t> key_of(std::int64_t dtype, std::span<const std::int64_t> shape, const Options& options,
                                              std::int64_t (&words)[most_words]) {
    words[0] = dtype;
    words[1] = static_cast<std::int64_t>(shape.size());
    const auto end = std::copy_n(options.words, 3 * options.count, std::copy(shape.begin(), shape.end(), words + 2));
    return {words, end};
  }

  std::shared_ptr<const Entry> find(const Array& a, const Options& options) {
    std::int64_t words[most_words];
    const std::span<const std::int64_t> key = key_of(a.dtype, a.shape, options, words);
    const nb::ft_lock_guard guard(mutex_);
    const auto found = entries_.find(key);
    return found == entries_.end() ? nullptr : found->second;
  }

  static bool compute(const Entry& entry, const Array& a, char* y) {
    const GilReleased released(entry.elements >= release_from);
    return entry.compiled->run_contiguous(a.data, y, entry.reduces, entry.storage);
  }

  nb::object run_into(const Entry& entry, const Array& a, PyObject* out) const {
    Array b;
    if (!read(out, b) || b.dtype != a.dtype || !std::ranges::equal(entry.shape, b.shape)) return nb::none();
    if (exchange_ ? is_marked(out) : !PyArray_ISWRITEABLE(reinterpret_cast<PyArrayObject*>(out))) return nb::none();
    const std::less<const char*> before;
    const bool apart = !before(b.data, a.data + entry.elements * a.item) || !before(a.data, b.data + entry.bytes);
    const bool same = b.data == a.data && entry.bytes == entry.elements * a.item && entry.compiled->in_place();
    if (!(apart || same) || !compute(entry, a, b.data)) return nb::none();
    return nb::borrow(out);
  }

  static nb::object fresh_of_numpy(const Entry& entry, const Array& a, nb::handle x) {
    PyArray_Descr* const descr = PyArray_DESCR(reinterpret_cast<PyArrayObject*>(x.ptr()));
    Py_INCREF(descr);
    const auto shape = reinterpret_cast<const npy_intp*>(entry.shape.data());
    PyObject* const y = PyArray_NewFromDescr(&PyArray_Type, descr, static_cast<int>(entry.shape.size()), shape, nullptr, nullptr, 0, nullptr);
    if (!y) throw nb::python_error();
    nb::object result = nb::steal(y);
    return compute(entry, a, PyArray_BYTES(reinterpret_cast<PyArrayObject*>(y))) ? result : nb::none();
  }

  // The tensor's description, its shape and strides, and then its elements, from the next cache line on.
  nb::object fresh_of_exchange(const Entry& entry, const Array& a) const {
    constexpr std::uintptr_t line = 64;
    const std::size_t axes = entry.shape.size(), head = sizeof(dlpack::ManagedTensor) + 2 * axes * sizeof(std::int64_t);
    std::unique_ptr<void, decltype(&std::free)> block(std::malloc(head + line + static_cast<std::size_t>(entry.bytes)), &std::free);
    if (!block) throw std::bad_alloc();
    auto* const shape = reinterpret_cast<std::int64_t*>(static_cast<char*>(block.get()) + sizeof(dlpack::ManagedTensor));
    std::int64_t* const strides = shape + axes;
    std::int64_t step = 1;
    for (std::size_t i = axes; i-- > 0; step *= shape[i]) shape[i] = entry.shape[i], strides[i] = step;
    char* const y = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(block.get()) + head + line - 1) / line * line);
    if (!compute(entry, a, y)) return nb::none();
    const auto tensor = new (block.release()) dlpack::ManagedTensor{
        dlpack::version, nullptr, [](dlpack::ManagedTensor* self) { std::free(self); }, 0,
        {y, {dlpack::cpu, 0}, static_cast<std::int32_t>(axes), a.dlpack_dtype, shape, strides, 0}};
    void* result = nullptr;
    if (exchange_->to_object(tensor, &result) != 0) throw nb::python_error();
    return nb::steal(static_cast<PyObject*>(result));
  }

  const bool takes_out_;  // else `out` is a keyword like any other, and no call was kept with it
  const nb::type_object kind_;
  const dlpack::Exchange* const exchange_;  // null for NumPy's arrays
  const std::vector<nb::object> context_, watches_;
  std::vector<Variable> variables_;
  std::vector<Mark> marks_;
  nb::ft_mutex mutex_;
  std::unordered_map<Key, std::shared_ptr<const Entry>, Hash, Equal> entries_;
};

}  // namespace normx
