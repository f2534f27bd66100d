// A CUDA launch on the CPU: every CUDA thread is a fiber (a stack of its own) of one OS thread.
//
// Blocks run one after another in random order. Inside a block warps run in random order, a random distance ahead of
// each other, up to the next barrier, and lanes in random order: a missing barrier shows as a wrong number, because
// shared memory starts as NaN. A barrier that not all threads reach, or different ones do, is an error. Under
// ThreadSanitizer only barriers order fibers, so that races are seen whatever the order; under AddressSanitizer memory
// past the end of an array or of shared memory is out of bounds.
//
// It cannot see performance, bank conflicts, or races between blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
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
constexpr unsigned kAnywhere = 1u << 30;  // the site of a barrier that is called in several places

// What happens in its scope is the emulator's own, no memory access of the kernel.
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

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;
  State state = State::kReady;
  Dim index;
  unsigned lane = 0, warp = 0, site = 0, barriers = 0, exchanges = 0;
  std::vector<Copy> copies;  // asynchronous ones that nobody has waited for
};

// Two tables, used in turn: a fast lane may be at the next exchange while a slow one still reads this one.
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

// Lanes of a warp that wait for each other go on when all are there. False: nothing moved.
inline bool release_warp(unsigned begin, unsigned end) {
  Engine& e = engine();
  unsigned waiting = 0, site = 0;
  for (unsigned i = begin; i < end; ++i) {
    if (e.fibers[i]->state != State::kAtWarp) continue;
    if (waiting++ && site != e.fibers[i]->site) fail("lanes of a warp are at different warp-wide operations");
    site = e.fibers[i]->site;
  }
  if (waiting == 0 || waiting < end - begin) return false;
  for (unsigned i = begin; i < end; ++i) e.fibers[i]->state = State::kReady;
  return true;
}

// Runs the ready lanes of a warp, each to where it waits.
inline bool step_warp(unsigned warp) {
  Engine& e = engine();
  const unsigned begin = warp * 32, end = std::min(e.threads, begin + 32);
  std::vector<unsigned> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  std::shuffle(order.begin(), order.end(), e.random);
  bool moved = false;
  for (unsigned i : order) {
    if (e.fibers[i]->state != State::kReady) continue;
    resume(e.fibers[i]);
    moved = true;
    if (e.error) return true;
  }
  return release_warp(begin, end) || moved;
}

// A barrier opens when all threads are there.
inline bool release_barrier() {
  Engine& e = engine();
  unsigned waiting = 0, done = 0, site = 0;
  for (Fiber* fiber : e.fibers) {
    if (fiber->lane + 32 * fiber->warp >= e.threads) break;
    done += fiber->state == State::kDone;
    if (fiber->state != State::kAtBarrier) continue;
    if (waiting++ && site != fiber->site) fail("threads of a block are at different barriers");
    site = fiber->site;
  }
  if (waiting == 0 || waiting + done < e.threads) return false;
  if (done) fail("a barrier after some threads have returned");
  for (unsigned i = 0; i < e.threads; ++i) e.fibers[i]->state = State::kReady;
  return true;
}

inline bool all_done() {
  Engine& e = engine();
  return std::all_of(e.fibers.begin(), e.fibers.begin() + e.threads,
                     [](Fiber* fiber) { return fiber->state == State::kDone; });
}

inline void begin_block() {
  Engine& e = engine();
  if (e.shared_bytes) std::memset(e.shared, 0xff, e.shared_bytes);  // NaN in every type
  for (unsigned i = 0; i < e.threads; ++i) {
    Fiber* fiber = e.fibers[i];
    fiber->state = State::kReady;
    fiber->lane = i % 32;
    fiber->warp = i / 32;
    fiber->barriers = fiber->exchanges = 0;
    fiber->copies.clear();
    fiber->index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
  }
  order_after_me(&e.begins);
}

