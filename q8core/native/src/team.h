// Where the threads of a forward pass wait for each other.
#pragma once

#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#include <cstdint>

namespace {

// A barrier for the threads of one parallel region. OpenMP's own either puts a waiting thread to sleep, and waking it
// takes longer than a small layer does, or lets it spin on a CPU that another thread may need. This one spins, and
// every few microseconds offers its CPU to whoever is ready to run: a thread of the team that had none comes first.
class Team {
 public:
  // To be called by all threads of the region: none leaves before the last one came, and each sees what all wrote.
  void wait() {
    const uint32_t before = __atomic_load_n(&rounds_, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == omp_get_num_threads()) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&rounds_, before + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 1; __atomic_load_n(&rounds_, __ATOMIC_ACQUIRE) == before; spins++) rest(spins);
  }

 private:
  static void rest(int spins) {
#if defined(__linux__)
    if (spins % 64 == 0) sched_yield();
#endif
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    (void)spins;
  }

  alignas(64) int arrived_ = 0;
  alignas(64) uint32_t rounds_ = 0;
};

}  // namespace
