// Attention of packed sequences: softmax(scale * Q K^T) V for every (sequence, head) on its own.
//
// Queries and keys are 8-bit integers, so their products are exact. The product of probabilities and values is one of
// floats, or of 8-bit integers where the scheme quantizes it.
#pragma once

#include "arena.h"
#include "heads.h"

namespace {

// From a row of `length` integer scores make e = exp(scale * (score - highest)); call use(key, e) for 16 keys at a time,
// zero beyond the last one. `scale` holds the 1 / ln 2 of exponents to base 2.
template <class Use>
inline void soften(const int32_t* scores, int64_t length, float scale, Use use) {
  const int64_t whole = length / 16 * 16;
  const int rest = static_cast<int>(length - whole);
  Ints highest = Ints{} + INT32_MIN;
  if (rest) highest = first(load(scores + whole), rest, highest);
  for (int64_t i = 0; i < whole; i += 16) highest = greatest(load(scores + i), highest);
  const Ints top = Ints{} + maximum(highest);
  for (int64_t i = 0; i < whole; i += 16) use(i, exp2_negative(to_floats(load(scores + i) - top) * scale));
  if (rest) use(whole, first(exp2_negative(to_floats(load(scores + whole) - top) * scale), rest));
}

constexpr float kPerLn2 = 0x1.715476p0f;  // 1 / ln 2

// x = scale * score + bias, in the place of a row of scores; return the highest. Each operation is rounded.
inline float add_bias(int32_t* scores, int64_t length, float scale, const float* bias) {
  float* x = reinterpret_cast<float*>(scores);
  const int64_t whole = length / 16 * 16;
  const int rest = static_cast<int>(length - whole);
  Floats highest = all(-__builtin_inff());
  for (int64_t i = 0; i < whole; i += 16) {
    const Floats biased = to_floats(load(scores + i)) * scale + load(bias + i);
    store(x + i, biased);
    highest = greatest(biased, highest);
  }
  if (rest) {
    const Floats biased = to_floats(load(scores + whole)) * scale + load(bias + whole, rest);
    store(x + whole, biased);
    highest = greatest(first(biased, rest, highest), highest);
  }
  return maximum(highest);
}

// The same for x = scale * score + bias, which takes the place of the scores: e = exp(x - highest x).
template <class Use>
inline void soften_biased(int32_t* scores, int64_t length, float scale, const float* bias, Use use) {
  const float top = add_bias(scores, length, scale, bias);
  const float* x = reinterpret_cast<const float*>(scores);
  const int64_t whole = length / 16 * 16;
  const int rest = static_cast<int>(length - whole);
  for (int64_t i = 0; i < whole; i += 16) use(i, exp2_negative((load(x + i) - top) * kPerLn2));
  if (rest) use(whole, first(exp2_negative((load(x + whole) - top) * kPerLn2), rest));
}

// Rows x 16 * Vectors of P V, for the keys from `begin` to `end` on top of what `to` holds from those before.
template <int Rows, int Vectors>
inline void weigh(const float* p, int64_t p_pitch, const float* v, int64_t v_pitch, int64_t begin, int64_t end,
                  float* to, int64_t to_pitch) {
  Floats sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; m++)
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; n++) sums[m][n] = begin > 0 ? load(to + m * to_pitch + 16 * n) : Floats{};
  for (int64_t key = begin; key < end; key++) {
    Floats value[Vectors];
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; n++) value[n] = load(v + key * v_pitch + 16 * n);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; m++)
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; n++) sums[m][n] = fma(all(p[m * p_pitch + key]), value[n], sums[m][n]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; m++)
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; n++) store(to + m * to_pitch + 16 * n, sums[m][n]);
}

