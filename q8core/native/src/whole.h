// Sixteen floats or integers as one vector of the compiler's: for AVX-512, whose registers hold it, and for any CPU.
// halves.h is the same for AVX2.
#pragma once

#include "eight.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float FloatsAnywhere __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t IntsAnywhere __attribute__((vector_size(64), aligned(4), may_alias));

inline Floats load(const float* from) { return *reinterpret_cast<const FloatsAnywhere*>(from); }
inline void store(float* to, Floats x) { *reinterpret_cast<FloatsAnywhere*>(to) = x; }
inline Ints load(const int32_t* from) { return *reinterpret_cast<const IntsAnywhere*>(from); }
inline void store(int32_t* to, Ints x) { *reinterpret_cast<IntsAnywhere*>(to) = x; }

inline Floats all(float x) { return x - Floats{}; }
inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
inline Ints bits(Floats x) { return reinterpret_cast<Ints>(x); }
inline Floats from_bits(Ints x) { return reinterpret_cast<Floats>(x); }

// fma: x * y + z, rounded once. least, greatest: x < y ? x : y, and x > y ? x : y, which is what the instructions do,
// also with NaN. low_bytes: the lowest byte of each.
#if defined(__AVX512F__)
inline Floats fma(Floats x, Floats y, Floats z) {
  return (Floats)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
}
inline Floats least(Floats x, Floats y) { return (Floats)_mm512_min_ps((__m512)x, (__m512)y); }
inline Floats greatest(Floats x, Floats y) { return (Floats)_mm512_max_ps((__m512)x, (__m512)y); }
inline Bytes low_bytes(Ints x) { return (Bytes)_mm512_cvtepi32_epi8((__m512i)x); }
#else
inline Floats fma(Floats x, Floats y, Floats z) {
  for (int i = 0; i < 16; i++) x[i] = __builtin_fmaf(x[i], y[i], z[i]);
  return x;
}
inline Floats least(Floats x, Floats y) { return x < y ? x : y; }
inline Floats greatest(Floats x, Floats y) { return x > y ? x : y; }
inline Bytes low_bytes(Ints x) { return __builtin_convertvector(x, Bytes); }
#endif
inline Ints greatest(Ints x, Ints y) { return x > y ? x : y; }

// 16 bits as the low ones of each, without sign; and these of each.
inline Ints from_halfwords(Halfwords x) { return __builtin_convertvector(x, Ints); }
inline Halfwords low_halfwords(Ints x) { return __builtin_convertvector(x, Halfwords); }

// The first `count` lanes of x, `other` in the rest.
template <class Vector>
inline Vector first(Vector x, int count, Vector other = Vector{}) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane < count ? x : other;
}

// y where x is a number, `other` where it is NaN.
inline Ints where_number(Floats x, Ints y, Ints other) { return x == x ? y : other; }

#if defined(__AVX512F__)
inline FloatsOf8 lower(Floats x) { return (FloatsOf8)_mm512_extractf32x8_ps((__m512)x, 0); }
inline FloatsOf8 upper(Floats x) { return (FloatsOf8)_mm512_extractf32x8_ps((__m512)x, 1); }
inline IntsOf8 lower(Ints x) { return (IntsOf8)_mm512_extracti32x8_epi32((__m512i)x, 0); }
inline IntsOf8 upper(Ints x) { return (IntsOf8)_mm512_extracti32x8_epi32((__m512i)x, 1); }
#else
template <class Half, class Vector>
inline Half half_of(Vector x, int place) {
  Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  return halves[place];
}
inline FloatsOf8 lower(Floats x) { return half_of<FloatsOf8>(x, 0); }
inline FloatsOf8 upper(Floats x) { return half_of<FloatsOf8>(x, 1); }
inline IntsOf8 lower(Ints x) { return half_of<IntsOf8>(x, 0); }
inline IntsOf8 upper(Ints x) { return half_of<IntsOf8>(x, 1); }
#endif

// A step of a transposition: of each 2 * Distance lanes, x gets the first half of x and of y, y the second halves.
template <int Distance>
constexpr int from_lower(int lane) {
  return lane & Distance ? lane - Distance + 16 : lane;
}
template <int Distance>
inline void exchange(Floats& x, Floats& y) {
#define Q8_FOUR(lane) from_lower<Distance>(lane), from_lower<Distance>(lane + 1), from_lower<Distance>(lane + 2), \
                      from_lower<Distance>(lane + 3)
  constexpr Ints kLower = {Q8_FOUR(0), Q8_FOUR(4), Q8_FOUR(8), Q8_FOUR(12)};
#undef Q8_FOUR
  const Floats lower = __builtin_shuffle(x, y, kLower);
  y = __builtin_shuffle(x, y, kLower + Distance);
  x = lower;
}

}  // namespace
