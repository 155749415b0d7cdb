// From which size on a call is worth what: the same for every kind of kernel that works at the speed of memory.
#pragma once

#include <cstdint>

namespace normx {

// A call of fewer elements stays on its caller's thread: from here on two threads take softmax about as long as one where the
// second sleeps, and less where it is awake (parallel/pool.cpp).
constexpr std::int64_t parallel_from = std::int64_t{1} << 17;
// What a thread takes at a time, in elements.
constexpr std::int64_t elements_at_a_time = std::int64_t{1} << 15;

// What comes in and goes out, of this many bytes together, is not in the caches when the call begins, and will not be when it
// ends: the result is written past them.
constexpr std::int64_t stream_bytes = std::int64_t{1} << 25;
// Of shorter rows the edges cost more than streaming the rest saves.
constexpr std::int64_t stream_row_bytes = 512;

}  // namespace normx
