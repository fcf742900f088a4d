// The threads of the core. A call does not wait for a thread that has no core to run on: the caller takes tasks like every helper,
// and returns when the tasks are done, not when all helpers have come. Then another program on the second core costs what that core
// would have given, but no more; with a barrier at the end of each layer it costs milliseconds a layer.
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <atomic>

#include "parallel.h"

#if defined(BITWRIGHT_X86)
#include <immintrin.h>
#endif

namespace {

using Task = void (*)(void* data, int64_t index);

constexpr int MOST_HELPERS = 1023;
constexpr int SPINS = 2000;  // some 50 us: the next layer of a net comes sooner than a sleeping thread wakes up

inline void pause() {
#if defined(BITWRIGHT_X86)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// One job at a time. `open` is (helpers allowed << 32) + tasks that nobody has taken yet. Who lowers it owns the tasks from
// total - (what was left) on: the job cannot end before they do, so all fields are those of the same job. A thread takes several
// tasks at first and few at the end, and reports once: cores can be far from each other, and each word they share is then slow.
class Pool {
 public:
  bool run(int threads, int64_t count, Task task, void* data) {
    if (count > INT32_MAX || busy_.exchange(true, std::memory_order_acquire)) return false;
    task_ = task;
    data_ = data;
    total_ = count;
    done_.store(0, std::memory_order_relaxed);
    open_.store(((uint64_t)start(threads - 1) << 32) | (uint64_t)count);
    if (sleeping_.load()) {
      pthread_mutex_lock(&mutex_);
      pthread_cond_broadcast(&wake_);
      pthread_mutex_unlock(&mutex_);
    }
    const int64_t others = count - work(-1);
    for (int spins = 0; done_.load(std::memory_order_acquire) < others; spins++) {
      if (spins < SPINS) pause();
      else sched_yield();
    }
    busy_.store(false, std::memory_order_release);
    return true;
  }

 private:
  static bool waits(uint64_t open, int helper) { return (uint32_t)open && helper < (int)(open >> 32); }

  // Takes tasks until none is left, and returns how many it did; the caller is helper -1.
  int64_t work(int helper) {
    int64_t mine = 0;
    for (uint64_t open = open_.load(std::memory_order_acquire); waits(open, helper);) {
      const int64_t left = (uint32_t)open, share = left / (2 * ((int64_t)(open >> 32) + 1)), taken = share > 1 ? share : 1;
      if (!open_.compare_exchange_weak(open, open - (uint64_t)taken, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      for (int64_t i = total_ - left; i < total_ - left + taken; i++) task_(data_, i);
      mine += taken;
      open = open_.load(std::memory_order_acquire);
    }
    return mine;
  }

  void help(int helper) {
    for (;;) {
      for (int spins = 0; spins < SPINS && !waits(open_.load(std::memory_order_relaxed), helper); spins++) pause();
      if (!waits(open_.load(std::memory_order_relaxed), helper)) {
        pthread_mutex_lock(&mutex_);
        sleeping_.fetch_add(1);  // before the look at `open_`, as `run` sets `open_` before it looks at `sleeping_`
        while (!waits(open_.load(), helper)) pthread_cond_wait(&wake_, &mutex_);
        sleeping_.fetch_sub(1);
        pthread_mutex_unlock(&mutex_);
      }
      done_.fetch_add(work(helper), std::memory_order_release);
    }
  }

  // How many of the wanted helpers there are; a system that gives no more threads gives fewer helpers. Signals are the program's.
  int start(int wanted) {
    if (wanted > MOST_HELPERS) wanted = MOST_HELPERS;
    if (wanted <= started_) return wanted;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; started_ < wanted; started_++) {
      helpers_[started_] = {this, started_};
      pthread_t thread;
      if (pthread_create(&thread, nullptr, &begin, &helpers_[started_])) break;
      pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started_;
  }

  struct Helper {
    Pool* pool;
    int number;
  };

  static void* begin(void* data) {
    const Helper helper = *(const Helper*)data;
    helper.pool->help(helper.number);
    return nullptr;
  }

  Task task_ = nullptr;
  void* data_ = nullptr;
  int64_t total_ = 0;
  alignas(64) std::atomic<uint64_t> open_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<int> sleeping_{0};
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake_ = PTHREAD_COND_INITIALIZER;
  int started_ = 0;
  Helper helpers_[MOST_HELPERS];
};

// Never destroyed: helpers sleep in it until the process ends. A child process has no helpers, and begins with a pool of its own.
Pool* pool = new Pool;
const int forks = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });

}  // namespace

bool bw_pool_run(int threads, int64_t count, void (*task)(void* data, int64_t index), void* data) {
  return pool->run(threads, count, task, data);
}
