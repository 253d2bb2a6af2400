#include "thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bluejay {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(100);

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned found = std::thread::hardware_concurrency();
  return found > 0 ? static_cast<int>(found) : 1;
}

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One operation. Workers take indices until none is left, then report; the caller waits for all
// reports, so that `context` outlives every use of it.
struct Work {
  void (*task)(void*, size_t) = nullptr;
  void* context = nullptr;
  size_t count = 0;
};

class Pool {
 public:
  explicit Pool(int num_workers) {
    for (int i = 0; i < num_workers; ++i) threads_.emplace_back([this] { serve(); });
  }

  ~Pool() {
    is_closing_.store(true);
    wake();
    for (auto& thread : threads_) thread.join();
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  void run(Work work) {
    const std::lock_guard<std::mutex> one_at_a_time(running_);
    work_ = work;
    next_.store(0, std::memory_order_relaxed);
    num_busy_.store(threads_.size(), std::memory_order_relaxed);
    wake();
    drain(work);
    while (num_busy_.load(std::memory_order_acquire) != 0) pause();
  }

 private:
  void wake() {
    generation_.fetch_add(1);
    if (num_asleep_.load() > 0) {
      { const std::lock_guard<std::mutex> lock(sleeping_); }
      awake_.notify_all();
    }
  }

  void drain(const Work& work) {
    for (size_t i = next_.fetch_add(1); i < work.count; i = next_.fetch_add(1))
      work.task(work.context, i);
  }

  void serve() {
    uint64_t seen = 0;
    while (true) {
      await_change(seen);
      if (is_closing_.load()) return;
      seen = generation_.load();
      drain(work_);
      num_busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void await_change(uint64_t seen) {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    do {
      for (int i = 0; i < 64; ++i) {
        if (generation_.load(std::memory_order_acquire) != seen) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    num_asleep_.fetch_add(1);
    {
      std::unique_lock<std::mutex> lock(sleeping_);
      awake_.wait(lock, [&] { return generation_.load() != seen; });
    }
    num_asleep_.fetch_sub(1);
  }

  std::vector<std::thread> threads_;
  std::mutex running_, sleeping_;
  std::condition_variable awake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<size_t> next_{0}, num_busy_{0};
  std::atomic<int> num_asleep_{0};
  std::atomic<bool> is_closing_{false};
  Work work_;
};

std::mutex pool_mutex;
std::atomic<Pool*> the_pool{nullptr};
std::atomic<pid_t> pool_owner{0};

// Threads do not survive a fork: the child makes its own pool and forgets the parent's.
Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found != nullptr && pool_owner.load(std::memory_order_relaxed) == getpid()) return *found;
  const std::lock_guard<std::mutex> lock(pool_mutex);
  found = the_pool.load();
  if (found == nullptr || pool_owner.load() != getpid()) {
    found = new Pool(usable_cores() - 1);
    pool_owner.store(getpid());
    the_pool.store(found, std::memory_order_release);
  }
  return *found;
}

struct Buffer {
  void* data = nullptr;
  size_t size = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void parallel_for(size_t count, void (*task)(void*, size_t), void* context) {
  if (count <= 1 || pool().size() == 1) {
    for (size_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  pool().run(Work{task, context, count});
}

int num_threads() { return pool().size(); }

void set_num_threads(int count) {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  Pool* previous = pool_owner.load() == getpid() ? the_pool.load() : nullptr;
  if (previous != nullptr && previous->size() == count) return;
  the_pool.store(new Pool(count - 1), std::memory_order_release);
  pool_owner.store(getpid());
  delete previous;
}

void* scratch(Slot slot, size_t bytes) {
  thread_local Buffer buffers[static_cast<size_t>(Slot::kCount)];
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  if (buffer.size < bytes) {
    std::free(buffer.data);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.data = std::aligned_alloc(64, rounded);
    buffer.size = buffer.data == nullptr ? 0 : rounded;
  }
  return buffer.data;
}

}  // namespace bluejay
