#pragma once

#include "gemm.h"

namespace {

// Hands out aligned pieces of a block of memory; without a block it only counts.
struct Arena {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    char* place = base + used;
    used += up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(place);
  }
};

}  // namespace
