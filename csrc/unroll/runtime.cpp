// Memory, threads and permissions: everything of the engine that is compiled once, without ISA-specific flags.
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "engine.h"

namespace pad_fast {
namespace unroll {

Cache::~Cache() = default;
Engine::~Engine() = default;

bool amx_allowed() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (bf16 | tile)) != (bf16 | tile)) return false;
  // Linux saves tile registers only for processes that have asked (ARCH_REQ_XCOMP_PERM), and may refuse, for example
  // where a signal stack is too small for them. Granted once, it holds for all threads and children.
  constexpr long request = 0x1023, tile_data = 18;
  static const bool granted = syscall(SYS_arch_prctl, request, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}

void* allocate(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  // Anonymous mappings come zeroed and are given back whole; the allocator's own large blocks would be unmapped and
  // faulted in again at every resize just the same.
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (bytes >= (std::size_t(4) << 20)) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

void release(void* memory, std::size_t bytes) {
  if (memory) munmap(memory, bytes);
}

Buffer::~Buffer() { release(data_, size_); }

void Buffer::resize(std::size_t bytes) {
  if (bytes == size_) return;
  release(data_, size_);
  data_ = nullptr, size_ = 0;
  data_ = static_cast<char*>(allocate(bytes));
  size_ = bytes;
}

namespace {

inline void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Phases of one call follow each other within microseconds, so waiting starts with a short spin; after it the
// thread sleeps, and never competes with torch's own pool.
constexpr std::chrono::microseconds kSpin(30);

template <class Done> bool spin_until(Done done) {
  const auto stop = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause_core();
    }
  } while (std::chrono::steady_clock::now() < stop);
  return done();
}

}  // namespace

struct Pool::State {
  std::atomic<unsigned> generation{0};
  std::atomic<int> pending{0};
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable wake, finished;
  int sleeping = 0;
  bool waiting = false;
  int count = 0;
  void (*task)(void*, int) = nullptr;
  void* context = nullptr;
  std::vector<std::thread> workers;
  pid_t process = 0;

  void work(int index) {
    unsigned seen = 0;
    for (;;) {
      const auto ready = [&] { return generation.load(std::memory_order_acquire) != seen; };
      if (!spin_until(ready)) {
        std::unique_lock<std::mutex> lock(mutex);
        ++sleeping;
        wake.wait(lock, ready);
        --sleeping;
      }
      seen = generation.load(std::memory_order_acquire);
      if (stopping.load(std::memory_order_acquire)) return;
      if (index < count) task(context, index);
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex);
        if (waiting) finished.notify_one();
      }
    }
  }
  void start(int threads) {
    process = getpid();
    for (int i = 1; i < threads; ++i) workers.emplace_back([this, i] { work(i); });
  }
  void publish() {
    std::lock_guard<std::mutex> lock(mutex);
    generation.fetch_add(1, std::memory_order_acq_rel);
    if (sleeping > 0) wake.notify_all();
  }
};

Pool::Pool(int threads) : state_(new State), threads_(threads) {}

Pool::~Pool() {
  if (state_->process == getpid()) {
    state_->stopping.store(true, std::memory_order_release);
    state_->publish();
    for (std::thread& worker : state_->workers) worker.join();
  } else if (state_->process != 0) {
    return;  // a forked child: the threads never existed here, and joining them would hang
  }
  delete state_;
}

void Pool::run(int count, void (*task)(void*, int), void* context) {
  if (count <= 1 || threads_ <= 1) {
    for (int i = 0; i < count; ++i) task(context, i);
    return;
  }
  if (state_->process != getpid()) {
    if (state_->process != 0) state_ = new State;  // after a fork: the old state's threads are gone
    state_->start(threads_);
  }
  State& s = *state_;
  s.count = count, s.task = task, s.context = context;
  s.pending.store(threads_ - 1, std::memory_order_release);
  s.publish();
  task(context, 0);
  const auto done = [&] { return s.pending.load(std::memory_order_acquire) == 0; };
  if (!spin_until(done)) {
    std::unique_lock<std::mutex> lock(s.mutex);
    s.waiting = true;
    s.finished.wait(lock, done);
    s.waiting = false;
  }
}

}  // namespace unroll
}  // namespace pad_fast
