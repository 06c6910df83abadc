// Attention of packed sequences: softmax(scale * Q K^T) V for every (sequence, head) on its own.
//
// Queries and keys are 8-bit integers, so their products are exact. Probabilities and values stay float32: the scheme
// leaves this product unquantized.
#pragma once

#include "gemm.h"
#include "linear.h"

namespace {

// Queries, keys and values by head. q is u8 with zero point 128, k is s8, both in lines of 64 per block of depth:
// [head][depth block][row][64]; v is [head][row][pitch].
struct Heads {
  uint8_t* q;
  int8_t* k;
  float* v;
  int64_t size, kb, pitch;    // columns of a head, in blocks of 64, and rounded up to 16
  int64_t q_rows, rows;       // allocated rows of q, and of k and v

  uint8_t* query(int64_t head, int64_t row, int64_t column) const {
    return q + ((head * kb + column / kDepth) * q_rows + row) * kDepth + column % kDepth;
  }
  int8_t* key(int64_t head, int64_t row, int64_t column) const {
    return k + ((head * kb + column / kDepth) * rows + row) * kDepth + column % kDepth;
  }
  float* value(int64_t head, int64_t row) const { return v + (head * rows + row) * pitch; }
};

// One sequence: its keys and values, and its queries (all tokens, or only the first).
struct Span {
  int64_t first, length, first_query, queries;
};

// Write the first `count` of 16 neighbouring outputs, which start at `column` of H, to their heads.
template <class One, class Many>
inline void by_head(int64_t column, int64_t count, int64_t size, One one, Many many) {
  if (size % 16 == 0)
    many(column / size, column % size);
  else
    for (int64_t i = 0; i < count; i++) one(i, (column + i) / size, (column + i) % size);
}

inline void project_queries(const Layer& layer, const uint8_t* a, int64_t rows, const Heads& heads) {
  const Linear& query = layer.query;
  linear_nowait(query, a, rows, [&](int64_t row, int64_t column, const int32_t* sums) {
    const Bytes q = to_bytes(outputs(query, sums, column) * layer.query_inverse);
    if (column < query.n)
      by_head(column, lesser(16, query.n - column), heads.size,
              [&](int64_t i, int64_t head, int64_t at) { *heads.query(head, row, at) = q[i]; },
              [&](int64_t head, int64_t at) { store(heads.query(head, row, at), q); });
  });
}

inline void project_keys(const Layer& layer, const uint8_t* a, int64_t rows, const Heads& heads) {
  const Linear& key = layer.key;
  linear_nowait(key, a, rows, [&](int64_t row, int64_t column, const int32_t* sums) {
    const Bytes k = to_bytes(outputs(key, sums, column) * layer.key_inverse) ^ 0x80;
    if (column < key.n)
      by_head(column, lesser(16, key.n - column), heads.size,
              [&](int64_t i, int64_t head, int64_t at) { *heads.key(head, row, at) = static_cast<int8_t>(k[i]); },
              [&](int64_t head, int64_t at) { store(reinterpret_cast<uint8_t*>(heads.key(head, row, at)), k); });
  });
}

inline void project_values(const Layer& layer, const uint8_t* a, int64_t rows, const Heads& heads) {
  const Linear& value = layer.value;
  linear_nowait(value, a, rows, [&](int64_t row, int64_t column, const int32_t* sums) {
    const Floats v = outputs(value, sums, column);
    if (column < value.n)
      by_head(column, lesser(16, value.n - column), heads.size,
              [&](int64_t i, int64_t head, int64_t at) { heads.value(head, row)[at] = v[i]; },
              [&](int64_t head, int64_t at) { store(heads.value(head, row) + at, v); });
  });
}

// Lay out a sequence's keys as the weights of a linear layer with `length` outputs, with their corrections.
inline void pack_keys(const Heads& heads, int64_t head, const Span& span, uint8_t* packed, int32_t* comp) {
  for (int64_t key = 0; key < up(span.length, kPanel); key++) {
    int32_t total = 0;
    uint8_t* to = packed + key / 16 * heads.kb * kBlock + key % 16 * 4;
    for (int64_t column = 0; column < heads.kb * kDepth; column += 4) {
      int8_t four[4] = {};
      const int64_t left = lesser(4, heads.size - column);
      if (key < span.length && left == 4)
        std::memcpy(four, heads.key(head, span.first + key, column), 4);
      else if (key < span.length && left > 0)
        std::memcpy(four, heads.key(head, span.first + key, column), left);
      total += four[0] + four[1] + four[2] + four[3];
      std::memcpy(to + column / kDepth * kBlock + column % kDepth * 16, four, 4);
    }
    comp[key] = -128 * total;
  }
}

// Replace a row of `length` scores by exp(score - highest); return their sum. Scores up to the next 32 are set to 0.
inline float soften(float* scores, int64_t length) {
  const int64_t padded = up(length, 16);
  Floats highest = all(-__builtin_inff());
  for (int64_t i = 0; i < padded; i += 16)
    highest = greatest(first(load(scores + i), static_cast<int>(length - i), all(-__builtin_inff())), highest);
  const Floats top = all(maximum(highest));
  Floats total{};
  for (int64_t i = 0; i < padded; i += 16) {
    const Floats e = first(exp_negative(load(scores + i) - top), static_cast<int>(length - i));
    store(scores + i, e);
    total += e;
  }
  return sum(total);
}

// Rows x 16 * Vectors of P V, each sum over the keys in their order.
template <int Rows, int Vectors>
inline void weigh(const float* p, int64_t p_pitch, const float* v, int64_t v_pitch, int64_t length, float* to,
                  int64_t to_pitch) {
  Floats sums[Rows][Vectors] = {};
  for (int64_t key = 0; key < length; key++) {
    Floats value[Vectors];
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; n++) value[n] = load(v + key * v_pitch + 16 * n);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; m++)
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; n++) sums[m][n] = fma(all(p[m * p_pitch + key]), value[n], sums[m][n]);
  }
  for (int m = 0; m < Rows; m++)
    for (int n = 0; n < Vectors; n++) store(to + m * to_pitch + 16 * n, sums[m][n]);
}

