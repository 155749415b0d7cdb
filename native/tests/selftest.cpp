// selftest words <isa> | kernels <isa> | agreement | callers | modes | fork | current
//
// words      every word of a target's vector layer (words.cpp.in)
// kernels    every line of kernels.def on a target, in every layout it takes: against long double, in ULP, and its special rows
// agreement  the laws: a row's bits depend on nothing but the row, on any target with FMA (without it: among those without)
// callers    several callers at once, while the target and the number of threads change
// modes      whatever floating-point mode the caller has set, in its thread and the workers': the same bits, and it stays set
// fork       a child process after a parallel call
// current    prints the target and the number of threads that a process gets

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <limits>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

#include "dispatch/call.hpp"
#include "dispatch/target.hpp"
#include "parallel/fpmode.hpp"
#include "parallel/pool.hpp"
#include "tests/check.hpp"

#define NX_ISA selftest  // the scalar conversions of f16 and bf16, under a name of our own
#include "simd/vec_scalar.hpp"

namespace normx::test {

std::atomic<int> failures{0};

#define NX_WORDS(isa) void words_##isa();
#include "words_list.inc"
#undef NX_WORDS

namespace {

using Real = long double;
constexpr Real inf = std::numeric_limits<Real>::infinity();

std::uint64_t random_bits() {  // SplitMix64: the same rows in every run
  static std::uint64_t state = 42;
  std::uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}
double uniform() { return static_cast<double>(random_bits() >> 11) * 0x1p-53; }
double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }

// What is known of a storage type: its name, digits, least exponent, and how a number is written and read.
template <class S> struct Storage {
  static constexpr std::string_view tag = std::is_same_v<S, f64> ? "f64" : std::is_same_v<S, f32> ? "f32" : std::is_same_v<S, f16> ? "f16" : "bf16";
  static constexpr int digits = tag == "f64" ? 53 : tag == "f32" ? 24 : tag == "f16" ? 11 : 8;
  static constexpr int least = tag == "f64" ? -1074 : tag == "f32" ? -149 : tag == "f16" ? -24 : -133;
  static S of(double x) {
    if constexpr (sizeof(S) == 2) return selftest::soft_narrow(static_cast<float>(x), S{});
    else return static_cast<S>(x);
  }
  static Real real(S x) {
    if constexpr (sizeof(S) == 2) return selftest::soft_widen(x);
    else return x;
  }
  static Real ulps(S got, Real want) {
    const Real g = real(got);
    if (std::isnan(want) || std::isinf(want)) return std::isnan(want) ? !std::isnan(g) : g != want;
    int exponent;
    std::frexp(want, &exponent);
    return std::fabs(g - want) / std::ldexp(Real(1), std::max(exponent - digits, least));
  }
};

enum class Op { softmax, log_softmax, logsumexp, softmin, sigmoid };
constexpr std::string_view op_names[] = {"softmax", "log_softmax", "logsumexp", "softmin", "sigmoid"};

// One row, exactly enough. Left-out entries are −inf in x already.
std::vector<Real> reference(Op op, const std::vector<Real>& x) {
  std::vector<Real> y;
  if (op == Op::sigmoid) {
    for (const Real v : x) y.push_back(1 / (1 + std::exp(std::log(static_cast<Real>(x.size())) - v)));
    return y;
  }
  Real m = -inf, others = 0, maxima = 0;
  for (const Real v : x) m = std::max(m, v);
  for (const Real v : x) v == m ? maxima += 1 : others += std::exp(v - m);
  const Real rest = (maxima - 1) + others;
  const Real l = std::log1p(rest);
  if (op == Op::logsumexp) return {m + l};
  for (const Real v : x) y.push_back(op == Op::softmax ? std::exp(v - m) / (1 + rest) : (v - m) - l);
  return y;
}

// `rows` rows of n elements as a matrix that lies in memory in some way.
enum class Lay { rows, columns, spread, reversed, odd };
constexpr Lay lays[] = {Lay::rows, Lay::columns, Lay::spread, Lay::reversed, Lay::odd};
// How scores and results lie that a kernel takes.
Lay lay_of(const KernelName& k) { return k.algorithm == "columns" || k.algorithm == "sweep" ? Lay::columns : Lay::rows; }

template <class S> struct Matrix {
  std::int64_t rows, n;
  std::ptrdiff_t strides[2];
  std::vector<char> memory;
  std::ptrdiff_t origin = 0;

  Matrix(std::int64_t rows, std::int64_t n, Lay lay) : rows(rows), n(n) {
    const std::ptrdiff_t item = sizeof(S);
    const std::ptrdiff_t r = std::max<std::int64_t>(rows, 1), c = std::max<std::int64_t>(n, 1);
    memory.resize(static_cast<std::size_t>(r * c * item * 2 + 64), '\x5a');
    if (lay == Lay::rows) strides[0] = c * item, strides[1] = item;
    if (lay == Lay::columns) strides[0] = item, strides[1] = r * item;
    if (lay == Lay::spread) strides[0] = 2 * c * item, strides[1] = 2 * item;
    if (lay == Lay::reversed) strides[0] = c * item, strides[1] = -item, origin = (c - 1) * item;
    if (lay == Lay::odd) strides[0] = c * item + 3, strides[1] = item, origin = 1;  // no row is aligned to its items
  }
  char* at(std::int64_t r, std::int64_t i) { return memory.data() + origin + r * strides[0] + i * strides[1]; }
  void set(std::int64_t r, std::int64_t i, S value) { std::memcpy(at(r, i), &value, sizeof value); }
  S get(std::int64_t r, std::int64_t i) {
    S value;
    std::memcpy(&value, at(r, i), sizeof value);
    return value;
  }
};

template <class S> void assign(Matrix<S>& to, Matrix<S>& from) {
  for (std::int64_t r = 0; r < from.rows; ++r) {
    for (std::int64_t i = 0; i < from.n; ++i) to.set(r, i, from.get(r, i));
  }
}

// What ran, for the coverage at the end of `kernels`.
std::vector<bool> ran(kernel_names().size(), false);

template <class S>
void run(Op op, Matrix<S>& x, Matrix<S>& y, std::string_view algorithm = "auto", Empty empty = Empty::zero, const std::vector<char>* where = nullptr) {
  const Call call(op_names[static_cast<int>(op)], Storage<S>::tag, {x.rows, x.n}, {1}, empty, algorithm);
  const std::ptrdiff_t where_strides[2] = {x.n, 1};
  const Call::Ran result = call.run({x.at(0, 0), x.strides, y.at(0, 0), y.strides, where ? where->data() : nullptr, where_strides});
  ran[static_cast<std::size_t>(result.kernel)] = true;
  NX_CHECK(algorithm == "auto" || kernel_names()[static_cast<std::size_t>(result.kernel)].algorithm == algorithm, "another algorithm ran than was asked for");
}
std::int64_t out_length(Op op, std::int64_t n) { return op == Op::logsumexp ? 1 : n; }

template <class S> Matrix<S> random_matrix(std::int64_t rows, std::int64_t n, double scale, double shift) {
  Matrix<S> x(rows, n, Lay::rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < n; ++i) x.set(r, i, Storage<S>::of(normal() * scale + shift));
  }
  return x;
}

