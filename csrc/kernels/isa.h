// The inner loops that depend on the processor, as one table of functions for each instruction set.
#pragma once

#include <cstdint>

#include "kernels/matrix.h"

namespace edge_sdk {

constexpr int kScalePadding = 16;  // float32 lanes of the widest register of any set

// Fetches into the second cache what stands kAheadBytes behind p, where rows lie one after the other: they are short,
// the processor's own prefetching starts anew at each and stops at the end of a page. Into the first cache it would
// halve the rate (docs/NOTES.md). A macro: no inline function is shared between the sets' files.
constexpr int64_t kAheadBytes = 16 << 10, kLineBytes = 64;
#define EDGE_FETCH_AHEAD(p) __builtin_prefetch(reinterpret_cast<const char*>(p) + kAheadBytes, 0, 2)

// `count` vectors of `cols` values, as the matrices of one phase read them: float32, or for quantized matrices int8 in
// blocks as the weights are cut. One block: scale = amax / 127, q = rint(x / scale). For kI4 the even elements of a
// block stand before its odd ones, as the nibbles of the weights do.
struct Activations {
  const float* x = nullptr;       // [count, ld]
  int64_t ld = 0;
  const int8_t* q = nullptr;      // [count, blocks * block]
  const float* scale = nullptr;   // [count, ld_blocks], zeros behind the last block
  const float* sum = nullptr;     // [count, ld_blocks]: scale times the sum of q, for the weights' zero point
  int64_t ld_blocks = 0;          // a multiple of kScalePadding
  int32_t count = 0;
};

// A stretch of one KV head's cache and the query heads that share it.
struct CacheView {
  const void* data = nullptr;     // [positions, stride]
  const float* scales = nullptr;  // [positions], kI8 only
  DType dtype = DType::kF32;
  int32_t stride = 0;
  int32_t dim = 0;
  int32_t positions = 0;
};

// y[o * lanes + l] = y[same] * keep[l] + sum over t of a[o * output_step + t * term_step] * x[t * lanes + l]; without
// keep, y starts at zero. `lanes` is a multiple of kScalePadding.
struct LaneProduct {
  const float* a = nullptr;
  int64_t output_step = 0, term_step = 0;
  int32_t outputs = 0, terms = 0, lanes = 0;
  const float* x = nullptr;     // [terms, lanes]
  const float* keep = nullptr;  // [lanes] or null
  float* y = nullptr;           // [outputs, lanes]
};

struct Isa {
  const char* name;

  // y[m * ld_y + r] = dot(row r of w, vector m), for r in [begin, end) and every m.
  void (*rows)(const Matrix& w, const Activations& x, int begin, int end, float* y, int64_t ld_y);
  // One vector [cols] -> q, scale, sum of Activations.
  void (*quantize)(const float* x, int cols, int block, DType dtype, int8_t* q, float* scale, float* sum);

  // out[h * ld + p] = dot(q[h], position p), h < heads.  q [heads, dim].
  void (*scores)(const CacheView& keys, const float* q, int heads, float* out, int ld);
  // out[h * dim + i] += sum_p weights[h * ld + p] * value[p][i].
  void (*weighted_sum)(const CacheView& values, const float* weights, int ld, int heads, float* out);
  // x[i] = exp(x[i] - top); returns their sum.
  float (*exp_sum)(float* x, int count, float top);
  float (*max)(const float* x, int count);
  // Many queries, one a lane. One piece of an online softmax: scores [positions, lanes] become weights, those of a lane
  // from its end (in positions of this piece) on 0; top and sum [lanes] go on, keep is what earlier sums shrink by.
  // A lane's first piece must have a position before its end.
  void (*softmax_lanes)(float* scores, int positions, int lanes, const float* ends, float* top, float* sum, float* keep);
  void (*multiply_lanes)(const LaneProduct& product);
  // Cache rows as float32 [positions, dim].
  void (*widen)(const CacheView& rows, float* out);
  // One cache row: dim values and zeros up to `stride`; kI8 also writes *scale.
  void (*store)(const float* x, int dim, int stride, DType dtype, void* out, float* scale);

  // y = x / rms(x) * weight.
  void (*rms_norm)(const float* x, const float* weight, int count, float eps, float* y);
  void (*silu_mul)(const float* gate, const float* up, int count, float* y);
  void (*add)(float* x, const float* y, int count);       // x += y
  void (*axpy)(float* x, const float* y, float a, int count);  // x += a * y
  // One row of a table, dequantized: out [cols].
  void (*read_row)(const Matrix& table, int64_t row, float* out);
};

const Isa& PlainIsa();
const Isa* Avx2Isa();    // null where it was not compiled in
const Isa* Avx512Isa();  // AVX-512 F, BW, VL and VNNI
const Isa* NeonIsa();    // with dot products

// The best one this processor runs; EDGE_SDK_ISA=plain|avx2|avx512|neon in the environment asks for another.
const Isa& CurrentIsa();
// By name, or null if this build or this processor lacks it.
const Isa* FindIsa(const char* name);

}  // namespace edge_sdk
