// The smallest test harness that names what failed.
#pragma once

#include <cstdio>
#include <string>

namespace equibit {

inline int failures = 0;

inline void check(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("failed: %s\n", what.c_str());
  ++failures;
}

inline int verdict() {
  if (failures == 0) std::printf("all passed\n");
  return failures == 0 ? 0 : 1;
}

}  // namespace equibit