constexpr std::int64_t lengths[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 300, 1000, 4097, 8192, 8193, 16384, 16385, 50257};
constexpr struct {
  double scale, shift;
} distributions[] = {{1, 0}, {20, 0}, {3, 5000}, {40, -4090}, {100, 30000}};

// Every algorithm on the layout it is for; rounding aside, against the definition.
template <class S> void accuracy() {
  for (const Op op : {Op::softmax, Op::log_softmax, Op::logsumexp, Op::sigmoid}) {
    Real worst = 0;
    for (const std::int64_t n : lengths) {
      for (const auto& d : distributions) {
        const std::int64_t rows = n < 5000 ? 3 : 1;
        Matrix<S> x = random_matrix<S>(rows, n, d.scale, d.shift);
        std::vector<std::vector<Real>> want;
        for (std::int64_t r = 0; r < rows; ++r) {
          std::vector<Real> row;
          for (std::int64_t i = 0; i < n; ++i) row.push_back(Storage<S>::real(x.get(r, i)));
          want.push_back(reference(op, row));
        }
        for (const KernelName& k : kernel_names()) {
          if (k.op != op_names[static_cast<int>(op)] || k.dtype != Storage<S>::tag) continue;
          if (lay_of(k) == Lay::columns && rows == 1) continue;
          Matrix<S> from(rows, n, lay_of(k)), y(rows, out_length(op, n), lay_of(k));
          assign(from, x);
          run(op, from, y, k.algorithm);
          for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t i = 0; i < y.n; ++i) {
              const Real w = want[static_cast<std::size_t>(r)][static_cast<std::size_t>(i)];
              const Real error = Storage<S>::ulps(y.get(r, i), w);
              // m + L may cancel to nothing: what counts there is the error against the greater of them, here against 1.
              const bool cancelled = op == Op::logsumexp && std::fabs(w) < 1;
              worst = std::max(worst, cancelled ? 0 : error);
              NX_CHECK(error <= 4 || cancelled, "%.*s %.*s %.*s n=%ld scale %g shift %g: %Lg ULP at row %ld, %ld", int(k.op.size()), k.op.data(),
                       int(k.dtype.size()), k.dtype.data(), int(k.algorithm.size()), k.algorithm.data(), long(n), d.scale, d.shift, error, long(r), long(i));
            }
          }
        }
      }
    }
    std::printf("  %-11s %-4s %.2Lf ULP\n", op_names[static_cast<int>(op)].data(), Storage<S>::tag.data(), worst);
  }
}

