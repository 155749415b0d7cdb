// The whole harness: a check that counts, and says where and what.
#pragma once

#include <stdio.h>

#include <atomic>

namespace normx::test {

extern std::atomic<int> failures;  // in selftest.cpp

}  // namespace normx::test

// The message is only formatted for a check that fails. After twenty failures only the count goes on.
#define NX_CHECK(condition, ...)                                                            \
  do {                                                                                      \
    if (!(condition) && ++normx::test::failures <= 20) {                                    \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                       \
      fprintf(stderr, __VA_ARGS__);                                                         \
      fputc('\n', stderr);                                                                  \
    }                                                                                       \
  } while (0)
