// The whole forward pass in float32: embeddings, encoder layers and head, in one team of threads.
#pragma once

#include "encoder.h"
#include "float_attention.h"

namespace {

// Everything that a float forward pass writes, apart from the logits.
struct FloatWorkspace {
  Rows hidden, some;  // hidden state of all tokens; of the first tokens, in the last layer
  Rows inner;
  FloatHeads heads;
  Span* spans;
  float* scratch;
  int64_t scratch_floats, bytes;

  FloatWorkspace(const FloatModel& model, int64_t tokens, int64_t sequences, int64_t longest, int threads,
                 char* base) {
    Arena arena{base};
    const auto rows = [&arena](int64_t count, int64_t columns) {
      // One more than there are: vectors of the last one reach beyond its end.
      const int64_t pitch = float_pitch(columns);
      return Rows{arena.take<float>((count + 1) * pitch), pitch};
    };
    hidden = rows(tokens, model.hidden);
    some = rows(sequences, model.hidden);
    inner = rows(tokens, model.inner);
    heads.query = rows(tokens, model.hidden);
    heads.key = rows(tokens, model.hidden);
    heads.value = rows(tokens, model.hidden);
    heads.context = rows(tokens, model.hidden);
    heads.count = model.heads;
    heads.size = model.hidden / model.heads;
    spans = arena.take<Span>(2 * sequences);
    scratch_floats = up(FloatScratch::floats(longest, heads.size), 2 * kLanes);
    scratch = arena.take<float>(threads * scratch_floats);
    bytes = arena.used;
  }
};

inline void normalize_rows(const Rows& x, int64_t rows, int64_t columns, const Norm& norm, float epsilon) {
#pragma omp for schedule(dynamic, 8) nowait
  for (int64_t row = 0; row < rows; row++)
    normalize(x.at + row * x.pitch, columns, norm, epsilon, row, nullptr, 0);
}

inline void embed(const FloatModel& model, const Batch& batch, const FloatWorkspace& space) {
  for (int64_t s = 0; s < batch.sequences; s++)
#pragma omp for schedule(static) nowait
    for (int64_t position = 0; position < space.spans[s].length; position++) {
      const int64_t token = space.spans[s].first + position;
      float* x = space.hidden.at + token * space.hidden.pitch;
      for (int64_t i = 0; i < model.hidden; i += 16)
        store(x + i, table_row(model.words, batch.ids[token], i, model.hidden) +
                         table_row(model.types, batch.types[token], i, model.hidden) +
                         table_row(model.positions, position, i, model.hidden));
      normalize(x, model.hidden, model.embedding_norm, model.epsilon, token, nullptr, 0);
    }
}

// One layer: the hidden state x of `rows` rows becomes the next one. x is that of all tokens or a copy of some.
inline void encode(const FloatModel& model, const FloatLayer& layer, const FloatWorkspace& space, const Batch& batch,
                   const Span* spans, int64_t longest, const Rows& x, int64_t rows, int threads, Team& team) {
  const FloatHeads& heads = space.heads;
  const Rows& all_tokens = space.hidden;
  const auto project = [&](const FloatLinear& projection, const Rows& from, int64_t count, const Rows& to) {
    linear(projection, from.at, from.pitch, count, threads, stored(projection, to));
  };
  project(layer.query, x, rows, heads.query);
  project(layer.key, all_tokens, batch.tokens, heads.key);
  project(layer.value, all_tokens, batch.tokens, heads.value);
  team.wait();
  const FloatScratch scratch(space.scratch + omp_get_thread_num() * space.scratch_floats, longest, heads.size);
  attention(heads, spans, batch.sequences, longest, model.score_scale, scratch);
  team.wait();
  linear(layer.output, heads.context.at, heads.context.pitch, rows, threads, added(layer.output, x));
  team.wait();
  normalize_rows(x, rows, model.hidden, layer.output_norm, model.epsilon);
  team.wait();
  linear(layer.inner, x.at, x.pitch, rows, threads, activated(layer.inner, space.inner));
  team.wait();
  linear(layer.outer, space.inner.at, space.inner.pitch, rows, threads, added(layer.outer, x));
  team.wait();
  normalize_rows(x, rows, model.hidden, layer.final_norm, model.epsilon);
  team.wait();
}

inline void gather_first(const FloatModel& model, const Batch& batch, const FloatWorkspace& space) {
#pragma omp for schedule(static) nowait
  for (int64_t s = 0; s < batch.sequences; s++)
    std::memcpy(space.some.at + s * space.some.pitch, space.hidden.at + space.spans[s].first * space.hidden.pitch,
                up(model.hidden, 16) * sizeof(float));
}

inline void pool_and_classify(const FloatModel& model, const Batch& batch, const FloatWorkspace& space, float* logits,
                              int threads, Team& team) {
  const Rows& pooled = space.heads.context;
  linear(model.pooler, space.some.at, space.some.pitch, batch.sequences, threads, stored(model.pooler, pooled));
  team.wait();
#pragma omp for schedule(static) nowait
  for (int64_t s = 0; s < batch.sequences; s++)
    for (int64_t i = 0; i < model.hidden; i++) pooled.at[s * pooled.pitch + i] = std::tanh(pooled.at[s * pooled.pitch + i]);
  team.wait();
  linear(model.head, pooled.at, pooled.pitch, batch.sequences, threads, written_out(model.head, logits));
}

inline void forward_float(const FloatModel& model, const Batch& batch, char* memory, float* logits, int threads) {
  const int64_t longest = longest_of(batch);
  const FloatWorkspace space(model, batch.tokens, batch.sequences, longest, threads, memory);
  Span* first_only = space.spans + batch.sequences;
  for (int64_t s = 0, first = 0; s < batch.sequences; first += batch.lengths[s++]) {
    space.spans[s] = {first, batch.lengths[s], first, batch.lengths[s]};
    first_only[s] = {first, batch.lengths[s], s, 1};
  }
  Team team;
#pragma omp parallel num_threads(threads)
  {
    embed(model, batch, space);
    team.wait();
    for (int32_t n = 0; n < model.layers; n++) {
      if (n + 1 == model.layers && model.classify) {
        gather_first(model, batch, space);
        team.wait();
        encode(model, model.layer[n], space, batch, first_only, longest, space.some, batch.sequences, threads,
               team);
        pool_and_classify(model, batch, space, logits, threads, team);
      } else {
        encode(model, model.layer[n], space, batch, space.spans, longest, space.hidden, batch.tokens, threads, team);
      }
    }
    if (!model.classify)
      linear(model.head, space.hidden.at, space.hidden.pitch, batch.tokens, threads, written_out(model.head, logits));
  }
}

}  // namespace
