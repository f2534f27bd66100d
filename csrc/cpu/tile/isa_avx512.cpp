// The kernels for AVX-512: 16 lanes and 32 registers, which hold the sums of 4 outputs x 7 vectors of the sparse index
// family, or x 6 of the low-rank one.
#if defined(__x86_64__)
#define EXPLAINFIX_ISA avx512
#define EXPLAINFIX_LANES 16
// Standard headers come first: their inline functions must not be compiled for this instruction set.
#include <immintrin.h>
#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
#include "cpu/tile/isa.h"
#endif
