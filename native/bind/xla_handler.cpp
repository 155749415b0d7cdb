#include "bind/xla_handler.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dispatch/call.hpp"
#include "dispatch/rows_call.hpp"
#include "dispatch/target.hpp"
#include "dispatch/vjp.hpp"
#include "memory/cache.hpp"

namespace normx {
namespace {

std::atomic<std::int64_t> calls{0};

using Dims = std::vector<std::int64_t>;

[[noreturn]] void refuse(std::string_view what) {
  throw std::invalid_argument("normx: " + std::string(what));
}

template <class T> const T& sized(const T& s, std::size_t known) {
  if (s.struct_size < known) refuse("a struct of XLA's is smaller than expected; this jaxlib is too old");
  return s;
}

xla::Error* error(const xla::Api* api, xla::ErrorCode code, const char* message) {
  xla::ErrorArgs args{sizeof(xla::ErrorArgs), nullptr, message, code};
  return api->create_error(&args);
}

// At registration: which version of the interface this handler was written for. Nothing here changed between minor versions, so
// it is the runtime's own, if that has our major version; another major version is XLA's to refuse.
void answer(const xla::Api& api, xla::Metadata& metadata) {
  metadata.version.major = 0;
  metadata.version.minor = api.version.minor;
  metadata.traits = 0;
  if (metadata.struct_size >= sizeof(xla::Metadata)) metadata.state_type = {0};
}

class Attributes {
 public:
  explicit Attributes(const xla::Attributes& a) : a_(sized(a, sizeof(a))) {}

  std::string_view text(std::string_view name) const {
    const auto& bytes = *static_cast<const xla::Bytes*>(find(name, xla::AttributeType::string));
    return {bytes.data, bytes.size};
  }
  bool flag(std::string_view name) const {
    const auto& scalar = *static_cast<const xla::Scalar*>(find(name, xla::AttributeType::scalar));
    if (scalar.dtype != xla::DataType::boolean) refuse("the attribute " + std::string(name) + " is no boolean");
    return *static_cast<const bool*>(scalar.value);
  }
  template <class T> std::vector<T> array(std::string_view name, xla::DataType dtype) const {
    const auto& array = *static_cast<const xla::Array*>(find(name, xla::AttributeType::array));
    if (array.size && array.dtype != dtype) refuse("the attribute " + std::string(name) + " has another dtype");
    std::vector<T> values(array.size);
    if (array.size) std::memcpy(values.data(), array.data, array.size * sizeof(T));
    return values;
  }

 private:
  const void* find(std::string_view name, xla::AttributeType type) const {
    for (std::int64_t i = 0; i < a_.size; ++i) {
      if (std::string_view(a_.names[i]->data, a_.names[i]->size) != name) continue;
      if (a_.types[i] != type) refuse("the attribute " + std::string(name) + " is of another type");
      return a_.values[i];
    }
    refuse("there is no attribute " + std::string(name));
  }
  const xla::Attributes& a_;
};

int item_size(xla::DataType dtype) {
  switch (dtype) {
    case xla::DataType::boolean: return 1;
    case xla::DataType::f16: case xla::DataType::bf16: return 2;
    case xla::DataType::f32: return 4;
    default: return 8;
  }
}

struct Scores {
  xla::DataType dtype;
  Storage storage;
  const char* tag;  // of kernels.def
};
constexpr Scores scores[] = {{xla::DataType::f16, Storage::f16, "f16"}, {xla::DataType::bf16, Storage::bf16, "bf16"},
                             {xla::DataType::f32, Storage::f32, "f32"}, {xla::DataType::f64, Storage::f64, "f64"}};

const Scores& scores_of(xla::DataType dtype) {
  for (const Scores& s : scores) {
    if (s.dtype == dtype) return s;
  }
  refuse("scores of another dtype");
}

// A buffer, and its strides in bytes along the axes of the call.
struct Operand {
  const xla::Buffer* buffer = nullptr;
  char* at = nullptr;
  std::vector<std::ptrdiff_t> strides;
  std::vector<double> wide;  // values per row that came, or go, as float32

  std::int64_t dim(std::size_t a) const { return buffer->dims[a]; }
  std::int64_t size() const {
    std::int64_t n = 1;
    for (std::int64_t a = 0; a < buffer->rank; ++a) n *= buffer->dims[a];
    return n;
  }

