// Attention of packed sequences in float32: softmax(scale * Q K^T) V for every (sequence, head) on its own.
#pragma once

#include "attention.h"
#include "float_linear.h"

namespace {

// 16 x 16 numbers, transposed: rows from `from`, columns to lines of `to`.
inline void transpose(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
  Floats x[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = load(from + i * from_pitch);
#define Q8_EXCHANGE(distance)                                    \
  _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) if (!(i & distance)) exchange<distance>(x[i], x[i + distance]);
  Q8_EXCHANGE(1)
  Q8_EXCHANGE(2)
  Q8_EXCHANGE(4)
  Q8_EXCHANGE(8)
#undef Q8_EXCHANGE
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) store(to + i * to_pitch, x[i]);
}

// row = scale * row + bias
inline void add_bias(float* row, int64_t length, float scale, const float* bias) {
  const int64_t whole = length / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) store(row + i, load(row + i) * scale + load(bias + i));
  if (length > whole) store(row + whole, load(row + whole) * scale + load(bias + whole, length - whole));
}

// From a row of `length` scores make exp(scale * (score - highest)), in place; return their sum.
inline float soften_floats(float* row, int64_t length, float scale) {
  const int64_t whole = length / 16 * 16;
  const int rest = static_cast<int>(length - whole);
  Floats highest = all(-__builtin_inff());
  if (rest) highest = first(load(row + whole), rest, highest);
  for (int64_t i = 0; i < whole; i += 16) highest = greatest(load(row + i), highest);
  const float top = maximum(highest);
  scale *= kPerLn2;
  Floats total{};
  for (int64_t i = 0; i < whole; i += 16) {
    const Floats e = exp2_negative((load(row + i) - top) * scale);
    store(row + i, e);
    total += e;
  }
  if (rest) {
    const Floats e = first(exp2_negative((load(row + whole) - top) * scale), rest);
    store(row + whole, e);
    total += e;
  }
  return sum(total);
}

// What one thread needs for one head of a sequence of `longest` tokens.
struct FloatScratch {
  float *keys, *values, *scores, *context;  // keys and values as the weights of linear layers
  int64_t width, pitch;                     // columns of a head, rounded up to vectors; of scores

  FloatScratch(float* from, int64_t longest, int64_t size) : width(up(size, kLanes)), pitch(float_pitch(longest)) {
    keys = from;
    values = keys + up(longest, kLanes) * width;
    scores = values + up(longest, kLanes) * width;
    context = scores + kMostRows * pitch;
  }
  static int64_t floats(int64_t longest, int64_t size) {
    const int64_t width = up(size, kLanes);
    return 2 * up(longest, kLanes) * width + kMostRows * (float_pitch(longest) + width);
  }
};

// Queries, keys and values of all tokens in plain rows, head after head; `context` is what attention writes.
struct FloatHeads {
  Rows query, key, value, context;
  int64_t count, size;
};

// Lay out a sequence's keys as a linear layer with an output for each key.
inline void pack_keys(const FloatHeads& heads, int64_t head, const Span& span, float* to) {
  const float* from = heads.key.at + span.first * heads.key.pitch + head * heads.size;
  const int64_t pitch = heads.key.pitch, size = heads.size;
  const Panels panels(span.length);
  for (int64_t key = 0; key < span.length; key += 16) {
    int64_t step;
    float* panel = to + panels.place(key, size, &step);
    const float* rows = from + key * pitch;
    if (span.length - key >= 16 && size % 16 == 0)
      for (int64_t i = 0; i < size; i += 16) transpose(rows + i, pitch, panel + i * step, step);
    else
      for (int64_t i = 0; i < size; i++)
        for (int64_t m = 0; m < 16; m++) panel[i * step + m] = key + m < span.length ? rows[m * pitch + i] : 0.f;
  }
}

// Lay out a sequence's values as a linear layer with an input for each key.
inline void pack_values(const FloatHeads& heads, int64_t head, const Span& span, float* to) {
  const float* from = heads.value.at + span.first * heads.value.pitch + head * heads.size;
  const Panels panels(heads.size);
  for (int64_t column = 0; column < heads.size; column += 16) {  // lanes after the last column are not used
    int64_t step;
    float* panel = to + panels.place(column, span.length, &step);
    for (int64_t key = 0; key < span.length; key++)
      store(panel + key * step, load(from + key * heads.value.pitch + column));
  }
}

// to (rows, columns) = a b, all panels of b one after the other.
inline void multiply_all(int64_t rows, const Factors& of, int64_t columns, float* to, int64_t to_pitch) {
  const Panels panels(columns);
  for (int64_t panel = 0; panel < panels.count; panel++) {
    const int64_t column = panels.first(panel) * kLanes;
    multiply_floats(rows, panels.width(panel), {of.a, of.b + column * of.depth, of.pitch, of.depth}, to + column,
                    to_pitch);
  }
}

// The context of `count` queries from `query` on; `bias`: as same_position gives it.
inline void attend(const FloatHeads& heads, int64_t head, const Span& span, int64_t query, int64_t count, float scale,
                   const float* bias, const FloatScratch& scratch) {
  const int64_t row = span.first_query + query, size = heads.size;
  const float* queries = heads.query.at + row * heads.query.pitch + head * size;
  multiply_all(count, {queries, scratch.keys, heads.query.pitch, size}, span.length, scratch.scores, scratch.pitch);
  if (bias) {
    for (int64_t m = 0; m < count; m++)
      add_bias(scratch.scores + m * scratch.pitch, span.length, scale, bias - (query + m));
    scale = 1.f;
  }
  float total[kFloatRows];
  for (int64_t m = 0; m < count; m++) total[m] = soften_floats(scratch.scores + m * scratch.pitch, span.length, scale);
  multiply_all(count, {scratch.scores, scratch.values, scratch.pitch, span.length}, size, scratch.context,
               scratch.width);
  for (int64_t m = 0; m < count; m++)
    for (int64_t i = 0; i < size; i += 16) {
      const Floats context = load(scratch.context + m * scratch.width + i) / total[m];
      float* to = heads.context.at + (row + m) * heads.context.pitch + head * size + i;
      if (size - i >= 16)
        store(to, context);
      else  // the next columns are another head's
        for (int64_t j = 0; j < size - i; j++) to[j] = context[j];
    }
}

// To be called by all threads of a team, which share the work and do not wait for each other at the end.
inline void attention(const FloatHeads& heads, const Span* spans, int64_t sequences, int64_t longest, float scale,
                      const RelativeBias& bias, const FloatScratch& scratch) {
  const int64_t queries = queries_of_task(sequences * heads.count, longest), parts = (longest + queries - 1) / queries;
#pragma omp for schedule(dynamic) nowait
  for (int64_t task = 0; task < sequences * heads.count * parts; task++) {
    const Span& span = spans[task / (heads.count * parts)];
    const int64_t head = task / parts % heads.count, begin = task % parts * queries;
    if (begin >= span.queries) continue;
    pack_keys(heads, head, span, scratch.keys);
    pack_values(heads, head, span, scratch.values);
    in_blocks(lesser(span.queries - begin, queries), [&](int64_t query, int64_t count) {
      attend(heads, head, span, begin + query, count, scale, bias.same_position(head), scratch);
    });
  }
}

}  // namespace
