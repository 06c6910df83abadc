// Sixteen floats or integers as two registers of eight, for AVX2: the compiler keeps vectors that are wider than a
// register in memory, and takes some operations on them number by number. whole.h is the same for other CPUs.
#pragma once

#include <immintrin.h>

#include "eight.h"

namespace {

template <class Eight>
struct Pair {
  Eight low, high;

  auto operator[](int64_t lane) const { return lane < 8 ? low[lane] : high[lane - 8]; }
};

typedef Pair<FloatsOf8> Floats;
typedef Pair<IntsOf8> Ints;

#define Q8_OPERATOR(Vector, Number, op)                                                                 \
  inline Vector operator op(Vector x, Vector y) { return {x.low op y.low, x.high op y.high}; }          \
  inline Vector operator op(Vector x, Number y) { return {x.low op y, x.high op y}; }                   \
  inline Vector& operator op##=(Vector& x, Vector y) { return x = x op y; }
Q8_OPERATOR(Floats, float, +)
Q8_OPERATOR(Floats, float, -)
Q8_OPERATOR(Floats, float, *)
Q8_OPERATOR(Floats, float, /)
Q8_OPERATOR(Ints, int32_t, +)
Q8_OPERATOR(Ints, int32_t, -)
Q8_OPERATOR(Ints, int32_t, *)
Q8_OPERATOR(Ints, int32_t, &)
Q8_OPERATOR(Ints, int32_t, |)
Q8_OPERATOR(Ints, int32_t, ^)
Q8_OPERATOR(Ints, int32_t, <<)
Q8_OPERATOR(Ints, int32_t, >>)
#undef Q8_OPERATOR

typedef float FloatsAnywhere __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t IntsAnywhere __attribute__((vector_size(32), aligned(4), may_alias));

inline Floats load(const float* from) {
  const FloatsAnywhere* halves = reinterpret_cast<const FloatsAnywhere*>(from);
  return {halves[0], halves[1]};
}
inline void store(float* to, Floats x) {
  FloatsAnywhere* halves = reinterpret_cast<FloatsAnywhere*>(to);
  halves[0] = x.low, halves[1] = x.high;
}
inline Ints load(const int32_t* from) {
  const IntsAnywhere* halves = reinterpret_cast<const IntsAnywhere*>(from);
  return {halves[0], halves[1]};
}
inline void store(int32_t* to, Ints x) {
  IntsAnywhere* halves = reinterpret_cast<IntsAnywhere*>(to);
  halves[0] = x.low, halves[1] = x.high;
}

inline Floats all(float x) { return {x - FloatsOf8{}, x - FloatsOf8{}}; }
inline Floats to_floats(Ints x) {
  return {__builtin_convertvector(x.low, FloatsOf8), __builtin_convertvector(x.high, FloatsOf8)};
}
inline Ints bits(Floats x) { return {(IntsOf8)x.low, (IntsOf8)x.high}; }
inline Floats from_bits(Ints x) { return {(FloatsOf8)x.low, (FloatsOf8)x.high}; }

inline Floats fma(Floats x, Floats y, Floats z) {
  return {(FloatsOf8)_mm256_fmadd_ps((__m256)x.low, (__m256)y.low, (__m256)z.low),
          (FloatsOf8)_mm256_fmadd_ps((__m256)x.high, (__m256)y.high, (__m256)z.high)};
}
inline Floats least(Floats x, Floats y) {
  return {(FloatsOf8)_mm256_min_ps((__m256)x.low, (__m256)y.low),
          (FloatsOf8)_mm256_min_ps((__m256)x.high, (__m256)y.high)};
}
inline Floats greatest(Floats x, Floats y) {
  return {(FloatsOf8)_mm256_max_ps((__m256)x.low, (__m256)y.low),
          (FloatsOf8)_mm256_max_ps((__m256)x.high, (__m256)y.high)};
}
inline Ints greatest(Ints x, Ints y) { return {x.low > y.low ? x.low : y.low, x.high > y.high ? x.high : y.high}; }

inline Halfwords low_halfwords(Ints x) {
  const __m256i low = (__m256i)(x.low & 0xffff), high = (__m256i)(x.high & 0xffff);
  return (Halfwords)_mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);  // it packs by 128 bits
}
inline Bytes low_bytes(Ints x) {
  const __m256i words = (__m256i)low_halfwords(x & 255);
  return (Bytes)_mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
inline Ints from_halfwords(Halfwords x) {
  return {(IntsOf8)_mm256_cvtepu16_epi32(_mm256_castsi256_si128((__m256i)x)),
          (IntsOf8)_mm256_cvtepu16_epi32(_mm256_extracti128_si256((__m256i)x, 1))};
}

template <class Vector>
inline Vector first(Vector x, int count, Vector other = Vector{}) {
  const IntsOf8 low = {0, 1, 2, 3, 4, 5, 6, 7}, high = low + 8;
  return {low < count ? x.low : other.low, high < count ? x.high : other.high};
}
inline Ints where_number(Floats x, Ints y, Ints other) {
  return {x.low == x.low ? y.low : other.low, x.high == x.high ? y.high : other.high};
}

template <class Eight>
inline Eight lower(Pair<Eight> x) {
  return x.low;
}
template <class Eight>
inline Eight upper(Pair<Eight> x) {
  return x.high;
}

template <int Distance>
constexpr int from_lower(int lane) {
  return lane & Distance ? lane - Distance + 8 : lane;
}
template <int Distance>
inline void exchange(Floats& x, Floats& y) {
  constexpr IntsOf8 kLower = {from_lower<Distance>(0), from_lower<Distance>(1), from_lower<Distance>(2),
                              from_lower<Distance>(3), from_lower<Distance>(4), from_lower<Distance>(5),
                              from_lower<Distance>(6), from_lower<Distance>(7)};
  const Floats old = x;
  x = {__builtin_shuffle(old.low, y.low, kLower), __builtin_shuffle(old.high, y.high, kLower)};
  y = {__builtin_shuffle(old.low, y.low, kLower + Distance), __builtin_shuffle(old.high, y.high, kLower + Distance)};
}
template <>
inline void exchange<8>(Floats& x, Floats& y) {
  const Floats old = x;
  x = {old.low, y.low};
  y = {old.high, y.high};
}

}  // namespace
