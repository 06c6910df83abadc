// Products of activations and weights of few bits: the sums of gemm.h's products with the decoded weights, to the bit.
#pragma once

#include "codes.h"

namespace {

// Add up 16 * tiles rows x 32 columns from `column` on into sums[row][column], kPanel numbers from row to row. `rows`: the
// first block of each 16 rows, the others follow; `ahead`: as for `multiply`.
typedef void (*ProductOfCodes)(const Linear& layer, int64_t column, const uint8_t* const* rows, int tiles, int32_t* sums,
                               int64_t ahead);

inline void begin_sums(const int32_t* start, int rows, int32_t* sums) {
  for (int m = 0; m < rows; m++) std::memcpy(sums + m * kPanel, start, kPanel * sizeof(int32_t));
}

#if defined(__AMX_INT8__)

// Tiles are loaded from memory: two blocks are decoded while those before are multiplied.
template <int Bits, int Tiles>
inline void multiply_tiles(const CodePanel& panel, int64_t kb, const int32_t* comp, const uint8_t* const* rows,
                           int32_t* sums) {
  alignas(64) uint8_t decoded[2][2][kBlock];
  const uint8_t *a0 = rows[0], *a1 = rows[Tiles - 1];
  written();
  _tile_loadd(0, comp, 0);
  _tile_loadd(1, comp + 16, 0);
  if (Tiles == 2) {
    _tile_loadd(2, comp, 0);
    _tile_loadd(3, comp + 16, 0);
  }
  for (int64_t k = 0; k < kb; k++, a0 += kBlock, a1 += kBlock) {
    auto& blocks = decoded[k % 2];
    for (int n = 0; n < 2; n++) decode<Bits>(panel, n, k, blocks[n]);
    written();
    _tile_loadd(6, blocks[0], 64);
    _tile_loadd(4, a0, 64);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, blocks[1], 64);
    _tile_dpbusd(1, 4, 7);
    if (Tiles == 2) {
      _tile_loadd(5, a1, 64);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 4 * kPanel);
  _tile_stored(1, sums + 16, 4 * kPanel);
  if (Tiles == 2) {
    _tile_stored(2, sums + kRows * kPanel, 4 * kPanel);
    _tile_stored(3, sums + kRows * kPanel + 16, 4 * kPanel);
  }
}

template <int Bits>
__attribute__((noinline)) void multiply_codes(const Linear& layer, int64_t column, const uint8_t* const* rows, int tiles,
                                              int32_t* sums, int64_t) {
  const CodePanel panel(layer, column);
  if (tiles == 2)
    multiply_tiles<Bits, 2>(panel, layer.kb, layer.comp + column, rows, sums);
  else
    multiply_tiles<Bits, 1>(panel, layer.kb, layer.comp + column, rows, sums);
}

#elif defined(__AVX512VNNI__)

// 8 rows x 32 columns of the lines that are side by side in the same bytes.
template <int Bits, bool Zeros, int Line = 0>
__attribute__((always_inline)) inline void add_lines(const uint8_t* a, const __m512i (&packed)[2], __m512i levels, const __m512i (&zeros)[2],
                      __m512i (&sum)[2][8]) {
  if constexpr (Line < 8 / Bits) {
    __m512i b[2];
    for (int n = 0; n < 2; n++) {
      b[n] = levels_of<Bits, Line>(packed[n], levels);
      if (Zeros) b[n] = less(b[n], zeros[n]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < 8; m++) {
      int32_t four;
      std::memcpy(&four, a + m * kDepth + Line * 4, 4);
      const __m512i broadcast = _mm512_set1_epi32(four);
      sum[0][m] = _mm512_dpbusd_epi32(sum[0][m], broadcast, b[0]);
      sum[1][m] = _mm512_dpbusd_epi32(sum[1][m], broadcast, b[1]);
    }
    add_lines<Bits, Zeros, Line + 1>(a, packed, levels, zeros, sum);
  }
}

// 8 rows x 32 columns; weights are decoded in registers. Cold: as for `multiply_rows`.
template <int Bits, bool Zeros, bool Cold>
__attribute__((noinline)) void multiply_codes_rows(const uint8_t* a, const CodePanel& panel, int64_t kb,
                                                   const int32_t* comp, int32_t* sums,
                                                   [[maybe_unused]] int64_t ahead) {
  __m512i sum[2][8];
  for (int n = 0; n < 2; n++)
    for (auto& each : sum[n]) each = _mm512_loadu_si512(comp + 16 * n);
  const __m512i levels = load_wide(panel.levels), zeros[2] = {load_wide(panel.zeros[0]), load_wide(panel.zeros[1])};
  const uint8_t *w0 = panel.columns[0], *w1 = panel.columns[1];
  for (int64_t k = 0; k < kb; k++, a += kBlock)
    for (int row = 0; row < 2 * Bits; row++, w0 += 64, w1 += 64) {
      const __m512i packed[2] = {load_wide(w0), load_wide(w1)};
      if constexpr (Cold) {
        _mm_prefetch(reinterpret_cast<const char*>(w0 + ahead), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(w1 + ahead), _MM_HINT_T1);
      }
      add_lines<Bits, Zeros>(a + row * (8 / Bits) * 4, packed, levels, zeros, sum);
    }
  for (int n = 0; n < 2; n++)
    for (int m = 0; m < 8; m++) _mm512_storeu_si512(sums + m * kPanel + n * 16, sum[n][m]);
}

template <int Bits, bool Zeros>
inline void multiply_codes_with(const Linear& layer, int64_t column, const uint8_t* const* rows, int tiles,
                                int32_t* sums, int64_t ahead) {
  const CodePanel panel(layer, column);
  for (int m = 0; m < kRows * tiles; m += 8) {
    const uint8_t* a = rows[m / kRows] + m % kRows * kDepth;
    const auto some = ahead && !m ? multiply_codes_rows<Bits, Zeros, true> : multiply_codes_rows<Bits, Zeros, false>;
    some(a, panel, layer.kb, layer.comp + column, sums + m * kPanel, ahead);
  }
}

template <int Bits>
__attribute__((noinline)) void multiply_codes(const Linear& layer, int64_t column, const uint8_t* const* rows, int tiles,
                                              int32_t* sums, int64_t ahead) {
  if (layer.zeros)
    multiply_codes_with<Bits, true>(layer, column, rows, tiles, sums, ahead);
  else
    multiply_codes_with<Bits, false>(layer, column, rows, tiles, sums, ahead);
}

#else

template <int Tiles>
__attribute__((noinline)) void multiply_decoded(const uint8_t* const* rows, const uint8_t* const* columns, int64_t kb,
                                                const int32_t* start, int32_t* sums) {
  multiply<Tiles, 0>(rows, kBlock, columns, kb, start, sums, kPanel);
}

// A few blocks of depth are decoded at a time, for all rows.
template <int Bits>
__attribute__((noinline)) void multiply_codes(const Linear& layer, int64_t column, const uint8_t* const* rows, int tiles,
                                              int32_t* sums, int64_t) {
  constexpr int64_t kAtOnce = 4;
  alignas(64) uint8_t decoded[2][kAtOnce * kBlock];
  alignas(64) int32_t some[2 * kRows * kPanel];
  alignas(64) const int32_t nothing[kPanel] = {};
  const uint8_t* const columns[2] = {decoded[0], decoded[1]};
  const CodePanel panel(layer, column);
  begin_sums(layer.comp + column, kRows * tiles, sums);
  for (int64_t k = 0; k < layer.kb; k += kAtOnce) {
    const int64_t count = lesser(kAtOnce, layer.kb - k);
    for (int n = 0; n < 2; n++)
      for (int64_t i = 0; i < count; i++) decode<Bits>(panel, n, k + i, decoded[n] + i * kBlock);
    const uint8_t* blocks[2] = {rows[0] + k * kBlock, rows[tiles - 1] + k * kBlock};
    (tiles == 2 ? multiply_decoded<2> : multiply_decoded<1>)(blocks, columns, count, nothing, some);
    for (int i = 0; i < kRows * tiles * kPanel; i++) sums[i] += some[i];
  }
}

#if defined(__AVX2__) && !defined(__AVXVNNI__)

// Add 4 rows of a block of activations times a decoded one to their sums of 16 columns. Products add up in 16 bits over
// `Lines` lines. For u8 activations and |w| <= 64 / Lines they fit: 2 * 255 * (64 / Lines) * Lines = 32640.
template <int Lines>
inline void add_rows(const uint8_t* a, const uint8_t* w, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int first = 0; first < 16; first += Lines) {
    __m256i sum[2][4] = {};
#pragma GCC unroll 1
    for (int line = first; line < first + Lines; line++) {
      const __m256i b0 = load_wide(w + line * 64), b1 = load_wide(w + line * 64 + 32);
#pragma GCC unroll 4
      for (int m = 0; m < 4; m++) {
        int32_t four;
        std::memcpy(&four, a + m * kDepth + line * 4, 4);
        const __m256i value = _mm256_set1_epi32(four);
        sum[0][m] = _mm256_add_epi16(sum[0][m], _mm256_maddubs_epi16(value, b0));
        sum[1][m] = _mm256_add_epi16(sum[1][m], _mm256_maddubs_epi16(value, b1));
      }
    }
    for (int m = 0; m < 4; m++)
      for (int half = 0; half < 2; half++) {
        int32_t* to = sums + m * kPanel + half * 8;
        store_wide(to, _mm256_add_epi32(load_wide(to), _mm256_madd_epi16(sum[half][m], ones)));
      }
  }
}

// A block is decoded at a time, for all rows. Takes no sign from activations, and so no 128.
template <int Bits, int Lines>
__attribute__((noinline)) void multiply_small(const Linear& layer, int64_t column, const uint8_t* const* rows, int tiles,
                                              int32_t* sums, int64_t) {
  alignas(64) uint8_t decoded[kBlock];
  const CodePanel panel(layer, column);
  begin_sums(layer.comp + column, kRows * tiles, sums);
  for (int n = 0; n < 2; n++)
    for (int64_t k = 0; k < layer.kb; k++) {
      decode<Bits>(panel, n, k, decoded);
      for (int m = 0; m < kRows * tiles; m += 4)
        add_rows<Lines>(rows[m / kRows] + k * kBlock + m % kRows * kDepth, decoded, sums + m * kPanel + n * 16);
    }
}

#endif
#endif

// The product for weights of so many bits and of this size: 16-bit sums where it is AVX2 that multiplies and they fit.
template <int Bits>
inline ProductOfCodes product_of_bits([[maybe_unused]] const Linear& layer) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
  if (layer.largest <= 4) return multiply_small<Bits, 16>;
  if (layer.largest <= 8) return multiply_small<Bits, 8>;
  if (layer.largest <= kLargestIn16Bits) return multiply_small<Bits, 4>;
#endif
  return multiply_codes<Bits>;
}

inline ProductOfCodes product_of(const Linear& layer) {
  return layer.bits == 4 ? product_of_bits<4>(layer) : layer.bits == 2 ? product_of_bits<2>(layer) : product_of_bits<1>(layer);
}

}  // namespace
