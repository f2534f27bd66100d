// ONNX Runtime as a host of the kernels (host/host.h), through its C API alone. A convolution runs while a `Running`
// lives, which says whose threads share its work.
#pragma once

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace explainfix {

constexpr uint32_t kOrtApi = 17;  // of ONNX Runtime 1.17, the first with KernelContext_ParallelFor

// The functions of ONNX Runtime; RegisterCustomOps sets them.
inline const OrtApi* ort = nullptr;

#define EXPLAINFIX_CHECK(condition, ...)                      \
  do {                                                        \
    if (!(condition)) explainfix::throw_message(__VA_ARGS__); \
  } while (false)

template <class... Parts>
[[noreturn]] void throw_message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

// Throws where a function of ONNX Runtime failed.
inline void check(OrtStatus* status) {
  if (!status) return;
  const std::string message = ort->GetErrorMessage(status);
  ort->ReleaseStatus(status);
  throw std::runtime_error(message);
}

// Calls f; returns what it throws as a status.
template <class F>
OrtStatus* status_of(F&& f) {
  try {
    f();
    return nullptr;
  } catch (const std::invalid_argument& e) {
    return ort->CreateStatus(ORT_INVALID_ARGUMENT, e.what());
  } catch (const std::exception& e) {
    return ort->CreateStatus(ORT_FAIL, e.what());
  }
}

enum class ScalarType {
  Float = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
  Double = ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
  Int = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
  Short = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
  Byte = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
  BFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
};

// A dense tensor of ONNX Runtime's, which owns its memory.
class Tensor {
 public:
  Tensor(void* data, ScalarType type, std::vector<int64_t> size)
      : data_(data), type_(type), size_(std::move(size)), stride_(size_.size(), 1) {
    for (size_t axis = size_.size(); axis-- > 1;) stride_[axis - 1] = stride_[axis] * std::max<int64_t>(size_[axis], 1);
  }

  int64_t dim() const { return int64_t(size_.size()); }
  int64_t size(int64_t axis) const { return size_[axis]; }
  int64_t stride(int64_t axis) const { return stride_[axis]; }
  const std::vector<int64_t>& sizes() const { return size_; }
  ScalarType scalar_type() const { return type_; }
  void* data_ptr() const { return data_; }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(data_);
  }
  bool is_cpu() const { return true; }
  bool is_contiguous() const { return true; }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t size : size_) count *= size;
    return count;
  }

 private:
  void* data_;
  ScalarType type_;
  std::vector<int64_t> size_, stride_;
};

inline const Tensor& dense_in(const Tensor& t) { return t; }
inline void check_device(const Tensor& /* t */, const Tensor& /* x */, const char* /* name */) {}

inline std::vector<float> floats_of(const Tensor& t) {
  EXPLAINFIX_CHECK(t.scalar_type() == ScalarType::Float, "values must be float32");
  return std::vector<float>(t.const_data_ptr<float>(), t.const_data_ptr<float>() + t.numel());
}

inline std::string describe(const Tensor& t) {
  std::ostringstream text;
  text << "element type " << int(t.scalar_type()) << " [";
  for (int64_t axis = 0; axis < t.dim(); ++axis) text << (axis ? ", " : "") << t.size(axis);
  return text.str() + "]";
}

// ONNX Runtime does not say how many threads a session has. So each node counts those that share its calls, and now and
// then a call is cut as if all processors were the session's, to see whether more come.
class Threads {
 public:
  // For the next call.
  int64_t count() {
    return calls_++ % 64 < 4 ? std::max<int64_t>(1, std::thread::hardware_concurrency()) : most_.load();
  }
  void saw(int64_t threads) {
    for (int64_t before = most_; threads > before && !most_.compare_exchange_weak(before, threads);) {
    }
  }

 private:
  std::atomic<int64_t> calls_{0}, most_{1};
};

// The call of a kernel that this thread is in.
struct Running {
  const OrtKernelContext* context;
  Threads& threads;
  const int64_t count;
  static inline thread_local Running* here = nullptr;

  Running(const OrtKernelContext* context, Threads& threads)
      : context(context), threads(threads), count(threads.count()) {
    here = this;
  }
  ~Running() { here = nullptr; }
};

inline int64_t thread_count() { return Running::here ? Running::here->count : 1; }

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& f) {
  if (begin >= end) return;
  const int64_t threads = thread_count();
  const int64_t size = std::max(std::max<int64_t>(grain, 1), (end - begin + threads - 1) / threads);
  const int64_t parts = (end - begin + size - 1) / size;
  if (parts == 1) return f(begin, end);
  static std::atomic<int64_t> calls{0};
  struct Call {
    F& f;
    const int64_t begin, end, size, number;
    std::atomic<int64_t> threads{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } call{f, begin, end, size, ++calls};
  static thread_local int64_t last = 0;  // the number of the call that this thread has been counted in
  const auto part = [](void* data, size_t number) {
    Call& c = *static_cast<Call*>(data);
    if (std::exchange(last, c.number) != c.number) ++c.threads;
    const int64_t from = c.begin + int64_t(number) * c.size;
    try {
      c.f(from, std::min(from + c.size, c.end));
    } catch (...) {  // may not pass through ONNX Runtime
      if (!c.failed.exchange(true)) c.error = std::current_exception();
    }
  };
  check(ort->KernelContext_ParallelFor(Running::here->context, part, size_t(parts), 0, &call));
  if (call.error) std::rethrow_exception(call.error);
  Running::here->threads.saw(call.threads);
}

}  // namespace explainfix
