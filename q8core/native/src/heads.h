// Queries, keys and values on their way from the linear layers to attention.
#pragma once

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

inline void project_queries(const Layer& layer, const Activations& a, int64_t rows, const Heads& heads) {
  const float inverse = layer.query_inverse;
  linear(layer.query, a, rows, [=, &layer, &heads](const Block& block) {
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

inline void project_keys(const Layer& layer, const Activations& a, int64_t rows, const Heads& heads) {
  const float inverse = layer.key_inverse;
  linear(layer.key, a, rows, [=, &layer, &heads](const Block& block) {
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

inline void project_values(const Layer& layer, const Activations& a, int64_t rows, const Heads& heads) {
  linear(layer.value, a, rows, [&](const Block& block) {
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
    store(comp + key, total * -128);
  }
}

}  // namespace
