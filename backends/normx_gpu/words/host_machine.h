// The machine behind words/host.h: fibers for the lanes of a block, memory that is watched, and what goes wrong, in words.
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include <ucontext.h>

typedef std::int64_t nx_i64;
typedef int nx_int;

constexpr nx_int nx_most_lanes = 4096;  // of the blocks of a row

extern "C" {
// An array: where element 0 lies, which elements there are, and of results which were written.
struct nx_buffer {
  char* base;
  nx_i64 low, high;
  unsigned char* written;
  nx_i64 storage;  // 0 float16, 1 bfloat16, 2 float32, 3 float64, 4 bytes, 5 64-bit integers
};
struct nx_call {
  const nx_i64* words;
  const void* numbers;
  nx_buffer operand[NX_OPERANDS];
  nx_i64 grid;
  nx_int lanes, rows, parts, warp, vector, exact;
  nx_int backwards;  // whether lanes are run from the last to the first: what depends on it is a race
};
}

struct nx_cell {
  double hi, lo;
};

class nx_machine_t {
 public:
  // Runs one block: `body` once per lane.
  template <class F>
  bool run(const nx_call& call, nx_i64 block, F body) {
    block_size = call.lanes * call.rows;
    count = block_size * call.parts;
    warp = call.warp;
    block_index = block;
    message[0] = 0;
    cells.assign(static_cast<std::size_t>(2 * count), {{NAN, NAN}, -1, -1, -1, -1});
    far_cells.assign(static_cast<std::size_t>(2 * call.parts), {{NAN, NAN}, -1, -1, -1, -1});
    lanes.resize(nx_most_lanes);
    work = [](void* of) { (*static_cast<F*>(of))(); };
    argument = &body;
    for (nx_int i = 0; i < count; ++i) lanes[i].reset();
    if (_setjmp(home) != 0) return false;  // a fault: the fibers are left where they are
    for (nx_int left = count; left > 0;) {
      bool moved = false;
      for (nx_int step = 0; step < count; ++step) {
        current = call.backwards ? count - 1 - step : step;
        fiber& f = lanes[current];
        if (f.state == done || !may_go(f)) continue;
        moved = true;
        resume(f);
        left -= f.state == done;
      }
      if (!moved) fault("lanes wait for each other: a barrier or a collective that not all of them reach");
    }
    return true;
  }
  // The fiber, its lane within the block, and its block among those of the row.
  nx_int place() const { return current; }
  nx_int lane() const { return current % block_size; }
  nx_int part() const { return current / block_size; }

  void barrier() {
    meet(block_size, 'b');
    ++lanes[current].epoch;
  }
  // Of all blocks of a row.
  void meet_all() {
    meet(count, 'm');
    ++lanes[current].epoch;
    ++lanes[current].far_epoch;
  }
  nx_cell shuffle(double hi, double lo, nx_int mask) {
    fiber& f = lanes[current];
    f.post[f.meetings & 1] = {hi, lo};
    meet(warp, 1000 + mask);
    const nx_int other = current ^ mask;
    if (other / warp != current / warp || other >= count) fault("a shuffle with a lane outside of the warp");
    return lanes[other].post[(f.meetings - 1) & 1];
  }
  bool any(bool yes, bool whole) {
    fiber& f = lanes[current];
    f.post[f.meetings & 1] = {yes ? 1.0 : 0.0, 0};
    const nx_int size = whole ? block_size : warp;
    meet(size, 'a');
    if (whole) ++f.epoch;
    bool found = false;
    const nx_int first = current / size * size;
    for (nx_int i = first; i < first + size && i < count; ++i) found |= lanes[i].post[(f.meetings - 1) & 1].hi != 0;
    return found;
  }
  void share(nx_int cell, nx_cell value) { write(shared_at(cell), value, lanes[current].epoch); }
  nx_cell shared(nx_int cell) { return read(shared_at(cell), lanes[current].epoch); }
  void publish(nx_int cell, nx_cell value) { write(at(far_cells, cell), value, lanes[current].far_epoch); }
  nx_cell published(nx_int cell) { return read(at(far_cells, cell), lanes[current].far_epoch); }
  [[noreturn]] void fault(const char* what) {
    std::snprintf(message, sizeof message, "%s (block %lld, lane %d)", what, static_cast<long long>(block_index), current);
    _longjmp(home, 1);
  }
  char message[256];

 private:
  enum state { fresh, waiting, done };
  struct fiber {
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    jmp_buf place;
    enum state state;
    nx_i64 meetings, epoch, far_epoch;
    nx_int party, sign;  // with how many lanes it waits, and for what
    nx_cell post[2];
    void reset() {
      state = fresh;
      meetings = epoch = far_epoch = 0;
      party = sign = 0;
    }
  };
  struct watched {
    nx_cell value;
    nx_int writer, reader;
    nx_i64 written_in, read_in;
  };
  static constexpr std::size_t stack_size = 64 << 10;

