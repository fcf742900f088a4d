// for_tasks(threads, count, task): task(i) for i in 0..count-1. Dynamic chunks, because on a busy machine a
// static split waits for the one thread that lost its core. One thread never enters the OpenMP runtime.
//
// Where a host has threads of its own it sets a runner for its thread, and gets the tasks instead of OpenMP: two pools on
// the same cores would wait for each other.
#pragma once
#include <stdint.h>

struct bw_runner {
  void (*run)(const bw_runner* self, int64_t count, void (*task)(void* data, int64_t index), void* data);
};
const bw_runner* bw_current_runner();         // of this thread; null: OpenMP
void bw_set_runner(const bw_runner* runner);  // set to null again before the runner is destroyed

namespace {

template <class Task>
inline void for_tasks(int threads, int64_t count, const Task& task) {
  if (threads > 1 && count > 1) {
    if (const bw_runner* runner = bw_current_runner()) {
      const auto one = [](void* data, int64_t index) { (*(const Task*)data)(index); };
      runner->run(runner, count, one, (void*)&task);
      return;
    }
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) task(i);
    return;
#endif
  }
  for (int64_t i = 0; i < count; i++) task(i);
}

// How many items one task should take: about eight tasks per thread, at most `most` items, a multiple of `unit`.
[[maybe_unused]] inline int64_t items_per_task(int threads, int64_t items, int64_t unit, int64_t most) {
  int64_t share = threads > 1 ? (items + threads * 8 - 1) / (threads * 8) : items;
  if (share > most) share = most;
  share = (share + unit - 1) / unit * unit;
  return share > 0 ? share : unit;
}

}  // namespace
