// Stands in for the one instruction by which AVX-VNNI differs from AVX2, so that its variant runs on CPUs without it.
#pragma once

#include <immintrin.h>

// sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3 in each 32 bits, with a unsigned and b signed; nothing saturates.
inline __m256i dpbusd(__m256i sum, __m256i a, __m256i b) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

#define _mm256_dpbusd_avx_epi32 dpbusd
