// A CUDA launch on the CPU, over the fibers of fibers.h.
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
#include <cstring>
#include <memory>
#include <numeric>

#include "fibers.h"

namespace emulation {

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

}  // namespace emulation