// The same for up to Rows rows.
template <int Rows, int Vectors>
inline void weigh_some(int64_t rows, const float* p, int64_t p_pitch, const float* v, int64_t v_pitch, int64_t begin,
                       int64_t end, float* to, int64_t to_pitch) {
  if (rows == Rows)
    weigh<Rows, Vectors>(p, p_pitch, v, v_pitch, begin, end, to, to_pitch);
  else if constexpr (Rows > 1)
    weigh_some<Rows - 1, Vectors>(rows, p, p_pitch, v, v_pitch, begin, end, to, to_pitch);
}

#if defined(__AVX512F__)
constexpr int kWidestStrip = 4;
#else
constexpr int kWidestStrip = 2;
#endif

template <int Vectors>
inline void weigh_rows(int64_t rows, const float* p, int64_t p_pitch, const float* v, int64_t v_pitch, int64_t length,
                       float* to, int64_t to_pitch) {
#if defined(__AVX512F__)
  constexpr int kAtOnce = Vectors == 4 ? 4 : 8;  // enough sums in flight, and they fit into 32 registers
#else
  constexpr int kAtOnce = Vectors == 2 ? 3 : 6;  // 12 sums of 8 floats, and their factors, in 16 registers
#endif
  constexpr int64_t kKeys = 128;  // their values stay in the first level cache for all rows
  for (int64_t begin = 0; begin < length; begin += kKeys) {
    const int64_t end = lesser(length, begin + kKeys);
    for (int64_t row = 0; row < rows; row += kAtOnce)
      weigh_some<kAtOnce, Vectors>(lesser(rows - row, kAtOnce), p + row * p_pitch, p_pitch, v, v_pitch, begin, end,
                                   to + row * to_pitch, to_pitch);
  }
}

// What one thread needs for a sequence of `longest` tokens.
struct AttentionScratch {
  uint8_t *keys, *values, *probabilities;
  int32_t *comp, *start, *scores;
  float* context;

  AttentionScratch(Arena& arena, int64_t longest, const Heads& heads) {
    const int64_t padded = up(longest, kPanel), depth = up(longest, kDepth), columns = up(heads.size, kPanel);
    keys = arena.take<uint8_t>(padded * heads.kb * kDepth);
    comp = arena.take<int32_t>(padded);
    values = arena.take<uint8_t>(columns * depth);
    start = arena.take<int32_t>(columns);
    scores = arena.take<int32_t>(2 * kRows * padded);
    probabilities = arena.take<uint8_t>(2 * kRows * depth);
    context = arena.take<float>(2 * kRows * heads.pitch);
    arena.take<uint8_t>(8 * kBlock);  // prefetched, not used
  }
};

// One head of one sequence.
struct Attending {
  const Heads& heads;
  int64_t head;
  const Span& span;
  float scale;              // of the scores, for exponents to base 2
  const float* bias;        // of a key at the query's own position; null without biases
  const Layer& layer;
  const AttentionScratch& scratch;
  const Target& output;
  float* floats;            // where the context goes if the output layer's input has a scale for each row
  int64_t columns;          // from row to row of these
  int64_t pitch, kb;        // keys rounded up to 32, and in blocks of 64

  // soften the scores of a query, which is row m of those from `row` on.
  template <bool Biased, class Use>
  void soften_scores(int64_t row, int64_t m, Use use) const {
    int32_t* scores = scratch.scores + m * pitch;
    if constexpr (Biased)
      soften_biased(scores, span.length, layer.score_scale, bias - (row + m - span.first_query), use);
    else
      soften(scores, span.length, scale, use);
  }

  // Write 16 columns of a row's context, quantized for the output layer or still in float.
  void put(int64_t row, int64_t column, Floats context) const {
    const int64_t place = head * heads.size + column;
    if (output.grid.per_row()) {
      float* to = floats + row * columns + place;
      std::memcpy(to, &context, lesser(16, heads.size - column) * sizeof(float));
      return;
    }
    if (heads.size % 16 == 0) {
      quantize(output, row, place, context);
      return;
    }
    const Bytes bytes = to_bytes(context * load(output.grid.inverse + place), output.grid);
    uint8_t* to = output.to.bytes;
    for (int64_t j = 0; j < lesser(16, heads.size - column); j++) to[at(row, place + j, output.kb)] = bytes[j];
  }
};

