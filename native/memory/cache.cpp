#include "memory/cache.hpp"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <new>

#include "environment.hpp"

namespace normx {
namespace {

constexpr std::size_t huge_page = std::size_t{1} << 21;
constexpr std::size_t header = std::size_t{1} << 16;  // a multiple of any system's pages

// A mapping: what is known of it, then the buffer, at a huge page's beginning. Only one small page of the header is ever touched.
struct Block {
  std::size_t capacity;
  Block* older;  // among those that are kept

  static Block* of(const void* buffer) { return reinterpret_cast<Block*>(reinterpret_cast<std::uintptr_t>(buffer) - header); }
  void* buffer() { return reinterpret_cast<char*>(this) + header; }
  void unmap() { munmap(this, header + capacity); }
};

std::size_t rounded(std::size_t bytes) { return (bytes + huge_page - 1) / huge_page * huge_page; }

Block* map(std::size_t capacity) {
  const std::size_t size = header + capacity + huge_page;
  void* const got = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (got == MAP_FAILED) return nullptr;
  char* const first = static_cast<char*>(got);
  const auto address = reinterpret_cast<std::uintptr_t>(first);
  const std::size_t before = rounded(address + header) - header - address, after = huge_page - before;
  if (before) munmap(first, before);
  if (after) munmap(first + size - after, after);
  Block* const block = new (first + before) Block{capacity, nullptr};
  prefer_huge_pages(block->buffer(), capacity);
  return block;
}

class Cache {
 public:
  Cache() : most(static_cast<std::size_t>(environment_number("NORMX_CACHE_MIB", 0, 256)) << 20) {}

  // The newest block that is large enough, and at most an eighth too large. Null if there is none.
  Block* take(std::size_t capacity) {
    const std::lock_guard lock(mutex);
    for (Block** at = &newest; *at; at = &(*at)->older) {
      Block* const block = *at;
      if (block->capacity < capacity || block->capacity - capacity > capacity / 8) continue;
      *at = block->older;
      held -= block->capacity;
      return block;
    }
    return nullptr;
  }

  void keep(Block* block) {
    const std::lock_guard lock(mutex);
    if (block->capacity > most) return block->unmap();
#ifdef MADV_FREE
    madvise(block->buffer(), block->capacity, MADV_FREE);  // what the next result overwrites is no longer free
#endif
    block->older = newest;
    newest = block;
    shrink(most);
  }

  std::size_t memory() {
    const std::lock_guard lock(mutex);
    return held;
  }
  std::size_t limit() {
    const std::lock_guard lock(mutex);
    return most;
  }
  void set_limit(std::size_t bytes) {
    const std::lock_guard lock(mutex);
    most = bytes;
    shrink(most);
  }
  void clear() {
    const std::lock_guard lock(mutex);
    shrink(0);
  }

  // Around a fork: the parent's blocks would be copied, page by page, if the child wrote to them.
  void lock() { mutex.lock(); }
  void unlock() { mutex.unlock(); }
  void forget() {
    shrink(0);
    mutex.unlock();
  }

 private:
  // Keeps the newest blocks, `bytes` of them, and unmaps the others.
  void shrink(std::size_t bytes) {
    held = 0;
    for (Block** at = &newest; *at;) {
      Block* const block = *at;
      if (block->capacity <= bytes - held) {
        held += block->capacity;
        at = &block->older;
      } else {
        *at = block->older;
        block->unmap();
      }
    }
  }

  std::mutex mutex;
  Block* newest = nullptr;
  std::size_t most, held = 0;
};

// Never destroyed: arrays are freed until the very end of the process.
Cache& cache() {
  static Cache* const only = [] {
    Cache* const made = new Cache;
    pthread_atfork([] { cache().lock(); }, [] { cache().unlock(); }, [] { cache().forget(); });
    return made;
  }();
  return *only;
}

}  // namespace

void* take_buffer(std::size_t bytes) noexcept {
  if (bytes > SIZE_MAX / 2) return nullptr;
  const std::size_t capacity = rounded(bytes);
  Block* block = cache().take(capacity);
  if (!block) block = map(capacity);
  if (!block) {
    cache().clear();
    block = map(capacity);
  }
  return block ? block->buffer() : nullptr;
}

void give_back(void* buffer) noexcept { cache().keep(Block::of(buffer)); }
std::size_t capacity_of(const void* buffer) noexcept { return Block::of(buffer)->capacity; }

void prefer_huge_pages(void* memory, std::size_t bytes) noexcept {
#ifdef MADV_HUGEPAGE
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::size_t before = rounded(address) - address;
  if (bytes < before + huge_page) return;
  madvise(static_cast<char*>(memory) + before, (bytes - before) / huge_page * huge_page, MADV_HUGEPAGE);
#else
  static_cast<void>(memory), static_cast<void>(bytes);
#endif
}

std::size_t cache_memory() { return cache().memory(); }
std::size_t cache_limit() { return cache().limit(); }
void set_cache_limit(std::size_t bytes) { cache().set_limit(bytes); }
void clear_cache() { cache().clear(); }

}  // namespace normx
