// The speech head as a TensorRT plugin, over kernels/speech_head.h. docs/plugins.md lists its fields.
//
// edge_sdk::SpeechHead appends S positions (prefill) or makes a group of G ids: one layer for both, so that an engine
// holds the weights once. Sizes are all that a plugin knows of a call, so a size says which it is.
//   inputs, in this order
//     head_input     FLOAT [S, hidden]; a group has one row
//     kind           INT32 [1] for a prefill, [2] for a group; what stands in it is not read
//     state          INT32 [6]: a SpeechHeadCudaState as its words; updated in place
//     sampling       INT32 [7]: a SpeechHeadCudaSampling as its words
//     seen           INT8 [codes]: nonzero where the repetition penalty acts
//     forced         INT64 [G]: ids to take whatever the scores say, -1 for none
//     rope_cos, rope_sin  FLOAT [P, head_dim / 2], P >= capacity
//     per layer: key_cache, value_cache [kv_heads, capacity, cache_head_dim] in the cache's dtype; if that is int8,
//                key_scales, value_scales FLOAT [kv_heads, capacity]; all updated in place
//     weights, each once in the engine, as constants of the network: input, input_bias, input_table, output_table,
//                final_norm, then per layer input_norm, post_norm, q_norm, k_norm, q, k, v, o, gate, up, down
//     A matrix is FLOAT or HALF [rows, cols], or INT8 [rows, row bytes] (the bytes of kernels/matrix.h, int4 too)
//     followed by its scales [rows, blocks].
//   outputs
//     ids INT64 [G], -1 after a prefill; logits FLOAT [G, codes] if field `logits` is 1, zeros after a prefill
//     then state and caches again, in the inputs' order, each in the memory of its input
#pragma once

#include "trt/plugin.h"

namespace edge_sdk::trt {

Creator* SpeechHeadCreator();

}  // namespace edge_sdk::trt