// The rows that arithmetic alone would get wrong, in both geometries, beside ordinary neighbours, with every policy.
template <class S> void special_rows() {
  const auto number = [](Real x) { return Storage<S>::of(static_cast<double>(x)); };
  for (const std::int64_t n : {1, 2, 16, 17, 130, 16385, 40000}) {
    for (const Lay lay : {Lay::rows, Lay::columns}) {
      for (const Empty empty : {Empty::zero, Empty::nan, Empty::uniform}) {
        enum { ordinary, nothing, masked, a_nan, infinite, left_out_nan, kinds };
        Matrix<S> x(kinds, n, lay);
        std::vector<char> where(static_cast<std::size_t>(kinds * n), 1);
        for (int r = 0; r < kinds; ++r) {
          for (std::int64_t i = 0; i < n; ++i) x.set(r, i, number(r == nothing ? -inf : normal()));
        }
        for (std::int64_t i = 0; i < n; ++i) where[static_cast<std::size_t>(masked * n + i)] = 0;
        x.set(a_nan, n / 2, number(NAN));
        x.set(infinite, 0, number(inf));
        x.set(infinite, n - 1, number(inf));
        if (n > 1) {
          x.set(left_out_nan, n - 1, number(NAN));
          where[static_cast<std::size_t>(left_out_nan * n + n - 1)] = 0;
        }
        for (const Op op : {Op::softmax, Op::log_softmax, Op::logsumexp}) {
          for (const bool with_mask : {false, true}) {
            Matrix<S> y(kinds, out_length(op, n), Lay::rows);
            run(op, x, y, "auto", empty, with_mask ? &where : nullptr);
            const Real lowest = op == Op::softmax ? 0 : -inf;
            const auto share = [&](Real k) { return op == Op::softmax ? 1 / k : -std::log(k); };
            const Real fill = op == Op::logsumexp ? -inf : empty == Empty::zero ? lowest : empty == Empty::nan ? NAN : share(Real(n));
            const Real kept = n > 1 ? 2 : 1;
            for (std::int64_t i = 0; i < y.n; ++i) {
              const auto near = [&](int r, Real want) {
                const Real u = Storage<S>::ulps(y.get(r, i), want);
                NX_CHECK(u <= 1, "row kind %d at %ld of %ld, %s, policy %d: %Lg, not %Lg", r, long(i), long(n), op_names[static_cast<int>(op)].data(),
                         int(empty), Storage<S>::real(y.get(r, i)), want);
              };
              near(nothing, fill);
              if (with_mask) near(masked, fill);
              near(a_nan, NAN);
              const bool hit = i == 0 || i == n - 1;
              near(infinite, op == Op::logsumexp ? inf : hit ? share(kept) : lowest);
              NX_CHECK(!std::isnan(Storage<S>::real(y.get(ordinary, i))), "an ordinary row beside special ones");
              if (with_mask && n > 1) {
                NX_CHECK(!std::isnan(Storage<S>::real(y.get(left_out_nan, i))), "a NaN that is left out");
                if (op != Op::logsumexp && i == n - 1) near(left_out_nan, lowest);
              }
            }
          }
        }
      }
    }
  }
}

