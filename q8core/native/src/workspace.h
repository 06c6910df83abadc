// The memory of an int8 forward pass.
#pragma once

#include "float_attention.h"

namespace {

// What only some models need, because rows have their own scales or queries and keys are floats.
struct Needs {
  bool context = false, inner = false, heads = false;

  explicit Needs(const Model& model) {
    for (int32_t n = 0; n < model.layers; n++) {
      const Layer& layer = model.layer[n];
      heads |= layer.float_scores();
      context |= layer.float_scores() || layer.output.input.per_row();
      inner |= layer.outer.input.per_row();
    }
  }
};

// Columns of the widest of what the hidden state and the context share their place with.
template <class AnyModel>
inline int64_t greatest_columns(const AnyModel& model) {
  return model.hidden > model.attention ? model.hidden : model.attention;
}

// Rows of `columns` floats that are written, then read once more while they are in the threads' second level caches.
inline int64_t rows_at_once(int64_t columns, int threads) {
  constexpr int64_t kCache = 512 * 1024;
  const int64_t rows = threads * kCache / (columns * static_cast<int64_t>(sizeof(float))) / (2 * kRows) * (2 * kRows);
  return rows > 2 * kRows ? rows : 2 * kRows;
}

inline Activations activations(Arena& arena, int64_t rows, int64_t depth) {
  uint8_t* bytes = arena.take<uint8_t>(rows * depth);
  return {bytes, arena.take<float>(rows)};
}

// Everything that a forward pass writes, apart from the logits. What is never needed at the same time shares its place:
// the projections' inputs are read when attention begins, queries, keys and values when the next linear layer does.
struct Workspace {
  float *hidden, *first_hidden;        // hidden state of all tokens; of the first tokens, in the last layer
  Activations input[3], first_input;   // quantized for query, key and value; for the last layer's queries
  Activations attended, context;       // in the place of the first two inputs
  Activations inner;                   // in the place of the heads
  float* inner_floats[2];              // some rows of them, until the scales of these rows are known
  int64_t inner_rows;                  // so many
  float* embedded;                     // where there is a projection: what it is of, also in the place of the heads
  Activations projected;               // and its quantized input
  Heads heads;
  FloatHeads float_heads;              // in the place of the heads, but for the context, which all layers may use
  Span* spans;
  char* scratch;
  int64_t scratch_bytes, bytes;

  Workspace(const Model& model, int64_t tokens, int64_t sequences, int64_t longest, int threads, char* base) {
    Arena arena{base};
    // Whole blocks of rows are read, and prefetched a little further.
    const int64_t rows = up(tokens, kRows) + 2 * kRows, first_rows = up(sequences, kRows) + 2 * kRows;
    const int64_t pitch = up(model.hidden, 16), depth = up(greatest_columns(model), kDepth);
    const Needs needs(model);
    hidden = arena.take<float>(rows * pitch);
    first_hidden = arena.take<float>(first_rows * pitch);
    for (auto& each : input) each = activations(arena, rows, depth);
    first_input = activations(arena, first_rows, depth);
    attended = input[0];
    context = input[1];
    float_heads.count = model.heads;
    float_heads.size = model.attention / model.heads;
    // One row more than there are: vectors of the last one reach beyond its end.
    const int64_t float_columns = float_pitch(model.attention), float_size = (tokens + 1) * float_columns;
    float_heads.context = {needs.context ? arena.take<float>(float_size) : nullptr, float_columns};
    Arena instead = arena, before = arena, floats = arena;
    inner = activations(instead, rows, up(model.inner, kDepth));
    inner_rows = rows_at_once(model.inner, threads);
    for (auto& each : inner_floats)
      each = needs.inner ? instead.take<float>(lesser(rows, inner_rows) * up(model.inner, 16)) : nullptr;
    embedded = model.projection.w ? before.take<float>(rows * up(model.embedding, 16)) : nullptr;
    if (model.projection.w) projected = activations(before, rows, up(model.embedding, kDepth));
    if (needs.heads) {
      Rows* const rows_of_heads[] = {&float_heads.query, &float_heads.key, &float_heads.value};
      for (Rows* each : rows_of_heads) *each = {floats.take<float>(float_size), float_columns};
    }
    heads.size = model.attention / model.heads;
    heads.kb = up(heads.size, kDepth) / kDepth;
    heads.pitch = up(heads.size, 16);
    heads.q_rows = heads.rows = rows + kPanel;
    heads.q = arena.take<uint8_t>(model.heads * heads.kb * heads.rows * kDepth);
    heads.k = arena.take<uint8_t>(model.heads * heads.kb * heads.rows * kDepth);
    heads.v = arena.take<float>(model.heads * heads.rows * heads.pitch);
    arena.used = arena.used > instead.used ? arena.used : instead.used;
    arena.used = arena.used > before.used ? arena.used : before.used;
    arena.used = arena.used > floats.used ? arena.used : floats.used;
    spans = arena.take<Span>(2 * sequences);
    Arena counted{nullptr};
    AttentionScratch(counted, longest, heads);
    if (needs.heads) counted.take<float>(FloatScratch::floats(longest, heads.size));
    scratch_bytes = counted.used;
    scratch = arena.take<char>(threads * scratch_bytes);
    bytes = arena.used;
  }
};

}  // namespace
