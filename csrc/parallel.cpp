#include "parallel.h"

#include <unistd.h>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace pad_fast {
namespace {

// A piece takes tens of microseconds, and falling asleep and waking up as long: the last one is waited for awake, and
// so is the next job, since the phases of a call follow each other at once. Nobody who waits longer takes a core from
// others.
constexpr std::chrono::microseconds kWatch(50);

inline void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether it came true while it was watched.
template <class Done> bool watch(Done done) {
  const auto stop = std::chrono::steady_clock::now() + kWatch;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause_core();
    }
  } while (std::chrono::steady_clock::now() < stop);
  return done();
}

struct Job {
  int64_t pieces;
  int threads;
  void (*task)(void*, int, int64_t);
  void* context;
  std::atomic<int64_t> next{0};  // the first piece that nobody has taken
  int begun = 1;                 // threads that have begun, the caller among them; guarded by the crew's mutex
  std::atomic<int> inside{0};    // helpers that have begun and not ended

  bool wants_help() const { return begun < threads && next.load(std::memory_order_relaxed) < pieces; }
  void work(int worker) {
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) task(context, worker, piece);
  }
};

// Threads that sleep between jobs. Only one that has begun a job is waited for.
class Crew {
 public:
  void run(Job& job) {
    gather(job.threads - 1);
    int sleeping;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      jobs_.fetch_add(1, std::memory_order_release);
      sleeping = sleeping_;
    }
    for (int i = 0; i < std::min(job.threads - 1, sleeping); ++i) wake_.notify_one();
    job.work(0);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = nullptr;  // from here on nobody begins
    }
    const auto ended = [&job] { return job.inside.load(std::memory_order_acquire) == 0; };
    if (watch(ended)) {
      // The helper that ended last may still hold the lock, to say so.
      const std::lock_guard<std::mutex> lock(mutex_);
      return;
    }
    release();
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, ended);
  }

 private:
  void gather(int wanted) {
    const bool more = static_cast<int>(helpers_.size()) < wanted;
    try {
      while (static_cast<int>(helpers_.size()) < wanted) helpers_.emplace_back([this] { help(); });
    } catch (const std::system_error&) {
      // The system grants no more threads: those that are there will do.
    }
#if defined(__linux__)
    // Linux often wakes a thread on the core of whoever wakes it, and moves it only at the next tick, milliseconds
    // later: the helpers are told to stay off the caller's core, whenever that is another one.
    const int here = sched_getcpu();
    if (here < 0 || (here == avoided_ && !more)) return;
    cpu_set_t elsewhere;
    if (sched_getaffinity(0, sizeof elsewhere, &elsewhere) != 0) return;
    CPU_CLR(static_cast<size_t>(here), &elsewhere);
    if (CPU_COUNT(&elsewhere) == 0) return;
    place(elsewhere);
    avoided_ = here;
#else
    (void)more;
#endif
  }

  // Helpers may use the caller's core as well, which falls idle: one that another program keeps waiting moves there.
  void release() {
#if defined(__linux__)
    cpu_set_t everywhere;
    if (avoided_ < 0 || sched_getaffinity(0, sizeof everywhere, &everywhere) != 0) return;
    place(everywhere);
    avoided_ = -1;
#endif
  }
#if defined(__linux__)
  void place(const cpu_set_t& cores) {
    for (std::thread& helper : helpers_) pthread_setaffinity_np(helper.native_handle(), sizeof cores, &cores);
  }
#endif

  void help() {
    unsigned seen = jobs_.load(std::memory_order_acquire);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const auto wanted = [this] { return job_ != nullptr && job_->wants_help(); };
      if (!wanted()) {
        lock.unlock();
        watch([&] { return jobs_.load(std::memory_order_acquire) != seen; });
        lock.lock();
        ++sleeping_;
        wake_.wait(lock, wanted);
        --sleeping_;
      }
      seen = jobs_.load(std::memory_order_relaxed);
      Job& job = *job_;
      const int worker = job.begun++;
      job.inside.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      job.work(worker);
      lock.lock();
      // Under the lock, which the caller takes last of all: the job is gone after that.
      if (job.inside.fetch_sub(1, std::memory_order_acq_rel) == 1) ended_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, ended_;
  Job* job_ = nullptr;
  int sleeping_ = 0;
  std::atomic<unsigned> jobs_{0};  // so far; changed under the lock
  std::vector<std::thread> helpers_;
  int avoided_ = -1;  // the core that helpers stay off
};

// More threads than cores would only take turns.
int cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

void run_pieces(int64_t pieces, int threads, void (*task)(void*, int, int64_t), void* context) {
  static std::mutex mutex;
  // Never deleted: their threads sleep in them until the process ends.
  static Crew* crew = nullptr;
  static pid_t process = 0;
  if (threads > 1) threads = std::min(threads, cores());
  Job job{pieces, threads, task, context};
  if (threads > 1) {
    const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (lock.owns_lock()) {
      if (process != getpid()) crew = new Crew, process = getpid();  // after a fork the threads are gone
      crew->run(job);
      return;
    }
  }
  job.work(0);
}

}  // namespace pad_fast
