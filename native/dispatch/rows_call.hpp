// One call of a row program, planned: the second kind of call beside Call, for what programs.def lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "dispatch/target.hpp"

namespace normx {

// An operand's memory and strides in bytes, one for each axis of the call's shape; null if there is none. What has a value per
// row has stride 0 along the reduced axes. Sinks have the strides of the rows, and one of their own.
struct RowsOperand {
  char* at = nullptr;
  const std::ptrdiff_t* strides = nullptr;
};

class RowsCall {
 public:
  // Axes sorted, not negative. std::invalid_argument names what is unknown.
  RowsCall(std::string_view program, std::vector<std::int64_t> shape, std::vector<int> axes, bool backward, bool gives_up_empty,
           double softcap, std::vector<double> constants);
  RowsCall(const RowsCall&) = delete;

  struct Sinks {
    std::int64_t count = 0, stride = 0;
  };
  // x, y, g and result have the storage types given; parameters, sinks and their gradients are doubles, flags are bytes: 1 for a row
  // that is left to the formula.
  const Target& run(const RowsOperand (&operands)[operand::count], const Storage (&storage)[operand::count], Sinks sinks) const;

  const Program& program() const { return programs()[static_cast<std::size_t>(program_)]; }
  std::int64_t elements() const { return elements_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }

 private:
  int program_;
  std::vector<std::int64_t> shape_;
  std::vector<bool> reduced_;
  std::int64_t n_ = 1, elements_ = 1;
  bool backward_, gives_up_empty_;
  double softcap_;
  std::vector<double> constants_;
};

}  // namespace normx