inline void run_block() {
  Engine& e = engine();
  begin_block();
  std::vector<unsigned> warps((e.threads + 31) / 32);
  std::iota(warps.begin(), warps.end(), 0);
  while (!all_done()) {
    std::shuffle(warps.begin(), warps.end(), e.random);
    bool moved = false;
    for (unsigned warp : warps) {  // one step, a few, or on to where the warp waits for others
      const unsigned kind = e.random() % 4;
      const unsigned limit = kind == 0 ? 1 : kind == 1 ? 1 + e.random() % 8 : ~0u;
      for (unsigned i = 0; i < limit && step_warp(warp); ++i) {
        moved = true;
        if (e.error) std::rethrow_exception(e.error);
      }
    }
    if (release_barrier()) moved = true;
    if (!moved) fail("deadlock: a barrier or a warp-wide operation that not all threads reach");
  }
  order_before_me(&e.ends);
}

// Runs body() for every thread of every block.
inline void launch_threads(Dim grid, Dim block, size_t shared_bytes, std::function<void()> body) {
  Engine& e = engine();
  e.threads = block.x * block.y * block.z;
  if (e.threads == 0 || e.threads > 1024) fail("a block must have 1 to 1024 threads");
#if defined(__SANITIZE_THREAD__)
  e.main_tsan = __tsan_get_current_fiber();
#endif
  while (e.fibers.size() < e.threads) e.fibers.push_back(make_fiber());
  e.warps.resize((e.threads + 31) / 32);
  e.body = std::move(body);
  e.error = nullptr;
  void* memory = nullptr;  // not a byte more than asked for, so that AddressSanitizer sees its end
  if (shared_bytes && posix_memalign(&memory, 128, shared_bytes)) throw std::bad_alloc();
  const std::unique_ptr<unsigned char, decltype(&std::free)> shared(static_cast<unsigned char*>(memory), &std::free);
  e.shared = shared.get();
  e.shared_bytes = shared_bytes;
  gridDim = grid;
  blockDim = block;
  std::vector<unsigned> blocks(size_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), e.random);
  try {
    for (unsigned b : blocks) {
      blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
      run_block();
    }
  } catch (...) {
    e.fibers.clear();  // they stand in the middle of the kernel: left alone, with their stacks
    throw;
  }
}

// Waits for the block: all that was written before is seen by all after.
inline void barrier(unsigned site) {
  Quiet quiet;
  Engine& e = engine();
  if (site == e.skipped_barrier) return;  // a test leaves it out, to see that it is missed
  Fiber* me = e.current;
  void* order = &e.barrier[me->barriers++ & 1];
  me->state = State::kAtBarrier;
  me->site = site;
  order_after_me(order);
  to_scheduler();
  order_before_me(order);
}

// Waits for the warp. `ordered`: what was written before is seen after.
inline void meet_warp(unsigned site, bool ordered) {
  Quiet quiet;
  Engine& e = engine();
  Fiber* me = e.current;
  void* order = &e.warps[me->warp].order[me->exchanges & 1];
  me->state = State::kAtWarp;
  me->site = site;
  if (ordered) order_after_me(order);
  to_scheduler();
  if (ordered) order_before_me(order);
}

// Each lane brings a value and may read those of all.
template <class T>
struct Exchanged {
  const unsigned char* table;
  T operator[](unsigned lane) const {
    Quiet quiet;
    T value;
    std::memcpy(&value, table + lane * sizeof(Warp::values[0][0]), sizeof(T));
    return value;
  }
};

template <class T>
Exchanged<T> exchange(const T& mine, unsigned site) {
  static_assert(sizeof(T) <= sizeof(Warp::values[0][0]), "a value is larger than the table's cells");
  Quiet quiet;
  Engine& e = engine();
  Fiber* me = e.current;
  unsigned char* table = e.warps[me->warp].values[me->exchanges & 1][0];
  std::memcpy(table + me->lane * sizeof(Warp::values[0][0]), &mine, sizeof(T));
  meet_warp(site, false);
  ++me->exchanges;
  return {table};
}

}  // namespace emulation
