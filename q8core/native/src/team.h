// Where the threads of a forward pass begin, and wait for each other.
#pragma once

#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#include <time.h>

#include <cstdint>

namespace {

// A barrier for the threads of one parallel region. OpenMP's own either puts a waiting thread to sleep, and waking it
// takes longer than a small layer does, or lets it spin on a CPU that another thread may need. This one spins, and
// offers its CPU to whoever is ready to run only where the thread that it waits for has probably lost its own: before
// that one has begun, and after kPatience. To offer it more often is dear beside a busy process, which then has the CPU
// for some milliseconds, and does so at every barrier.
class Team {
 public:
  Team() : made_(now(CLOCK_MONOTONIC)) {}

  // To be called by all threads of the region: none leaves before the last one came, and each sees what all wrote.
  void wait() {
    const int threads = omp_get_num_threads();
    const uint32_t before = __atomic_load_n(&rounds_, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == threads) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&rounds_, before + 1, __ATOMIC_RELEASE);
      return;
    }
    int64_t since = 0;
    for (int spins = 1; __atomic_load_n(&rounds_, __ATOMIC_ACQUIRE) == before; spins++) {
      rest();
      if (spins % kSpins == 0 && out_of_patience(threads, since)) offer_cpu();
    }
  }

  // After the region: for which share of the time since this was made the thread had a CPU that had one for the least.
  float share() const { return static_cast<float>(least_) / static_cast<float>(now(CLOCK_MONOTONIC) - made_); }

 private:
  friend class Member;

  // Linux often wakes a sleeping thread on the CPU of the thread that wakes it, and leaves it there for the few
  // milliseconds of a pass: the two would take turns while the next CPU is idle. So a thread that finds another of the
  // team on its CPU goes to a CPU without one.
  void begin() {
#if defined(__linux__)
    if (omp_get_num_threads() > 1) take_cpu();
#endif
    __atomic_add_fetch(&begun_, 1, __ATOMIC_RELEASE);
  }

  // `computed`: nanoseconds that the thread had a CPU.
  void end(int64_t computed) {
    int64_t least = __atomic_load_n(&least_, __ATOMIC_RELAXED);
    while (computed < least &&
           !__atomic_compare_exchange_n(&least_, &least, computed, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }

  // Nanoseconds by one of the system's clocks.
  static int64_t now(clockid_t clock) {
    timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1'000'000'000 + time.tv_nsec;
  }

  static constexpr int kSpins = 64;              // between two looks at the clock: a few microseconds
  static constexpr int64_t kPatience = 100'000;  // nanoseconds: several times a small layer

  // `since`: when the waiting began, or when the CPU was last offered; 0 before the first call.
  bool out_of_patience(int threads, int64_t& since) const {
    if (__atomic_load_n(&begun_, __ATOMIC_ACQUIRE) < threads) return true;
    const int64_t time = now(CLOCK_MONOTONIC);
    const bool out = since && time - since > kPatience;
    if (!since || out) since = time;
    return out;
  }

  static void rest() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }

#if defined(__linux__)
  static void offer_cpu() { sched_yield(); }

  // Note this thread's CPU as taken; if it was already, move to one that is not, where this thread may run on such.
  void take_cpu() {
    int cpu = sched_getcpu();
    cpu_set_t allowed, others;
    if (cpu < 0 || cpu >= CPU_SETSIZE || !take(cpu) || sched_getaffinity(0, sizeof allowed, &allowed)) return;
    CPU_ZERO(&others);
    for (int i = 0; i < CPU_SETSIZE; i++)
      if (CPU_ISSET(i, &allowed) && !is_taken(i)) CPU_SET(i, &others);
    if (!CPU_COUNT(&others) || sched_setaffinity(0, sizeof others, &others)) return;
    cpu = sched_getcpu();
    if (cpu >= 0 && cpu < CPU_SETSIZE) take(cpu);
    sched_setaffinity(0, sizeof allowed, &allowed);  // it stays where it is, and the system is free to move it again
  }

  static uint64_t bit(int cpu) { return uint64_t{1} << cpu % 64; }
  // Take it; returns whether it was taken before.
  bool take(int cpu) { return __atomic_fetch_or(&taken_[cpu / 64], bit(cpu), __ATOMIC_ACQ_REL) & bit(cpu); }
  bool is_taken(int cpu) const { return __atomic_load_n(&taken_[cpu / 64], __ATOMIC_ACQUIRE) & bit(cpu); }

  uint64_t taken_[CPU_SETSIZE / 64] = {};
#else
  static void offer_cpu() {}
#endif

  const int64_t made_;
  alignas(64) int64_t least_ = INT64_MAX;
  alignas(64) int begun_ = 0;
  alignas(64) int arrived_ = 0;
  alignas(64) uint32_t rounds_ = 0;
};

// A thread's part in a team: to be made by each thread of the region before anything else.
class Member {
 public:
  explicit Member(Team& team) : team_(team), began_(Team::now(CLOCK_THREAD_CPUTIME_ID)) { team.begin(); }
  ~Member() { team_.end(Team::now(CLOCK_THREAD_CPUTIME_ID) - began_); }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

 private:
  Team& team_;
  const int64_t began_;
};

}  // namespace
