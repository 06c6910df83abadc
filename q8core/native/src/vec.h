// Sixteen floats at a time, on every instruction set with the same operations in the same order: the variants of the
// engine give the same bits. The compiler splits a vector where registers are narrower.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef float FloatsAnywhere __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t IntsAnywhere __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint8_t BytesAnywhere __attribute__((vector_size(16), aligned(1), may_alias));

inline Floats load(const float* from) { return *reinterpret_cast<const FloatsAnywhere*>(from); }
inline void store(float* to, Floats x) { *reinterpret_cast<FloatsAnywhere*>(to) = x; }
inline Ints load(const int32_t* from) { return *reinterpret_cast<const IntsAnywhere*>(from); }
inline void store(int32_t* to, Ints x) { *reinterpret_cast<IntsAnywhere*>(to) = x; }
inline void store(uint8_t* to, Bytes x) { *reinterpret_cast<BytesAnywhere*>(to) = x; }
// `count` of 16 numbers, zeros in the rest; no others are read.
inline Floats load(const float* from, int64_t count) {
  Floats x{};
  std::memcpy(&x, from, count * sizeof(float));
  return x;
}
inline Floats all(float x) { return x - Floats{}; }
inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

// x * y + z, rounded once.
inline Floats fma(Floats x, Floats y, Floats z) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z));
#elif defined(__FMA__)
  __m256 a[2], b[2], c[2];
  std::memcpy(a, &x, 64), std::memcpy(b, &y, 64), std::memcpy(c, &z, 64);
  a[0] = _mm256_fmadd_ps(a[0], b[0], c[0]), a[1] = _mm256_fmadd_ps(a[1], b[1], c[1]);
  std::memcpy(&x, a, 64);
  return x;
#else
  for (int i = 0; i < kLanes; i++) x[i] = __builtin_fmaf(x[i], y[i], z[i]);
  return x;
#endif
}

// x < y ? x : y, and x > y ? x : y: what the instructions do, also with NaN.
#if defined(__AVX512F__)
inline Floats least(Floats x, Floats y) { return (Floats)_mm512_min_ps((__m512)x, (__m512)y); }
inline Floats greatest(Floats x, Floats y) { return (Floats)_mm512_max_ps((__m512)x, (__m512)y); }
#else
inline Floats least(Floats x, Floats y) { return x < y ? x : y; }
inline Floats greatest(Floats x, Floats y) { return x > y ? x : y; }
#endif
inline Ints greatest(Ints x, Ints y) { return x > y ? x : y; }
inline Floats magnitude(Floats x) { return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & 0x7fffffff); }

// The first `count` lanes of x, zeros (or `other`) in the rest.
template <class Vector>
inline Vector first(Vector x, int count, Vector other = Vector{}) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane < count ? x : other;
}

inline float sum(Floats x) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}
template <class Vector>
inline auto maximum(Vector x) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0];
}

// The lowest byte of each.
inline Bytes low_bytes(Ints x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Bytes>(_mm512_cvtepi32_epi8((__m512i)x));
#else
  return __builtin_convertvector(x, Bytes);
#endif
}

// The sum of all lanes.
inline int32_t sum(Ints x) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

// clamp(round_half_even(x), -127, 127). Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
inline Ints to_integers(Floats x) {
  return reinterpret_cast<Ints>(greatest(least(x, all(127.f)), all(-127.f)) + 0x1.8p23f) << 24 >> 24;
}

// clamp(round_half_even(x), low, high) plus the even number that `shift` has on top of 1.5 * 2^23.
inline Bytes to_bytes(Floats x, float low, float high, float shift) {
  return low_bytes(reinterpret_cast<Ints>(greatest(least(x, all(high)), all(low)) + shift));
}

// The same as to_integers + 128.
inline Bytes to_bytes(Floats x) { return to_bytes(x, -127.f, 127.f, 0x1.8p23f + 128.f); }

// The polynomial of x with these coefficients, the highest power's first.
template <int N>
inline Floats polynomial(Floats x, const float (&terms)[N]) {
  Floats p = all(terms[0]);
#pragma GCC unroll 16
  for (int i = 1; i < N; i++) p = fma(p, x, all(terms[i]));
  return p;
}

// 2^x for x <= 0, to about an ulp; 2^-126 below that. 2^(n + f) = 2^n 2^f, the latter by a polynomial fitted
// on |f| <= 1/2. n is rounded as in to_bytes, and added to the exponent as it comes out of that.
inline Floats exp2_negative(Floats x) {
  x = greatest(x, all(-126.f));
  const Floats rounded = x + 0x1.8p23f, f = x - (rounded - 0x1.8p23f);
  constexpr float kTerms[] = {0x1.41d2d4p-13f, 0x1.5f4566p-10f, 0x1.3b2dbcp-7f, 0x1.c6aed4p-5f,
                              0x1.ebfbdap-3f,  0x1.62e43p-1f,   1.f};
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(polynomial(f, kTerms)) +
                                  (reinterpret_cast<Ints>(rounded) << 23));
}

// scale * x * Phi(x) = scale * x / 2 * (1 + erf(x / sqrt(2))), the GELU of BERT (Hendrycks & Gimpel, 2016), off by at
// most 5e-7 * scale for |x| < 4 and 3e-7 of itself beyond: erf(x / sqrt(2)) = x P(x^2), P fitted on [0, 5].
inline Floats gelu(Floats x, Floats scale) {
  constexpr float kEnd = 5.f;
  const Floats near = greatest(least(x, all(kEnd)), all(-kEnd)), half = x * (0.5f * scale);
  constexpr float kTerms[] = {-0x1.b3aa7ep-12f, 0x1.5fd018p-10f, -0x1.f8426p-10f, 0x1.94d594p-9f,  -0x1.c66ebcp-8f,
                              0x1.b08fccp-7f,   -0x1.5f2dd4p-6f, 0x1.0b39bep-5f,  -0x1.7f41f6p-5f, 0x1.01bcb6p-4f,
                              -0x1.4b2fdep-4f,  0x1.a60b2p-4f,   -0x1.1fef8p-3f,  0x1.218358p-2f};
  const Floats t = fma(near * near, all(2.f / (kEnd * kEnd)), all(-1.f));
  return fma(half, polynomial(t, kTerms) * near, half);
}

}  // namespace
