// Memory for large results, some of which is kept for the next one when they are freed.
//
// The system zeroes every page that it hands out, one fault after another, and that takes as long as a softmax. glibc reuses
// blocks of less than 32 MiB; larger ones come from the system each time and go back to it. Float32 softmax in ms, one thread
// of a 2-core Zen 5, huge pages, medians of interleaved calls; of a reused buffer the time of out= was expected, and a little
// less came of it (perhaps because it begins with a huge page, and out did not):
//
//                   out=   nothing kept   kept     ndarray.copy    torch.softmax
//   (1024, 1024)    0.30           0.28      -              0.09             0.5
//   (256, 50257)     2.5            8.9    2.4               9.0              45
//   (8192, 4096)    11.4             20   10.5                20             115
//
// The system may have what is kept whenever it is short of memory (MADV_FREE: 0.06 ms of the 10.5; without huge pages 4.5 ms of
// 23, where ndarray.copy takes 84).
#pragma once

#include <cstddef>

namespace normx {

// Results of this many bytes come from here. Smaller ones are no faster for it: what glibc reuses ends where this begins.
constexpr std::size_t large_result = std::size_t{1} << 25;

// Null if there is no memory. Aligned to a huge page.
void* take_buffer(std::size_t bytes) noexcept;
void give_back(void* buffer) noexcept;
std::size_t capacity_of(const void* buffer) noexcept;

// Asks the system for huge pages where whole ones fit into memory that nothing was written to yet, and so was not zeroed.
// Refused or not, the memory is the same.
void prefer_huge_pages(void* memory, std::size_t bytes) noexcept;

// Bytes kept at this moment, and how many there may be: NORMX_CACHE_MIB, or 256 MiB. A lower limit frees what exceeds it, the
// oldest first. std::runtime_error if NORMX_CACHE_MIB, read at first use, is not a number ≥ 0.
std::size_t cache_memory();
std::size_t cache_limit();
void set_cache_limit(std::size_t bytes);
void clear_cache();

}  // namespace normx
