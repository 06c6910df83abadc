// Eight lanes, which the sum and the maximum of sixteen come down to: in registers, whatever the instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

typedef float FloatsOf8 __attribute__((vector_size(32)));
typedef int32_t IntsOf8 __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Halfwords __attribute__((vector_size(32)));
typedef uint8_t BytesAnywhere __attribute__((vector_size(16), aligned(1), may_alias));

inline void store(uint8_t* to, Bytes x) { *reinterpret_cast<BytesAnywhere*>(to) = x; }

// Join the upper half of the lanes in use to the lower one, until one lane is left.
template <class Vector, class Join>
inline auto joined(Vector x, Join join) {
  x = join(x, __builtin_shuffle(x, IntsOf8{4, 5, 6, 7, 4, 5, 6, 7}));
  x = join(x, __builtin_shuffle(x, IntsOf8{2, 3, 0, 1, 6, 7, 4, 5}));
  return join(x, __builtin_shuffle(x, IntsOf8{1, 0, 3, 2, 5, 4, 7, 6}))[0];
}

template <class Vector>
inline auto sum(Vector lower, Vector upper) {
  return joined(lower + upper, [](Vector x, Vector y) { return x + y; });
}

template <class Vector>
inline auto maximum(Vector lower, Vector upper) {
  return joined(lower > upper ? lower : upper, [](Vector x, Vector y) { return x > y ? x : y; });
}

}  // namespace
