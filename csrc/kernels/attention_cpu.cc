#include "kernels/attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace edge_sdk {
namespace {

// One row: positions of a task. Fixed, and merged in order, so that results do not depend on the number of threads.
constexpr int kStretch = 512;
// Positions whose scores are held before their values are summed: keys and values of both stay in the first cache.
constexpr int kPiece = 128;

// Of many rows: positions of a piece, and queries that share it. Its keys or values, scores and sums fit the second cache.
constexpr int kTilePiece = 64, kTileLanes = 64;

int Lanes(int queries) { return (queries + kScalePadding - 1) / kScalePadding * kScalePadding; }

int64_t ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : dtype == DType::kF16 ? 2 : 1; }

}  // namespace

CacheView Attention::View(void* const* data, float* const* scales, int layer, int kv_head, int begin, int end) const {
  const int64_t at = int64_t{kv_head} * cache_.capacity + begin;
  CacheView view;
  view.data = static_cast<const char*>(data[layer]) + at * shape_.cache_head_dim * ElementBytes(cache_.dtype);
  view.scales = cache_.dtype == DType::kI8 ? scales[layer] + at : nullptr;
  view.dtype = cache_.dtype;
  view.stride = shape_.cache_head_dim;
  view.dim = shape_.head_dim;
  view.positions = end - begin;
  return view;
}

void Attention::Append(int layer, const float* k, const float* v, int32_t rows, int32_t length) {
  const int64_t element = ElementBytes(cache_.dtype);
  for (int32_t r = 0; r < rows; ++r) {
    for (int h = 0; h < shape_.kv_heads; ++h) {
      const int64_t at = int64_t{h} * cache_.capacity + length + r;
      const int64_t source = (int64_t{r} * shape_.kv_heads + h) * shape_.head_dim;
      const bool scaled = cache_.dtype == DType::kI8;
      isa_.store(k + source, shape_.head_dim, shape_.cache_head_dim, cache_.dtype,
                 static_cast<char*>(cache_.keys[layer]) + at * shape_.cache_head_dim * element,
                 scaled ? cache_.key_scales[layer] + at : nullptr);
      isa_.store(v + source, shape_.head_dim, shape_.cache_head_dim, cache_.dtype,
                 static_cast<char*>(cache_.values[layer]) + at * shape_.cache_head_dim * element,
                 scaled ? cache_.value_scales[layer] + at : nullptr);
    }
  }
}

// Softmax over positions that come in pieces: the running maximum rescales what was summed before (Milakov and
// Gimelshein, "Online normalizer calculation for softmax", 2018).
void Attention::Stretch(int layer, int kv_head, const float* q, int begin, int end, Partial out) const {
  const int dim = shape_.head_dim, heads = group();
  std::fill(out.top, out.top + heads, -std::numeric_limits<float>::infinity());
  std::fill(out.sum, out.sum + heads, 0.0f);
  std::fill(out.rows, out.rows + heads * dim, 0.0f);
  float* weights = out.scores;
  for (int at = begin; at < end; at += kPiece) {
    const int stop = std::min(at + kPiece, end), count = stop - at;
    isa_.scores(View(cache_.keys, cache_.key_scales, layer, kv_head, at, stop), q, heads, weights, kPiece);
    for (int h = 0; h < heads; ++h) {
      const float top = std::max(out.top[h], isa_.max(weights + h * kPiece, count));
      if (top > out.top[h] && out.sum[h] > 0) {
        const float shrink = std::exp(out.top[h] - top);
        out.sum[h] *= shrink;
        for (int i = 0; i < dim; ++i) out.rows[h * dim + i] *= shrink;
      }
      out.top[h] = top;
      out.sum[h] += isa_.exp_sum(weights + h * kPiece, count, top);
    }
    isa_.weighted_sum(View(cache_.values, cache_.value_scales, layer, kv_head, at, stop), weights, kPiece, heads,
                      out.rows);
  }
}

Attention::Partial Attention::At(int64_t index) {
  const int64_t heads = group();
  float* base = partials_.data() + index * heads * (2 + shape_.head_dim + kPiece);
  return {base, base + heads, base + 2 * heads, base + heads * (2 + shape_.head_dim)};
}

void Attention::Merge(Partial from, Partial into, int heads, int dim) {
  for (int h = 0; h < heads; ++h) {
    const float top = std::max(from.top[h], into.top[h]);
    const float keep = std::exp(into.top[h] - top), take = std::exp(from.top[h] - top);
    into.sum[h] = into.sum[h] * keep + from.sum[h] * take;
    for (int i = 0; i < dim; ++i) into.rows[h * dim + i] = into.rows[h * dim + i] * keep + from.rows[h * dim + i] * take;
    into.top[h] = top;
  }
}

