// Where fibers wait for each other: barriers of a block, and exchanges within a warp. host_cuda.h makes CUDA's of them.
#pragma once

#include <cstring>

#include "fibers.h"

namespace emulation {

// Waits for the block. What any thread wrote before is seen by all threads after.
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

// Waits for the warp. ordered: what was written before is seen after.
inline void meet_warp(unsigned site, bool ordered) {
  Quiet quiet;
  Engine& e = engine();
  if (ordered && site == e.skipped_barrier) return;
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

// Where a shuffle is called. No number becomes one, so that CUDA's argument `width`, which is not there, is not taken
// for it.
struct Line {
  unsigned at;
  explicit Line(unsigned at) : at(at) {}
};

// A shuffle: the value of lane `from`, or this lane's own where the warp has no such lane. All its lanes take part.
template <class T>
T shuffle(unsigned mask, const T& mine, unsigned from, unsigned site) {
  if (mask != 0xffffffffu) fail("a shuffle must have all lanes of the warp in its mask");
  const Exchanged<T> all = exchange(mine, kShuffle | site);
  if (from >= 32) return mine;
  if (engine().current->warp * 32 + from >= engine().threads) fail("a shuffle reads a lane that is not there");
  return all[from];
}

}  // namespace emulation
