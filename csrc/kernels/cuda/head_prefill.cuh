// The prefill of many positions: a kernel a matrix, tiles of positions, so that a weight read once serves a tile.
// All kernels look at the state's error first and then do nothing.
#pragma once

#include "kernels/cuda/head.cuh"

namespace edge_sdk::cuda {

constexpr int kTilePositions = 8;
constexpr int kTileColumns = 1024;  // a warp's 32 vectors of int4
constexpr int kTileFloats = kTileColumns / 32 * 36;  // one position, padded
constexpr int kLinearSharedBytes = kTilePositions * kTileFloats * static_cast<int>(sizeof(float));

// y[i, r] (+)= sum_c m[r, c] x[i, c] + bias[r]
struct LinearParams {
  DeviceMatrix m;
  const float* x;     // [count, cols]
  const float* bias;  // [rows] or null
  float* y;           // row i at i * y_stride
  int32_t rows, cols, count, y_stride;
  int32_t add;        // to what y holds
  const SpeechHeadCudaState* state;
};

// Columns [begin, begin + kTileColumns) of the tile's positions into shared memory; zeros past the end.
__device__ inline void StageTile(const LinearParams& p, int first, int begin, float* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kTilePositions * kTileColumns; i += kThreads) {
    const int position = i / kTileColumns, c = i % kTileColumns;
    const bool inside = first + position < p.count && begin + c < p.cols;
    tile[position * kTileFloats + Padded(c)] =
        inside ? p.x[static_cast<int64_t>(first + position) * p.cols + begin + c] : 0.0f;
  }
}

using TileSums = float[kRowsPerWarp][kTilePositions];

template <DType kType>
__device__ inline void TileVectors(const LinearParams& p, int row, int begin, const float* tile, TileSums& sums) {
  constexpr int kValues = Vector<kType>::kValues;
  const int end = min(p.cols, begin + kTileColumns);
  for (int vector = begin / kValues + Lane(); vector * kValues < end; vector += kWarpSize) {
    uint4 w[kRowsPerWarp];
    float scale[kRowsPerWarp];
    for (int r = 0; r < kRowsPerWarp; ++r) {
      scale[r] = LoadVector<kType>(p.m, min(row + r, p.rows - 1), vector, &w[r]);
    }
#pragma unroll
    for (int piece = 0; piece < kValues / 4; ++piece) {
      float4 values[kRowsPerWarp];
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const unsigned words[4] = {w[r].x, w[r].y, w[r].z, w[r].w};
        const float4 v = Unpack<kType>(words, piece);
        values[r] = make_float4(v.x * scale[r], v.y * scale[r], v.z * scale[r], v.w * scale[r]);
      }
      const int c = vector * kValues - begin + 4 * piece;
#pragma unroll
      for (int i = 0; i < kTilePositions; ++i) {
        const float4 x = SharedFour(tile + i * kTileFloats, c);
        for (int r = 0; r < kRowsPerWarp; ++r) sums[r][i] = Dot(values[r], x, sums[r][i]);
      }
    }
  }
}

__device__ inline void TilePlain(const LinearParams& p, int row, int begin, const float* tile, TileSums& sums) {
  const int end = min(p.cols, begin + kTileColumns);
  for (int c = begin + Lane(); c < end; c += kWarpSize) {
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const float w = Element(p.m, min(row + r, p.rows - 1), c);
#pragma unroll
      for (int i = 0; i < kTilePositions; ++i) {
        sums[r][i] = fmaf(w, tile[i * kTileFloats + Padded(c - begin)], sums[r][i]);
      }
    }
  }
}

__device__ inline void StoreTile(const LinearParams& p, int row, int first, TileSums& sums) {
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
#pragma unroll
    for (int i = 0; i < kTilePositions; ++i) {
      const float sum = WarpSum(sums[r][i]);
      if (Lane() != 0 || row + r >= p.rows || first + i >= p.count) continue;
      float* y = p.y + static_cast<int64_t>(first + i) * p.y_stride + row + r;
      *y = sum + (p.bias == nullptr ? 0.0f : p.bias[row + r]) + (p.add ? *y : 0.0f);
    }
  }
}

// Block (b, t): kWarps * kRowsPerWarp rows, kTilePositions positions.
__global__ void __launch_bounds__(kThreads) LinearKernel(const LinearParams p) {
  if (p.state->error != 0) return;
  float* tile = reinterpret_cast<float*>(SharedMemory());
  const int row = (static_cast<int>(blockIdx.x) * kWarps + Warp()) * kRowsPerWarp;
  const int first = static_cast<int>(blockIdx.y) * kTilePositions;
  TileSums sums = {};
  for (int begin = 0; begin < p.cols; begin += kTileColumns) {
    StageTile(p, first, begin, tile);
    __syncthreads();
    if (row < p.rows) {
      switch (p.m.plain ? -1 : p.m.dtype) {
        case -1: TilePlain(p, row, begin, tile, sums); break;
        case static_cast<int>(DType::kF32): TileVectors<DType::kF32>(p, row, begin, tile, sums); break;
        case static_cast<int>(DType::kF16): TileVectors<DType::kF16>(p, row, begin, tile, sums); break;
        case static_cast<int>(DType::kI8): TileVectors<DType::kI8>(p, row, begin, tile, sums); break;
        default: TileVectors<DType::kI4>(p, row, begin, tile, sums); break;
      }
    }
    __syncthreads();
  }
  if (row < p.rows) StoreTile(p, row, first, sums);
}

