// for_tasks(threads, count, task): task(i) for i in 0..count-1, each taken by the thread that is free next: on a busy machine a
// static split waits for the one thread that lost its core. One thread, and a call while another one is using the threads
// of the pool, does all tasks itself.
//
// Where a host has threads of its own it sets a runner for its thread, and gets the tasks instead of our pool: two pools on
// the same cores would wait for each other.
#pragma once
#include <stdint.h>

struct bw_runner {
  void (*run)(const bw_runner* self, int64_t count, void (*task)(void* data, int64_t index), void* data);
};
const bw_runner* bw_current_runner();         // of this thread; null: the pool
void bw_set_runner(const bw_runner* runner);  // set to null again before the runner is destroyed

// Whether the pool took the tasks and did them; not while it works for another thread. At most `threads` at once, with the caller.
bool bw_pool_run(int threads, int64_t count, void (*task)(void* data, int64_t index), void* data);

namespace {

template <class Task>
inline void for_tasks(int threads, int64_t count, const Task& task) {
  if (threads > 1 && count > 1) {
    const auto one = [](void* data, int64_t index) { (*(const Task*)data)(index); };
    if (const bw_runner* runner = bw_current_runner()) return runner->run(runner, count, one, (void*)&task);
    if (bw_pool_run(threads, count, one, (void*)&task)) return;
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
