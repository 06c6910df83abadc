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
  uint8_t *q, *k;
  float* v;
  int64_t size, kb, pitch;    // columns of a head, in blocks of 64, and rounded up to 16
  int64_t q_rows, rows;       // allocated rows of q, and of k and v

  uint8_t* query(int64_t head, int64_t row, int64_t column) const {
    return q + ((head * kb + column / kDepth) * q_rows + row) * kDepth + column % kDepth;
  }
  uint8_t* key(int64_t head, int64_t row, int64_t column) const {
    return k + ((head * kb + column / kDepth) * rows + row) * kDepth + column % kDepth;
  }
  float* value(int64_t head, int64_t row) const { return v + (head * rows + row) * pitch; }
};

// One sequence: its keys and values, and its queries (all tokens, or only the first).
struct Span {
  int64_t first, length, first_query, queries;
};

// Write a block of outputs to their heads: many(head, column, m, y) for 16 columns of one head where no head begins
// in between, else one(head, column, m, value) for each.
template <class Many, class One>
inline void by_head(const Linear& layer, const Block& block, int64_t size, Many many, One one) {
  if (block.column >= layer.n) return;
  if (size % 16 == 0) {
    const int64_t head = block.column / size, column = block.column % size;
    block.outputs(layer, [=](int64_t m, Floats y) { many(head, column, m, y); });
    return;
  }
  const int64_t columns = lesser(16, layer.n - block.column);
  block.outputs(layer, [=, &block](int64_t m, Floats y) {
    for (int64_t i = 0; i < columns; i++) one((block.column + i) / size, (block.column + i) % size, m, y[i]);
  });
}

inline uint8_t to_byte(float x) { return to_bytes(all(x))[0]; }

inline void project_queries(const Layer& layer, const uint8_t* a, int64_t rows, const Heads& heads) {
  const float inverse = layer.query_inverse;
  linear_nowait(layer.query, a, rows, [=, &layer, &heads](const Block& block) {
    by_head(
        layer.query, block, heads.size,
        [=, &heads](int64_t head, int64_t column, int64_t m, Floats y) {
          store(heads.query(head, block.row, column) + m * kDepth, to_bytes(y * inverse));
        },
        [=, &heads](int64_t head, int64_t column, int64_t m, float y) {
          heads.query(head, block.row, column)[m * kDepth] = to_byte(y * inverse);
        });
  });
}

inline void project_keys(const Layer& layer, const uint8_t* a, int64_t rows, const Heads& heads) {
  const float inverse = layer.key_inverse;
  linear_nowait(layer.key, a, rows, [=, &layer, &heads](const Block& block) {
    by_head(
        layer.key, block, heads.size,
        [=, &heads](int64_t head, int64_t column, int64_t m, Floats y) {
          store(heads.key(head, block.row, column) + m * kDepth, to_bytes(y * inverse) ^ 0x80);
        },
        [=, &heads](int64_t head, int64_t column, int64_t m, float y) {
          heads.key(head, block.row, column)[m * kDepth] = to_byte(y * inverse) ^ 0x80;
        });
  });
}

inline void project_values(const Layer& layer, const uint8_t* a, int64_t rows, const Heads& heads) {
  linear_nowait(layer.value, a, rows, [&](const Block& block) {
    by_head(
        layer.value, block, heads.size,
        [=, &heads](int64_t head, int64_t column, int64_t m, Floats y) {
          store(heads.value(head, block.row + m) + column, y);
        },
        [=, &heads](int64_t head, int64_t column, int64_t m, float y) {
          heads.value(head, block.row + m)[column] = y;
        });
  });
}