// Float32 probabilities, in the place of the scores, and values.
template <bool Biased>
inline void weigh_floats(const Attending& a, int64_t row, int64_t count) {
  float *p = reinterpret_cast<float*>(a.scratch.scores), total[2 * kRows];
  for (int64_t m = 0; m < count; m++) {
    Floats sums{};
    a.soften_scores<Biased>(row, m, [&](int64_t key, Floats e) {
      store(p + m * a.pitch + key, e);
      sums += e;
    });
    total[m] = sum(sums);
  }
  const int64_t v_pitch = a.heads.pitch;
  for (int64_t column = 0; column < v_pitch;) {
    const int64_t left = (v_pitch - column) / 16;
    const float* v = a.heads.value(a.head, a.span.first) + column;
    float* to = a.scratch.context + column;
    if (left >= kWidestStrip) {
      weigh_rows<kWidestStrip>(count, p, a.pitch, v, v_pitch, a.span.length, to, v_pitch);
      column += 16 * kWidestStrip;
    } else if (left >= 2) {
      weigh_rows<2>(count, p, a.pitch, v, v_pitch, a.span.length, to, v_pitch);
      column += 32;
    } else {
      weigh_rows<1>(count, p, a.pitch, v, v_pitch, a.span.length, to, v_pitch);
      column += 16;
    }
  }
  for (int64_t m = 0; m < count; m++)
    for (int64_t i = 0; i < a.heads.size; i += 16) a.put(row + m, i, load(a.scratch.context + m * v_pitch + i) / total[m]);
}

// Lay out a sequence's values, quantized, as the weights of a linear layer whose inputs are probabilities.
inline void pack_values(const Attending& a) {
  for (int64_t column = 0; column < up(a.heads.size, kPanel); column += 16) {
    const int64_t columns = lesser(16, a.heads.size - column);
    const float* from = a.heads.value(a.head, a.span.first) + column;
    int32_t* to = reinterpret_cast<int32_t*>(a.scratch.values + column * a.kb * kDepth);
    Ints total{};
    for (int64_t key = 0; key < a.kb * kDepth; key += 4, to += 16) {
      Ints four{};
      for (int64_t i = 0; i < 4 && key + i < a.span.length && columns > 0; i++, from += a.heads.pitch) {
        const Ints q = to_integers(load(from) * a.layer.value_inverse);
        total += q;
        four |= (q & 255) << 8 * i;
      }
      store(to, first(four, static_cast<int>(columns > 0 ? columns : 0)));
    }
    store(a.scratch.start + column, start_without_zero_point(total));
  }
}

// Probabilities of 8 bits, relative to the largest of their row, and as many for values: their products are exact, and
// divided by the sum of the probabilities as they are.
template <int Tiles, bool Biased>
inline void weigh_integers(const Attending& a, int64_t row, int64_t count) {
  constexpr float kRound = 0x1.8p23f;
  float factors[2 * kRows];
  for (int64_t m = 0; m < count; m++) {
    uint8_t* to = a.scratch.probabilities + m / kRows * a.kb * kBlock + m % kRows * kDepth;
    Ints total{};
    a.soften_scores<Biased>(row, m, [&](int64_t key, Floats e) {
      const Ints p = bits(e * 255.f + kRound) & 255;
      total += p;
      store(to + key / kDepth * kBlock + key % kDepth, low_bytes(p));
    });
    factors[m] = a.layer.value_scale / static_cast<float>(sum(total));
  }
  const uint8_t* blocks[2] = {a.scratch.probabilities, a.scratch.probabilities + a.kb * kBlock};
  for (int64_t column = 0; column < a.heads.size; column += kPanel) {
    alignas(64) int32_t sums[Tiles * kRows][kPanel];
    const uint8_t* v = a.scratch.values + column * a.kb * kDepth;
    const uint8_t* columns[2] = {v, v + a.kb * kBlock};
    multiply<Tiles, 0>(blocks, kBlock, columns, a.kb, a.scratch.start + column, sums[0], kPanel);
    for (int64_t m = 0; m < count; m++)
      for (int64_t i = 0; i < kPanel && column + i < a.heads.size; i += 16)
        a.put(row + m, column + i, to_floats(load(sums[m] + i)) * factors[m]);
  }
}