void Attention::Run(Team& team, int layer, const float* q, int32_t rows, int32_t length, float* out) {
  if (rows == 1) return RunOne(team, layer, q, length, out);
  const int per_tile = RowsPerTile(), tiles = (rows + per_tile - 1) / per_tile;
  const int64_t floats = TileFloats(Lanes(per_tile * group()));
  partials_.resize(int64_t{tiles} * shape_.kv_heads * floats);
  team.For(tiles * shape_.kv_heads, [&](int task) {
    const int begin = task / shape_.kv_heads * per_tile;
    const Tile tile{begin, std::min(begin + per_tile, rows), task % shape_.kv_heads};
    RunTile(layer, tile, q, length, partials_.data() + task * floats, out);
  });
}

// Every stretch of every KV head is a task.
void Attention::RunOne(Team& team, int layer, const float* q, int32_t length, float* out) {
  const int kv_heads = shape_.kv_heads, heads = group(), dim = shape_.head_dim, end = length + 1;
  const int stretches = (end + kStretch - 1) / kStretch;
  partials_.resize(int64_t{kv_heads} * stretches * heads * (2 + dim + kPiece));
  team.For(kv_heads * stretches, [&](int task) {
    const int kv_head = task / stretches, begin = task % stretches * kStretch;
    Stretch(layer, kv_head, q + int64_t{kv_head} * heads * dim, begin, std::min(begin + kStretch, end), At(task));
  });
  for (int kv_head = 0; kv_head < kv_heads; ++kv_head) {
    const Partial total = At(int64_t{kv_head} * stretches);
    for (int s = 1; s < stretches; ++s) Merge(At(int64_t{kv_head} * stretches + s), total, heads, dim);
    for (int h = 0; h < heads; ++h) {
      const float inverse = 1.0f / total.sum[h];
      for (int i = 0; i < dim; ++i) out[(int64_t{kv_head} * heads + h) * dim + i] = total.rows[h * dim + i] * inverse;
    }
  }
}

int Attention::RowsPerTile() const { return std::max(1, kTileLanes / group()); }

// Queries, sums, scores, a piece of the cache, and four rows of one value a lane.
int64_t Attention::TileFloats(int lanes) const {
  return int64_t{lanes} * (2 * shape_.head_dim + kTilePiece + 4) + int64_t{kTilePiece} * shape_.head_dim;
}

// Positions [begin, end) as float32, *stride apart: as they lie in the cache, or widened into `spare`.
const float* Attention::Rows(void* const* data, float* const* scales, int layer, int kv_head, int begin, int end,
                             float* spare, int64_t* stride) const {
  const CacheView view = View(data, scales, layer, kv_head, begin, end);
  *stride = view.dtype == DType::kF32 ? view.stride : view.dim;
  if (view.dtype == DType::kF32) return static_cast<const float*>(view.data);
  isa_.widen(view, spare);
  return spare;
}

void Attention::RunTile(int layer, Tile tile, const float* q, int32_t length, float* scratch, float* out) const {
  const int dim = shape_.head_dim, heads = group(), used = (tile.end - tile.begin) * heads, lanes = Lanes(used);
  float *query = scratch, *sums = query + int64_t{dim} * lanes, *scores = sums + int64_t{dim} * lanes;
  float *ends = scores + kTilePiece * lanes, *top = ends + lanes, *sum = top + lanes, *keep = sum + lanes;
  float* spare = keep + lanes;
  const auto row_of = [&](int lane) {
    return (int64_t{tile.begin + lane / heads} * shape_.heads + int64_t{tile.kv_head} * heads + lane % heads) * dim;
  };
  for (int lane = 0; lane < lanes; ++lane) {  // those behind `used` repeat the last
    const float* row = q + row_of(std::min(lane, used - 1));
    for (int i = 0; i < dim; ++i) query[int64_t{i} * lanes + lane] = row[i];
  }
  std::fill(sums, sums + int64_t{dim} * lanes, 0.0f);
  std::fill(top, top + lanes, -std::numeric_limits<float>::infinity());
  std::fill(sum, sum + lanes, 0.0f);
  const int last = length + tile.end;
  for (int at = 0; at < last; at += kTilePiece) {
    const int stop = std::min(at + kTilePiece, last), count = stop - at;
    for (int lane = 0; lane < lanes; ++lane) {
      ends[lane] = static_cast<float>(length + tile.begin + std::min(lane, used - 1) / heads + 1 - at);
    }
    int64_t stride = 0;
    const float* keys = Rows(cache_.keys, cache_.key_scales, layer, tile.kv_head, at, stop, spare, &stride);
    isa_.multiply_lanes({keys, stride, 1, count, dim, lanes, query, nullptr, scores});
    isa_.softmax_lanes(scores, count, lanes, ends, top, sum, keep);
    const float* values = Rows(cache_.values, cache_.value_scales, layer, tile.kv_head, at, stop, spare, &stride);
    isa_.multiply_lanes({values, 1, stride, dim, count, lanes, scores, keep, sums});
  }
  for (int lane = 0; lane < used; ++lane) {
    float* row = out + row_of(lane);
    const float inverse = 1.0f / sum[lane];
    for (int i = 0; i < dim; ++i) row[i] = sums[int64_t{i} * lanes + lane] * inverse;
  }
}

}  // namespace edge_sdk