  void stride(std::size_t axes, int item) {
    strides.assign(static_cast<std::size_t>(buffer->rank), 0);
    std::ptrdiff_t step = item;
    for (std::size_t a = strides.size(); a-- > 0;) {
      strides[a] = buffer->dims[a] == 1 && a < axes ? 0 : step;
      step *= buffer->dims[a];
    }
  }
};

// Where the operands of a row program have their places.
int place_of(std::string_view name) {
  constexpr std::pair<std::string_view, int> places[] = {
      {"x", operand::x}, {"y", operand::y}, {"where", operand::where}, {"g", operand::g}, {"flag", operand::flag},
      {"sink", operand::sink}, {"dsink", operand::dsink}, {"temperature", operand::temperature}, {"dtemperature", operand::dtemperature}};
  for (const auto& [known, place] : places) {
    if (known == name) return place;
  }
  const bool gradient = name.starts_with("d");
  if (name.size() == (gradient ? 3U : 2U) && name[gradient] == 'p' && name.back() >= '0' && name.back() <= '3') {
    return (gradient ? operand::dparameter : operand::parameter) + (name.back() - '0');
  }
  refuse("no operand is called " + std::string(name));
}

bool has_extra_axis(int place) { return place == operand::sink || place == operand::dsink; }

using Places = std::array<Operand, operand::count>;

// Puts the buffers into their places.
void take(const xla::Buffers& given, std::string_view names, Places& into) {
  for (std::int64_t i = 0; i < given.size; ++i) {
    const std::size_t end = std::min(names.find(' '), names.size());
    const int place = place_of(names.substr(0, end));
    names.remove_prefix(std::min(end + 1, names.size()));
    if (given.types[i] != xla::is_buffer) refuse("an operand is no buffer");
    const auto* const buffer = static_cast<const xla::Buffer*>(given.values[i]);
    into[static_cast<std::size_t>(place)].buffer = &sized(*buffer, sizeof(*buffer));
    into[static_cast<std::size_t>(place)].at = static_cast<char*>(buffer->data);
  }
  if (!names.empty()) refuse("there are more names than operands");
}

// The shape that all operands broadcast to.
Dims common_shape(const Places& operands) {
  Dims shape(static_cast<std::size_t>(operands[operand::x].buffer->rank), 1);
  for (int o = 0; o < operand::count; ++o) {
    const Operand& one = operands[static_cast<std::size_t>(o)];
    if (!one.buffer) continue;
    if (one.buffer->rank != static_cast<std::int64_t>(shape.size()) + has_extra_axis(o)) refuse("an operand has another number of axes");
    for (std::size_t a = 0; a < shape.size(); ++a) {
      if (one.dim(a) == 1 || one.dim(a) == shape[a]) continue;
      if (shape[a] != 1) refuse("the shapes of the operands do not broadcast");
      shape[a] = one.dim(a);
    }
  }
  return shape;
}

std::vector<int> axes_of(const Attributes& attributes) {
  const auto axes = attributes.array<std::int64_t>("axes", xla::DataType::s64);
  return {axes.begin(), axes.end()};
}

void run_op(const Attributes& attributes, Places& operands, const Dims& shape, const std::vector<int>& axes) {
  Operand &x = operands[operand::x], &y = operands[operand::y], &where = operands[operand::where];
  const Scores& of = scores_of(x.buffer->dtype);
  if (!y.buffer || y.buffer->dtype != of.dtype || (where.buffer && where.buffer->dtype != xla::DataType::boolean)) refuse("an operand has another dtype");
  const Call call(attributes.text("kernel"), of.tag, shape, axes, parse_empty(attributes.text("empty")),
                  attributes.text("algorithm"));
  x.stride(shape.size(), item_size(of.dtype));
  y.stride(shape.size(), item_size(of.dtype));
  if (where.buffer) where.stride(shape.size(), 1);
  std::int64_t results = 1;
  for (const std::int64_t n : call.out_shape()) results *= n;
  if (y.size() != results) refuse("y has another shape");
  if (!where.buffer && x.size() == call.elements()) {
    call.run_contiguous(x.at, y.at);
    return;
  }
  if (call.reduces()) {  // of y, only the axes that are left count
    for (std::size_t i = axes.size(); i-- > 0;) y.strides.erase(y.strides.begin() + axes[i]);
  }
  call.run({x.at, x.strides.data(), y.at, y.strides.data(), where.at, where.buffer ? where.strides.data() : nullptr});
}

void run_program(const Attributes& attributes, Places& operands, const Dims& shape, const std::vector<int>& axes) {
  std::vector<double> numbers = attributes.array<double>("numbers", xla::DataType::f64);
  if (numbers.empty()) refuse("there is no softcap");
  const double softcap = numbers[0];
  numbers.erase(numbers.begin());
  const RowsCall call(attributes.text("kernel"), shape, axes, attributes.flag("backward"), attributes.flag("gives_up_empty"), softcap,
                      std::move(numbers));
  RowsOperand places[operand::count];
  Storage storage[operand::count] = {};
  RowsCall::Sinks sinks;
  for (int o = 0; o < operand::count; ++o) {
    Operand& one = operands[static_cast<std::size_t>(o)];
    if (!one.buffer) continue;
    const bool result = o == operand::dsink || o == operand::dtemperature || o >= operand::dparameter;
    int item = item_size(one.buffer->dtype);
    if (o == operand::x || o == operand::y || o == operand::g) {
      storage[o] = scores_of(one.buffer->dtype).storage;
    } else if (o == operand::where || o == operand::flag) {
      if (one.buffer->dtype != xla::DataType::boolean) refuse("a mask is not boolean");
      if (o == operand::flag) std::memset(one.at, 0, static_cast<std::size_t>(one.size()));
    } else if (one.buffer->dtype == xla::DataType::f32) {
      const float* const narrow = reinterpret_cast<const float*>(one.at);
      if (result) {
        one.wide.assign(static_cast<std::size_t>(one.size()), 0.0);
      } else {
        one.wide.assign(narrow, narrow + one.size());
      }
      one.at = reinterpret_cast<char*>(one.wide.data());
      item = 8;
    } else if (one.buffer->dtype == xla::DataType::f64) {
      if (result) std::memset(one.at, 0, static_cast<std::size_t>(one.size()) * sizeof(double));
    } else {
      refuse("values per row are neither float64 nor float32");
    }
    one.stride(shape.size(), item);
    if (o == operand::sink) sinks = {one.dim(shape.size()), one.strides[shape.size()]};
    places[o] = {one.at, one.strides.data()};
  }
  if (!operands[operand::y].buffer || !operands[operand::flag].buffer) refuse("a row program wants y and flag");
  call.run(places, storage, sinks);
  for (Operand& one : operands) {
    if (one.wide.empty()) continue;
    const auto o = &one - operands.data();
    if (o != operand::dsink && o != operand::dtemperature && o < operand::dparameter) continue;
    float* const narrow = static_cast<float*>(one.buffer->data);
    std::transform(one.wide.begin(), one.wide.end(), narrow, [](double value) { return static_cast<float>(value); });
  }
}

// XLA has large results from the system each time, in small pages. Float32 softmax of (1024, 32768) inside jit, in ms, two threads
// of a 2-core Zen 5, interleaved: 74 in small pages, 28 in huge ones; jax.nn.softmax 62.
void settle(const xla::Buffers& results) {
  for (std::int64_t i = 0; i < results.size; ++i) {
    if (results.types[i] != xla::is_buffer) refuse("a result is no buffer");
    const auto& buffer = *static_cast<const xla::Buffer*>(results.values[i]);
    auto bytes = static_cast<std::size_t>(item_size(sized(buffer, sizeof(buffer)).dtype));
    for (std::int64_t a = 0; a < buffer.rank; ++a) bytes *= static_cast<std::size_t>(buffer.dims[a]);
    if (bytes >= large_result) prefer_huge_pages(buffer.data, bytes);
  }
}

// x, y and dy to dx, all of one shape, whose last axes are a row.
void run_vjp(const Attributes& attributes, const xla::CallFrame& frame) {
  const int which = find_vjp(attributes.text("kernel"));
  if (which < 0 || attributes.text("operands") != "x y dy" || attributes.text("results") != "dx") refuse("no such gradient from results");
  if (frame.arguments.size != 3 || frame.results.size != 1) refuse("another number of operands than their names say");
  char* at[4];
  std::int64_t size = 1, n = 1;
  xla::DataType dtype{};
  for (int i = 0; i < 4; ++i) {
    const auto& buffer = *static_cast<const xla::Buffer*>(i < 3 ? frame.arguments.values[i] : frame.results.values[0]);
    sized(buffer, sizeof(buffer));
    std::int64_t elements = 1;
    for (std::int64_t a = 0; a < buffer.rank; ++a) elements *= buffer.dims[a];
    if (i == 0) {
      dtype = buffer.dtype;
      size = elements;
      for (const int a : axes_of(attributes)) n *= buffer.dims[a];
    }
    if (buffer.dtype != dtype || elements != size) refuse("x, y, dy and dx are not alike");
    at[i] = static_cast<char*>(buffer.data);
  }
  if (dtype != xla::DataType::f32 && dtype != xla::DataType::f64) refuse("scores of another dtype");
  normx::run_vjp(which, dtype == xla::DataType::f64, {at[0], at[1], at[2], at[3], n, false}, size / n);
}

void run(const xla::CallFrame& frame) {
  const Attributes attributes(frame.attributes);
  sized(frame.arguments, sizeof(frame.arguments));
  sized(frame.results, sizeof(frame.results));
  settle(frame.results);
  const std::string_view kind = attributes.text("kind");
  if (kind == "vjp") {
    run_vjp(attributes, frame);
  } else {
    Places operands;
    take(frame.arguments, attributes.text("operands"), operands);
    take(frame.results, attributes.text("results"), operands);
    if (!operands[operand::x].buffer) refuse("there are no scores");
    const Dims shape = common_shape(operands);
    (kind == "op" ? run_op : run_program)(attributes, operands, shape, axes_of(attributes));
  }
  calls.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

std::int64_t xla_calls() { return calls.load(std::memory_order_relaxed); }

xla::Error* xla_handler(xla::CallFrame* frame) {
  const xla::Api* const api = frame->api;
  try {
    sized(*frame, sizeof(*frame));
    if (frame->extensions && frame->extensions->type == xla::ExtensionType::metadata) {
      answer(*api, *reinterpret_cast<xla::MetadataExtension*>(frame->extensions)->metadata);
    } else {
      if (frame->stage != xla::Stage::execute) refuse("XLA calls the kernels in another stage than execute");
      run(*frame);
    }
    return nullptr;
  } catch (const std::invalid_argument& e) {
    return error(api, xla::ErrorCode::invalid_argument, e.what());
  } catch (const std::exception& e) {
    return error(api, xla::ErrorCode::internal, e.what());
  }
}

}  // namespace normx
