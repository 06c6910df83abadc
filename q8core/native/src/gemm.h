// Products of 8-bit matrices with 32-bit sums, a block of 32 or 16 rows by 32 columns at a time.
//
// Activations are u8 with a zero point, in blocks of 16 rows x 64 columns, 1 KiB each. Weights are s8 in blocks of
// 64 inputs x 16 outputs: 16 lines of 16 outputs x 4 neighbouring inputs, which is what the dot product instructions
// of VNNI and AMX read. Padding in weights is zero, so whatever activations meet it add nothing.
#pragma once

#include "model.h"
#include "vec.h"

namespace {

constexpr int kRows = 16, kDepth = 64, kBlock = kRows * kDepth, kPanel = 32;
constexpr int kGroup = 16;  // inputs whose order is free, see order.h

// Not those of <algorithm>: the linker would keep one copy of a standard template for all variants, which might be one
// that this CPU cannot run. Everything here has internal linkage.
inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Where row `row`, column `column` of activations of `kb` blocks per row is.
inline uint64_t at(uint64_t row, uint64_t column, uint64_t kb) {
  return ((row / kRows) * kb + column / kDepth) * kBlock + (row % kRows) * kDepth + column % kDepth;
}

// Add up 16 * Tiles rows x 32 columns into sums[row][column], `pitch` numbers from row to row.
// `rows`: the first block of each 16 rows; `step`: bytes to the same rows' next block of depth;
// `columns`: the first weight block of each 16 columns, the others follow; `comp` (32): where the sums begin.
// `ahead`: 0, or the weights are not in a near cache yet, and those that many bytes on are what this thread will
// probably multiply next: the CPU's own prefetcher starts anew at every panel. ZeroPoint: 128, or 0 with `comp` as from
// start_without_zero_point or that of a layer. Lines: of a weight block; those after them hold zeros.
template <int Tiles, int ZeroPoint = 128, int Lines = 16>
inline void multiply(const uint8_t* const* rows, int64_t step, const uint8_t* const* columns, int64_t kb,
                     const int32_t* comp, int32_t* sums, int64_t pitch, int64_t ahead = 0);

// AVX2 without VNNI takes 128 off all activations, but for those that it multiplies in an order of its own (ordered.h).
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
constexpr bool kSigned = true;
#else
constexpr bool kSigned = false;
#endif

// With activations whose zero point is 0, where the sums of 16 columns begin; `total`: the sums of their weights.
inline Ints start_without_zero_point(Ints total) { return total * (kSigned ? 128 : 0); }

#if defined(__AMX_INT8__)

// The compiler does not know that tile instructions read memory: what was written must be there by now.
inline void written() { __asm__ volatile("" ::: "memory"); }

struct TileConfig {
  struct __attribute__((packed)) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } eight_full_tiles;
  TileConfig() {
    written();
    _tile_loadconfig(&eight_full_tiles);
  }
  ~TileConfig() { _tile_release(); }
};

constexpr int kAhead = 4 * kBlock;  // far enough for the second level cache, near enough to still be there