// Lay out a sequence's keys as the weights of a linear layer with `length` outputs, with their corrections.
inline void pack_keys(const Heads& heads, int64_t head, const Span& span, uint8_t* packed, int32_t* comp) {
  const int64_t keys = up(span.length, kPanel), columns = up(heads.size, 4);
  std::memset(packed, 0, keys * heads.kb * kDepth);
  for (int64_t key = 0; key < span.length; key++) {
    uint8_t* to = packed + key / 16 * heads.kb * kBlock + key % 16 * 4;
    for (int64_t column = 0; column < columns; column += 4)
      std::memcpy(to + column / kDepth * kBlock + column % kDepth * 16, heads.key(head, span.first + key, column), 4);
  }
  const Ints in_use = heads.size % 4 ? Ints{} + ((1 << heads.size % 4 * 8) - 1) : Ints{} - 1;
  for (int64_t key = 0; key < keys; key += 16, packed += heads.kb * kBlock) {
    Ints total{};
    for (int64_t column = 0; column < columns; column += 4) {
      int32_t* line = reinterpret_cast<int32_t*>(packed + column / kDepth * kBlock + column % kDepth * 16);
      Ints four = load(line);
      if (column + 4 > heads.size) store(line, four &= in_use);
      total += (four << 24 >> 24) + (four << 16 >> 24) + (four << 8 >> 24) + (four >> 24);
    }
    store(comp + key, -128 * total);
  }
}

// From a row of `length` integer scores make exp(scale * (score - highest)), in place; return their sum.
inline float soften(float* row, int64_t length, float scale) {
  const int32_t* scores = reinterpret_cast<const int32_t*>(row);
  const int64_t whole = length / 16 * 16;
  const int rest = static_cast<int>(length - whole);
  Ints highest = Ints{} + INT32_MIN;
  if (rest) highest = first(load(scores + whole), rest, highest);
  for (int64_t i = 0; i < whole; i += 16) highest = greatest(load(scores + i), highest);
  const Floats top = all(static_cast<float>(maximum(highest)) * scale);
  Floats total{};
  for (int64_t i = 0; i < whole; i += 16) {
    const Floats e = exp_negative(to_floats(load(scores + i)) * scale - top);
    store(row + i, e);
    total += e;
  }
  if (rest) {
    const Floats e = first(exp_negative(to_floats(load(scores + whole)) * scale - top), rest);
    store(row + whole, e);
    total += e;
  }
  return sum(total);
}

// Rows x 16 * Vectors of P V, for the keys from `begin` to `end` on top of what `to` holds from those before.
template <int Rows, int Vectors>
inline void weigh(const float* p, int64_t p_pitch, const float* v, int64_t v_pitch, int64_t begin, int64_t end,
                  float* to, int64_t to_pitch) {
  Floats sums[Rows][Vectors] = {};
  if (begin > 0)
    for (int m = 0; m < Rows; m++)
      for (int n = 0; n < Vectors; n++) sums[m][n] = load(to + m * to_pitch + 16 * n);
  for (int64_t key = begin; key < end; key++) {
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
  constexpr int kAtOnce = Vectors == 4 ? 4 : 8;  // enough sums in flight, and they fit into 32 registers
#else
  constexpr int kAtOnce = Vectors == 4 ? 1 : 2;
#endif
  constexpr int64_t kKeys = 128;  // their values stay in the first level cache for all rows
  for (int64_t begin = 0; begin < length; begin += kKeys) {
    const int64_t end = lesser(length, begin + kKeys);
    int64_t row = 0;
    for (; row + kAtOnce <= rows; row += kAtOnce)
      weigh<kAtOnce, Vectors>(p + row * p_pitch, p_pitch, v, v_pitch, begin, end, to + row * to_pitch, to_pitch);
    for (; row < rows; row++)
      weigh<1, Vectors>(p + row * p_pitch, p_pitch, v, v_pitch, begin, end, to + row * to_pitch, to_pitch);
  }
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
  int32_t* scores = reinterpret_cast<int32_t*>(scratch.scores);
  const uint8_t* blocks[2] = {heads.query(head, row, 0), heads.query(head, row + kRows, 0)};
  for (int64_t key = 0; key < span.length; key += kPanel) {
    const uint8_t* columns[2] = {scratch.keys + key / 16 * heads.kb * kBlock,
                                 scratch.keys + (key / 16 + 1) * heads.kb * kBlock};
    if (count > kRows)
      multiply<2>(blocks, heads.q_rows * kDepth, columns, heads.kb, scratch.comp + key, scores + key, pitch);
    else
      multiply<1>(blocks, heads.q_rows * kDepth, columns, heads.kb, scratch.comp + key, scores + key, pitch);
  }
  float total[2 * kRows];
  for (int64_t m = 0; m < count; m++) total[m] = soften(scratch.scores + m * pitch, span.length, scale);
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
