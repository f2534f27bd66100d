// The kernels for any machine: what the compiler takes for granted (SSE2, NEON), 4 lanes.
#define EXPLAINFIX_ISA plain
#define EXPLAINFIX_LANES 4
#include "cpu/tile/isa.h"