template <int Vectors>
inline void weigh_rows(int64_t rows, const float* p, int64_t p_pitch, const float* v, int64_t v_pitch, int64_t length,
                       float* to, int64_t to_pitch) {
#if defined(__AVX512F__)
  constexpr int kAtOnce = Vectors == 4 ? 6 : 8;  // accumulators that fit into 32 registers
#else
  constexpr int kAtOnce = Vectors == 4 ? 1 : 2;
#endif
  int64_t row = 0;
  for (; row + kAtOnce <= rows; row += kAtOnce)
    weigh<kAtOnce, Vectors>(p + row * p_pitch, p_pitch, v, v_pitch, length, to + row * to_pitch, to_pitch);
  for (; row < rows; row++)
    weigh<1, Vectors>(p + row * p_pitch, p_pitch, v, v_pitch, length, to + row * to_pitch, to_pitch);
}

// What one thread needs for a sequence of `longest` tokens.
struct AttentionScratch {
  uint8_t* keys;
  int32_t* comp;
  float *scores, *context;

  static int64_t bytes(int64_t longest, int64_t kb, int64_t pitch) {
    const int64_t padded = up(longest, kPanel);
    return up(padded * kb * kDepth + 4 * padded + 4 * 2 * kRows * (padded + pitch), 64) + 8 * kBlock;
  }
  AttentionScratch(char* from, int64_t longest, int64_t kb) {
    const int64_t padded = up(longest, kPanel);
    keys = reinterpret_cast<uint8_t*>(from);
    comp = reinterpret_cast<int32_t*>(keys + padded * kb * kDepth);
    scores = reinterpret_cast<float*>(comp + padded);
    context = scores + 2 * kRows * padded;
  }
};

