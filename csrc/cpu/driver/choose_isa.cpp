// Chooses the instruction set: which of the tables of kernels (cpu/tile/isa_*.cpp) this machine runs.
#include <algorithm>
#include <atomic>

#include "cpu/driver/driver.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace explainfix {

namespace plain {
extern const TileKernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const TileKernels kernels;
}
namespace avx512 {
extern const TileKernels kernels;
}
#endif

namespace {

// The level of the best one here, as cpu_isa numbers them.
int best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return 2;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

std::atomic<int> isa_limit{2};

}  // namespace

int64_t cpu_isa(int64_t level) {
  if (level >= 0) isa_limit = int(std::min<int64_t>(level, 2));
  static const int best = best_isa();
  return std::min(best, isa_limit.load());
}

bool has_amx() {
#if defined(__x86_64__)
  static const bool found = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);  // AMX-BF16
  }();
  return found && cpu_isa(-1) == 2;
#else
  return false;
#endif
}

const TileKernels& kernels() {
#if defined(__x86_64__)
  switch (cpu_isa(-1)) {
    case 2:
      return avx512::kernels;
    case 1:
      return avx2::kernels;
  }
#endif
  return plain::kernels;
}

}  // namespace explainfix