template <int Tiles, int ZeroPoint, int Lines>
inline void multiply(const uint8_t* const* rows, int64_t step, const uint8_t* const* columns, int64_t kb,
                     const int32_t* comp, int32_t* sums, int64_t pitch, int64_t ahead) {
  const uint8_t *a0 = rows[0], *a1 = rows[Tiles - 1], *b0 = columns[0], *b1 = columns[1];
  written();
  _tile_loadd(0, comp, 0);  // stride 0: the same line for every row
  _tile_loadd(1, comp + 16, 0);
  if (Tiles == 2) {
    _tile_loadd(2, comp, 0);
    _tile_loadd(3, comp + 16, 0);
  }
  for (int64_t k = 0; k < kb; k++) {
    for (int line = 0; line < kBlock; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(a0 + kAhead + line), _MM_HINT_T0);
      if (Tiles == 2) _mm_prefetch(reinterpret_cast<const char*>(a1 + kAhead + line), _MM_HINT_T0);
    }
    if (ahead)
      for (int line = 0; line < kBlock; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(b0 + kAhead + line), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(b1 + kAhead + line), _MM_HINT_T0);
      }
    _tile_loadd(6, b0, 64);
    _tile_loadd(4, a0, 64);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, b1, 64);
    _tile_dpbusd(1, 4, 7);
    if (Tiles == 2) {
      _tile_loadd(5, a1, 64);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    a0 += step, a1 += step, b0 += kBlock, b1 += kBlock;
  }
  _tile_stored(0, sums, 4 * pitch);
  _tile_stored(1, sums + 16, 4 * pitch);
  if (Tiles == 2) {
    _tile_stored(2, sums + kRows * pitch, 4 * pitch);
    _tile_stored(3, sums + kRows * pitch + 16, 4 * pitch);
  }
}

#else

struct TileConfig {};

#if defined(__AVX2__) && !defined(__AVX512VNNI__)

// Add the products of four activations and their weights: those of 8 columns in b0, those of the next 8 in b1.
inline void add_products(int32_t four, __m256i b0, __m256i b1, __m256i& sum0, __m256i& sum1) {
#if defined(__AVXVNNI__)
  const __m256i value = _mm256_set1_epi32(four);
  sum0 = _mm256_dpbusd_avx_epi32(sum0, value, b0);
  sum1 = _mm256_dpbusd_avx_epi32(sum1, value, b1);
#else
  // vpmaddubsw adds two products in 16 bits. With |a| <= 128 and the sign moved to the weight they fit:
  // 2 * 128 * 127 = 32512; with u8 activations they would saturate.
  const __m256i flip = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
  const __m256i value = _mm256_xor_si256(_mm256_set1_epi32(four), flip), size = _mm256_abs_epi8(value);
  const __m256i pairs0 = _mm256_maddubs_epi16(size, _mm256_sign_epi8(b0, value));
  const __m256i pairs1 = _mm256_maddubs_epi16(size, _mm256_sign_epi8(b1, value));
  sum0 = _mm256_add_epi32(sum0, _mm256_madd_epi16(pairs0, ones));
  sum1 = _mm256_add_epi32(sum1, _mm256_madd_epi16(pairs1, ones));
#endif
}

#endif

// Rows x 32 columns of one block of 16 rows. Cold: meanwhile bring the weights `ahead` nearer.
template <int Rows, int ZeroPoint, int Lines, bool Cold>
#if defined(__AVXVNNI__)
__attribute__((noinline))  // inlined, it would keep some of its sums in memory
#else
inline
#endif
void multiply_rows(const uint8_t* a, int64_t step, const uint8_t* const* columns, int64_t kb, const int32_t* comp,
                   int32_t* sums, int64_t pitch, [[maybe_unused]] int64_t ahead) {
#if defined(__AVX512VNNI__)
  __m512i sum[2][Rows];
  for (int n = 0; n < 2; n++)
    for (int m = 0; m < Rows; m++) sum[n][m] = _mm512_loadu_si512(comp + 16 * n);
  for (int64_t k = 0; k < kb; k++, a += step)
    for (int line = 0; line < Lines; line++) {
      const uint8_t *w0 = columns[0] + k * kBlock + line * 64, *w1 = columns[1] + k * kBlock + line * 64;
      const __m512i b0 = _mm512_loadu_si512(w0), b1 = _mm512_loadu_si512(w1);
      if constexpr (Cold) {
        _mm_prefetch(reinterpret_cast<const char*>(w0 + ahead), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(w1 + ahead), _MM_HINT_T1);
      }
#pragma GCC unroll 16
      for (int m = 0; m < Rows; m++) {
        int32_t four;
        std::memcpy(&four, a + m * kDepth + line * 4, 4);
        const __m512i broadcast = _mm512_set1_epi32(four);
        sum[0][m] = _mm512_dpbusd_epi32(sum[0][m], broadcast, b0);
        sum[1][m] = _mm512_dpbusd_epi32(sum[1][m], broadcast, b1);
      }
    }
  for (int n = 0; n < 2; n++)
    for (int m = 0; m < Rows; m++) _mm512_storeu_si512(sums + m * pitch + n * 16, sum[n][m]);
#elif defined(__AVX2__)
  for (int n = 0; n < 2; n++) {
    __m256i sum[2][Rows];
    for (int half = 0; half < 2; half++)
      for (auto& each : sum[half])  // signed activations need no correction for a zero point
        each = kSigned && ZeroPoint ? _mm256_setzero_si256()
                                    : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(comp + n * 16 + half * 8));
    const uint8_t* x = a;
    for (int64_t k = 0; k < kb; k++, x += step)
      for (int line = 0; line < Lines; line++) {
        const uint8_t* w = columns[n] + k * kBlock + line * 64;
        const __m256i b0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
        const __m256i b1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32));
        if constexpr (Cold) _mm_prefetch(reinterpret_cast<const char*>(w + ahead), _MM_HINT_T1);
