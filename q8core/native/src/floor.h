// The matrix products of a model's layers and nothing else, for measuring: the least time that a forward pass can take.
#pragma once

#include "team.h"
#include "workspace.h"

namespace {

// What the products read and write, in the layout of activations.
struct FloorBuffers {
  uint8_t *hidden, *projected[3], *attended, *inner;
  int64_t bytes;

  FloorBuffers(const Model& model, const Batch& batch, char* base) {
    const int64_t rows = up(batch.tokens, kRows) + 2 * kRows;  // whole blocks are read, and prefetched a little further
    const int64_t size = rows * up(greatest_columns(model), kDepth);
    uint8_t* place = reinterpret_cast<uint8_t*>(base);
    hidden = place;
    for (auto& each : projected) each = place += size;
    attended = place += size;
    inner = place += size;
    bytes = 5 * size + rows * up(model.inner, kDepth);
  }
};

// to = quantize(y), as activations: the least that can be done with an output.
inline void linear_bytes(const Linear& layer, uint8_t* a, int64_t rows, float inverse, uint8_t* to) {
  const int64_t kb = up(layer.n, kDepth) / kDepth;
  linear(layer, {a, nullptr}, rows, [=, &layer](const Block& block) {
    if (block.column >= kb * kDepth) return;
    uint8_t* place = to + at(block.row, block.column, kb);
    block.outputs(layer, [=](int64_t m, Floats y) { store(place + m * kDepth, to_bytes(y * inverse)); });
  });
}

inline float first_inverse(const Grid& grid) { return grid.per_row() ? 1.f : *grid.inverse; }

// Each product reads what the one before wrote, values standing in for the attention's result. Where the head reads first
// tokens only, the last layer goes on with the first rows, as many as there are sequences.
inline void products(const Model& model, const Batch& batch, char* memory, int threads) {
  const FloorBuffers buffers(model, batch, memory);
  Team team;
#pragma omp parallel num_threads(threads)
  {
    const TileConfig tiles;
    (void)tiles;
    const Member member(team);
    for (int32_t n = 0; n < model.layers; n++) {
      const Layer& layer = model.layer[n];
      const int64_t rows = n + 1 == model.layers && model.head_reads_first ? batch.sequences : batch.tokens;
      linear_bytes(layer.query, buffers.hidden, rows, layer.query_inverse, buffers.projected[0]);
      linear_bytes(layer.key, buffers.hidden, batch.tokens, layer.key_inverse, buffers.projected[1]);
      linear_bytes(layer.value, buffers.hidden, batch.tokens, first_inverse(layer.output.input), buffers.projected[2]);
      team.wait();
      linear_bytes(layer.output, buffers.projected[2], rows, first_inverse(layer.inner.input), buffers.attended);
      team.wait();
      linear_bytes(layer.inner, buffers.attended, rows, first_inverse(layer.outer.input), buffers.inner);
      team.wait();
      linear_bytes(layer.outer, buffers.inner, rows, first_inverse(layer.query.input), buffers.hidden);
      team.wait();
    }
  }
}

}  // namespace