// The scores of up to 16 * Tiles queries from row `row` on.
template <int Tiles, int Lines>
inline void score(const Attending& a, int64_t row) {
  const uint8_t* blocks[2] = {a.heads.query(a.head, row, 0), a.heads.query(a.head, row + kRows, 0)};
  for (int64_t key = 0; key < a.span.length; key += kPanel) {
    const uint8_t* columns[2] = {a.scratch.keys + key / 16 * a.heads.kb * kBlock,
                                 a.scratch.keys + (key / 16 + 1) * a.heads.kb * kBlock};
    multiply<Tiles, 128, Lines>(blocks, a.heads.q_rows * kDepth, columns, a.heads.kb, a.scratch.comp + key,
                                a.scratch.scores + key, a.pitch);
  }
}

// The context of up to 16 * Tiles queries from `query` on.
template <int Tiles, bool Biased>
inline void attend(const Attending& a, int64_t query) {
  const int64_t count = lesser(a.span.queries - query, Tiles * kRows), row = a.span.first_query + query;
  if (a.heads.size <= kDepth / 2)
    score<Tiles, 8>(a, row);
  else
    score<Tiles, 16>(a, row);
  if (a.layer.value_inverse > 0.f)
    weigh_integers<Tiles, Biased>(a, row, count);
  else
    weigh_floats<Biased>(a, row, count);
}

// Queries that one task takes, of `all` pairs of a sequence and a head: all of them share the packed keys and values,
// unless threads would have nothing to do.
inline int64_t queries_of_task(int64_t all, int64_t longest) {
  return all < 4 * omp_get_num_threads() ? 4 * kPanel : up(longest, kPanel);
}

// The context of the queries from `begin` to `end`.
template <bool Biased>
inline void attend_all(const Attending& a, int64_t begin, int64_t end) {
  for (int64_t query = begin; query < end; query += 2 * kRows)
    if (end - query > kRows)
      attend<2, Biased>(a, query);
    else
      attend<1, Biased>(a, query);
}

// To be called by all threads of a team, which share the work and do not wait for each other at the end.
inline void attention(const Layer& layer, const RelativeBias& bias, const Heads& heads, int64_t count,
                      const Span* spans, int64_t sequences, int64_t longest, const AttentionScratch& scratch,
                      const Target& output, float* floats, int64_t columns) {
  const int64_t queries = queries_of_task(sequences * count, longest), parts = (longest + queries - 1) / queries;
  const float scale = layer.score_scale * kPerLn2;
#pragma omp for schedule(dynamic) nowait
  for (int64_t task = 0; task < sequences * count * parts; task++) {
    const Span& span = spans[task / (count * parts)];
    const int64_t begin = task % parts * queries, end = lesser(span.queries, begin + queries);
    if (begin >= end) continue;
    const int64_t head = task / parts % count;
    const Attending a{heads,   head,   span,   scale,   bias.same_position(head), layer,
                      scratch, output, floats, columns, up(span.length, kPanel),  up(span.length, kDepth) / kDepth};
    pack_keys(heads, a.head, span, scratch.keys, scratch.comp);
    if (layer.value_inverse > 0.f) pack_values(a);
    if (a.bias)
      attend_all<true>(a, begin, end);
    else
      attend_all<false>(a, begin, end);
  }
}

}  // namespace
