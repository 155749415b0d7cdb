#include "dispatch/call.hpp"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "dispatch/limits.hpp"
#include "parallel/fpmode.hpp"
#include "parallel/pool.hpp"

namespace normx {
namespace {

// Rows of resident_bytes stay in L2, with their exponentials, from one pass of reload to the next; it takes them, and twopass what
// is longer. 2^26 floats on one core of a 2-core Zen 5 (1 MiB of L2), in ms, np.copyto taking 14.4:
//
//   n             256   512  1024  4096  32768  50257  100000  131072  262144  2^26
//   reload       17.8  14.5  13.5  12.9   15.0   11.9    13.7    18.3    16.5     -
//   twopass      22.7     -  18.9  16.5   16.1   16.2    16.4    16.9    16.0  18.4
//   online       21.3     -  18.5  20.6   18.1   18.2    18.3    18.8    18.5  21.9
//   recompute    29.5     -  22.4  27.3   25.2   26.5       -       -       -  26.6

int item_size(std::string_view dtype) {
  return dtype == "f64" ? 8 : dtype == "f32" ? 4 : 2;
}
// Bytes in the type that rows are computed in.
int compute_size(int item) { return item == 8 ? 8 : 4; }
std::int64_t chunk_length(int item) { return item == 8 ? chunk_size<double> : chunk_size<float>; }

// Along columns: the panel that a kernel takes at a time, in columns. `vector` is what lies in one of its vectors.
//
// columns packs a panel, computes it and unpacks it. To pack the next one and write the last one between the terms of the sum,
// as reload does with rows, was expected to take 5 ms instead of 7.9 for 4096 rows of 4096 floats along axis 0. It took 7.1, and
// panels that lie in cache 5.5 ns a vector instead of 5.0 (a row's vector takes 2.8).
std::int64_t packed_panel(std::int64_t n, int item, std::int64_t vector) {
  const std::int64_t height = std::clamp<std::int64_t>(n, 1, chunk_length(item)) * 64;
  const std::int64_t widest = compute_size(item) == 8 ? max_panel<double> : max_panel<float>;
  return std::clamp(panel_bytes / height * vector, vector, widest);
}
// sweep reads a panel twice, from memory and then, if it is not too high, from L3. It was expected to take the two readings and
// the writing that memory allows, 5 ms for the matrix above. Along axis 0, in ms on one core (columns, sweep, and rows of the
// same matrix along axis 1):
//
//   4096 x 4096   50257 x 256   1024 x 1024   512 x 16384   128 x 4096   96 x 5461   64 x 8192
//   8.2 4.4 3.1  19.8 6.4 3.2  0.41 0.25 0.17  3.7 2.1 1.6   0.17 0.15    0.18 0.18   0.19 0.21
//
// and 4096 x 4096 by the panel's width: 5.2 (128), 5.0 (256), 4.4 (512), 4.7 (1024), 4.7 (2048). On a Granite Rapids, whose panels
// are always in L3, in ns a line: 20 (128), 16 (256), 10.3 (512), 9.2 (1024), 9.0 (2048).
constexpr std::int64_t sweep_bytes = std::int64_t{1} << 23, narrowest_sweep = 512, widest_sweep = 2048;
std::int64_t swept_panel(std::int64_t n, int item, std::int64_t vector) {
  return std::clamp(sweep_bytes / (std::max<std::int64_t>(n, 1) * item) / vector * vector, narrowest_sweep, widest_sweep);
}
// One for every thread, as long as they are some lines of memory wide.
int shared_panel(std::int64_t columns, int threads) { return static_cast<int>(std::max<std::int64_t>(64, (columns / threads + 63) / 64 * 64)); }
// Rows of less than a block of the canonical sum leave most of sweep's ranks empty.
bool worth_sweeping(std::int64_t n, std::int64_t vector) { return n >= 8 * vector; }

bool continues(const Axis& a, const Axis& b) {
  return a.x == b.x * b.size && a.y == b.y * b.size && a.where == b.where * b.size;
}

// True if every element of y lies at a multiple of its size.
bool aligned(const Task& t, int item) {
  bool all = reinterpret_cast<std::uintptr_t>(t.y) % static_cast<std::uintptr_t>(item) == 0;
  for (int a = 0; a < t.outer + t.reduced; ++a) all &= t.axes[a].y % item == 0;
  return all;
}

// Appends an axis, or makes the last one longer.
void append(Axis* axes, int& count, const Axis& axis) {
  if (count && continues(axes[count - 1], axis)) {
    axes[count - 1] = {axes[count - 1].size * axis.size, axis.x, axis.y, axis.where};
  } else {
    axes[count++] = axis;
  }
}

// Chunks of each row in turn are the pieces of work.
void share_rows(const Task& t, const Kernel& kernel, std::int64_t chunks) {
  const std::size_t bytes = kernel.state_bytes * static_cast<std::size_t>(chunks);
  const std::unique_ptr<char[], void (*)(char*)> states(static_cast<char*>(::operator new(bytes, std::align_val_t{64})),
                                                        [](char* p) { ::operator delete(p, std::align_val_t{64}); });
  const std::int64_t grain = std::max<std::int64_t>(1, chunks / (8 * num_threads()));
  for (std::int64_t unit = 0; unit < t.units; ++unit) {
    const auto lift = [&](bool again) {
      parallel_for(chunks, grain, [&](std::int64_t first, std::int64_t last, char* scratch) {
        for (std::int64_t c = first; c < last; ++c) kernel.lift(t, unit, c, states.get(), scratch, again);
      });
      return kernel.merge(t, unit, chunks, states.get(), again);
    };
    if (lift(false)) lift(true);
    const std::int64_t written = kernel.reduces ? 1 : chunks;
    parallel_for(written, grain, [&](std::int64_t first, std::int64_t last, char* scratch) {
      for (std::int64_t c = first; c < last; ++c) kernel.write(t, unit, c, states.get(), scratch);
    });
  }
}

}  // namespace

Empty parse_empty(std::string_view name) {
  if (name == "zero") return Empty::zero;
  if (name == "nan") return Empty::nan;
  if (name == "uniform") return Empty::uniform;
  throw std::invalid_argument("empty: 'zero', 'nan' or 'uniform' was wanted, not '" + std::string(name) + "'");
}

Call::Call(std::string_view op, std::string_view dtype, std::vector<std::int64_t> shape, std::vector<int> axes, Empty empty,
           std::string_view algorithm)
    : shape_(std::move(shape)), reduced_(shape_.size(), false), item_(item_size(dtype)), empty_(empty) {
  const auto find = [&](std::string_view name) { return find_kernel(op, dtype, name); };
  packed_ = find("packed");
  if (packed_ < 0) throw std::invalid_argument("no kernel for op '" + std::string(op) + "' and dtype '" + std::string(dtype) + "'");
  columns_ = find("columns");
  sweep_ = find("sweep");
  online_ = find("online");
  if (algorithm != "auto") {
    forced_ = find(algorithm);
    if (forced_ < 0) {
      throw std::invalid_argument("algorithm '" + std::string(algorithm) + "' is unknown for op '" + std::string(op) + "' and dtype '" +
                                  std::string(dtype) + "'; kernels() lists those that exist");
    }
  }
  if (shape_.size() > max_axes) throw std::invalid_argument("more than 64 axes");
  for (const int a : axes) {
    if (a < 0 || a >= static_cast<int>(shape_.size())) throw std::invalid_argument("axis " + std::to_string(a) + " is out of range");
    reduced_[static_cast<std::size_t>(a)] = true;
  }
  reduces_ = targets()[0].table[packed_].reduces;
  for (std::size_t a = 0; a < shape_.size(); ++a) {
    if (shape_[a] < 0) throw std::invalid_argument("a negative size in the shape");
    elements_ *= shape_[a];
    n_ *= reduced_[a] ? shape_[a] : 1;
    if (!(reduces_ && reduced_[a])) out_shape_.push_back(shape_[a]);
  }
  const int reload = find("reload");
  direct_ = reload < 0 ? online_ : n_ * compute_size(item_) <= resident_bytes ? reload : find("twopass");

  const auto strides = [&](const std::vector<std::int64_t>& sizes) {
    std::vector<std::ptrdiff_t> result(sizes.size());
    std::ptrdiff_t stride = item_;
    for (std::size_t a = sizes.size(); a-- > 0; stride *= sizes[a]) result[a] = stride;
    return result;
  };
  const auto x = strides(shape_), y = strides(out_shape_);
  contiguous_fits_ = lay_out({nullptr, x.data(), nullptr, y.data(), nullptr, nullptr}, contiguous_);
}

bool Call::lay_out(const Operands& o, Layout& layout) const {
  Axis outer[max_axes], reduced[max_axes];
  int outer_count = 0, reduced_count = 0;
  for (std::size_t a = 0, b = 0; a < shape_.size(); ++a) {
    const bool in_y = !(reduces_ && reduced_[a]);
    const std::ptrdiff_t y = in_y ? o.y_strides[b++] : 0;
    const Axis axis{shape_[a], o.x_strides[a], y, o.where ? o.where_strides[a] : 0};
    if (axis.size == 1) continue;
    if (reduced_[a]) {
      append(reduced, reduced_count, axis);
    } else {
      outer[outer_count++] = axis;
    }
  }
  // Rows may be visited in any order: the widest stride first. Elements of a row may not.
  std::stable_sort(outer, outer + outer_count, [](const Axis& a, const Axis& b) { return std::abs(a.x) > std::abs(b.x); });
  int merged = 0;
  for (int i = 0; i < outer_count; ++i) append(outer, merged, Axis{outer[i]});
  outer_count = merged;

  if (!reduced_count || n_ == 0) {
    reduced[0] = {1, item_, item_, 0};
    reduced_count = 1;
  }
  if (!outer_count) outer[outer_count++] = {1, 0, 0, 0};

  // The axis along which neighbouring rows lie side by side.
  Axis* const side = std::find_if(outer, outer + outer_count, [&](const Axis& a) { return a.x == item_ && a.size > 1; });
  const bool has_side = side != outer + outer_count;
  const Axis& inner = reduced[reduced_count - 1];
  const std::int64_t vector = 64 / compute_size(item_);
  const bool plain = !o.where && reduced_count == 1;
  const bool in_place = plain && inner.x == item_ && (reduces_ || inner.y == item_);
  const bool swept = plain && has_side && side->y == item_ && sweep_ >= 0;

  if (in_place) {
    layout.kernel = direct_ >= 0 ? direct_ : packed_;
    layout.sharing_kernel = online_ >= 0 ? online_ : packed_;
  } else {
    layout.kernel = layout.sharing_kernel = !has_side || inner.x == item_ ? packed_ : swept && worth_sweeping(n_, vector) ? sweep_ : columns_;
  }
  if (forced_ >= 0) {
    if (!(forced_ == packed_ || (forced_ == columns_ ? has_side : forced_ == sweep_ ? swept : in_place))) return false;
    layout.kernel = layout.sharing_kernel = forced_;
  }

  Task& t = layout.task;
  t = {o.x, o.y, o.where, n_, 1, 0, 0, outer_count, reduced_count, empty_, targets()[0].table[packed_].negated, false, layout.axes};
  if (layout.kernel == columns_ || layout.kernel == sweep_) {
    std::rotate(side, side + 1, outer + outer_count);
    t.panel = static_cast<int>(layout.kernel == sweep_ ? swept_panel(n_, item_, vector) : packed_panel(n_, item_, vector));
    --outer_count;
    std::copy_n(outer + outer_count, 1, layout.axes + outer_count);
  }
  for (int i = 0; i < outer_count; ++i) t.units *= outer[i].size;
  std::copy_n(outer, t.outer, layout.axes);
  std::copy_n(reduced, reduced_count, layout.axes + t.outer);
  return true;
}

void Call::refuse() const {
  throw std::invalid_argument("algorithm '" + std::string(kernel_names()[static_cast<std::size_t>(forced_)].algorithm) +
                              "' cannot run on arrays that lie like these; 'auto' and 'packed' can");
}

Call::Ran Call::run(const Operands& operands) const {
  Layout layout;
  if (!lay_out(operands, layout)) refuse();
  return execute(layout, operands.x, operands.y);
}

Call::Ran Call::run_contiguous(const char* x, char* y) const {
  if (!contiguous_fits_) refuse();
  return execute(contiguous_, x, y);
}

Call::Ran Call::execute(const Layout& layout, const char* x, char* y) const {
  const DefaultMode mode;
  const Target& target = current_target();
  Task t = layout.task;
  t.x = x;
  t.y = y;
  t.axes = layout.axes;
  t.streams = x != y && 2 * elements_ * item_ >= stream_bytes && n_ * item_ >= stream_row_bytes && aligned(t, item_);
  if (t.panel) {
    const Axis& columns = t.axes[t.outer - 1];
    if (layout.kernel == sweep_ && elements_ >= parallel_from) t.panel = std::min(t.panel, shared_panel(columns.size, num_threads()));
    const auto past = static_cast<int>(reinterpret_cast<std::uintptr_t>(y) % 64);
    t.head = t.streams && columns.y == item_ ? static_cast<int>(std::min<std::int64_t>((64 - past) % 64 / item_, columns.size)) : 0;
    t.units *= panel_count(columns.size, t.head, t.panel);
  }
  if (elements_ < parallel_from) {
    if (t.units) target.table[layout.kernel].run(t, 0, t.units, scratch());
    return {&target, layout.kernel};
  }
  const std::int64_t chunks = (n_ + chunk_length(item_) - 1) / chunk_length(item_);
  const Kernel& sharing = target.table[layout.sharing_kernel];
  if (num_threads() > 1 && sharing.lift && chunks >= 4 && t.units < 4 * num_threads()) {
    share_rows(t, sharing, chunks);
    return {&target, layout.sharing_kernel};
  }
  const std::int64_t grain = grain_of(t.units, std::max<std::int64_t>(1, elements_ / t.units));
  parallel_for(t.units, grain, [&](std::int64_t first, std::int64_t last, char* scratch) {
    target.table[layout.kernel].run(t, first, last, scratch);
  });
  return {&target, layout.kernel};
}

}  // namespace normx