  watched& at(std::vector<watched>& of, nx_int cell) {
    if (cell < 0 || cell >= static_cast<nx_int>(of.size())) fault("a shared cell that does not exist");
    return of[static_cast<std::size_t>(cell)];
  }
  // Each block has its own.
  watched& shared_at(nx_int cell) {
    if (cell >= 2 * block_size) fault("a shared cell that does not exist");
    return at(cells, 2 * block_size * part() + cell);
  }
  void write(watched& w, nx_cell value, nx_i64 now) {
    if (w.written_in == now && w.writer != current) fault("two lanes write one shared cell without a barrier between them");
    if (w.read_in == now && w.reader != current) fault("a shared cell is written while another lane may still read it");
    w.value = value;
    w.writer = current;
    w.written_in = now;
  }
  nx_cell read(watched& w, nx_i64 now) {
    if (w.writer < 0) fault("a shared cell is read that nobody wrote");
    if (w.written_in == now && w.writer != current) fault("a shared cell is read without a barrier after it was written");
    w.reader = w.read_in == now && w.reader != current ? -2 : current;
    w.read_in = now;
    return w.value;
  }
  void meet(nx_int size, nx_int sign) {
    fiber& f = lanes[current];
    ++f.meetings;
    f.party = size;
    f.sign = sign;
    f.state = waiting;
    if (_setjmp(f.place) == 0) _longjmp(scheduler, 1);
  }
  bool may_go(const fiber& f) {
    if (f.state == fresh) return true;
    const nx_int size = f.party < count ? f.party : count, first = current / size * size;
    for (nx_int i = first; i < first + size && i < count; ++i) {
      const fiber& other = lanes[i];
      if (other.state == done && other.meetings < f.meetings) {
        fault("a lane has ended while others wait for it in a barrier or a collective");
      }
      if (other.meetings < f.meetings) return false;
      if (other.meetings == f.meetings && other.state == waiting && (other.sign != f.sign || other.party != f.party)) {
        fault("lanes meet in different collectives: the text diverges");
      }
    }
    return true;
  }
  void resume(fiber& f) {
    if (_setjmp(scheduler) != 0) return;
    if (f.state == waiting) _longjmp(f.place, 1);
    if (!f.stack) f.stack.reset(new char[stack_size]);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = stack_size;
    f.start.uc_link = nullptr;
    makecontext(&f.start, reinterpret_cast<void (*)()>(&nx_machine_t::begin), 0);
    setcontext(&f.start);
  }
  static void begin();

  nx_int count = 0, block_size = 1, warp = 1, current = 0;
  nx_i64 block_index = 0;
  void (*work)(void*) = nullptr;
  void* argument = nullptr;
  jmp_buf home, scheduler;
  std::vector<fiber> lanes;
  std::vector<watched> cells, far_cells;
};
static nx_machine_t nx_machine;

inline void nx_machine_t::begin() {
  nx_machine.work(nx_machine.argument);
  nx_machine.lanes[static_cast<std::size_t>(nx_machine.current)].state = done;
  _longjmp(nx_machine.scheduler, 1);
}

static nx_i64 nx_size_of(nx_i64 storage) { return storage == 4 ? 1 : storage == 3 || storage == 5 ? 8 : storage == 2 ? 4 : 2; }
static const char* nx_readable(const nx_buffer* p, nx_i64 i) {
  if (!p->base) nx_machine.fault("an array is read that was not given");
  if (i < p->low || i >= p->high) nx_machine.fault("a read out of bounds");
  return p->base + i * nx_size_of(p->storage);
}
static char* nx_writable(const nx_buffer* p, nx_i64 i) {
  if (!p->base || !p->written) nx_machine.fault("an array is written to that was not given");
  if (i < p->low || i >= p->high) nx_machine.fault("a write out of bounds");
  if (p->written[i - p->low]++) nx_machine.fault("a result is written twice");
  return p->base + i * nx_size_of(p->storage);
}
static void nx_aligned(const nx_buffer* p, nx_i64 i) {
  if (reinterpret_cast<std::uintptr_t>(p->base + i * nx_size_of(p->storage)) % 16) nx_machine.fault("a vector that is not aligned");
}

template <class To, class From>
static To nx_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from, "bits");
  std::memcpy(&to, &from, sizeof to);
  return to;
}
static float nx_from_half(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return nx_bits<float>(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  const float size = rest < 0x400 ? static_cast<float>(rest) * 0x1p-24f : nx_bits<float>((rest << 13) + 0x38000000u);
  return sign ? -size : size;
}
static std::uint16_t nx_to_half(float f) {
  const std::uint32_t bits = nx_bits<std::uint32_t>(f);
  const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const float size = std::fabs(f);
  if (f != f) return static_cast<std::uint16_t>(sign | 0x7e00);
  if (size >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00);
  if (size < 0x1p-14f) return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(size * 0x1p24f)));
  const std::uint32_t b = nx_bits<std::uint32_t>(size), odd = b >> 13 & 1;
  return static_cast<std::uint16_t>(sign | ((b + 0xfff + odd - 0x38000000u) >> 13));
}
static double nx_read_storage(const char* at, nx_i64 storage) {
  std::uint16_t s;
  float f;
  double d;
  switch (storage) {
    case 0: std::memcpy(&s, at, sizeof s); return nx_from_half(s);
    case 1: std::memcpy(&s, at, sizeof s); return nx_bits<float>(static_cast<std::uint32_t>(s) << 16);
    case 2: std::memcpy(&f, at, sizeof f); return f;
    default: std::memcpy(&d, at, sizeof d); return d;
  }
}
static void nx_write_storage(char* at, nx_i64 storage, double v) {
  std::uint16_t s;
  const float f = static_cast<float>(v);
  if (storage == 3) {
    std::memcpy(at, &v, sizeof v);
  } else if (storage == 2) {
    std::memcpy(at, &f, sizeof f);
  } else {
    if (storage == 0) {
      s = nx_to_half(f);
    } else {
      const std::uint32_t b = nx_bits<std::uint32_t>(f);
      s = static_cast<std::uint16_t>(f != f ? (b >> 16 | 0x40) : (b + 0x7fff + (b >> 16 & 1)) >> 16);
    }
    std::memcpy(at, &s, sizeof s);
  }
}