// A row's table entry joins it, or its norm goes to `out`: block i has row i.
struct RowsParams {
  float* x;             // [count, width]
  float* out;           // [count, width]
  const float* weight;  // [width] of the norm
  DeviceMatrix table;
  int32_t width, id;
  float eps;
  const SpeechHeadCudaState* state;
};

__global__ void __launch_bounds__(kThreads) AddEntryKernel(const RowsParams p) {
  if (p.state->error != 0) return;
  float* x = p.x + static_cast<int64_t>(blockIdx.x) * p.width;
  for (int i = static_cast<int>(threadIdx.x); i < p.width; i += kThreads) x[i] += Element(p.table, p.id, i);
}

__global__ void __launch_bounds__(kThreads) NormKernel(const RowsParams p) {
  if (p.state->error != 0) return;
  const float* x = p.x + static_cast<int64_t>(blockIdx.x) * p.width;
  float* out = p.out + static_cast<int64_t>(blockIdx.x) * p.width;
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < p.width; i += kThreads) squares = fmaf(x[i], x[i], squares);
  float* scratch = reinterpret_cast<float*>(SharedMemory());
  const float scale = 1.0f / sqrtf(BlockSum(squares, scratch) / static_cast<float>(p.width) + p.eps);
  for (int i = static_cast<int>(threadIdx.x); i < p.width; i += kThreads) out[i] = x[i] * (scale * p.weight[i]);
}

struct SiluParams {
  float* gate;  // becomes silu(gate) * up
  const float* up;
  int64_t count;
  const SpeechHeadCudaState* state;
};

__global__ void __launch_bounds__(kThreads) SiluKernel(const SiluParams p) {
  if (p.state->error != 0) return;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.count) p.gate[i] = SiluTimes(p.gate[i], p.up[i]);
}

// Row i of qkv stands at position state.length + offset + i.
struct PrefillAttentionParams {
  HeadGeometry geometry;
  HeadCache cache;
  const float* qkv;      // [count, (heads + 2 kv_heads) * head_dim]
  float* attention;      // [count, heads * head_dim]
  const float* q_norm;
  const float* k_norm;
  int32_t offset;
  const SpeechHeadCudaState* state;
};

// Block (i, kv head): the key and value of row i into the cache.
__global__ void __launch_bounds__(kThreads) AppendKernel(const PrefillAttentionParams p) {
  if (p.state->error != 0) return;
  const HeadGeometry& g = p.geometry;
  const int position = p.state->length + p.offset + static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  const float* row = p.qkv + static_cast<int64_t>(blockIdx.x) * (g.heads + 2 * g.kv_heads) * g.head_dim;
  float* shared = reinterpret_cast<float*>(SharedMemory());
  if (Warp() == 0) {
    PrepareRow(g, row + (g.heads + kv_head) * g.head_dim, p.k_norm, position, 1.0f, shared);
    StoreRow(g, shared, kv_head, position, p.cache.keys, p.cache.key_scales);
  } else if (Warp() == 1) {
    float* value = shared + g.cache_head_dim;
    PrepareRow(g, row + (g.heads + g.kv_heads + kv_head) * g.head_dim, nullptr, position, 1.0f, value);
    StoreRow(g, value, kv_head, position, p.cache.values, p.cache.value_scales);
  }
}

// Block (i, pair): the queries of row i over all positions up to its own.
__global__ void __launch_bounds__(kThreads) PrefillAttentionKernel(const PrefillAttentionParams p) {
  if (p.state->error != 0) return;
  const HeadGeometry& g = p.geometry;
  const int position = p.state->length + p.offset + static_cast<int>(blockIdx.x), pair = static_cast<int>(blockIdx.y);
  const float* row = p.qkv + static_cast<int64_t>(blockIdx.x) * (g.heads + 2 * g.kv_heads) * g.head_dim;
  float* out = p.attention + static_cast<int64_t>(blockIdx.x) * g.heads * g.head_dim;
  const AttentionShared a = CutShared(reinterpret_cast<float*>(SharedMemory()), g.cache_head_dim);
  if (Warp() < g.heads_of(pair)) {
    PrepareRow(g, row + (g.first_head(pair) + Warp()) * g.head_dim, p.q_norm, position,
               1.0f / sqrtf(static_cast<float>(g.head_dim)), a.query + Warp() * g.cache_head_dim);
  }
  __syncthreads();
  Attend(g, p.cache, pair / g.pairs_per_kv_head(), g.heads_of(pair), 0, position + 1, a);
  for (int h = 0; h < g.heads_of(pair); ++h) {
    for (int i = static_cast<int>(threadIdx.x); i < g.head_dim; i += kThreads) {
      out[(g.first_head(pair) + h) * g.head_dim + i] = a.sums[h * g.cache_head_dim + i] / a.stats[h * 3 + 1];
    }
  }
}

struct StateParams {
  SpeechHeadCudaState* state;
  const float* head_input;  // [count, hidden]
  int32_t count, hidden, group_size, capacity;
};

__global__ void __launch_bounds__(kThreads) BeginPrefillKernel(const StateParams p) {
  const Code code = Refusal(p.state, p.head_input, p.count, p.hidden, p.group_size, p.capacity);
  if (threadIdx.x == 0) p.state->error = static_cast<int32_t>(code);
}

__global__ void __launch_bounds__(kThreads) EndPrefillKernel(const StateParams p) {
  if (threadIdx.x == 0 && p.state->error == 0) p.state->length += p.count * p.group_size;
}

}  // namespace edge_sdk::cuda