// The context of up to 32 queries from `query` on, quantized for the output layer.
inline void attend(const Heads& heads, int64_t head, const Span& span, int64_t query, float scale,
                   const AttentionScratch& scratch, const Target& output) {
  const int64_t count = lesser(span.queries - query, 2 * kRows), row = span.first_query + query;
  const int64_t pitch = up(span.length, kPanel);
  alignas(64) int32_t sums[2 * 2 * kRows * 16];
  const uint8_t* blocks[2] = {heads.query(head, row, 0), heads.query(head, row + kRows, 0)};
  for (int64_t key = 0; key < span.length; key += kPanel) {
    const uint8_t* columns[2] = {scratch.keys + key / 16 * heads.kb * kBlock,
                                 scratch.keys + (key / 16 + 1) * heads.kb * kBlock};
    if (count > kRows)
      multiply<2>(blocks, heads.q_rows * kDepth, columns, heads.kb, scratch.comp + key, sums);
    else
      multiply<1>(blocks, heads.q_rows * kDepth, columns, heads.kb, scratch.comp + key, sums);
    for (int64_t m = 0; m < count; m++)
      for (int n = 0; n < 2; n++)
        store(scratch.scores + m * pitch + key + 16 * n,
              to_floats(load(sums + m / kRows * 512 + n * 256 + m % kRows * 16)) * scale);
  }
  float total[2 * kRows];
  for (int64_t m = 0; m < count; m++) total[m] = soften(scratch.scores + m * pitch, span.length);
  const float* v = heads.value(head, span.first);
  for (int64_t column = 0; column < heads.pitch;) {
    const int64_t left = (heads.pitch - column) / 16;
    float* to = scratch.context + column;
    if (left >= 4) {
      weigh_rows<4>(count, scratch.scores, pitch, v + column, heads.pitch, span.length, to, heads.pitch);
      column += 64;
    } else if (left >= 2) {
      weigh_rows<2>(count, scratch.scores, pitch, v + column, heads.pitch, span.length, to, heads.pitch);
      column += 32;
    } else {
      weigh_rows<1>(count, scratch.scores, pitch, v + column, heads.pitch, span.length, to, heads.pitch);
      column += 16;
    }
  }
  for (int64_t m = 0; m < count; m++)
    for (int64_t i = 0; i < heads.size; i += 16) {
      const Floats context = load(scratch.context + m * heads.pitch + i) / total[m];
      const int64_t column = head * heads.size + i;
      if (heads.size % 16 == 0) {
        quantize(output, row + m, column, context);
      } else {
        const Bytes bytes = to_bytes(context * output.inverse);
        for (int64_t j = 0; j < lesser(16, heads.size - i); j++)
          output.to[at(row + m, column + j, output.kb)] = bytes[j];
      }
    }
}

constexpr int64_t kQueries = 128;  // queries that one task takes: they share its packed keys

// To be called by all threads of a team; they wait for each other at the end.
inline void attention(const Heads& heads, int64_t count, const Span* spans, int64_t sequences, int64_t longest,
                      float scale, const AttentionScratch& scratch, const Target& output) {
  const int64_t parts = (longest + kQueries - 1) / kQueries;
#pragma omp for schedule(dynamic)
  for (int64_t task = 0; task < sequences * count * parts; task++) {
    const Span& span = spans[task / (count * parts)];
    const int64_t head = task / parts % count, begin = task % parts * kQueries;
    if (begin >= span.queries) continue;
    pack_keys(heads, head, span, scratch.keys, scratch.comp);
    for (int64_t query = begin; query < lesser(span.queries, begin + kQueries); query += 2 * kRows)
      attend(heads, head, span, query, scale, scratch, output);
  }
}

}  // namespace