// A row's bits: in every layout and algorithm, alone, in place, with a mask that keeps everything, on one thread and on two.
template <class S> void laws() {
  for (const Op op : {Op::softmax, Op::log_softmax, Op::logsumexp}) {
    for (const std::int64_t n : {1, 5, 16, 129, 1000, 16385, 70000}) {
      for (const auto& d : distributions) {
        const std::int64_t rows = n < 5000 ? 19 : 3;
        Matrix<S> x = random_matrix<S>(rows, n, d.scale, d.shift);
        Matrix<S> base(rows, out_length(op, n), Lay::rows);
        run(op, x, base, "packed");
        const auto same = [&](Matrix<S>& y, std::int64_t first, const char* what) {
          for (std::int64_t r = 0; r < y.rows; ++r) {
            for (std::int64_t i = 0; i < y.n; ++i) {
              NX_CHECK(!std::memcmp(y.at(r, i), base.at(first + r, i), sizeof(S)), "%s: %s %s n=%ld scale %g at %ld, %ld: %La, not %La", what,
                       op_names[static_cast<int>(op)].data(), Storage<S>::tag.data(), long(n), d.scale, long(r), long(i),
                       Storage<S>::real(y.get(r, i)), Storage<S>::real(base.get(first + r, i)));
            }
          }
        };
        for (const Lay in : lays) {
          Matrix<S> from(rows, n, in);
          assign(from, x);
          for (const Lay out : {Lay::rows, in}) {
            Matrix<S> y(rows, base.n, out);
            run(op, from, y);
            same(y, 0, "layout");
          }
        }
        for (const KernelName& k : kernel_names()) {
          if (k.op != op_names[static_cast<int>(op)] || k.dtype != Storage<S>::tag || lay_of(k) == Lay::columns) continue;
          Matrix<S> y(rows, base.n, Lay::rows);
          run(op, x, y, k.algorithm);
          same(y, 0, k.algorithm.data());
        }
        Matrix<S> alone(1, n, Lay::odd), y(1, base.n, Lay::rows);
        for (std::int64_t i = 0; i < n; ++i) alone.set(0, i, x.get(rows - 1, i));
        run(op, alone, y);
        same(y, rows - 1, "alone and misaligned");
        if (op == Op::softmax) {
          for (const std::string_view algorithm : {"packed", "auto", "columns"}) {
            Matrix<S> negated(rows, n, algorithm == "columns" ? Lay::columns : Lay::rows), of_negated(rows, n, Lay::rows);
            for (std::int64_t r = 0; r < rows; ++r) {
              for (std::int64_t i = 0; i < n; ++i) negated.set(r, i, Storage<S>::of(static_cast<double>(-Storage<S>::real(x.get(r, i)))));
            }
            run(Op::softmin, negated, of_negated, algorithm);
            same(of_negated, 0, "softmin of the negated scores");
          }
        }
        if (op != Op::logsumexp) {
          Matrix<S> in_place = x;
          run(op, in_place, in_place);
          same(in_place, 0, "in place");
        }
        const std::vector<char> everything(static_cast<std::size_t>(rows * n), 1);
        Matrix<S> masked(rows, base.n, Lay::rows);
        run(op, x, masked, "auto", Empty::zero, &everything);
        same(masked, 0, "mask that keeps everything");
        set_num_threads(1);
        Matrix<S> single(rows, base.n, Lay::rows);
        run(op, x, single);
        same(single, 0, "one thread");
        run(op, x, single, "packed");
        same(single, 0, "packed, on one thread");
        set_num_threads(3);
      }
    }
  }
}

template <template <class> class Test> void for_all_types() {
  Test<f32>{}();
  Test<f64>{}();
  Test<f16>{}();
  Test<bf16>{}();
}
template <class S> struct Accuracy {
  void operator()() { accuracy<S>(); }
};
template <class S> struct SpecialRows {
  void operator()() { special_rows<S>(); }
};
template <class S> struct Laws {
  void operator()() { laws<S>(); }
};

bool runs_here(std::string_view isa) {
  for (const Target& t : targets()) {
    if (t.name == isa) return t.supported();
  }
  return false;
}

