// The speech head's parameters on the device, its scratch memory, and what the group's and the prefill's kernels share.
#pragma once

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/matrix.cuh"
#include "kernels/cuda/pick.cuh"
#include "kernels/speech_head.h"

namespace edge_sdk::cuda {

// All pointers travel as kernel parameters, of which CUDA 12.1 and later take 32,764 bytes: a captured graph holds its
// own copy, and nothing has to be uploaded before.
constexpr int kMaxLayers = 64;
constexpr int kMaxSplits = 64;          // parts that one query's positions are cut into
constexpr int kPrefillPositions = 32;   // backbone positions that pass the layers together

struct DeviceLayer {
  DeviceMatrix q, k, v, o, gate, up, down;
  const float* input_norm;
  const float* post_norm;
  const float* q_norm;
  const float* k_norm;
  HeadCache cache;
};

// Scratch in device memory, cut from the caller's workspace.
struct HeadScratch {
  // group
  unsigned* barrier;     // arrivals at the grid's barrier; zero at the launch
  unsigned* tickets;     // [heads]: parts of a pair that are done; zero at the launch
  float* rows;           // [G, width]
  float* x;              // [width], the residual stream
  float* qkv;            // [(heads + 2 kv_heads) * head_dim]
  float* attention;      // [heads * head_dim]
  float* ffn;            // [intermediate]
  float* logits;         // [codes]
  float* parts;          // [heads, kMaxSplits, 2 + head_dim]: maximum, sum, weighted values
  // prefill, R = up to kPrefillPositions * G rows
  float* many_x;          // [R, width]
  float* many_h;          // [R, width]
  float* many_qkv;        // [R, (heads + 2 kv_heads) * head_dim]
  float* many_attention;  // [R, heads * head_dim]
  float* many_gate;       // [R, intermediate]
  float* many_up;         // [R, intermediate]
};

struct HeadParams {
  int32_t group_size, hidden, width, layers, intermediate, codes;
  HeadGeometry geometry;
  DeviceMatrix input, input_table, output_table;
  const float* input_bias;
  const float* final_norm;
  HeadScratch scratch;
  const float* head_input;
  SpeechHeadCudaState* state;
  // group only
  const uint8_t* seen;
  int64_t* ids;
  float* logits;  // or null
  Sampling sampling;
  const SpeechHeadCudaSampling* device_sampling;  // read instead of it, or null
  const int64_t* forced;                          // [G] or null
  DeviceLayer layer[kMaxLayers];

  __host__ __device__ int q_size() const { return geometry.heads * geometry.head_dim; }
  __host__ __device__ int kv_size() const { return geometry.kv_heads * geometry.head_dim; }
  __host__ __device__ int qkv_size() const { return q_size() + 2 * kv_size(); }
};
static_assert(sizeof(HeadParams) <= 32764, "kernel parameters");

// What a block holds in shared memory before the area that phases use in turn.
struct HeadShared {
  float sums[kWarps];
  PickShared pick;
  SpeechHeadCudaState state;  // as the block found it: read once, so that all its threads see the same
  Sampling sampling;          // of the group
  int last_part;              // this block finished a pair's last part
};
constexpr int kHeadSharedBytes = (sizeof(HeadShared) + 15) / 16 * 16;

__device__ inline HeadShared& Head() { return *reinterpret_cast<HeadShared*>(SharedMemory()); }
__device__ inline float* Area() { return reinterpret_cast<float*>(SharedMemory() + kHeadSharedBytes); }

// silu(gate) * up; float32 reaches far past fp16's 65504, which trained weights exceed here.
__device__ inline float SiluTimes(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// Area = value(i) for i in [0, count), zeros up to a whole 32. Ends with a barrier.
template <class Value>
__device__ void Stage(int count, Value&& value) {
  float* area = Area();
  for (int i = static_cast<int>(threadIdx.x); i < CeilDiv(count, 32) * 32; i += kThreads) {
    area[Padded(i)] = i < count ? value(i) : 0.0f;
  }
  __syncthreads();
}

// Area = rms_norm of value(i), which every block works out for itself: cheaper than a phase of its own.
template <class Value>
__device__ void StageNormed(int count, const float* weight, float eps, Value&& value) {
  float* area = Area();
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < CeilDiv(count, 32) * 32; i += kThreads) {
    const float v = i < count ? value(i) : 0.0f;
    area[Padded(i)] = v;
    squares = fmaf(v, v, squares);
  }
  const float scale = 1.0f / sqrtf(BlockSum(squares, Head().sums) / static_cast<float>(count) + eps);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) area[Padded(i)] *= scale * weight[i];
  __syncthreads();
}

// Code for the state if `count` * G positions with head_input [count, hidden] cannot be appended; the same in every
// block. An error that stands in the state stays: nothing runs until the caller has cleared it. Leaves the state in
// Head().state.
__device__ inline Code Refusal(const SpeechHeadCudaState* state, const float* head_input, int count, int hidden,
                               int group_size, int capacity) {
  SpeechHeadCudaState& s = Head().state;
  if (threadIdx.x == 0) s = *state;
  __syncthreads();
  if (s.error != 0) return static_cast<Code>(s.error);
  if (s.length < 0 || s.length > capacity) return Code::kInvalidArgument;
  if (count > (capacity - s.length) / group_size) return Code::kCacheFull;
  float bad = 0;
  const int64_t values = static_cast<int64_t>(count) * hidden;
  for (int64_t i = threadIdx.x; i < values; i += kThreads) bad += isfinite(head_input[i]) ? 0.0f : 1.0f;
  return BlockSum(bad, Head().sums) > 0 ? Code::kNotFinite : Code::kOk;
}

}  // namespace edge_sdk::cuda
