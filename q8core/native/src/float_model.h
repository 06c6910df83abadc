// What Python hands over for the float32 forward pass. `structs.py` mirrors it.
#pragma once

#include "model.h"

// A float32 linear layer (k -> n): y = sum_k a * w + bias.
struct FloatLinear {
  const float* w;      // packed, see float_gemm.h
  const float* bias;   // 0 in the padding to whole vectors
  int32_t n, k;        // outputs, inputs
};

struct FloatLayer {
  FloatLinear query, key, value, output, inner, outer;
  Norm output_norm, final_norm;
};

struct FloatModel {
  int32_t hidden, heads, inner, layers;
  float epsilon, score_scale;
  int32_t classify;  // 1: pooler and head on each first token; 0: head on every token
  Table words, positions, types;
  Norm embedding_norm;
  const FloatLayer* layer;
  FloatLinear pooler, head;
};
