// One call of an op, planned: everything that does not depend on the arrays themselves. Immutable, so that any number of
// threads may run it at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "dispatch/target.hpp"

namespace normx {

// Memory and strides in bytes, one for each axis of the call's shape; y has no reduced axes if the op reduces. `where` may be
// null. y may be exactly x, otherwise they do not overlap.
struct Operands {
  const char* x;
  const std::ptrdiff_t* x_strides;
  char* y;
  const std::ptrdiff_t* y_strides;
  const char* where;
  const std::ptrdiff_t* where_strides;
};

// std::invalid_argument names those that are known.
Empty parse_empty(std::string_view name);

class Call {
 public:
  // Axes sorted, not negative. `algorithm` may be "auto". std::invalid_argument names what is unknown.
  Call(std::string_view op, std::string_view dtype, std::vector<std::int64_t> shape, std::vector<int> axes, Empty empty,
       std::string_view algorithm);
  Call(const Call&) = delete;

  struct Ran {
    const Target* target;
    int kernel;  // its place in kernel_names()
  };
  // std::invalid_argument if the algorithm that was asked for cannot run on this layout.
  Ran run(const Operands& operands) const;
  // The same for C-contiguous x and y without a mask, analysed beforehand.
  Ran run_contiguous(const char* x, char* y) const;

  bool reduces() const { return reduces_; }
  std::int64_t elements() const { return elements_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  const std::vector<std::int64_t>& out_shape() const { return out_shape_; }

 private:
  struct Layout {
    Task task;
    int kernel, sharing_kernel;  // the second one for rows that threads share
    Axis axes[max_axes];
  };
  // False if the algorithm that was asked for cannot run on this layout.
  bool lay_out(const Operands& operands, Layout& layout) const;
  Ran execute(const Layout& layout, const char* x, char* y) const;
  [[noreturn]] void refuse() const;

  std::vector<std::int64_t> shape_, out_shape_;
  std::vector<bool> reduced_;
  std::int64_t n_ = 1, elements_ = 1;
  int item_;
  bool reduces_;
  Empty empty_;
  // Places in kernel_names(); -1 where there is none. `forced` is the algorithm that was asked for.
  int forced_ = -1, direct_, online_, columns_, sweep_, packed_;
  Layout contiguous_;
  bool contiguous_fits_;
};

}  // namespace normx