#pragma GCC unroll 6
        for (int m = 0; m < Rows; m++) {
          int32_t four;
          std::memcpy(&four, x + m * kDepth + line * 4, 4);
          add_products(four, b0, b1, sum[0][m], sum[1][m]);
        }
      }
    for (int half = 0; half < 2; half++)
      for (int m = 0; m < Rows; m++)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + m * pitch + n * 16 + half * 8), sum[half][m]);
  }
#else
  for (int n = 0; n < 2; n++)
    for (int m = 0; m < Rows; m++) {
      Ints sum = load(comp + 16 * n);
      for (int64_t k = 0; k < kb; k++)
        for (int line = 0; line < Lines; line++)
          for (int i = 0; i < 64; i++)
            sum[i / 4] += a[k * step + m * kDepth + line * 4 + i % 4] *
                          reinterpret_cast<const int8_t*>(columns[n])[k * kBlock + line * 64 + i];
      std::memcpy(sums + m * pitch + n * 16, &sum, sizeof sum);
    }
#endif
}

template <int Tiles, int ZeroPoint, int Lines>
inline void multiply(const uint8_t* const* rows, int64_t step, const uint8_t* const* columns, int64_t kb,
                     const int32_t* comp, int32_t* sums, int64_t pitch, int64_t ahead) {
#if defined(__AVX512VNNI__)
  constexpr int kAtOnce = 8;
  constexpr bool kFetches = true;
#elif defined(__AVXVNNI__)
  constexpr int kAtOnce = 6;  // 12 sums in 16 registers: with fewer, each would wait for its last product
  constexpr bool kFetches = true;
#else
  constexpr int kAtOnce = 4;
  constexpr bool kFetches = false;  // arithmetic takes longer than the weights' way from memory
#endif
  constexpr int kLast = kRows % kAtOnce;
  for (int tile = 0; tile < Tiles; tile++) {
    for (int m = 0; m < kRows - kLast; m += kAtOnce) {
      const uint8_t* a = rows[tile] + m * kDepth;
      int32_t* to = sums + (tile * kRows + m) * pitch;
      if (kFetches && ahead && !tile && !m)
        multiply_rows<kAtOnce, ZeroPoint, Lines, true>(a, step, columns, kb, comp, to, pitch, ahead);
      else
        multiply_rows<kAtOnce, ZeroPoint, Lines, false>(a, step, columns, kb, comp, to, pitch, 0);
    }
    if constexpr (kLast > 0)
      multiply_rows<kLast, ZeroPoint, Lines, false>(rows[tile] + (kRows - kLast) * kDepth, step, columns, kb, comp,
                                             sums + ((tile + 1) * kRows - kLast) * pitch, pitch, 0);
  }
}

#endif

}  // namespace
