// The products of a linear layer, and how AVX2 without VNNI computes them: vpmaddubsw takes activations as they are where
// the weights are in an order in which its sums fit (order.h): fewer instructions than other products take.
#pragma once

#include "order.h"

namespace {

constexpr bool kOrders = kSigned;

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)

constexpr int kOrderedRows = 4;  // so many rows' activations are put in order at a time; a slice of them takes 16 KiB

// Four rows of a slice of activations in the order of its `count` groups, one group after the other.
inline void put_in_order(const uint8_t* a, const uint8_t* orders, const uint8_t* places, int64_t count, uint8_t* to) {
  constexpr int kOfBlock = kDepth / kGroup;
  for (int64_t group = 0; group < count; group++, orders += kGroup) {
    const uint8_t* from = a + places[group] / kOfBlock * kBlock + places[group] % kOfBlock * kGroup;
    const __m128i order = _mm_loadu_si128(reinterpret_cast<const __m128i*>(orders));
#pragma GCC unroll 4
    for (int m = 0; m < kOrderedRows; m++, to += kGroup) {
      const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + m * kDepth));
      _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(own, order));
    }
  }
}

using OrderedSums = __m256i[2][kOrderedRows];  // of 8 columns each

// Add the products of a group's activations and weights. Fits: the weights of all neighbours do.
template <bool Fits>
inline void add_group(const uint8_t* a, const uint8_t* w, OrderedSums& sum) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int line = 0; line < kGroup; line += 4, w += 64) {
    const __m256i b0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    const __m256i b1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32));
#pragma GCC unroll 4
    for (int m = 0; m < kOrderedRows; m++) {
      int32_t four;
      std::memcpy(&four, a + m * kGroup + line, 4);
      if constexpr (Fits) {
        const __m256i value = _mm256_set1_epi32(four);
        sum[0][m] = _mm256_add_epi32(sum[0][m], _mm256_madd_epi16(_mm256_maddubs_epi16(value, b0), ones));
        sum[1][m] = _mm256_add_epi32(sum[1][m], _mm256_madd_epi16(_mm256_maddubs_epi16(value, b1), ones));
      } else {
        add_products(four, b0, b1, sum[0][m], sum[1][m]);
      }
      // The compiler would add up the products of all lines first, for which there are not enough registers.
      __asm__("" : "+x"(sum[0][m]), "+x"(sum[1][m]));
    }
  }
}

// Four rows of `groups` groups, in order, x 16 columns, on top of `start`, `start_pitch` numbers from row to row. Not
// inlined: all layers share it.
__attribute__((noinline)) inline void multiply_ordered(const uint8_t* a, const uint8_t* order, const uint8_t* w,
                                                       int64_t groups, const int32_t* start, int64_t start_pitch,
                                                       int32_t* sums) {
  constexpr int kBytes = kOrderedRows * kGroup;
  OrderedSums sum;
  for (int half = 0; half < 2; half++)
    for (int m = 0; m < kOrderedRows; m++)
      sum[half][m] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + m * start_pitch + 8 * half));
  const uint8_t* const end = order + groups * kGroup;
  for (; order < end && !(*order & kTooLarge); order += kGroup, a += kBytes, w += kGroup * 16)
    add_group<true>(a, w, sum);
  for (; order < end; order += kGroup, a += kBytes, w += kGroup * 16) add_group<false>(a, w, sum);
  for (int half = 0; half < 2; half++)
    for (int m = 0; m < kOrderedRows; m++)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + m * kPanel + 8 * half), sum[half][m]);
}

// The same for up to `rows` rows of the blocks, and both halves of a panel.
inline void multiply_panel_in_order(const Linear& layer, const uint8_t* const* blocks, int64_t rows, int64_t column,
                                    int32_t* sums) {
  alignas(64) uint8_t ordered[kOrderedRows * kSliceGroups * kGroup];
  const int64_t depth = layer.kb * kDepth, groups = depth / kGroup;
  const uint8_t *orders = layer.order + column / kPanel * order_bytes(depth), *places = orders + depth;
  for (int64_t m = 0; m < rows; m += kOrderedRows)
    for (int64_t first = 0; first < groups; first += kSliceGroups) {
      const int64_t count = lesser(kSliceGroups, groups - first);
      const uint8_t* a = blocks[m / kRows] + first * kGroup / kDepth * kBlock + m % kRows * kDepth;
      put_in_order(a, orders + first * kGroup, places + first, count, ordered);
      for (int n = 0; n < kPanel; n += 16) {
        int32_t* to = sums + m * kPanel + n;
        const int32_t* start = first ? to : layer.comp + column + n;
        const uint8_t* w = layer.w + (column + n) * depth + first * kGroup * 16;
        multiply_ordered(ordered, orders + first * kGroup, w, count, start, first ? kPanel : 0, to);
      }
    }
}

#endif

// `rows` rows, or all of the 16 * Tiles rows in the blocks if there are fewer, x the panel of a layer's columns from
// `column` on, into sums (16 * Tiles, kPanel); those of other rows may be anything. `ahead` as for `multiply`.
template <int Tiles>
inline void multiply_panel(const Linear& layer, const uint8_t* const* blocks, [[maybe_unused]] int64_t rows,
                           int64_t column, int32_t* sums, [[maybe_unused]] int64_t ahead = 0) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
  multiply_panel_in_order(layer, blocks, lesser(rows, Tiles * kRows), column, sums);
#else
  const int64_t kb = layer.kb;
  const uint8_t* weights[2] = {layer.w + column * kb * kDepth, layer.w + (column + 16) * kb * kDepth};
  multiply<Tiles, 0>(blocks, kBlock, weights, kb, layer.comp + column, sums, kPanel, ahead);
#endif
}

}  // namespace
