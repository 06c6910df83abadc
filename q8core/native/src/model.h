// What Python hands over: plain structures of pointers into tensors that Python owns. `structs.py` mirrors them.
#pragma once

#include <cstddef>
#include <cstdint>

// How floats become u8 activations: clamp(round_half_even(x * inverse), low, high) + zero point.
struct Grid {
  // 1 / scale of each column, zeros in the padding: whole vectors are read from any column on. Null where each row has
  // its own scale, max |x| / 127, which is known when all of the row is.
  const float* inverse;
  float low, high;       // -127 and 127 with zero point 128, else minus the zero point and 255 more
  float shift;           // 1.5 * 2^23 + zero point, which is even

  bool per_row() const { return !inverse; }
};

// A linear layer (k -> n): y = float(sum_k (a - zero point) * w) * r + bias, a being u8 and w s8; where each row of a has
// its own scale, y = float(sum) * r * scale + bias.
struct Linear {
  const uint8_t* w;      // packed, see gemm.h; where there are levels, codes: see codes.h
  const uint8_t* order;  // of its inputs for each panel of outputs, see order.h; null if they are in their own
  // (np): where the sums begin: -zero point * sum_k w, which takes the zero point out of them. On top of it comes
  // 128 * sum_k w of the inputs whose activations the library takes 128 off.
  const int32_t* comp;
  const float* r;        // (np): input scale (1 if each row has its own) * weight scale, 0 in the padding
  const float* bias;     // (np), 0 in the padding
  Grid input;
  int32_t n, np, kb;      // outputs, outputs rounded up to 32, blocks of 64 inputs
  int32_t bits, largest;  // 8, or those of a code: 4, 2 or 1; the largest |w|
  const int8_t* levels;   // (16), what each code means, less the output's zero point; null where w is s8
  const int8_t* zeros;    // (np), zero points; null where all are 0
};

// Rows of 8-bit integers or of codes, with scales, or of floats.
struct Table {
  const uint8_t* q;
  const float* f;
  const float* scale;
  int32_t scale_per_row;
  int32_t bits;           // of a code; the first column is in the lowest bits, and rows begin at whole bytes
  const int8_t* levels;   // (2^bits), what each code means, less the row's zero point; null where q is s8
  const int8_t* zeros;    // of each row; null where all are 0
};

// LayerNorm; both arrays are padded to a multiple of 16 with zeros.
struct Norm {
  const float* weight;
  const float* bias;
};

// A bias on top of each scaled score: values[head][positions - 1 + j - i] for a query at position i of its sequence and a
// key at position j. Null where there is none.
struct RelativeBias {
  const float* values;  // (heads, 2 * positions - 1)
  int32_t positions;

  // That of a query with a key at the same position.
  const float* same_position(int64_t head) const {
    return values ? values + head * (2 * positions - 1) + positions - 1 : nullptr;
  }
};

struct Layer {
  Linear query, key, value, output, inner, outer;
  float query_inverse, key_inverse;  // 1 / output scale: queries and keys are requantized; 0 where both stay floats
  float score_scale;                 // of the products of queries and keys
  float value_inverse, value_scale;  // 0 where the products of probabilities and values are those of floats
  Norm output_norm, final_norm;

  bool float_scores() const { return query_inverse == 0.f; }
};

// What follows the dense layer of a head.
enum Activation : int32_t { kNoActivation, kTanh, kRelu, kGelu };

// The head is a linear layer on the last hidden state of some tokens, perhaps behind a dense layer (hidden -> hidden)
// with an activation.
struct Model {
  int32_t hidden, heads, inner, layers;
  int32_t attention;               // columns of queries, keys, values and contexts: those of all heads
  float epsilon;
  int32_t head_reads_first;        // 1: the first token of each sequence; 0: every token
  Activation head_activation;
  Table words, positions, types;   // types: all null where there are none
  Norm embedding_norm;
  Linear projection;               // of the tables' columns to hidden ones; w is null where they are alike
  int32_t embedding;               // columns of the tables and of their norm, where there is a projection
  RelativeBias relative_bias;      // of all layers
  const Layer* layer;
  Linear head_dense, head;         // head_dense.w is null where there is none
};

// Sequences one after another, without padding.
struct Batch {
  int64_t tokens, sequences;
  const int64_t *ids, *types;  // types are not read where a model has none
  const int32_t* lengths;
};

struct FloatModel;  // float_model.h

// The passes of training over rows of float32 (type 0) or bfloat16 (type 1), see passes.h.
struct Passes {
  void (*row_magnitudes)(const void* x, int type, int64_t rows, int64_t columns, float* to, int threads);
  void (*row_sides)(const void* x, int type, int64_t rows, int64_t columns, float* lows, float* highs, int threads);
  void (*to_grid)(const void* x, int type, int64_t rows, int64_t columns, const float* inverse, float low, float high,
                  const float* scale, int per_row, void* to, int to_type, int threads);
  void (*rescale)(void* y, int type, int64_t rows, int64_t columns, const float* r, const float* bias, int threads);
  void (*column_sums)(const void* x, int type, int64_t rows, int64_t columns, float* to, int threads);
};

// One build of the engine: a row in the table that the CPU's features choose from.
struct Variant {
  const char* name;
  int orders;  // whether it reads weights in the order of order.h
  float (*forward)(const Model&, const Batch&, char* workspace, float* logits, int threads);
  void (*accumulate)(const Linear&, const uint8_t* a, int64_t rows, int32_t* sums);
  void (*products)(const Model&, const Batch&, char* memory, int threads);
  // Null without fused multiply-add, which it would be slow without.
  float (*forward_float)(const FloatModel&, const Batch&, char* workspace, float* logits, int threads);
  Passes passes;
};
