// From which size on a call is worth what: the same for every kind of kernel that works at the speed of memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel/pool.hpp"

namespace normx {

// A call of fewer elements stays on its caller's thread: from here on two threads take softmax about as long as one where the
// second sleeps, and less where it is awake (parallel/pool.cpp).
constexpr std::int64_t parallel_from = std::int64_t{1} << 17;
// How many units of so many elements a thread takes at a time: few pieces, since what a piece begins with has not been fetched ahead,
// but enough of them that no thread waits long for the last. Two threads over one, softmax on a Granite Rapids, with pieces of 2^15
// elements and with these: (8192, 4096) floats 1.80 and 1.98, (1024, 32768) 1.48 and 1.97, (256, 1024) to (1024, 4096) alike.
inline std::int64_t grain_of(std::int64_t units, std::int64_t elements) {
  const std::int64_t at_a_time = std::clamp<std::int64_t>(units * elements / (8 * num_threads()), std::int64_t{1} << 15, std::int64_t{1} << 18);
  return std::max<std::int64_t>(1, at_a_time / elements);
}

// What comes in and goes out, of this many bytes together, is not in the caches when the call begins, and will not be when it
// ends: the result is written past them.
constexpr std::int64_t stream_bytes = std::int64_t{1} << 25;
// Of shorter rows the edges cost more than streaming the rest saves.
constexpr std::int64_t stream_row_bytes = 512;

}  // namespace normx
