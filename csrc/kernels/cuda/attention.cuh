// Attention of one query position over the head's KV cache, by one block: a stretch of positions at a time, with the
// running maximum and sum of a softmax that never sees all scores at once.
#pragma once

#include "kernels/cuda/matrix.cuh"
#include "kernels/speech_head.h"

namespace edge_sdk::cuda {

constexpr int kUnit = 8;           // cache values that a lane takes at once: 8, 16 or 32 bytes
constexpr int kMaxCacheHeadDim = kUnit * kWarpSize;
constexpr int kQueries = 2;        // query heads that share one reading of keys and values
constexpr int kTile = 256;         // positions between two looks at the softmax's maximum
constexpr int kRowsInFlight = 4;   // positions whose loads a lane issues together

// One layer's cache and what its heads look like.
struct HeadCache {
  void* keys;    // [kv_heads, capacity, cache_head_dim]
  void* values;
  float* key_scales;  // [kv_heads, capacity], kI8 only
  float* value_scales;
};

struct HeadGeometry {
  int32_t heads, kv_heads, head_dim, cache_head_dim, capacity;
  DType cache_dtype;
  float eps;
  const float* rope_cos;  // [capacity, head_dim / 2]
  const float* rope_sin;

  __host__ __device__ int ratio() const { return heads / kv_heads; }
  // A pair: up to kQueries query heads of one kv head.
  __host__ __device__ int pairs_per_kv_head() const { return CeilDiv(ratio(), kQueries); }
  __host__ __device__ int pairs() const { return kv_heads * pairs_per_kv_head(); }
  __host__ __device__ int first_head(int pair) const {
    return pair / pairs_per_kv_head() * ratio() + pair % pairs_per_kv_head() * kQueries;
  }
  __host__ __device__ int heads_of(int pair) const {
    const int left = ratio() - pair % pairs_per_kv_head() * kQueries;
    return left < kQueries ? left : kQueries;
  }
};

// A block's shared memory for one pair.
struct AttentionShared {
  float* query;   // [kQueries, cache_head_dim], scaled by 1 / sqrt(head_dim)
  float* append;  // [2, cache_head_dim]: the new key and value
  float* scores;  // [kQueries, kTile]: scores, then their exponentials
  float* sums;    // [kWarps, kQueries, cache_head_dim]
  float* stats;   // [kQueries, 3]: maximum, sum, factor on what came before this tile
};

__host__ __device__ inline int AttentionFloats(int cache_head_dim) {
  return (kQueries + 2 + kWarps * kQueries) * cache_head_dim + kQueries * (kTile + 3);
}

__device__ inline AttentionShared CutShared(float* area, int cache_head_dim) {
  AttentionShared a;
  a.query = area;
  a.append = a.query + kQueries * cache_head_dim;
  a.sums = a.append + 2 * cache_head_dim;
  a.scores = a.sums + kWarps * kQueries * cache_head_dim;
  a.stats = a.scores + kQueries * kTile;
  return a;
}

// One warp: dst [cache_head_dim] = a head's row, normalised and rotated where `norm` is given, times `scale`.
__device__ inline void PrepareRow(const HeadGeometry& g, const float* src, const float* norm, int position, float scale,
                                  float* dst) {
  const int half = g.head_dim / 2;
  if (norm != nullptr) {
    float squares = 0;
    for (int i = Lane(); i < g.head_dim; i += kWarpSize) squares = fmaf(FromGrid(src + i), FromGrid(src + i), squares);
    scale /= sqrtf(WarpSum(squares) / static_cast<float>(g.head_dim) + g.eps);
  }
  for (int i = Lane(); i < half; i += kWarpSize) {
    float a = FromGrid(src + i) * scale, b = FromGrid(src + half + i) * scale;
    if (norm != nullptr) {
      const int64_t at = static_cast<int64_t>(position) * half + i;
      const float x = a * norm[i], y = b * norm[half + i];
      a = x * g.rope_cos[at] - y * g.rope_sin[at];
      b = y * g.rope_cos[at] + x * g.rope_sin[at];
    }
    dst[i] = a;
    dst[half + i] = b;
  }
  for (int i = g.head_dim + Lane(); i < g.cache_head_dim; i += kWarpSize) dst[i] = 0;
  __syncwarp();
}

// One warp: row [cache_head_dim] into the cache, rounded to what it stores; the padding is written too, as zeros.
__device__ inline void StoreRow(const HeadGeometry& g, const float* row, int kv_head, int position, void* cache,
                                float* scales) {
  const int64_t line = static_cast<int64_t>(kv_head) * g.capacity + position;
  const int64_t at = line * g.cache_head_dim;
  float scale = 0;
  if (g.cache_dtype == DType::kI8) {
    float unfit = 0;  // NaN if the row holds one or an infinity: the scale carries it on, integers cannot
    for (int i = Lane(); i < g.cache_head_dim; i += kWarpSize) {
      scale = fmaxf(scale, fabsf(row[i]));
      unfit += row[i] * 0.0f;
    }
    scale = WarpMax(scale) / 127.0f + WarpSum(unfit);
    if (Lane() == 0) scales[line] = scale;
  }
  for (int i = Lane(); i < g.cache_head_dim; i += kWarpSize) {
    switch (g.cache_dtype) {
      case DType::kF32: static_cast<float*>(cache)[at + i] = row[i]; break;
      case DType::kF16: static_cast<__half*>(cache)[at + i] = __float2half_rn(row[i]); break;
      default: {
        const float q = scale > 0 ? fminf(fmaxf(rintf(row[i] / scale), -127.0f), 127.0f) : 0.0f;
        static_cast<int8_t*>(cache)[at + i] = static_cast<int8_t>(q);
      }
    }
  }
}

// kUnit cache values from `at` on. Written by other blocks, so read from L2.
template <DType kType>
__device__ inline void LoadUnit(const void* cache, int64_t at, float (&v)[kUnit]) {
  if constexpr (kType == DType::kF32) {
    const float4* p = reinterpret_cast<const float4*>(static_cast<const float*>(cache) + at);
    const float4 a = __ldcg(p), b = __ldcg(p + 1);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else if constexpr (kType == DType::kF16) {
    const uint4 w = __ldcg(reinterpret_cast<const uint4*>(static_cast<const __half*>(cache) + at));
    const float2 a = Halves(w.x), b = Halves(w.y), c = Halves(w.z), d = Halves(w.w);
    v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y, v[4] = c.x, v[5] = c.y, v[6] = d.x, v[7] = d.y;
  } else {
    const uint2 w = __ldcg(reinterpret_cast<const uint2*>(static_cast<const int8_t*>(cache) + at));
    for (int i = 0; i < 4; ++i) {
      v[i] = static_cast<float>(static_cast<int8_t>(w.x >> 8 * i & 0xffu));
      v[i + 4] = static_cast<float>(static_cast<int8_t>(w.y >> 8 * i & 0xffu));
    }
  }
}

// How a warp's lanes share rows of the cache: `lanes` of them a row (a power of two), each one unit.
struct RowLanes {
  int units, lanes, rows;  // units of a row; rows that a warp reads at once
  int unit, row;           // this lane's

  __device__ explicit RowLanes(int cache_head_dim) : units(cache_head_dim / kUnit), lanes(1) {
    while (lanes < units) lanes *= 2;
    rows = kWarpSize / lanes;
    unit = Lane() % lanes;
    row = Lane() / lanes;
  }
};

// scores[h, i] = query h * key at begin + i.
template <DType kType>
__device__ inline void TileScores(const HeadGeometry& g, const HeadCache& cache, int64_t line, int count, int queries,
                                  const RowLanes& r, const AttentionShared& a) {
  for (int first = Warp() * r.rows; first < count; first += kRowsInFlight * kWarps * r.rows) {
    float key[kRowsInFlight][kUnit] = {};
#pragma unroll
    for (int u = 0; u < kRowsInFlight; ++u) {
      const int i = first + u * kWarps * r.rows + r.row;
      if (i < count && r.unit < r.units) {
        LoadUnit<kType>(cache.keys, (line + i) * g.cache_head_dim + r.unit * kUnit, key[u]);
      }
    }
    for (int h = 0; h < queries; ++h) {
      float query[kUnit] = {};
      if (r.unit < r.units) {
        const float4* q = reinterpret_cast<const float4*>(a.query + h * g.cache_head_dim + r.unit * kUnit);
        const float4 x = q[0], y = q[1];
        query[0] = x.x, query[1] = x.y, query[2] = x.z, query[3] = x.w;
        query[4] = y.x, query[5] = y.y, query[6] = y.z, query[7] = y.w;
      }
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        float sum = 0;
        for (int k = 0; k < kUnit; ++k) sum = fmaf(key[u][k], query[k], sum);
        for (int offset = r.lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
        const int i = first + u * kWarps * r.rows + r.row;
        if (r.unit == 0 && i < count) {
          a.scores[h * kTile + i] = kType == DType::kI8 ? sum * __ldcg(cache.key_scales + line + i) : sum;
        }
      }
    }
  }
}

// Warp h: exponentials of the tile's scores, and the running maximum and sum.
__device__ inline void TileSoftmax(int count, float* scores, float* stats) {
  const float before = stats[0], sum_before = stats[1];  // read by all lanes before lane 0 writes below
  float largest = before;
  for (int i = Lane(); i < count; i += kWarpSize) largest = fmaxf(largest, scores[i]);
  largest = WarpMax(largest);
  float sum = 0;
  for (int i = Lane(); i < count; i += kWarpSize) {
    const float e = expf(scores[i] - largest);
    scores[i] = e;
    sum += e;
  }
  sum = WarpSum(sum);
  if (Lane() == 0) {
    const float factor = sum_before > 0 ? expf(before - largest) : 0.0f;
    stats[0] = largest;
    stats[1] = fmaf(sum_before, factor, sum);
    stats[2] = factor;
  }
}

template <DType kType>
__device__ inline void TileValues(const HeadGeometry& g, const HeadCache& cache, int64_t line, int count, int queries,
                                  const RowLanes& r, const AttentionShared& a, float (&sums)[kQueries][kUnit]) {
#pragma unroll
  for (int h = 0; h < kQueries; ++h) {
    const float factor = a.stats[h * 3 + 2];
    for (int k = 0; k < kUnit; ++k) sums[h][k] *= factor;
  }
  for (int first = Warp() * r.rows; first < count; first += kRowsInFlight * kWarps * r.rows) {
    float value[kRowsInFlight][kUnit] = {};
#pragma unroll
    for (int u = 0; u < kRowsInFlight; ++u) {
      const int i = first + u * kWarps * r.rows + r.row;
      if (i < count && r.unit < r.units) {
        LoadUnit<kType>(cache.values, (line + i) * g.cache_head_dim + r.unit * kUnit, value[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < kRowsInFlight; ++u) {
      const int i = first + u * kWarps * r.rows + r.row;
      if (i >= count) break;
      const float scale = kType == DType::kI8 ? __ldcg(cache.value_scales + line + i) : 1.0f;
#pragma unroll
      for (int h = 0; h < kQueries; ++h) {
        if (h >= queries) break;
        const float weight = a.scores[h * kTile + i] * scale;
        for (int k = 0; k < kUnit; ++k) sums[h][k] = fmaf(weight, value[u][k], sums[h][k]);
      }
    }
  }
}

// Sums of all rows of a warp, then of all warps: result of query h into a.sums[h * cache_head_dim].
__device__ inline void CollectSums(const HeadGeometry& g, const RowLanes& r, const AttentionShared& a,
                                   float (&sums)[kQueries][kUnit]) {
#pragma unroll
  for (int h = 0; h < kQueries; ++h) {
    for (int k = 0; k < kUnit; ++k) {
      float v = sums[h][k];
      for (int offset = r.lanes; offset < kWarpSize; offset *= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
      if (r.row == 0 && r.unit < r.units) {
        a.sums[(Warp() * kQueries + h) * g.cache_head_dim + r.unit * kUnit + k] = v;
      }
    }
  }
  __syncthreads();
  const int size = kQueries * g.cache_head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
    float v = a.sums[i];
    for (int w = 1; w < kWarps; ++w) v += a.sums[w * size + i];
    a.sums[i] = v;  // only this thread reads or writes column i
  }
  __syncthreads();
}

// The block: queries of one pair (in a.query) over positions [begin, end) of its kv head. Leaves maximum and sum in
// a.stats and the weighted, undivided sum of values in a.sums.
template <DType kType>
__device__ inline void AttendRange(const HeadGeometry& g, const HeadCache& cache, int kv_head, int queries, int begin,
                                   int end, const AttentionShared& a) {
  const RowLanes r(g.cache_head_dim);
  float sums[kQueries][kUnit] = {};
  if (threadIdx.x < kQueries) {
    a.stats[threadIdx.x * 3] = -INFINITY;
    a.stats[threadIdx.x * 3 + 1] = 0;
    a.stats[threadIdx.x * 3 + 2] = 0;
  }
  __syncthreads();
  for (int at = begin; at < end; at += kTile) {
    const int count = end - at < kTile ? end - at : kTile;
    const int64_t line = static_cast<int64_t>(kv_head) * g.capacity + at;
    TileScores<kType>(g, cache, line, count, queries, r, a);
    __syncthreads();
    if (Warp() < queries) TileSoftmax(count, a.scores + Warp() * kTile, a.stats + Warp() * 3);
    __syncthreads();
    TileValues<kType>(g, cache, line, count, queries, r, a, sums);
    __syncthreads();
  }
  CollectSums(g, r, a, sums);
}

__device__ inline void Attend(const HeadGeometry& g, const HeadCache& cache, int kv_head, int queries, int begin,
                              int end, const AttentionShared& a) {
  switch (g.cache_dtype) {
    case DType::kF32: AttendRange<DType::kF32>(g, cache, kv_head, queries, begin, end, a); break;
    case DType::kF16: AttendRange<DType::kF16>(g, cache, kv_head, queries, begin, end, a); break;
    default: AttendRange<DType::kI8>(g, cache, kv_head, queries, begin, end, a); break;
  }
}

}  // namespace edge_sdk::cuda
