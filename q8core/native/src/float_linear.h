// Float32 linear layers over packed tokens, and what happens to their outputs while they are in the first level cache.
#pragma once

#include "float_gemm.h"
#include "float_model.h"

namespace {

constexpr int64_t kFloatChunk = 128;  // most rows that one task takes: they share its weights in the cache
constexpr int64_t kSlice = 384;         // inputs that are summed up at a time

// Some rows and 16 columns of a layer's outputs on their way out.
struct FloatBlock {
  int64_t row, count, column;
  const float* sums;
  int64_t pitch;  // of sums

  // Call use(m, y) for row + m.
  template <class Use>
  void outputs(const FloatLinear& layer, Use use) const {
    const Floats bias = load(layer.bias + column);
    for (int64_t m = 0; m < count; m++) use(m, load(sums + m * pitch) + bias);
  }
};

// Compute `rows` rows and call finish(block) for each block of outputs.
// To be called by all threads of a team; they share the work and do not wait for each other at the end.
template <class Finish>
inline void linear(const FloatLinear& layer, const float* a, int64_t pitch, int64_t rows, int threads,
                          Finish finish) {
  const Panels panels(layer.n);
  const int64_t chunks = (rows + kFloatChunk - 1) / kFloatChunk, depth = layer.k;
#pragma omp for schedule(dynamic) nowait
  for (int64_t task = 0; task < panels.count * chunks; task++) {
    alignas(64) float sums[kFloatChunk][kWidest * kLanes];
    const int64_t chunk = task / panels.count, begin = chunk * rows / chunks;
    const int64_t count = (chunk + 1) * rows / chunks - begin, blocks = (count + kFloatRows - 1) / kFloatRows;
    const int64_t vector = panels.first(task % panels.count);
    const int width = panels.width(task % panels.count);
    const float* weights = layer.w + vector * kLanes * depth;
    // The weights of the task that this thread is likely to get next; after the last, those of the next layer.
    const float* next = weights + threads * width * kLanes * depth;
    const int64_t lines = (kUnroll * width + blocks - 1) / blocks;
    for (int64_t k = 0; k < depth; k += kSlice) {
      const int64_t inputs = lesser(kSlice, depth - k);
      in_blocks(count, [&](int64_t row, int64_t of) {
        const Factors factors{a + (begin + row) * pitch + k, weights + k * width * kLanes, pitch, inputs};
        multiply_floats(of, width, factors, sums[row], kWidest * kLanes, k > 0, {next, lines});
        next += inputs / kUnroll * lines * kLanes;
      });
    }
    for (int n = 0; n < width; n++)
      finish(FloatBlock{begin, count, (vector + n) * kLanes, sums[0] + n * kLanes, kWidest * kLanes});
  }
}

// Rows of floats: where they begin, and numbers from one to the next.
struct Rows {
  float* at;
  int64_t pitch;
};

// to = use(y, place): whole vectors, padding included.
template <class Use>
inline auto into(const FloatLinear& layer, const Rows& to, Use use) {
  return [=, &layer](const FloatBlock& block) {
    float* place = to.at + block.row * to.pitch + block.column;
    block.outputs(layer, [=](int64_t m, Floats y) { store(place + m * to.pitch, use(y, place + m * to.pitch)); });
  };
}

// to = y
inline auto stored(const FloatLinear& layer, const Rows& to) {
  return into(layer, to, [](Floats y, const float*) { return y; });
}

// to += y
inline auto added(const FloatLinear& layer, const Rows& to) {
  return into(layer, to, [](Floats y, const float* place) { return y + load(place); });
}

// to = gelu(y)
inline auto activated(const FloatLinear& layer, const Rows& to) {
  return into(layer, to, [](Floats y, const float*) { return gelu(y, all(1.f)); });
}

// to (rows, n) = y, without padding
inline auto written_out(const FloatLinear& layer, float* to) {
  return [=, &layer](const FloatBlock& block) {
    const int64_t columns = lesser(16, layer.n - block.column);
    float* place = to + block.row * layer.n + block.column;
    block.outputs(layer, [=, &layer](int64_t m, Floats y) {
      for (int64_t i = 0; i < columns; i++) place[m * layer.n + i] = y[i];
    });
  };
}

}  // namespace
