// What the kernels' drivers and the checks of arguments ask of the program that they run in, the host. Whoever compiles
// them says which it is: torch, or ONNX Runtime where EXPLAINFIX_ONNX is defined. A host provides, in this namespace,
//
//   Tensor           size(axis), stride(axis), dim(), numel(), scalar_type(), data_ptr(), const_data_ptr<T>(),
//   is_cpu(),
//                    is_contiguous()
//   ScalarType       Float, Double, Int, Short, Byte, BFloat16
//   EXPLAINFIX_CHECK(condition, message ...)  throws what the host reports to the user
//   parallel_for(begin, end, grain, f)        calls f(from, to) for parts of [begin, end), of `grain` items at least,
//   on
//                                             the host's threads; what f throws is thrown on
//   thread_count()                            of these threads, about
//   dense_in(tensor), floats_of(tensor)       the tensor with dense memory; its numbers as float32
//   describe(tensor), check_device(tensor, x, name)
#pragma once

#ifdef EXPLAINFIX_ONNX
#include "onnx/ort_host.h"
#else
#include "torch_api/stable_abi.h"
#endif
