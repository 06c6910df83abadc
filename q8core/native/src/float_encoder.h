// The whole forward pass in float32: embeddings, encoder layers and head, in one team of threads.
#pragma once

#include "encoder.h"
#include "float_attention.h"

namespace {

// Everything that a float forward pass writes, apart from the logits.
struct FloatWorkspace {
  Rows hidden, first_hidden;  // hidden state of all tokens; of the first tokens, in the last layer
  Rows inner;
  Rows embedded;              // where there is a projection: what it is of, in the place of the inner state
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
    first_hidden = rows(sequences, model.hidden);
    Arena instead = arena;
    inner = rows(tokens, model.inner);
    if (model.projection.w) {
      embedded.pitch = float_pitch(model.embedding);
      embedded.at = instead.take<float>((tokens + 1) * embedded.pitch);
      if (instead.used > arena.used) arena.used = instead.used;
    } else {
      embedded = hidden;
    }
    heads.query = rows(tokens, model.attention);
    heads.key = rows(tokens, model.attention);
    heads.value = rows(tokens, model.attention);
    heads.context = rows(tokens, greatest_columns(model));  // the head's dense layer has its outputs there too
    heads.count = model.heads;
    heads.size = model.attention / model.heads;
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

inline void embed(const FloatModel& model, const Batch& batch, const FloatWorkspace& space, int threads, Team& team) {
  const Rows& to = space.embedded;
  const int64_t columns = model.projection.w ? model.embedding : model.hidden;
  for (int64_t s = 0; s < batch.sequences; s++)
#pragma omp for schedule(static) nowait
    for (int64_t position = 0; position < space.spans[s].length; position++) {
      const int64_t token = space.spans[s].first + position;
      float* x = to.at + token * to.pitch;
      for (int64_t i = 0; i < columns; i += 16) store(x + i, embedding(model, batch, token, position, i, columns));
      normalize(x, columns, model.embedding_norm, model.epsilon, token, nullptr, 0);
    }
  if (!model.projection.w) return;
  team.wait();
  linear(model.projection, to.at, to.pitch, batch.tokens, threads, stored(model.projection, space.hidden));
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
  attention(heads, spans, batch.sequences, longest, model.score_scale, model.relative_bias, scratch);
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
    std::memcpy(space.first_hidden.at + s * space.first_hidden.pitch, space.hidden.at + space.spans[s].first * space.hidden.pitch,
                up(model.hidden, 16) * sizeof(float));
}

// The head on `rows` rows of x.
inline void answer(const FloatModel& model, const FloatWorkspace& space, const Rows& x, int64_t rows, float* logits,
                   int threads, Team& team) {
  const Rows* input = &x;
  if (model.head_dense.w) {
    const Rows& dense = space.heads.context;
    linear(model.head_dense, x.at, x.pitch, rows, threads, stored(model.head_dense, dense));
    team.wait();
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = 0; i < model.hidden; i += 16) {
        float* place = dense.at + row * dense.pitch + i;
        store(place, activate(load(place), model.head_activation));
      }
    team.wait();
    input = &dense;
  }
  linear(model.head, input->at, input->pitch, rows, threads, written_out(model.head, logits));
}

inline float forward_float(const FloatModel& model, const Batch& batch, char* memory, float* logits, int threads) {
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
    const Member member(team);
    embed(model, batch, space, threads, team);
    team.wait();
    const auto layer = [&](int32_t n, const Span* spans, const Rows& x, int64_t rows) {
      encode(model, model.layer[n], space, batch, spans, longest, x, rows, threads, team);
    };
    for (int32_t n = 0; n + 1 < model.layers; n++) layer(n, space.spans, space.hidden, batch.tokens);
    const bool first = model.head_reads_first;
    const Rows& x = first ? space.first_hidden : space.hidden;
    const int64_t rows = first ? batch.sequences : batch.tokens;
    if (first) {
      gather_first(model, batch, space);
      team.wait();
    }
    layer(model.layers - 1, first ? first_only : space.spans, x, rows);
    answer(model, space, x, rows, logits, threads, team);
  }
  return team.share();
}

}  // namespace
