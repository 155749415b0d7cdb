// The second kind of kernel: a program for one row at a time, in double, whatever the storage type.
//
// A program sees what is present in a row, side by side and finite; everything else is the frame's: storage types, strides,
// masks, softcap, empty rows, gradients of the temperature, threads. What is rare is nobody's: a row with NaN or +inf, or
// with parameters at their limits, is flagged and left to the formula. So one text per normalizer serves every dtype and
// layout, and needs one instance per target.
//
// Double is what keeps this small: of float32 scores everything is exact enough without another thought, at half the lanes.
// For float64 there is a second instance, `exact`, that carries low words where 4 ULP ask for them.
#pragma once

#include <cstdint>

namespace normx {

struct RowView {
  std::int64_t n;         // entries that are present; whole vectors, and four of them at a time, may be read and written
  double* x;              // their scores, after softcap
  double* y;              // forward: the weights, may be x itself; backward: the gradient of x over the temperature
  const double* g;        // backward: the cotangents; of a reduction there is one
  const double* result;   // backward: what forward gave, in the precision it was stored in; null if that is not known
  double* room[2];        // for n more each
  double max, min;        // of x
  double temperature;
  const double* p;        // the program's parameters, in its order
  unsigned given;         // bit k: p[k] was passed
  double* dp;             // backward: their gradients
  const double* sink;     // logits beside the scores
  double* dsink;
  std::int64_t sinks;
  const double* constants;
  std::int64_t n_constants;
  std::int64_t left_out;  // entries that `where` leaves out
  double filler;          // the weight of those
  double left_out_cotangents;  // of a program that fills: their sum
  double scale;           // what all of y is still to be multiplied by, on its way to memory
  double value;           // forward: what a reduction amounts to

  bool is_given(int k) const { return given >> k & 1; }
};

// A line of programs.def on one target. False: the row is left to the formula.
struct Program {
  const char* name;
  const char* parameters;  // names, in the order of RowView::p
  const char* constants;   // names, in the order of RowView::constants; the last one may be a sequence
  bool (*forward[2])(RowView&);
  bool (*backward[2])(RowView&);
  double (*least)(const RowView&);  // scores over the temperature below this have no mass; null: all have
  bool negated, log_space, reduces, fills;
  bool of_result;  // backward looks at the result
  bool invariant;  // shifting the scores changes nothing
};

// The operands of a call, by place; those from `parameter` on have a value per row. A null pointer: there is none.
namespace operand {
enum : int { x, y, where, g, result, flag, sink, dsink, temperature, dtemperature, parameter, dparameter = parameter + 4, count = dparameter + 4 };
}

enum class Storage : std::uint8_t { f16, bf16, f32, f64 };
constexpr int item_size(Storage s) { return s == Storage::f64 ? 8 : s == Storage::f32 ? 4 : 2; }

struct RowsAxis {
  std::int64_t size;
  std::int64_t stride[operand::count];  // in bytes
};

struct RowsTask {
  char* at[operand::count];
  Storage storage[operand::count];  // of x, y, g and result
  const RowsAxis* axes;             // the outer ones, then the reduced ones in C order
  int outer, reduced;
  std::int64_t n, sinks, sink_stride;
  int side;                         // neighbouring rows along the last outer axis that are done together; else 1
  bool backward, exact;
  bool gives_up_empty;              // rows without an entry are left to the formula, not filled with zeros
  double softcap;                   // 0: none
  const double* constants;
  std::int64_t n_constants;

  // Of each row: the scores, their cotangents, the result.
  int kept() const { return 1 + backward + (at[operand::result] != nullptr); }
};

// Rows done together where they lie side by side: a cache line of floats.
constexpr int most_side = 16;

// Bytes of scratch: what is kept of the rows, three rows of room, a row's sinks with their gradients, and a flag for each entry.
constexpr std::int64_t rows_pitch(std::int64_t n) { return ((n + 7) / 8 + 4) * 64; }
inline std::int64_t rows_scratch(const RowsTask& t) {
  return rows_pitch(t.n) * (t.side * t.kept() + 3) + t.sinks * 16 + (t.n + 7) / 8 * 8 * t.side + 128;
}

using RunRows = void (*)(const RowsTask&, const Program&, std::int64_t first, std::int64_t last, char* scratch);

}  // namespace normx
