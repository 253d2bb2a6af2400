#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

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

// BLUEJAY_PIN=1: each worker stays on a core of its own; the caller, whose thread is not ours, never.
bool wants_pinning() {
  const char* wish = std::getenv("BLUEJAY_PIN");
  return wish != nullptr && wish[0] == '1';
}

// Keeps the calling thread on one of the cores that it may run on, counted from 0 and around.
void pin_to_core(int number) {
#if defined(__linux__)
  cpu_set_t usable, chosen;
  if (sched_getaffinity(0, sizeof(usable), &usable) != 0) return;
  int left = number % CPU_COUNT(&usable), core = 0;
  while (!CPU_ISSET(core, &usable) || left-- > 0) ++core;
  CPU_ZERO(&chosen);
  CPU_SET(core, &chosen);
  sched_setaffinity(0, sizeof(chosen), &chosen);  // 0 is this thread; where it fails, it floats
#else
  (void)number;
#endif
}

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads that help a caller with its indices.
//
// `state_` holds the number of the operation and, in its low half, how many indices nobody has taken yet.
// Who takes one off by exchange owns it, and only until the last is done does the caller stay: a worker
// that sleeps, or is kept from running by somebody else's process, delays nothing, and one that wakes
// late finds no index of an operation that is over.
class Pool {
 public:
  explicit Pool(int num_workers) { resize(num_workers); }
  ~Pool() { resize(0); }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return num_workers_.load(std::memory_order_relaxed) + 1; }

  // Waits for the operation that runs.
  void resize(int num_workers) {
    const std::lock_guard<std::mutex> one_at_a_time(running_);
    num_workers_.store(num_workers);
    publish(0);
    const auto wanted = static_cast<size_t>(num_workers);
    for (size_t i = wanted; i < threads_.size(); ++i) threads_[i].join();
    if (threads_.size() > wanted) threads_.resize(wanted);
    for (size_t i = threads_.size(); i < wanted; ++i)
      threads_.emplace_back([this, i] { serve(static_cast<int>(i)); });
  }

  void run(void (*task)(void*, size_t), void* context, size_t count) {
    const std::lock_guard<std::mutex> one_at_a_time(running_);
    // Nothing is left to take while these change: no worker acts on a mixture of two operations.
    task_.store(task, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    num_open_.store(count, std::memory_order_relaxed);
    publish(count);
    drain();
    while (num_open_.load(std::memory_order_acquire) != 0) pause();
  }

 private:
  static constexpr uint64_t kOne = uint64_t{1} << 32;  // of the operations' numbers
  static uint64_t left_in(uint64_t state) { return state % kOne; }

  void publish(size_t count) {
    state_.store((state_.load() / kOne + 1) * kOne + count);
    if (num_asleep_.load() > 0) {
      { const std::lock_guard<std::mutex> lock(sleeping_); }
      awake_.notify_all();
    }
  }

  // Takes indices until none is left.
  void drain() {
    uint64_t state = state_.load(std::memory_order_acquire);
    while (left_in(state) > 0) {
      const auto task = task_.load(std::memory_order_relaxed);
      void* context = context_.load(std::memory_order_relaxed);
      const size_t count = count_.load(std::memory_order_relaxed);
      if (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel)) continue;
      task(context, count - left_in(state));
      num_open_.fetch_sub(1, std::memory_order_release);
      state = state_.load(std::memory_order_acquire);
    }
  }

  // Of the worker of that number, until the pool has no place for it.
  void serve(int number) {
    if (wants_pinning()) pin_to_core(number + 1);
    while (number < num_workers_.load()) {
      drain();
      await_work(number);
    }
  }

  bool is_needed(int number) const {
    return left_in(state_.load(std::memory_order_acquire)) > 0 || number >= num_workers_.load();
  }

  void await_work(int number) {
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    do {
      for (int i = 0; i < 64; ++i) {
        if (is_needed(number)) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    num_asleep_.fetch_add(1);
    {
      std::unique_lock<std::mutex> lock(sleeping_);
      awake_.wait(lock, [&] { return is_needed(number); });
    }
    num_asleep_.fetch_sub(1);
  }

  std::vector<std::thread> threads_;
  std::mutex running_, sleeping_;
  std::condition_variable awake_;
  std::atomic<uint64_t> state_{0};
  std::atomic<size_t> count_{0}, num_open_{0};
  std::atomic<void (*)(void*, size_t)> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> num_asleep_{0}, num_workers_{0};
};

std::mutex pool_mutex;  // who makes, replaces or forgets the pool holds it
std::atomic<Pool*> the_pool{nullptr};
int pool_size = 0;  // 0 until it is set or found out

// Threads do not survive a fork: the child forgets its parent's pool, and makes one of the same size when
// it has work. The lock is taken before, so that no other thread's half-done change is inherited.
void make_pool(int size) {
  [[maybe_unused]] static const int registered =
      pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                     [] {
                       the_pool.store(nullptr);
                       pool_mutex.unlock();
                     });
  pool_size = size;
  the_pool.store(new Pool(size - 1), std::memory_order_release);
}

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  const std::lock_guard<std::mutex> lock(pool_mutex);
  if (the_pool.load() == nullptr) make_pool(pool_size > 0 ? pool_size : usable_cores());
  return *the_pool.load();
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
  pool().run(task, context, count);
}

int num_threads() { return pool().size(); }

void set_num_threads(int count) {
  Pool& found = pool();
  const std::lock_guard<std::mutex> lock(pool_mutex);
  pool_size = count;
  if (found.size() != count) found.resize(count - 1);
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