int words(std::string_view isa) {
#define NX_WORDS(name) \
  if (isa == #name) words_##name();
#include "words_list.inc"
#undef NX_WORDS
  return failures != 0;
}

int kernels(std::string_view isa) {
  set_target(isa);
  set_num_threads(3);
  for_all_types<Accuracy>();
  for_all_types<SpecialRows>();
  for_all_types<Laws>();
  for (std::size_t i = 0; i < ran.size(); ++i) {
    const KernelName& k = kernel_names()[i];
    NX_CHECK(ran[i], "%s_%s_%s never ran", k.op.data(), k.dtype.data(), k.algorithm.data());
  }
  return failures != 0;
}

// The same bits on every target with FMA, and on every target without.
int agreement() {
  const auto fused = [](const Target& t) { return std::string_view(t.name) != "scalar" && std::string_view(t.name) != "sse4"; };
  for (const Op op : {Op::softmax, Op::log_softmax, Op::logsumexp}) {
    for (const std::int64_t n : lengths) {
      Matrix<f32> x = random_matrix<f32>(3, n, 10, 0);
      for (const Target& a : targets()) {
        for (const Target& b : targets()) {
          if (!a.supported() || !b.supported() || fused(a) != fused(b)) continue;
          Matrix<f32> ya(3, out_length(op, n), Lay::rows), yb = ya;
          set_target(a.name);
          run(op, x, ya);
          set_target(b.name);
          run(op, x, yb);
          NX_CHECK(ya.memory == yb.memory, "%s and %s differ: %s n=%ld", a.name, b.name, op_names[static_cast<int>(op)].data(), long(n));
        }
      }
    }
  }
  return failures != 0;
}

// Every kernel of float32 on rows that stay on their caller's thread, on many rows and on one that threads share, with what each
// target makes of them on one thread.
struct Work {
  Call call;
  Matrix<f32> x;
  bool side_by_side;  // the rows, of scores and of results
  std::vector<std::vector<char>> want;

  Work(const KernelName& k, std::int64_t rows, std::int64_t n)
      : call(k.op, k.dtype, {rows, n}, {1}, Empty::zero, k.algorithm), x(rows, n, lay_of(k)), side_by_side(lay_of(k) == Lay::columns) {
    Matrix<f32> scores = random_matrix<f32>(rows, n, 20, 0);
    assign(x, scores);
  }
  Call::Ran run(std::vector<char>& y) {
    const std::ptrdiff_t item = sizeof(f32), row = call.reduces() ? item : x.n * item;
    const std::ptrdiff_t strides[] = {side_by_side ? item : row, side_by_side ? x.rows * item : item};
    y.assign(static_cast<std::size_t>(x.rows * row), '\x5a');
    return call.run({x.at(0, 0), x.strides, y.data(), strides, nullptr, nullptr});
  }
};

std::deque<Work> work_with_results() {
  std::deque<Work> works;
  for (const KernelName& k : kernel_names()) {
    if (k.dtype != "f32") continue;
    works.emplace_back(k, 3, 50);
    works.emplace_back(k, 40, 3500);
    if (lay_of(k) == Lay::rows) works.emplace_back(k, 1, 140000);
  }
  set_num_threads(1);
  for (Work& w : works) w.want.resize(targets().size());
  for (const Target& t : targets()) {
    if (!t.supported()) continue;
    set_target(t.name);
    for (Work& w : works) w.run(w.want[static_cast<std::size_t>(&t - targets().data())]);
  }
  return works;
}

void check_run(Work& w, const char* when) {
  std::vector<char> y;
  const Call::Ran ran = w.run(y);
  const KernelName& k = kernel_names()[static_cast<std::size_t>(ran.kernel)];
  NX_CHECK(y == w.want[static_cast<std::size_t>(ran.target - targets().data())], "%s: %s_%s of %ld rows of %ld on %s: other bits", when, k.op.data(),
           k.algorithm.data(), long(w.x.rows), long(w.x.n), ran.target->name);
}

// A call finishes on the target that it began with; ThreadSanitizer watches the rest.
int callers() {
  std::deque<Work> works = work_with_results();
  std::vector<std::thread> threads;
  std::atomic<int> calling{4};
  for (int caller = 0; caller < 4; ++caller) {
    threads.emplace_back([&, caller] {
      for (std::size_t i = 0; i < 3 * works.size(); ++i) check_run(works[(i + 5 * caller) % works.size()], "several callers at once");
      --calling;
    });
  }
  for (int i = 0; calling; ++i) {
    set_num_threads(1 + i % 4);
    const Target& t = targets()[static_cast<std::size_t>(i) % targets().size()];
    if (t.supported()) set_target(t.name);
    std::this_thread::yield();
  }
  for (std::thread& t : threads) t.join();
  return failures != 0;
}

#if defined(__x86_64__)
// The three other roundings, subnormals taken for 0 and made 0, and every trap.
constexpr DefaultMode::Register modes[] = {0x1f80 | 0x2000, 0x1f80 | 0x4000, 0x1f80 | 0x6000, 0x1f80 | 0x8040, 0};
// x87's word; here of single precision and with rounding down.
using Word = DefaultMode::Word;
constexpr Word other_word = 0x047f;
Word word() { return DefaultMode::word(); }
void set_word(Word value) { DefaultMode::set_word(value); }
#elif defined(__aarch64__)
constexpr DefaultMode::Register modes[] = {1 << 22, 2 << 22, 3 << 22, 1 << 24};
using Word = int;
constexpr Word other_word = 0;
Word word() { return 0; }
void set_word(Word) {}
#endif

#if defined(__x86_64__) || defined(__aarch64__)
// The first parallel call starts the workers in its own mode, so they are in none that suits.
int floating_point_modes() {
  std::deque<Work> works = work_with_results();
  set_num_threads(3);
  const DefaultMode::Register usual = DefaultMode::get();
  const Word usual_word = word();
  for (const Target& t : targets()) {
    if (!t.supported()) continue;
    set_target(t.name);
    for (Work& w : works) {
      for (const DefaultMode::Register mode : modes) {
        std::vector<char> y;
        set_word(other_word);
        DefaultMode::set(mode);
        w.run(y);
        const DefaultMode::Register left = DefaultMode::get();
        const Word left_word = word();
        DefaultMode::set(usual);
        set_word(usual_word);
        NX_CHECK(DefaultMode::control(left) == DefaultMode::control(mode), "mode %lx became %lx", long(mode), long(left));
        NX_CHECK(left_word == other_word, "the x87 word became %x", unsigned(left_word));
        NX_CHECK(y == w.want[static_cast<std::size_t>(&t - targets().data())], "other bits in mode %lx: %ld rows of %ld on %s", long(mode),
                 long(w.x.rows), long(w.x.n), t.name);
      }
    }
  }
  return failures != 0;
}
#else
int floating_point_modes() { return 77; }
#endif

int fork_after_threads() {
  set_num_threads(3);
  Matrix<f32> x = random_matrix<f32>(64, 4096, 1, 0), want(64, 4096, Lay::rows);
  run(Op::softmax, x, want);
  const auto again = [&] {
    Matrix<f32> y(64, 4096, Lay::rows);
    run(Op::softmax, x, y);
    return y.memory == want.memory;
  };
  const pid_t child = fork();
  if (child == 0) _exit(again() && again() ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  NX_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child of a fork: status %d", status);
  NX_CHECK(again(), "the parent after a fork");
  return failures != 0;
}

int main_of(int argc, char** argv) {
  const std::string_view part = argc > 1 ? argv[1] : "", isa = argc > 2 ? argv[2] : "";
  if ((part == "words" || part == "kernels") && !runs_here(isa)) return 77;
  if (part == "words") return words(isa);
  if (part == "kernels") return kernels(isa);
  if (part == "agreement") return agreement();
  if (part == "callers") return callers();
  if (part == "modes") return floating_point_modes();
  if (part == "fork") return fork_after_threads();
  if (part == "current") return std::printf("%s, %d threads\n", current_target().name, num_threads()) < 0;
  std::fprintf(stderr, "selftest words <isa> | kernels <isa> | agreement | callers | modes | fork | current\n");
  return 2;
}

}  // namespace
}  // namespace normx::test

int main(int argc, char** argv) {
  try {
    const int status = normx::test::main_of(argc, argv);
    if (normx::test::failures) std::fprintf(stderr, "%d checks failed\n", normx::test::failures.load());
    return status;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
