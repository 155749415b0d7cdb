// From an op and a layout to the functions of a Kernel. An op brings, in vectors and for either geometry,
//
//   State, with neutral() and is_far(); lift(g, x, state), merge(a, b)                  the monoid
//   lift_again(g, x, state)                                                             the same for rows that turned out far
//   whole(g, x, room, y, empty, kept)                                                   rows in one piece; room for n more elements
//   write(g, x, y, row, empty, kept)                                                    a chunk of known rows
//   value_of_whole(g, x, value), value(row)                                             instead of both, if the op reduces
//   any_length                                                                          whether whole() is best for the longest rows
//   cuts_show                                                                           whether a row in chunks has other bits than a whole one
//   in_turn<S>(t, first, last)                                                          if it has a way with rows in one piece, as they lie
//
// and gets rows of any length in every layout, and threads that share a row.

template <class Op, class Layout> struct Chunked {
  using T = typename Layout::T;
  using G = typename Layout::G;
  using State = typename Op::State;
  static constexpr int most_rows = Layout::max_groups * G::rows;
  static constexpr std::size_t state_bytes = sizeof(State) * most_rows;
  static constexpr bool of_any_length = Op::any_length && Layout::in_place;
  static constexpr std::int64_t longest_piece = Op::cuts_show ? chunk_size<T> : Layout::longest_piece;

  static void run(const Task& t, std::int64_t first, std::int64_t last, char* scratch) {
    Layout rows(t, first, scratch);
    for (std::int64_t unit = first; unit < last; ++unit) {
      if (unit > first) rows.next();
      of_any_length || t.n <= longest_piece ? in_one_piece(t, rows) : by_chunks(t, rows);
    }
  }

  static void lift(const Task& t, std::int64_t unit, std::int64_t chunk, char* states, char* scratch, bool again) {
    Layout rows(t, unit, scratch);
    lift_chunk(t, rows, chunk, reinterpret_cast<State*>(states) + chunk * most_rows, again);
  }
  static bool merge(const Task&, std::int64_t, std::int64_t chunks, char* states, bool again) {
    State* const state = reinterpret_cast<State*>(states);
    State row[most_rows];
    for (State& s : row) s = State::neutral();
    for (std::int64_t c = 0; c < chunks; ++c) merge_rows(row, state + c * most_rows);
    if (again) {
      replace_far(state, row);
      return false;
    }
    // Lifting again starts from the row's state, in the place of every chunk's.
    const bool again_needed = any_far(row);
    for (std::int64_t c = 0; c < (again_needed ? chunks : 1); ++c) copy(state + c * most_rows, row);
    return again_needed;
  }
  static void write(const Task& t, std::int64_t unit, std::int64_t chunk, const char* states, char* scratch) {
    Layout rows(t, unit, scratch);
    write_chunk(t, rows, chunk, reinterpret_cast<const State*>(states));
  }

 private:
  static void in_one_piece(const Task& t, Layout& rows) {
    rows.open(0, t.n);
    for (int i = 0; i < rows.groups(); ++i) {
      const G g = rows.geometry(i, t.n, t.n * Layout::item);
      if constexpr (Op::reduces) {
        T value[G::rows];
        Op::value_of_whole(g, rows.in(i), value);
        rows.put(i, value);
      } else {
        Op::whole(g, rows.in(i), rows.room(i), rows.out(i), t.empty, rows.kept(i));
      }
    }
    if constexpr (!Op::reduces) rows.close(Op::nothing);
  }

  static void by_chunks(const Task& t, Layout& rows) {
    const std::int64_t chunks = (t.n + chunk_size<T> - 1) / chunk_size<T>;
    State row[most_rows], next[most_rows];
    const auto lift_all = [&](State* total, bool again) {
      for (int r = 0; r < most_rows; ++r) total[r] = State::neutral();
      for (std::int64_t c = 0; c < chunks; ++c) {
        lift_chunk(t, rows, c, next, again);
        merge_rows(total, next);
      }
    };
    for (State& s : next) s = State::neutral();
    lift_all(row, false);
    if (any_far(row)) {
      State again[most_rows];
      copy(next, row);
      lift_all(again, true);
      replace_far(row, again);
    }
    for (std::int64_t c = 0; c < (Op::reduces ? 1 : chunks); ++c) write_chunk(t, rows, c, row);
  }

  // A chunk, opened: where it begins, and how many elements of each row it holds.
  static std::int64_t open(const Task& t, Layout& rows, std::int64_t chunk) {
    const std::int64_t first = chunk * chunk_size<T>;
    const std::int64_t n = t.n - first < chunk_size<T> ? t.n - first : chunk_size<T>;
    rows.open(first, n);
    return n;
  }
  // A row that is not far keeps the state it has: its bits may not depend on its neighbours in a strip.
  static void lift_chunk(const Task& t, Layout& rows, std::int64_t chunk, State* states, bool again) {
    const std::int64_t n = open(t, rows, chunk);
    for (int i = 0; i < rows.groups(); ++i) {
      State* const state = states + i * G::rows;
      const G g = rows.geometry(i, n, chunk_size<T> * Layout::item);  // the next chunk will be read
      if (!again) {
        Op::lift(g, rows.in(i), state);
        continue;
      }
      State fresh[G::rows];
      for (int r = 0; r < G::rows; ++r) fresh[r] = state[r];
      Op::lift_again(g, rows.in(i), fresh);
      for (int r = 0; r < G::rows; ++r) state[r] = state[r].is_far() ? fresh[r] : state[r];
    }
    for (int r = rows.groups() * G::rows; r < most_rows; ++r) states[r] = State::neutral();
  }
  static void merge_rows(State* row, const State* next) {
    for (int r = 0; r < most_rows; ++r) Op::merge(row[r], next[r]);
  }
  static void copy(State* to, const State* from) {
    for (int r = 0; r < most_rows; ++r) to[r] = from[r];
  }
  static void replace_far(State* row, const State* by) {
    for (int r = 0; r < most_rows; ++r) row[r] = row[r].is_far() ? by[r] : row[r];
  }
  static bool any_far(const State* row) {
    bool any = false;
    for (int r = 0; r < most_rows; ++r) any |= row[r].is_far();
    return any;
  }
  static void write_chunk(const Task& t, Layout& rows, std::int64_t chunk, const State* states) {
    if constexpr (Op::reduces) {
      for (int i = 0; i < rows.groups(); ++i) {
        T value[G::rows];
        for (int r = 0; r < G::rows; ++r) value[r] = Op::value(states[i * G::rows + r]);
        rows.put(i, value);
      }
    } else {
      const std::int64_t n = open(t, rows, chunk);
      for (int i = 0; i < rows.groups(); ++i) {
        Op::write(rows.geometry(i, n, fetch_ahead), rows.in(i), rows.out(i), states + i * G::rows, t.empty, rows.kept(i));
      }
      rows.close(Op::nothing);
    }
  }
};

