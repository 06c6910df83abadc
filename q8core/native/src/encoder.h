// The whole forward pass: embeddings, encoder layers and head, in one team of threads.
#pragma once

#include <cmath>

#include "team.h"
#include "workspace.h"

namespace {

inline int64_t longest_of(const Batch& batch) {
  int64_t longest = 0;
  for (int64_t s = 0; s < batch.sequences; s++)
    if (batch.lengths[s] > longest) longest = batch.lengths[s];
  return longest;
}

// The integers of `count` columns, at most 16, from `column` on, a multiple of 16.
inline void decode_columns(const Table& table, int64_t row, int64_t column, int64_t columns, int64_t count, float* to) {
  const uint8_t* from = table.q + row * ((columns * table.bits + 7) / 8) + column * table.bits / 8;
  uint64_t codes = 0;  // of 4 bits at most
  std::memcpy(&codes, from, (count * table.bits + 7) / 8);
  const int zero = table.zeros ? table.zeros[row] : 0, mask = (1 << table.bits) - 1;
  for (int64_t i = 0; i < count; i++) to[i] = table.levels[codes >> i * table.bits & mask] - zero;
}

inline Floats table_row(const Table& table, int64_t row, int64_t column, int64_t columns) {
  const int64_t count = lesser(16, columns - column);
  if (table.f) {
    const float* from = table.f + row * columns + column;
    return count == kLanes ? load(from) : load(from, count);
  }
  float x[kLanes] = {};
  if (table.levels) {
    decode_columns(table, row, column, columns, count, x);
  } else {
    const int8_t* from = reinterpret_cast<const int8_t*>(table.q) + row * columns + column;
    for (int64_t i = 0; i < count; i++) x[i] = from[i];
  }
  return load(x) * table.scale[table.scale_per_row ? row : 0];
}

// 16 columns of the sum of a token's rows in all tables, of `columns` columns each.
template <class AnyModel>
inline Floats embedding(const AnyModel& model, const Batch& batch, int64_t token, int64_t position, int64_t column,
                        int64_t columns) {
  Floats x = table_row(model.words, batch.ids[token], column, columns);
  if (model.types.q || model.types.f) x += table_row(model.types, batch.types[token], column, columns);
  return x + table_row(model.positions, position, column, columns);
}

// x = LayerNorm(x) over `columns`, and quantized for each target.
inline void normalize(float* x, int64_t columns, const Norm& norm, float epsilon, int64_t row, const Target* targets,
                      int count) {
  Floats total{};
  for (int64_t i = 0; i < columns; i += 16) total += load(x + i);  // the padding holds zeros
  const float mean = sum(total) / static_cast<float>(columns);
  Floats squares{};
  for (int64_t i = 0; i < columns; i += 16) {
    const Floats centered = first(load(x + i) - mean, static_cast<int>(columns - i));
    squares = fma(centered, centered, squares);
  }
  const float inverse = 1.f / std::sqrt(sum(squares) / static_cast<float>(columns) + epsilon);
  for (int64_t i = 0; i < columns; i += 16) {
    const Floats y = fma((load(x + i) - mean) * inverse, load(norm.weight + i), load(norm.bias + i));
    store(x + i, y);
    for (int t = 0; t < count; t++)
      if (!targets[t].grid.per_row()) quantize(targets[t], row, i, y);
  }
  for (int t = 0; t < count; t++)
    if (targets[t].grid.per_row()) quantize_row(targets[t], row, x, columns);
}

// The functions below are called by all threads of a team. They share the work and do not wait for each other at its
// end, but for those that are given the team: these wait within, and at the end.

inline void normalize_rows(float* x, int64_t rows, int64_t columns, const Norm& norm, float epsilon,
                           const Target* targets, int count) {
#pragma omp for schedule(dynamic, 8) nowait
  for (int64_t row = 0; row < rows; row++)
    normalize(x + row * up(columns, 16), columns, norm, epsilon, row, targets, count);
}

inline bool same(const Grid& a, const Grid& b) { return a.inverse == b.inverse && a.low == b.low && a.shift == b.shift; }

// The quantized inputs of a layer's projections: one if they share their grid, as the default scheme has it.
struct Inputs {
  Target targets[3];
  Activations query, key, value;
  int count;

