// No instruction set is asked for: what the compiler has (SSE2, NEON), 4 lanes.
#define EXPLAINFIX_ISA plain
#define EXPLAINFIX_LANES 4
#include "cpu/tile/isa.h"
