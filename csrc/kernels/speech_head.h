// The speech refined head (SRH): G autoregressive steps through a Qwen3-shaped stack in one call, its KV cache in place.
//
// One step, with x the residual stream of `width`:
//   x = rows[j] + input_table[previous id]                        rows = input * head_input + input_bias, [G, width]
//   per layer: h = rms_norm(x); q, k, v = h; q, k normalised per head and rotated (rotate-half, position = cache length)
//              x += o * attention(q, cache);  h = rms_norm(x);  x += down * (silu(gate h) * up h)
//   logits = output_table * rms_norm(x);  id = pick(logits)
// input and the tables are folded at export (docs/computation.md). Everything that is not a weight is float32; but on the
// CPU products are of integers where a factor is stored so: vectors meet quantized weights as int8 in blocks, and an
// int8 cache as 16 bits (kernels/isa_attention.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/status.h"
#include "kernels/matrix.h"

namespace edge_sdk {

class Team;

struct SpeechHeadShape {
  int32_t group_size = 0;    // G
  int32_t hidden = 0;        // width of head_input (the backbone's)
  int32_t width = 0;
  int32_t layers = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;      // even
  int32_t cache_head_dim = 0;  // head_dim padded to a multiple of 8: the stride of the cache's last axis
  int32_t intermediate = 0;
  int32_t codes = 0;         // rows of the codebook, specials included
  int32_t bos = 0;           // the id whose row joins every prompt row
  float eps = 0;
};

struct SpeechHeadLayer {
  const float* input_norm = nullptr;  // [width]
  const float* post_norm = nullptr;   // [width]
  const float* q_norm = nullptr;      // [head_dim]
  const float* k_norm = nullptr;      // [head_dim]
  Matrix q, k, v;                     // [heads * head_dim, width], [kv_heads * head_dim, width] twice
  Matrix o;                           // [width, heads * head_dim]
  Matrix gate, up;                    // [intermediate, width]
  Matrix down;                        // [width, intermediate]
};

struct SpeechHeadWeights {
  Matrix input;                       // [G * width, hidden]; the rows of position j at j * width
  const float* input_bias = nullptr;  // [G * width]
  Matrix input_table;                 // [codes, width]
  Matrix output_table;                // [codes, width]
  const float* final_norm = nullptr;  // [width]
  const SpeechHeadLayer* layers = nullptr;  // host array
};

// Keys and values of one conversation, fixed memory. Per layer [kv_heads, capacity, cache_head_dim]; kI8 (signed here,
// -127..127) has one float32 scale per head and position, [kv_heads, capacity]: value = q * scale.
struct SpeechHeadCache {
  DType dtype = DType::kF32;  // kF32, kF16 or kI8
  int32_t capacity = 0;       // positions
  void* const* keys = nullptr;    // host array of `layers` pointers
  void* const* values = nullptr;
  float* const* key_scales = nullptr;    // kI8 only
  float* const* value_scales = nullptr;
  const float* rope_cos = nullptr;  // [positions >= capacity, head_dim / 2]
  const float* rope_sin = nullptr;
};

// As edge_sdk/sampling.py: repetition penalty, then with do_sample temperature, top-k, top-p and a draw.
struct Sampling {
  int32_t do_sample = 0;
  float temperature = 1;
  float top_p = 1;
  int32_t top_k = 0;  // 0: off
  float repetition_penalty = 1;
  uint64_t seed = 0;
  uint32_t turn = 0, step = 0;  // with the sub-step 0..G-1 the generator's counter
};

// The settings where CUDA reads them: in device memory, so that one captured graph or engine serves any of them. Turn and
// step stand in SpeechHeadCudaState.
struct SpeechHeadCudaSampling {
  int32_t do_sample, top_k;
  float temperature, top_p, repetition_penalty;
  uint32_t seed_low, seed_high;
};

struct SpeechHeadGroup {
  const float* head_input = nullptr;  // [hidden]
  int64_t last_id = 0;                // the pick before this group; BOS at the start
  int32_t length = 0;                 // filled cache positions; the call appends G
  const uint8_t* seen = nullptr;      // [codes] nonzero: in the repetition penalty's history. Picks of this group join a copy
  Sampling sampling;
  int64_t* ids = nullptr;             // out [G]
  float* logits = nullptr;            // out [G, codes] before any processor, or null
  const int64_t* forced = nullptr;    // [G] ids taken whatever the scores say, -1 for none; or null
  const SpeechHeadCudaSampling* cuda_sampling = nullptr;  // CUDA: read instead of `sampling`; or null
};

// Sizes, dtypes and pointers that every call relies on. Made once, when the head is.
Status CheckSpeechHead(const SpeechHeadShape& shape, const SpeechHeadWeights& weights);
Status CheckSpeechHeadCache(const SpeechHeadShape& shape, const SpeechHeadCache& cache);

// -- CPU. `team` gives the threads; scratch is allocated per call (far below the cost of one layer).

// Appends positions: head_input [count, hidden] -> count * G cache rows, each with the BOS row. `length` counts cache
// positions before the call.
Status SpeechHeadPrefillCpu(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache,
                            const float* head_input, int32_t count, int32_t length, Team& team);

// Makes one group. Bad input (not finite, ids out of range, cache full) is refused before the cache is touched.
Status SpeechHeadGroupCpu(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache,
                          const SpeechHeadGroup& group, Team& team);

// -- CUDA 12.1 and later (pointers travel as up to 32 KB of kernel parameters: nothing is uploaded, a captured graph
// holds its copy), sm_80 and later, batch 1. At most 64 layers and a cache_head_dim of 256; codes and matrix widths as
// shared memory allows (24,000 and 21,000 with 99 KB). All data pointers are the device's; the arrays of pointers and `layers` are the host's. Every call only
// enqueues on `stream` (a cudaStream_t), so that a caller can capture it in a graph: `length`, `last_id` and the
// sampling's turn and step are read from device memory for that reason.

struct SpeechHeadCudaState {  // one struct in device memory, written by the caller between groups
  int64_t last_id;
  int32_t length;
  uint32_t turn, step;
  // A Code: a call that cannot do its work sets kNotFinite, kNoChoice, kCacheFull or kInvalidArgument and changes
  // nothing else (but for cache positions past `length`). While it is not 0, calls do nothing: a group enqueued behind a
  // prefill that failed must not run. The caller sets it back.
  int32_t error;
};

// Device scratch, aligned to 256 bytes, for groups and for prefills of up to max_count. Its contents need not be kept
// between calls.
size_t SpeechHeadWorkspaceBytes(const SpeechHeadShape& shape, int32_t max_count);

Status SpeechHeadPrefillCuda(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache,
                             const float* head_input, int32_t count, SpeechHeadCudaState* state, void* workspace,
                             void* stream);

// group.last_id, group.length, sampling.turn and sampling.step are ignored: `state` has them. Settings or forced ids that
// are out of range leave kInvalidArgument there. On success the kernel leaves the new last_id, length + G and step + 1 in `state`.
Status SpeechHeadGroupCuda(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache,
                           const SpeechHeadGroup& group, SpeechHeadCudaState* state, void* workspace, void* stream);

}  // namespace edge_sdk
