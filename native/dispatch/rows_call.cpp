#include "dispatch/rows_call.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "parallel/fpmode.hpp"
#include "parallel/pool.hpp"

namespace normx {
namespace {

// Instead of those of limits.hpp: an element costs a program several times as much. Two threads over one from here on, awake and
// (asleep): squared_relu 1.28 (0.56), sparsemax 1.57 (0.96), entmax15 1.77 (1.30), budget 1.86 (1.12); at half of it squared_relu
// 0.84 (0.45), sparsemax 0.89 (0.66), entmax15 1.25 (0.91), budget 1.87 (1.16).
constexpr std::int64_t parallel_from = std::int64_t{1} << 16;
constexpr std::int64_t elements_at_a_time = std::int64_t{1} << 14;

bool continues(const RowsAxis& a, const RowsAxis& b) {
  return std::equal(std::begin(a.stride), std::end(a.stride), b.stride, [&](std::int64_t outer, std::int64_t inner) { return outer == inner * b.size; });
}

// Appends an axis, or makes the last one longer.
void append(RowsAxis* axes, int& count, const RowsAxis& axis) {
  if (count && continues(axes[count - 1], axis)) {
    const std::int64_t size = axes[count - 1].size * axis.size;
    axes[count - 1] = axis;
    axes[count - 1].size = size;
  } else {
    axes[count++] = axis;
  }
}

}  // namespace

RowsCall::RowsCall(std::string_view program, std::vector<std::int64_t> shape, std::vector<int> axes, bool backward, bool gives_up_empty,
                   double softcap, std::vector<double> constants)
    : program_(find_program(program)), shape_(std::move(shape)), reduced_(shape_.size(), false), backward_(backward),
      gives_up_empty_(gives_up_empty), softcap_(softcap), constants_(std::move(constants)) {
  if (program_ < 0) throw std::invalid_argument("no row program '" + std::string(program) + "'; programs() lists those that exist");
  if (shape_.size() >= max_axes) throw std::invalid_argument("more than 64 axes");
  for (const int a : axes) {
    if (a < 0 || a >= static_cast<int>(shape_.size())) throw std::invalid_argument("axis " + std::to_string(a) + " is out of range");
    reduced_[static_cast<std::size_t>(a)] = true;
  }
  for (std::size_t a = 0; a < shape_.size(); ++a) {
    if (shape_[a] < 1) throw std::invalid_argument("a shape without elements");
    elements_ *= shape_[a];
    n_ *= reduced_[a] ? shape_[a] : 1;
  }
}

const Target& RowsCall::run(const RowsOperand (&operands)[operand::count], const Storage (&storage)[operand::count], Sinks sinks) const {
  RowsAxis outer[max_axes], axes[2 * max_axes];
  RowsTask t{};
  for (int o = 0; o < operand::count; ++o) {
    t.at[o] = operands[o].at;
    t.storage[o] = storage[o];
  }
  if (!program().of_result) t.at[operand::result] = nullptr;
  for (const bool of_row : {false, true}) {
    RowsAxis* const list = of_row ? axes + max_axes : outer;
    int& count = of_row ? t.reduced : t.outer;
    for (std::size_t a = 0; a < shape_.size(); ++a) {
      if (reduced_[a] != of_row || shape_[a] == 1) continue;
      RowsAxis& axis = list[count++];
      axis.size = shape_[a];
      for (int o = 0; o < operand::count; ++o) axis.stride[o] = t.at[o] && operands[o].strides ? operands[o].strides[a] : 0;
    }
    // Rows may be visited in any order: the widest stride first. Elements of a row may not.
    if (!of_row) {
      std::stable_sort(list, list + count, [](const RowsAxis& a, const RowsAxis& b) { return std::abs(a.stride[operand::x]) > std::abs(b.stride[operand::x]); });
    }
    int merged = 0;
    for (int i = 0; i < count; ++i) append(list, merged, RowsAxis{list[i]});
    if (!merged) list[merged++] = {1, {}};
    count = merged;
  }
  std::copy_n(outer, t.outer, axes);
  std::copy_n(axes + max_axes, t.reduced, axes + t.outer);
  t.axes = axes;
  t.n = n_;
  t.sinks = sinks.count;
  t.sink_stride = sinks.stride;
  t.backward = backward_;
  t.exact = storage[operand::y] == Storage::f64;
  t.gives_up_empty = gives_up_empty_;
  t.softcap = softcap_;
  t.constants = constants_.data();
  t.n_constants = static_cast<std::int64_t>(constants_.size());

  const RowsAxis& last = axes[t.outer - 1];
  const int item = item_size(storage[operand::x]);
  const bool side_by_side = last.stride[operand::x] == item && axes[t.outer + t.reduced - 1].stride[operand::x] != item;
  t.side = side_by_side ? static_cast<int>(std::min<std::int64_t>(most_side, last.size)) : 1;
  std::int64_t rows = 1;
  for (int i = 0; i < t.outer; ++i) rows *= axes[i].size;
  const std::int64_t units = rows / last.size * ((last.size + t.side - 1) / t.side);

  const DefaultMode mode;
  const Target& target = current_target();
  const std::int64_t needed = rows_scratch(t);
  std::atomic<bool> out_of_memory = false;
  const auto body = [&](std::int64_t first, std::int64_t last_unit, char* scratch) {
    std::unique_ptr<char[]> own;
    if (needed > scratch_bytes) {
      own.reset(new (std::nothrow) char[static_cast<std::size_t>(needed)]);
      if (!own) return void(out_of_memory = true);  // no exception leaves a thread of the pool
      scratch = own.get();
    }
    (*target.run_rows)(t, target.programs[program_], first, last_unit, scratch);
  };
  if (elements_ < parallel_from) {
    body(0, units, scratch());
  } else {
    parallel_for(units, std::max<std::int64_t>(1, elements_at_a_time / (n_ * t.side)), body);
  }
  if (out_of_memory) throw std::bad_alloc();
  return target;
}

}  // namespace normx
