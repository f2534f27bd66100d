// The kernels for AVX2: 8 lanes and 16 registers, which hold the sums of 4 outputs x 3 vectors.
#if defined(__x86_64__)
#define EXPLAINFIX_ISA avx2
#define EXPLAINFIX_LANES 8
// Standard headers come first: their inline functions must not be compiled for this instruction set.
#include <immintrin.h>
#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "cpu/tile/isa.h"
#endif
