// What every module of emulated kernels binds for Python: seed(n) and skip_barrier(line).
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "host_cuda.h"

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

inline void bind_emulation(py::module_& m) {
  m.def(
      "seed", [](unsigned seed) { emulation::engine().random.seed(seed); },
      "Seeds the order in which blocks, warps and lanes run.");
  m.def(
      "skip_barrier", [](unsigned line) { emulation::engine().skipped_barrier = line; },
      "Leaves out the kernel's __syncthreads() in this line; 0: none.");
}
