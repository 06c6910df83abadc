// Sixteen floats at a time, on every instruction set with the same operations in the same order: the variants of the
// engine give the same bits.
#pragma once

#if defined(__AVX2__) && !defined(__AVX512F__)
#include "halves.h"
#else
#include "whole.h"
#endif

namespace {

constexpr int kLanes = 16;

// `count` of 16 numbers, zeros in the rest; no others are read.
inline Floats load(const float* from, int64_t count) {
  Floats x{};
  std::memcpy(&x, from, count * sizeof(float));
  return x;
}
inline Floats magnitude(Floats x) { return from_bits(bits(x) & 0x7fffffff); }

// Of all lanes; halves are added (or compared) to each other until one lane is left.
template <class Vector>
inline auto sum(Vector x) {
  return sum(lower(x), upper(x));
}
template <class Vector>
inline auto maximum(Vector x) {
  return maximum(lower(x), upper(x));
}

// clamp(round_half_even(x), -127, 127). Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
inline Ints to_integers(Floats x) {
  return bits(greatest(least(x, all(127.f)), all(-127.f)) + 0x1.8p23f) << 24 >> 24;
}

// clamp(round_half_even(x), low, high) plus the even number that `shift` has on top of 1.5 * 2^23.
inline Bytes to_bytes(Floats x, float low, float high, float shift) {
  return low_bytes(bits(greatest(least(x, all(high)), all(low)) + shift));
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
  return from_bits(bits(polynomial(f, kTerms)) + (bits(rounded) << 23));
}

// scale * x * Phi(x) = scale * x / 2 * (1 + erf(x / sqrt(2))), the GELU of BERT (Hendrycks & Gimpel, 2016), off by at
// most 5e-7 * scale for |x| < 4 and 3e-7 of itself beyond: erf(x / sqrt(2)) = x P(x^2), P fitted on [0, 5].
inline Floats gelu(Floats x, Floats scale) {
  constexpr float kEnd = 5.f;
  const Floats near = greatest(least(x, all(kEnd)), all(-kEnd)), half = x * (scale * 0.5f);
  constexpr float kTerms[] = {-0x1.b3aa7ep-12f, 0x1.5fd018p-10f, -0x1.f8426p-10f, 0x1.94d594p-9f,  -0x1.c66ebcp-8f,
                              0x1.b08fccp-7f,   -0x1.5f2dd4p-6f, 0x1.0b39bep-5f,  -0x1.7f41f6p-5f, 0x1.01bcb6p-4f,
                              -0x1.4b2fdep-4f,  0x1.a60b2p-4f,   -0x1.1fef8p-3f,  0x1.218358p-2f};
  const Floats t = fma(near * near, all(2.f / (kEnd * kEnd)), all(-1.f));
  return fma(half, polynomial(t, kTerms) * near, half);
}

}  // namespace
