// What dispatch and kernels say to each other: plain data, so that nothing in it is compiled twice with different flags.
#pragma once

#include <cstddef>
#include <cstdint>

namespace normx {

constexpr int max_axes = 64 + 1;  // NumPy's limit, and one of size 1 that a group of axes may be short of

// Elements of a row that are summed together before they meet the rest of it: part of the definition of the result, on
// every target and in every layout. 64 KiB of either compute type.
template <class T> constexpr std::int64_t chunk_size = 65536 / static_cast<std::int64_t>(sizeof(T));

// Rows of at most this many bytes, in the compute type, stay in L2 from one pass over them to the next. Measured in dispatch/call.cpp.
constexpr std::int64_t resident_bytes = std::int64_t{448} << 10;

// What a row without any mass becomes.
enum class Empty : std::uint8_t { zero, nan, uniform };

// Strides in bytes.
struct Axis {
  std::int64_t size, x, y, where;
};

// A batch of rows. A row is n elements: the last `reduced` axes, in C order. The outer axes before them count the rows;
// for a columns kernel the last outer axis is the one whose elements lie side by side.
struct Task {
  const char* x;
  char* y;
  const char* where;  // null: every entry is kept
  std::int64_t n;
  std::int64_t units;  // what run() counts: rows, or panels of columns
  int panel, head;     // columns in a panel (0: this is no columns kernel); in a narrower one before the others, which then begin with a cache line of y
  int outer, reduced;
  Empty empty;
  bool negated;  // x counts with the other sign
  bool streams;  // y is so large that it had better not pass through the caches
  const Axis* axes;
};

// One line of kernels.def on one target. The work of a unit may be shared between threads: each chunk is lifted into a
// state, the states are merged in order, and then each chunk is written (a reduction: chunk 0 alone). merge() says whether all
// chunks must be lifted once more, now that the whole row is known. Null: this algorithm cannot share a row.
struct Kernel {
  const char* op;
  const char* dtype;
  const char* algorithm;
  void (*run)(const Task&, std::int64_t first_unit, std::int64_t last_unit, char* scratch);
  void (*lift)(const Task&, std::int64_t unit, std::int64_t chunk, char* states, char* scratch, bool again);
  bool (*merge)(const Task&, std::int64_t unit, std::int64_t chunks, char* states, bool again);  // the result replaces the first
  void (*write)(const Task&, std::int64_t unit, std::int64_t chunk, const char* states, char* scratch);
  std::size_t state_bytes;  // of one chunk's state
  bool reduces;             // a value for each row instead of a row
  bool negated;             // wants Task::negated
};

// A thread's scratch holds one panel, and what a partial vector at its end may touch. A panel is at most eight vectors wide, and
// four for rows of a chunk or more. 4096 rows of 4096 floats, softmax along axis 0, in ms by width in vectors: 17.4 (1), 12.6
// (2), 9.2 (4), 8.2 (8), 7.8 (16); narrow pieces of a wide matrix leave most of the memory's bandwidth unused.
constexpr std::int64_t panel_bytes = std::int64_t{1} << 22;
template <class T> constexpr int max_panel = 8 * 64 / static_cast<int>(sizeof(T));
constexpr std::int64_t scratch_bytes = panel_bytes + 9 * 64;

// The panels of `columns` columns, and the first column of each.
constexpr std::int64_t panel_count(std::int64_t columns, int head, int panel) {
  return (head ? 1 : 0) + (columns - head + panel - 1) / panel;
}
constexpr std::int64_t panel_first(std::int64_t index, int head, int panel) {
  return head ? (index ? head + (index - 1) * panel : 0) : index * panel;
}

}  // namespace normx
