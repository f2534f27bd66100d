// A CUDA thread of the emulation is a fiber: a stack of its own on one OS thread. This file has the fibers, the state
// of the emulation, and how it switches from one to another; scheduler.h decides who runs, barriers.h who waits.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};
inline Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kShuffle = 1u << 24;  // added to the line of a shuffle, to be no barrier's

// What happens in its scope is the emulation's own: ThreadSanitizer does not take it for memory access of the kernel.
struct Quiet {
#if defined(__SANITIZE_THREAD__)
  Quiet() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  Quiet() {}
  ~Quiet() {}
#endif
};

// Saves the registers that a call must keep and the stack pointer, then goes on with another stack (x86-64, System V).
extern "C" void explainfix_switch_stack(void** save, void* load);
asm(R"(.text
.weak explainfix_switch_stack
.type explainfix_switch_stack, @function
explainfix_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size explainfix_switch_stack, .-explainfix_switch_stack
)");

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;
  State state = State::kReady;
  Dim index;
  unsigned lane = 0, warp = 0, site = 0, barriers = 0, exchanges = 0;
};

// Two tables of values to exchange, used in turn: a fast lane may be at the next exchange while a slow one still reads
// this one.
struct Warp {
  alignas(16) unsigned char values[2][32][32];
  char order[2];  // addresses that ThreadSanitizer knows the warp's rendezvous by
};

struct Engine {
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  Fiber* current = nullptr;
  unsigned threads = 0, skipped_barrier = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  std::function<void()> body;
  std::exception_ptr error;
  std::mt19937 random{0};
  char begins = 0, ends = 0, barrier[2] = {0, 0};
  void *main_stack_pointer = nullptr, *main_fake_stack = nullptr, *main_tsan = nullptr;
  const void* main_bottom = nullptr;
  size_t main_bytes = 0;
};

inline Engine& engine() {
  static Engine e;
  return e;
}

inline void order_after_me([[maybe_unused]] void* what) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(what);
#endif
}
inline void order_before_me([[maybe_unused]] void* what) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(what);
#endif
}

[[noreturn]] inline void fail(const std::string& what) {
  throw std::runtime_error("emulation: " + what + " (block " + std::to_string(blockIdx.x) + ", " +
                           std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")");
}

inline void to_scheduler() {
  Engine& e = engine();
  Fiber* me = e.current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&me->fake_stack, e.main_bottom, e.main_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(e.main_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  explainfix_switch_stack(&me->stack_pointer, e.main_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me->fake_stack, &e.main_bottom, &e.main_bytes);
#endif
}

inline void run_fiber() {
  Engine& e = engine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &e.main_bottom, &e.main_bytes);
#endif
  for (;;) {  // a fiber is used again by the next block
    order_before_me(&e.begins);
    try {
      e.body();
    } catch (...) {
      if (!e.error) e.error = std::current_exception();
    }
    order_after_me(&e.ends);
    Quiet quiet;
    e.current->state = State::kDone;
    to_scheduler();
  }
}

inline void resume(Fiber* fiber) {
  Engine& e = engine();
  {
    Quiet quiet;
    e.current = fiber;
    threadIdx = fiber->index;
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&e.main_fake_stack, fiber->stack, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  explainfix_switch_stack(&e.main_stack_pointer, fiber->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(e.main_fake_stack, nullptr, nullptr);
#endif
}

inline Fiber* make_fiber() {
  Fiber* fiber = new Fiber;
  fiber->stack = static_cast<char*>(std::aligned_alloc(64, kStackBytes));
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes - 64);
  *--top = nullptr;  // where run_fiber would return to
  *--top = reinterpret_cast<void*>(&run_fiber);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber->stack_pointer = top;
#if defined(__SANITIZE_THREAD__)
  fiber->tsan = __tsan_create_fiber(0);
#endif
  return fiber;
}

}  // namespace emulation
