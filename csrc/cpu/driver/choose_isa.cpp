// Chooses the instruction set: which of the tables of kernels (cpu/tile/isa_*.cpp) this machine runs.
#include <algorithm>
#include <atomic>

#include "cpu/driver/driver.h"

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
