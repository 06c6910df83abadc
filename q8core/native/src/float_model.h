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

// As Model, in float32.
struct FloatModel {
  int32_t hidden, heads, inner, layers, attention;
  float epsilon, score_scale;
  int32_t head_reads_first;
  Activation head_activation;
  Table words, positions, types;
  Norm embedding_norm;
  FloatLinear projection;
  int32_t embedding;
  RelativeBias relative_bias;
  const FloatLayer* layer;
  FloatLinear head_dense, head;
};
