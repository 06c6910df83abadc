// Linear layers over packed tokens, and what happens to their outputs while they are in the first level cache.
#pragma once

#include "gemm.h"

namespace {

// y of 16 columns from their sums: scaled, then the bias, as training computes it.
inline Floats outputs(const Linear& layer, const int32_t* sums, int64_t column) {
  return to_floats(load(sums)) * load(layer.r + column) + load(layer.bias + column);
}

constexpr int64_t kChunk = 128;  // rows that one task takes: they share its weights in the cache

// Compute `rows` rows and call finish(row, column, sums of 16 columns) for each row and each 16 columns.
// To be called by all threads of a team; they share the work and do not wait for each other at the end.
template <class Finish>
inline void linear_nowait(const Linear& layer, const uint8_t* a, int64_t rows, Finish finish) {
  const int64_t panels = layer.np / kPanel, chunks = (rows + kChunk - 1) / kChunk, kb = layer.kb;
#pragma omp for schedule(dynamic) nowait
  for (int64_t task = 0; task < panels * chunks; task++) {
    alignas(64) int32_t sums[2 * kRows][kPanel];
    const int64_t column = task % panels * kPanel, end = lesser(rows, (task / panels + 1) * kChunk);
    const uint8_t* weights[2] = {layer.w + column * kb * kDepth, layer.w + (column + 16) * kb * kDepth};
    for (int64_t row = task / panels * kChunk; row < end; row += 2 * kRows) {
      const uint8_t* blocks[2] = {a + at(row, 0, kb), a + at(row + kRows, 0, kb)};
      const int64_t count = lesser(end - row, 2 * kRows);
      if (count > kRows)
        multiply<2>(blocks, kBlock, weights, kb, layer.comp + column, sums[0], kPanel);
      else
        multiply<1>(blocks, kBlock, weights, kb, layer.comp + column, sums[0], kPanel);
      for (int64_t m = 0; m < count; m++) {
        finish(row + m, column, sums[m]);
        finish(row + m, column + 16, sums[m] + 16);
      }
    }
  }
}

template <class Finish>
inline void linear(const Linear& layer, const uint8_t* a, int64_t rows, Finish finish) {
  linear_nowait(layer, a, rows, finish);
#pragma omp barrier
}

// to (rows, pitch) += y
inline void linear_add(const Linear& layer, const uint8_t* a, int64_t rows, float* to, int64_t pitch) {
  linear(layer, a, rows, [=, &layer](int64_t row, int64_t column, const int32_t* sums) {
    if (column >= pitch) return;
    float* place = to + row * pitch + column;
    store(place, outputs(layer, sums, column) + load(place));
  });
}

// to = quantize(gelu(y)), as activations of the next layer
inline void linear_gelu(const Linear& layer, const uint8_t* a, int64_t rows, uint8_t* to, const Linear& next) {
  linear(layer, a, rows, [=, &layer, &next](int64_t row, int64_t column, const int32_t* sums) {
    if (column >= next.kb * kDepth) return;
    store(to + at(row, column, next.kb), to_bytes(gelu(outputs(layer, sums, column)) * next.input_inverse));
  });
}

// to (rows, n) = y
inline void linear_floats(const Linear& layer, const uint8_t* a, int64_t rows, float* to, int64_t pitch) {
  linear(layer, a, rows, [=, &layer](int64_t row, int64_t column, const int32_t* sums) {
    const Floats y = outputs(layer, sums, column);
    const int64_t count = lesser(16, layer.n - column);
    for (int64_t i = 0; i < count; i++) to[row * pitch + column + i] = y[i];
  });
}

// A layer that reads what is about to be quantized, and where it wants it.
struct Target {
  uint8_t* to;
  float inverse;
  int64_t kb;
};

inline void quantize(const Target& target, int64_t row, int64_t column, Floats x) {
  store(target.to + at(row, column, target.kb), to_bytes(x * target.inverse));
}

}  // namespace
