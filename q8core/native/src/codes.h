// Weights of few bits, which stay packed in memory: where their codes are, and how they become s8.
//
// A block is one of gemm.h, 64 inputs x 16 outputs in 16 lines of 64 bytes, with 8 / bits lines side by side in the bits
// of the same 64 bytes: at 4 bits the first line is in the low halves of them and the second one in the high halves. A
// code c of output n stands for levels[c] - zeros[n], exactly. Codes of 3 bits take 4. Padded inputs have the code of 0.
#pragma once

#include "gemm.h"

namespace {

// Where a line of a block is: the first of its 64 bytes, and the lowest of its bits.
struct CodePlace {
  int line, shift;

  CodePlace(int bits, int number) : line(number / (8 / bits) * 64), shift(number % (8 / bits) * bits) {}
};

// Bytes of a block.
inline int64_t code_block(int bits) { return kBlock / 8 * bits; }

// The inverse of the levels.
struct CodeOf {
  int16_t codes[256];

  CodeOf(int bits, const int8_t* levels) {
    for (auto& each : codes) each = -1;
    for (int code = (1 << bits) - 1; code >= 0; code--) codes[levels[code] + 128] = static_cast<int16_t>(code);
  }
  // -1 if there is none.
  int32_t operator()(int32_t level) const { return level < -128 || level > 127 ? -1 : codes[level + 128]; }
};

// Up to this magnitude of weights, AVX2 without VNNI adds up some of their products with activations in 16 bits.
constexpr int32_t kLargestIn16Bits = 16;

// Pack a weight (n, k) into `packed`, which must be zeros, and the sum of each row into `totals`; `zeros`: one of each row,
// or null. Returns the largest magnitude; -1 if there is no code for a number, or for the zeros of the padding.
inline int32_t pack_codes(const int8_t* weight, int64_t n, int64_t k, const CodeOf& code_of, const int8_t* zeros, int bits,
                          uint8_t* packed, int32_t* totals) {
  const int64_t kb = up(k, kDepth) / kDepth;
  int32_t largest = 0;
  for (int64_t row = 0; row < n; row++)
    for (int64_t i = 0; i < kb * kDepth; i++) {
      const int32_t w = i < k ? weight[row * k + i] : 0, size = w < 0 ? -w : w;
      const int32_t code = code_of(w + (zeros ? zeros[row] : 0));
      if (code < 0) return -1;
      totals[row] += w;
      largest = size > largest ? size : largest;
      const CodePlace place(bits, static_cast<int>(i % kDepth / 4));
      packed[(row / 16 * kb + i / kDepth) * code_block(bits) + place.line + row % 16 * 4 + i % 4] |= code << place.shift;
    }
  return largest;
}

// The codes of 32 outputs, the next blocks of depth behind each other, and what is needed to decode them.
struct CodePanel {
  alignas(64) int8_t levels[64];      // again in every 16 bytes, between which a shuffle does not move any
  alignas(64) int8_t zeros[2][64];    // zero points of 16 outputs, each beside its 4 neighbouring inputs, as in a line
  const uint8_t* columns[2];          // the first block of 16 outputs

  CodePanel(const Linear& layer, int64_t column) {
    for (int i = 0; i < 64; i++) levels[i] = layer.levels[i % 16];
    for (int n = 0; n < 2; n++) {
      const int64_t first = column + 16 * n;
      for (int i = 0; i < 64; i++) zeros[n][i] = layer.zeros ? layer.zeros[first + i / 4] : 0;
      columns[n] = layer.w + first / 16 * layer.kb * code_block(layer.bits);
    }
  }
};

#if defined(__AVX2__)

#if defined(__AVX512VNNI__)
typedef __m512i Wide;
inline Wide load_wide(const void* from) { return _mm512_loadu_si512(from); }
inline void store_wide(void* to, Wide x) { _mm512_storeu_si512(to, x); }
inline Wide less(Wide x, Wide y) { return _mm512_sub_epi8(x, y); }
template <int Bits, int Line>
inline Wide levels_of(Wide packed, Wide levels) {
  const Wide codes = Line ? _mm512_srli_epi16(packed, Line * Bits) : packed;  // what comes from the next byte is cut off
  return _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, _mm512_set1_epi8((1 << Bits) - 1)));
}
#else
typedef __m256i Wide;
inline Wide load_wide(const void* from) { return _mm256_loadu_si256(static_cast<const Wide*>(from)); }
inline void store_wide(void* to, Wide x) { _mm256_storeu_si256(static_cast<Wide*>(to), x); }
inline Wide less(Wide x, Wide y) { return _mm256_sub_epi8(x, y); }
template <int Bits, int Line>
inline Wide levels_of(Wide packed, Wide levels) {
  const Wide codes = Line ? _mm256_srli_epi16(packed, Line * Bits) : packed;
  return _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, _mm256_set1_epi8((1 << Bits) - 1)));
}
#endif

template <int Bits, int Line = 0>
inline void decode_lines(Wide packed, Wide levels, Wide zeros, uint8_t* to) {
  if constexpr (Line < 8 / Bits) {
    store_wide(to + Line * 64, less(levels_of<Bits, Line>(packed, levels), zeros));
    decode_lines<Bits, Line + 1>(packed, levels, zeros, to);
  }
}

// Block k of the panel's columns n, to a block of gemm.h.
template <int Bits>
inline void decode(const CodePanel& panel, int n, int64_t k, uint8_t* to) {
  const uint8_t* from = panel.columns[n] + k * code_block(Bits);
  const Wide levels = load_wide(panel.levels);
  for (int half = 0; half < 64; half += sizeof(Wide)) {
    const Wide zeros = load_wide(panel.zeros[n] + half);
#pragma GCC unroll 8
    for (int row = 0; row < 2 * Bits; row++)
      decode_lines<Bits>(load_wide(from + row * 64 + half), levels, zeros, to + row * (8 / Bits) * 64 + half);
  }
}

#else

template <int Bits>
inline void decode(const CodePanel& panel, int n, int64_t k, uint8_t* to) {
  const uint8_t* from = panel.columns[n] + k * code_block(Bits);
  for (int line = 0; line < 16; line++) {
    const CodePlace place(Bits, line);
    for (int i = 0; i < 64; i++) {
      const int code = from[place.line + i] >> place.shift & ((1 << Bits) - 1);
      to[line * 64 + i] = static_cast<uint8_t>(panel.levels[code] - panel.zeros[n][i]);
    }
  }
}

#endif

}  // namespace