  Inputs(const Layer& layer, const Workspace& space) {
    const Linear* readers[3] = {&layer.query, &layer.key, &layer.value};
    Activations read[3];
    count = 0;
    for (int i = 0; i < 3; i++) {
      int t = 0;
      while (t < count && !same(targets[t].grid, readers[i]->input)) t++;
      if (t == count) targets[count++] = {space.input[t], readers[i]->input, readers[i]->kb};
      read[i] = targets[t].to;
    }
    query = read[0], key = read[1], value = read[2];
  }
};

// x (tokens, columns rounded up to 16) = the normalized embeddings, and quantized for each target.
inline void embed_rows(const Model& model, const Batch& batch, const Span* spans, float* x, int64_t columns,
                       const Target* targets, int count) {
  const int64_t pitch = up(columns, 16);
#pragma omp for schedule(dynamic) nowait
  for (int64_t s = 0; s < batch.sequences; s++)
    for (int64_t position = 0; position < spans[s].length; position++) {
      const int64_t token = spans[s].first + position;
      float* row = x + token * pitch;
      for (int64_t i = 0; i < columns; i += 16) store(row + i, embedding(model, batch, token, position, i, columns));
      normalize(row, columns, model.embedding_norm, model.epsilon, token, targets, count);
    }
}

// The first hidden state, quantized for the first layer.
inline void embed(const Model& model, const Batch& batch, const Workspace& space, const Inputs& inputs, Team& team) {
  if (!model.projection.w) {
    embed_rows(model, batch, space.spans, space.hidden, model.hidden, inputs.targets, inputs.count);
    return;
  }
  const Target projection{space.projected, model.projection.input, model.projection.kb};
  embed_rows(model, batch, space.spans, space.embedded, model.embedding, &projection, 1);
  team.wait();
  const int64_t pitch = up(model.hidden, 16);
  linear_quantized(model.projection, space.projected, batch.tokens, space.hidden, pitch, inputs.targets, inputs.count);
  for (int t = 0; t < inputs.count; t++)
    if (inputs.targets[t].grid.per_row()) {
      team.wait();  // for whole rows
      quantize_rows(inputs.targets[t], 0, space.hidden, pitch, batch.tokens, model.hidden);
    }
}

// Copy the first token of every sequence: the residual, and the input of its query.
inline void gather_first(const Model& model, const Batch& batch, const Workspace& space, const Activations& input) {
  const int64_t pitch = up(model.hidden, 16), kb = up(model.hidden, kDepth) / kDepth;
#pragma omp for schedule(static) nowait
  for (int64_t s = 0; s < batch.sequences; s++) {
    const int64_t token = space.spans[s].first;
    std::memcpy(space.first_hidden + s * pitch, space.hidden + token * pitch, pitch * sizeof(float));
    space.first_input.scales[s] = input.scales[token];
    for (int64_t i = 0; i < kb * kDepth; i += kDepth)
      std::memcpy(space.first_input.bytes + at(s, i, kb), input.bytes + at(token, i, kb), kDepth);
  }
}

// Attention on integer queries and keys: the context, quantized for the output layer.
inline void attend_integers(const Model& model, const Layer& layer, const Workspace& space, const Inputs& inputs,
                            const Activations& query_input, const Batch& batch, const Span* spans, int64_t longest,
                            int64_t rows, const Target& output, Team& team) {
  project_queries(layer, query_input, rows, space.heads);
  project_keys(layer, inputs.key, batch.tokens, space.heads);
  project_values(layer, inputs.value, batch.tokens, space.heads);
  team.wait();
  Arena own{space.scratch + omp_get_thread_num() * space.scratch_bytes};
  const AttentionScratch scratch(own, longest, space.heads);
  const Rows& context = space.float_heads.context;
  attention(layer, model.relative_bias, space.heads, model.heads, spans, batch.sequences, longest, scratch, output,
            context.at, context.pitch);
  team.wait();
  if (!output.grid.per_row()) return;
  quantize_rows(output, 0, context.at, context.pitch, rows, model.attention);
  team.wait();
}

// The same on queries and keys in float.
inline void attend_floats(const Model& model, const Layer& layer, const Workspace& space, const Inputs& inputs,
                          const Activations& query_input, const Batch& batch, const Span* spans, int64_t longest,
                          int64_t rows, const Target& output, Team& team) {
  const FloatHeads& heads = space.float_heads;
  const auto project = [](const Linear& projection, const Activations& a, int64_t count, const Rows& to) {
    linear_rows(projection, a, count, to.at, to.pitch, [](const Block&, int64_t, Floats y) { return y; });
  };
  project(layer.query, query_input, rows, heads.query);
  project(layer.key, inputs.key, batch.tokens, heads.key);
  project(layer.value, inputs.value, batch.tokens, heads.value);
  team.wait();
  char* own = space.scratch + omp_get_thread_num() * space.scratch_bytes;
  const FloatScratch scratch(reinterpret_cast<float*>(own), longest, heads.size);
  attention(heads, spans, batch.sequences, longest, layer.score_scale, model.relative_bias, scratch);
  team.wait();
  quantize_rows(output, 0, heads.context.at, heads.context.pitch, rows, model.attention);
  team.wait();
}

// The inner state, quantized for the outer layer.
inline void activate_inner(const Model& model, const Layer& layer, const Workspace& space, int64_t rows, Team& team) {
  const Target outer{space.inner, layer.outer.input, layer.outer.kb};
  if (!outer.grid.per_row()) {
    linear_gelu(layer.inner, space.attended, rows, space.inner.bytes, layer.outer);
    team.wait();
    return;
  }
  const int64_t pitch = up(model.inner, 16);
  for (int64_t row = 0, turn = 0; row < rows; row += space.inner_rows, turn = !turn) {
    float* floats = space.inner_floats[turn];  // the others may still read the other one
    const int64_t count = lesser(space.inner_rows, rows - row);
    linear_rows(layer.inner, space.attended.from(row, layer.inner.kb), count, floats, pitch,
                [](const Block&, int64_t, Floats y) { return gelu(y, all(1.f)); });
    team.wait();
    quantize_rows(outer, row, floats, pitch, count, model.inner);
  }
  team.wait();
}

// One layer, from quantized inputs to the normalized hidden state x of `rows` rows, quantized for `targets`.
inline void encode(const Model& model, const Layer& layer, const Workspace& space, const Inputs& inputs,
                   const Activations& query_input, const Batch& batch, const Span* spans, int64_t longest, float* x,
                   int64_t rows, const Target* targets, int count, Team& team) {
  const int64_t pitch = up(model.hidden, 16);
  const Target output{space.context, layer.output.input, layer.output.kb};
  const auto attend = layer.float_scores() ? attend_floats : attend_integers;
  attend(model, layer, space, inputs, query_input, batch, spans, longest, rows, output, team);
  linear_add(layer.output, space.context, rows, x, pitch);
  team.wait();
  const Target inner{space.attended, layer.inner.input, layer.inner.kb};
  normalize_rows(x, rows, model.hidden, layer.output_norm, model.epsilon, &inner, 1);
  team.wait();
  activate_inner(model, layer, space, rows, team);
  linear_add(layer.outer, space.inner, rows, x, pitch);
  team.wait();
  normalize_rows(x, rows, model.hidden, layer.final_norm, model.epsilon, targets, count);
  team.wait();
}

inline Floats activate(Floats x, Activation activation) {
  switch (activation) {
    case kTanh: {
      float y[kLanes];
      store(y, x);
      for (float& each : y) each = std::tanh(each);
      return load(y);
    }
    case kRelu:
      return greatest(x, Floats{});
    case kGelu:
      return gelu(x, all(1.f));
    default:
      return x;
  }
}

inline const Linear& first_of_head(const Model& model) { return model.head_dense.w ? model.head_dense : model.head; }

// The head on `rows` rows, whose inputs are in space.attended. x is overwritten.
inline void answer(const Model& model, const Workspace& space, float* x, int64_t rows, float* logits, Team& team) {
  Activations input = space.attended;
  if (model.head_dense.w) {
    const int64_t pitch = up(model.hidden, 16);
    linear_floats(model.head_dense, input, rows, x, pitch);
    team.wait();
    const Target head{space.context, model.head.input, model.head.kb};
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < rows; row++) {
      float* place = x + row * pitch;
      for (int64_t i = 0; i < model.hidden; i += 16) store(place + i, activate(load(place + i), model.head_activation));
      quantize_row(head, row, place, model.hidden);
    }
    team.wait();
    input = space.context;
  }
  linear_floats(model.head, input, rows, logits, model.head.n);
}

