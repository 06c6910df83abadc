// Linear layers over packed tokens, and what happens to their outputs while they are in the first level cache.
#pragma once

#include <omp.h>

#include "code_products.h"
#include "ordered.h"

namespace {

// Activations of a layer, and the scale of each row if rows have their own.
struct Activations {
  uint8_t* bytes;
  float* scales;

  // Those from row `row` on, a multiple of 16.
  Activations from(int64_t row, int64_t kb) const { return {bytes + at(row, 0, kb), scales + row}; }
};

// A block of up to 16 rows, whole ones but for the last, and 16 columns of a layer's outputs on their way out.
struct Block {
  int64_t row, count, column;
  const int32_t* sums;   // kPanel numbers from row to row
  const float* scales;   // of the rows; null if they have none of their own

  // Call use(m, y) for row + m; y is scaled, then the bias is added, as training computes it.
  template <class Use>
  void outputs(const Linear& layer, Use use) const {
    const Floats r = load(layer.r + column), bias = load(layer.bias + column);
    if (scales)
      for (int64_t m = 0; m < count; m++) use(m, to_floats(load(sums + m * kPanel)) * r * scales[m] + bias);
    else
      for (int64_t m = 0; m < count; m++) use(m, to_floats(load(sums + m * kPanel)) * r + bias);
  }
};

// Rows that one task takes, a multiple of 32: they share its weights, and stay in the second level cache from task to
// task. Fewer where threads would have too little to choose from.
inline int64_t chunk_rows(const Linear& layer, int64_t rows) {
  constexpr int64_t kCache = 1024 * 1024;
  const int64_t fair = rows * (layer.np / kPanel) / (4 * omp_get_num_threads());
  const int64_t most = lesser(kCache / (layer.kb * kDepth), fair) / (2 * kRows) * (2 * kRows);
  return most > 2 * kRows ? most : 2 * kRows;
}

// Compute `rows` rows and call finish(block) for each block of outputs.
// To be called by all threads of a team; they share the work and do not wait for each other at the end. The same holds
// for the functions below.
template <class Finish>
inline void linear(const Linear& layer, const Activations& a, int64_t rows, Finish finish) {
  const float* scales = layer.input.per_row() ? a.scales : nullptr;
  const int64_t kb = layer.kb, chunk = chunk_rows(layer, rows);
  const int64_t panels = layer.np / kPanel, chunks = (rows + chunk - 1) / chunk;
  // From a thread's panel to its next one, in bytes.
  const int64_t next = omp_get_num_threads() * kPanel * kb * kDepth / 8 * layer.bits;
  const ProductOfCodes of_codes = layer.levels ? product_of(layer) : nullptr;
#pragma omp for schedule(dynamic) nowait
  for (int64_t task = 0; task < panels * chunks; task++) {
    alignas(64) int32_t sums[2 * kRows][kPanel];
    const int64_t column = task % panels * kPanel, end = lesser(rows, (task / panels + 1) * chunk);
    const int64_t begin = task / panels * chunk;
    for (int64_t row = begin; row < end; row += 2 * kRows) {
      const uint8_t* blocks[2] = {a.bytes + at(row, 0, kb), a.bytes + at(row + kRows, 0, kb)};
      const int64_t ahead = row == begin ? next : 0;
      if (of_codes)
        of_codes(layer, column, blocks, end - row > kRows ? 2 : 1, sums[0], ahead);
      else if (end - row > kRows)
        multiply_panel<2>(layer, blocks, end - row, column, sums[0], ahead);
      else
        multiply_panel<1>(layer, blocks, end - row, column, sums[0], ahead);
      for (int64_t m = 0; m < 2 * kRows && row + m < end; m += kRows) {
        const float* own = scales ? scales + row + m : nullptr;
        for (int n = 0; n < kPanel; n += 16)
          finish(Block{row + m, lesser(kRows, end - row - m), column + n, sums[m] + n, own});
      }
    }
  }
}

// to (rows, pitch) += y
inline void linear_add(const Linear& layer, const Activations& a, int64_t rows, float* to, int64_t pitch) {
  linear(layer, a, rows, [=, &layer](const Block& block) {
    if (block.column >= pitch) return;
    float* place = to + block.row * pitch + block.column;
    block.outputs(layer, [=](int64_t m, Floats y) { store(place + m * pitch, y + load(place + m * pitch)); });
  });
}

inline Bytes to_bytes(Floats x, const Grid& grid) { return to_bytes(x, grid.low, grid.high, grid.shift); }

// to = quantize(gelu(y)), as activations of the next layer, whose grid is fixed
inline void linear_gelu(const Linear& layer, const Activations& a, int64_t rows, uint8_t* to, const Linear& next) {
  const int64_t kb = next.kb;
  const Grid grid = next.input;
  linear(layer, a, rows, [=, &layer](const Block& block) {
    if (block.column >= kb * kDepth) return;
    uint8_t* place = to + at(block.row, block.column, kb);
    const Floats inverse = load(grid.inverse + block.column);
    block.outputs(layer, [=](int64_t m, Floats y) { store(place + m * kDepth, to_bytes(gelu(y, inverse), grid)); });
  });
}

// to (rows, pitch) = y
inline void linear_floats(const Linear& layer, const Activations& a, int64_t rows, float* to, int64_t pitch) {
  linear(layer, a, rows, [=, &layer](const Block& block) {
    const int64_t columns = lesser(16, layer.n - block.column);
    float* place = to + block.row * pitch + block.column;
    block.outputs(layer, [=](int64_t m, Floats y) {
      for (int64_t i = 0; i < columns; i++) place[m * pitch + i] = y[i];
    });
  });
}

// A layer that reads what is about to be quantized, and where it wants it.
struct Target {
  Activations to;
  Grid grid;
  int64_t kb;
};

// Onto a fixed grid.
inline void quantize(const Target& target, int64_t row, int64_t column, Floats x) {
  store(target.to.bytes + at(row, column, target.kb), to_bytes(x * load(target.grid.inverse + column), target.grid));
}

// The scale of a row from its largest magnitude: 1 for one of zeros, or if the reciprocal would not be finite.
inline float row_scale(float magnitude) {
  const float scale = magnitude / 127.f;
  return scale < 0x1p-126f ? 1.f : scale;
}

// A row of `columns` numbers, onto a fixed grid or one of its own; no others are read.
inline void quantize_row(const Target& target, int64_t row, const float* x, int64_t columns) {
  const int64_t whole = columns / 16 * 16, rest = columns - whole;
  const Floats last = load(x + whole, rest);
  if (!target.grid.per_row()) {
    for (int64_t i = 0; i < whole; i += 16) quantize(target, row, i, load(x + i));
    if (rest) quantize(target, row, whole, last);
    return;
  }
  // As integers the bits of magnitudes are in order, NaN's after infinity's: NaN makes the scale NaN.
  Ints top = bits(magnitude(last));
  for (int64_t i = 0; i < whole; i += 16) top = greatest(bits(magnitude(load(x + i))), top);
  const int32_t bits = maximum(top);
  float most;
  std::memcpy(&most, &bits, sizeof most);
  const float scale = row_scale(most), inverse = 1.f / scale;
  target.to.scales[row] = scale;
  for (int64_t i = 0; i < whole; i += 16)
    store(target.to.bytes + at(row, i, target.kb), to_bytes(load(x + i) * inverse, target.grid));
  if (rest) store(target.to.bytes + at(row, whole, target.kb), to_bytes(last * inverse, target.grid));
}

// `count` rows of x, `pitch` numbers from one to the next, as the target's rows from `first` on.
inline void quantize_rows(const Target& target, int64_t first, const float* x, int64_t pitch, int64_t count,
                          int64_t columns) {
#pragma omp for schedule(dynamic, 8) nowait
  for (int64_t row = 0; row < count; row++) quantize_row(target, first + row, x + row * pitch, columns);
}

// to (rows, pitch) = use(y), zeros in the padding
template <class Use>
inline void linear_rows(const Linear& layer, const Activations& a, int64_t rows, float* to, int64_t pitch, Use use) {
  linear(layer, a, rows, [=, &layer](const Block& block) {
    if (block.column >= pitch) return;
    float* place = to + block.row * pitch + block.column;
    block.outputs(layer, [=, &block](int64_t m, Floats y) { store(place + m * pitch, use(block, m, y)); });
  });
}

// to (rows, pitch) = y, zeros in the padding; also quantized for each target with a fixed grid
inline void linear_quantized(const Linear& layer, const Activations& a, int64_t rows, float* to, int64_t pitch,
                             const Target* targets, int count) {
  linear_rows(layer, a, rows, to, pitch, [=](const Block& block, int64_t m, Floats y) {
    for (int t = 0; t < count; t++)
      if (!targets[t].grid.per_row()) quantize(targets[t], block.row + m, block.column, y);
    return y;
  });
}

}  // namespace