// Rows in one piece, as they lie.
template <class S, class F> void each_row(const Task& t, std::int64_t first, std::int64_t last, F&& body) {
  Cursor outer(t.axes, t.outer, first);
  for (std::int64_t unit = first; unit < last; ++unit) {
    const Place at = outer.at;
    outer.advance(1);
    body(Row<Compute<S>, S>{t.n, fetch_ahead, t.streams}, t.x + at.x, t.y + at.y, static_cast<double>(t.n));
  }
}

template <class Op, class S> struct online : Chunked<Op, Direct<S>> {
  static void run(const Task& t, std::int64_t first, std::int64_t last, char* scratch) {
    if constexpr (requires { &Op::template in_turn<S>; }) {
      if (t.n <= Chunked<Op, Direct<S>>::longest_piece) return Op::template in_turn<S>(t, first, last);
    }
    Chunked<Op, Direct<S>>::run(t, first, last, scratch);
  }
};
template <class Op, class S> struct packed : Chunked<Op, Packed<S, Row>> {};
template <class Op, class S> struct columns : Chunked<Op, Packed<S, Strip>> {};

template <class Op, class S> struct reload {
  static void run(const Task& t, std::int64_t first, std::int64_t last, char* scratch) {
    if (t.n * static_cast<std::int64_t>(sizeof(Compute<S>)) > panel_bytes) {  // no room for a row of exponentials
      return each_row<S>(t, first, last, [&](auto g, const char* x, char* y, double kept) {
        if constexpr (sizeof(S) == 2) {
          Op::recompute(g, x, y, t.empty, &kept);
        } else {
          Op::reload(g, x, y, y, t.empty, &kept);
        }
      });
    }
    if constexpr (sizeof(S) > 2) {
      if (t.streams) return Op::template reload_rows<S, true>(t, first, last, scratch);
    }
    Op::template reload_rows<S, false>(t, first, last, scratch);
  }
};
template <class Op, class S> struct recompute {
  static void run(const Task& t, std::int64_t first, std::int64_t last, char*) {
    each_row<S>(t, first, last, [&](auto g, const char* x, char* y, double kept) { Op::recompute(g, x, y, t.empty, &kept); });
  }
};
template <class Op, class S> struct twopass {
  static void run(const Task& t, std::int64_t first, std::int64_t last, char*) {
    each_row<S>(t, first, last, [&](auto g, const char* x, char* y, double kept) { Op::twopass(g, x, y, t.empty, &kept); });
  }
};

// How a table's line is made. Only chunks can be shared between threads.
template <class Op, class S, template <class, class> class Algorithm>
constexpr Kernel kernel(const char* op, const char* dtype, const char* algorithm) {
  using A = Algorithm<Op, S>;
  if constexpr (requires { &A::lift; }) {
    return {op, dtype, algorithm, A::run, A::lift, A::merge, A::write, A::state_bytes, Op::reduces, false};
  } else {
    return {op, dtype, algorithm, A::run, nullptr, nullptr, nullptr, 0, Op::reduces, false};
  }
}
constexpr Kernel of_negated(Kernel k) {
  k.negated = true;
  return k;
}