// The last layer for the tokens that the head reads, and the head.
inline void encode_last(const Model& model, const Workspace& space, const Batch& batch, const Span* first_only,
                        int64_t longest, float* logits, Team& team) {
  const Layer& layer = model.layer[model.layers - 1];
  const Inputs inputs(layer, space);
  const bool first = model.head_reads_first;
  if (first) {
    gather_first(model, batch, space, inputs.query);
    team.wait();
  }
  float* x = first ? space.first_hidden : space.hidden;
  const int64_t rows = first ? batch.sequences : batch.tokens;
  const Linear& reader = first_of_head(model);
  const Target target{space.attended, reader.input, reader.kb};
  encode(model, layer, space, inputs, first ? space.first_input : inputs.query, batch, first ? first_only : space.spans,
         longest, x, rows, &target, 1, team);
  answer(model, space, x, rows, logits, team);
}

inline float forward(const Model& model, const Batch& batch, char* memory, float* logits, int threads) {
  const int64_t longest = longest_of(batch);
  const Workspace space(model, batch.tokens, batch.sequences, longest, threads, memory);
  Span* first_only = space.spans + batch.sequences;
  for (int64_t s = 0, first = 0; s < batch.sequences; first += batch.lengths[s++]) {
    space.spans[s] = {first, batch.lengths[s], first, batch.lengths[s]};
    first_only[s] = {first, batch.lengths[s], s, 1};
  }
  Team team;
#pragma omp parallel num_threads(threads)
  {
    const TileConfig tiles;
    (void)tiles;
    const Member member(team);
    embed(model, batch, space, Inputs(model.layer[0], space), team);
    team.wait();
    for (int32_t n = 0; n + 1 < model.layers; n++) {
      const Inputs inputs(model.layer[n], space), next(model.layer[n + 1], space);
      encode(model, model.layer[n], space, inputs, inputs.query, batch, space.spans, longest, space.hidden, batch.tokens,
             next.targets, next.count, team);
    }
    encode_last(model, space, batch, first_only, longest, logits, team);
  }
  return team.share();
}

// The sums of a layer for activations (rows, 64 * kb) in plain row order, (rows, np): for checks.
inline void accumulate(const Linear& layer, const uint8_t* a, int64_t rows, int32_t* sums) {
  const TileConfig tiles;
  (void)tiles;
  for (int64_t row = 0; row < rows; row += kRows)
    for (int64_t column = 0; column < layer.np; column += kPanel) {
      alignas(64) int32_t block[kRows][kPanel];
      const uint8_t* blocks[1] = {a + at(row, 0, layer.kb)};
      if (layer.levels)
        product_of(layer)(layer, column, blocks, 1, block[0], 0);
      else
        multiply_panel<1>(layer, blocks, rows - row, column, block[0]);
      for (int64_t m = 0; m < lesser(kRows, rows - row); m++)
        for (int64_t n = 0; n < kPanel; n++) sums[(row + m) * layer.np + column + n] = block[m][n];
    }
}

}  // namespace
