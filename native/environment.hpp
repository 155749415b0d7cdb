// Numbers in the environment.
#pragma once

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>

namespace normx {

// The number in the variable `name`; `otherwise` where it is unset or empty. std::runtime_error names what is wrong.
inline int environment_number(const char* name, int least, int otherwise) {
  const char* const text = std::getenv(name);
  if (!text || !*text) return otherwise;
  int number = 0;
  const char* const end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, number);
  if (error != std::errc{} || stop != end || number < least) {
    throw std::runtime_error(std::string(name) + ": a number of at least " + std::to_string(least) + " was wanted, not '" + text + "'");
  }
  return number;
}

}  // namespace normx
