// Products of float32 matrices, a block of a few rows by up to 48 columns at a time.
//
// A weight's columns are its outputs, sixteen to a vector. Up to three vectors are a panel: its numbers for the first
// input, then those for the second, and so on. Activations are plain rows. Sums are taken over the inputs in the same
// order, whatever the instruction set and the other rows are.
#pragma once

#include "gemm.h"

namespace {

constexpr int kWidest = 3;  // vectors of a panel
#if defined(__AVX512F__)
constexpr int kFloatRows = 8, kAtOnce = kWidest;  // 24 sums, 3 vectors of weights and an activation in 32 registers
#else
constexpr int kFloatRows = 6, kAtOnce = 1;  // 6 sums in two registers each, of 16
#endif
constexpr int kMostRows = 8;  // on any instruction set: memory is sized by code that was compiled for none

// From row to row: an odd number of cache lines, so that the rows of a block do not compete for the same places.
inline int64_t float_pitch(int64_t columns) { return (up(columns, kLanes) / kLanes | 1) * kLanes; }

// The panels of a matrix of `columns` columns are of nearly equal width.
struct Panels {
  int64_t vectors, count;

  explicit Panels(int64_t columns) : vectors(up(columns, kLanes) / kLanes), count((vectors + kWidest - 1) / kWidest) {}
  int64_t first(int64_t panel) const { return panel * vectors / count; }  // vector
  int width(int64_t panel) const { return static_cast<int>(first(panel + 1) - first(panel)); }
  // Where the numbers of row `row` of an untransposed weight (columns, depth) go: every width * 16th from here.
  int64_t place(int64_t row, int64_t depth, int64_t* step) const {
    int64_t panel = row / kLanes * count / vectors;
    while (first(panel + 1) <= row / kLanes) panel++;
    *step = width(panel) * kLanes;
    return first(panel) * kLanes * depth + row - first(panel) * kLanes;
  }
};

// Memory to bring nearer meanwhile: `lines` cache lines for every kUnroll inputs.
struct Ahead {
  const float* from;
  int64_t lines;
};
constexpr int64_t kUnroll = 4;

// Rows of activations, `pitch` numbers from one to the next, and a panel, both `depth` inputs deep.
struct Factors {
  const float *a, *b;
  int64_t pitch, depth;
};

// to (Rows, 16 * Vectors) = a b, or += if `more`; b's lines have Width vectors.
template <int Rows, int Vectors, int Width>
inline void multiply_block(const Factors& of, float* to, int64_t to_pitch, bool more, Ahead ahead) {
  constexpr int kTriples = (Rows + 2) / 3;  // rows are addressed from every third one
  Floats sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; m++)
#pragma GCC unroll 3
    for (int n = 0; n < Vectors; n++) sums[m][n] = Floats{};
  const float *a[kTriples], *b = of.b;
  for (int i = 0; i < kTriples; i++) a[i] = of.a + 3 * i * of.pitch;
  const int64_t pitch = of.pitch;
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Floats w[Vectors];
#pragma GCC unroll 3
    for (int n = 0; n < Vectors; n++) w[n] = load(b + 16 * (k * Width + n));
#pragma GCC unroll 8
    for (int m = 0; m < Rows; m++) {
      const Floats x = all(a[m / 3][m % 3 * pitch + k]);
#pragma GCC unroll 3
      for (int n = 0; n < Vectors; n++) sums[m][n] = fma(x, w[n], sums[m][n]);
    }
  };
  const auto advance = [&](int64_t inputs) __attribute__((always_inline)) {
    b += 16 * Width * inputs;
    for (int i = 0; i < kTriples; i++) a[i] += inputs;
  };
  int64_t left = of.depth;
  for (; left >= kUnroll; left -= kUnroll) {
    for (int64_t line = 0; line < ahead.lines; line++, ahead.from += kLanes) __builtin_prefetch(ahead.from, 0, 2);
#pragma GCC unroll 4
    for (int64_t k = 0; k < kUnroll; k++) step(k);
    advance(kUnroll);
  }
  for (; left > 0; left--) step(0), advance(1);
#pragma GCC unroll 8
  for (int m = 0; m < Rows; m++)
#pragma GCC unroll 3
    for (int n = 0; n < Vectors; n++) {
      float* place = to + m * to_pitch + 16 * n;
      store(place, more ? load(place) + sums[m][n] : sums[m][n]);
    }
}

template <int Rows, int Width>
void multiply_panel(const Factors& of, float* to, int64_t to_pitch, bool more, Ahead ahead) {
  constexpr int kVectors = kAtOnce < Width ? kAtOnce : Width;
  for (int n = 0; n < Width; n += kVectors) {
    const Factors part{of.a, of.b + 16 * n, of.pitch, of.depth};
    multiply_block<Rows, kVectors, Width>(part, to + 16 * n, to_pitch, more, ahead);
    ahead.lines = 0;
  }
}

// to (rows, 16 * width) = a b for up to kFloatRows rows, or += if `more`.
inline void multiply_floats(int64_t rows, int width, const Factors& of, float* to, int64_t to_pitch, bool more = false,
                            Ahead ahead = {}) {
#define Q8_WIDTHS(rows) {multiply_panel<rows, 1>, multiply_panel<rows, 2>, multiply_panel<rows, 3>}
  static constexpr void (*kBySize[][kWidest])(const Factors&, float*, int64_t, bool, Ahead) = {
      Q8_WIDTHS(1), Q8_WIDTHS(2), Q8_WIDTHS(3), Q8_WIDTHS(4), Q8_WIDTHS(5), Q8_WIDTHS(6),
#if defined(__AVX512F__)
      Q8_WIDTHS(7), Q8_WIDTHS(8),
#endif
  };
#undef Q8_WIDTHS
  static_assert(sizeof kBySize / sizeof *kBySize == kFloatRows);
  kBySize[rows - 1][width - 1](of, to, to_pitch, more, ahead);
}

// Call use(row, count) for blocks of nearly equal size of at most kFloatRows rows.
template <class Use>
inline void in_blocks(int64_t rows, Use use) {
  const int64_t blocks = (rows + kFloatRows - 1) / kFloatRows;
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t row = block * rows / blocks;
    use(row, (block + 1) * rows / blocks - row);
  }
}

}  // namespace
