// Products with packed matrices (kernels/matrix.h): values are widened in registers, activations and sums are float32.
#pragma once

#include "core/status.h"
#include "kernels/cuda/device.cuh"
#include "kernels/matrix.h"

namespace edge_sdk::cuda {

// A Matrix as kernel parameters carry it. Number of rows and columns are known where it is used.
struct DeviceMatrix {
  const void* data;
  const void* scales;
  int32_t row_bytes;
  int32_t blocks;       // scales of a row
  int32_t block;
  int8_t dtype;         // DType
  int8_t half_scales;
  int8_t block_shift;   // log2(block), or -1
  int8_t plain;         // rows are not aligned to 16 bytes: read value by value
};

inline DeviceMatrix ToDevice(const Matrix& m) {
  DeviceMatrix d{m.data, m.scales, static_cast<int32_t>(m.row_bytes()), m.blocks(), m.quantized() ? m.block : 1,
                 static_cast<int8_t>(m.dtype), m.scale_dtype == DType::kF16, -1, 0};
  for (int shift = 0; shift < 31; ++shift) {
    if (d.block == 1 << shift) d.block_shift = static_cast<int8_t>(shift);
  }
  d.plain = d.row_bytes % 16 != 0 || reinterpret_cast<uintptr_t>(m.data) % 16 != 0;
  return d;
}

__device__ inline float Scale(const DeviceMatrix& m, int row, int col) {
  const int block = m.block_shift >= 0 ? col >> m.block_shift : col / m.block;
  const int64_t i = static_cast<int64_t>(row) * m.blocks + block;
  return m.half_scales ? __half2float(static_cast<const __half*>(m.scales)[i]) : static_cast<const float*>(m.scales)[i];
}

__device__ inline float Element(const DeviceMatrix& m, int row, int col) {
  const char* data = static_cast<const char*>(m.data) + static_cast<int64_t>(row) * m.row_bytes;
  switch (static_cast<DType>(m.dtype)) {
    case DType::kF32: return reinterpret_cast<const float*>(data)[col];
    case DType::kF16: return __half2float(reinterpret_cast<const __half*>(data)[col]);
    case DType::kI8: return static_cast<float>(reinterpret_cast<const uint8_t*>(data)[col] - 128) * Scale(m, row, col);
    default: break;
  }
  const int pair = reinterpret_cast<const uint8_t*>(data)[col / 2];
  return static_cast<float>((col % 2 ? pair >> 4 : pair & 15) - 8) * Scale(m, row, col);
}

// -- activations in shared memory

// Four floats of padding after each 32: lanes that read 4, 8, 16 or 32 values each as float4 meet no bank twice.
__host__ __device__ inline int Padded(int i) { return i + (i / 32) * 4; }
// Floats that `count` activations take, filled up with zeros to whole 32s.
__host__ __device__ inline int PaddedSize(int count) { return CeilDiv(count, 32) * 36; }

// -- 16 bytes of a row

template <DType kType>
struct Vector;
template <>
struct Vector<DType::kF32> { static constexpr int kValues = 4; };
template <>
struct Vector<DType::kF16> { static constexpr int kValues = 8; };
template <>
struct Vector<DType::kI8> { static constexpr int kValues = 16; };
template <>
struct Vector<DType::kI4> { static constexpr int kValues = 32; };

__device__ inline float2 Halves(unsigned bits) {
  return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(bits & 0xffffu))),
                     __half2float(__ushort_as_half(static_cast<unsigned short>(bits >> 16))));
}

// Values 4 * piece to 4 * piece + 3 of a vector, zero point taken off, not scaled. A quantized value becomes the low
// mantissa bits of 2^23, from which 2^23 and the zero point are taken: cheaper than an integer conversion, and exact.
template <DType kType>
__device__ inline float4 Unpack(const unsigned (&words)[4], int piece) {
  if constexpr (kType == DType::kF32) {
    return make_float4(__uint_as_float(words[0]), __uint_as_float(words[1]), __uint_as_float(words[2]),
                       __uint_as_float(words[3]));
  } else if constexpr (kType == DType::kF16) {
    const float2 a = Halves(words[2 * piece]), b = Halves(words[2 * piece + 1]);
    return make_float4(a.x, a.y, b.x, b.y);
  } else if constexpr (kType == DType::kI8) {
    constexpr float kOffset = 8388608.0f + 128.0f;
    const unsigned w = words[piece];
    return make_float4(__uint_as_float(__byte_perm(w, 0x4b000000u, 0x7440)) - kOffset,
                       __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7441)) - kOffset,
                       __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7442)) - kOffset,
                       __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7443)) - kOffset);
  } else {
    constexpr float kOffset = 8388608.0f + 8.0f;
    const unsigned w = words[piece / 2] >> (piece % 2 * 16);
    return make_float4(__uint_as_float(0x4b000000u | (w & 15u)) - kOffset,
                       __uint_as_float(0x4b000000u | (w >> 4 & 15u)) - kOffset,
                       __uint_as_float(0x4b000000u | (w >> 8 & 15u)) - kOffset,
                       __uint_as_float(0x4b000000u | (w >> 12 & 15u)) - kOffset);
  }
}

__device__ inline float Dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ inline float4 SharedFour(const float* x, int i) { return *reinterpret_cast<const float4*>(x + Padded(i)); }

// -- one vector: rows `row` and `row + 1` of a matrix times x, by one warp

constexpr int kRowsPerWarp = 2;  // each activation read from shared memory serves both
// Loads that a lane issues per row before it needs the first: 24 KB under way for a processor's 12 warps. Four made the
// kernel spill on sm_110 and later.
constexpr int kVectorsInFlight = 2;

__device__ inline float2 DotPlain(const DeviceMatrix& m, int row, int second, int cols, const float* x) {
  float2 sum = make_float2(0, 0);
  for (int c = Lane(); c < cols; c += kWarpSize) {
    const float v = x[Padded(c)];
    sum.x = fmaf(Element(m, row, c), v, sum.x);
    sum.y = fmaf(Element(m, second, c), v, sum.y);
  }
  return sum;
}

// One vector of a row: its value in words, and the scale that holds for all of it (a block is a multiple of 32 values).
template <DType kType>
__device__ inline float LoadVector(const DeviceMatrix& m, int row, int vector, uint4* words) {
  const char* data = static_cast<const char*>(m.data) + static_cast<int64_t>(row) * m.row_bytes;
  *words = __ldcs(reinterpret_cast<const uint4*>(data) + vector);
  if constexpr (kType == DType::kI8 || kType == DType::kI4) return Scale(m, row, vector * Vector<kType>::kValues);
  return 1.0f;
}

template <DType kType>
__device__ inline float2 DotVectors(const DeviceMatrix& m, int row, int second, int cols, const float* x) {
  constexpr int kValues = Vector<kType>::kValues;
  const int vectors = CeilDiv(cols, kValues);
  float2 sum = make_float2(0, 0);
  for (int first = Lane(); first < vectors; first += kVectorsInFlight * kWarpSize) {
    uint4 a[kVectorsInFlight], b[kVectorsInFlight];
    float scale_a[kVectorsInFlight], scale_b[kVectorsInFlight];
#pragma unroll
    for (int u = 0; u < kVectorsInFlight; ++u) {
      const int vector = first + u * kWarpSize;
      if (vector >= vectors) break;
      scale_a[u] = LoadVector<kType>(m, row, vector, &a[u]);
      scale_b[u] = LoadVector<kType>(m, second, vector, &b[u]);
    }
#pragma unroll
    for (int u = 0; u < kVectorsInFlight; ++u) {
      const int vector = first + u * kWarpSize;
      if (vector >= vectors) break;
      const unsigned words_a[4] = {a[u].x, a[u].y, a[u].z, a[u].w}, words_b[4] = {b[u].x, b[u].y, b[u].z, b[u].w};
      float part_a = 0, part_b = 0;
#pragma unroll
      for (int piece = 0; piece < kValues / 4; ++piece) {
        const float4 v = SharedFour(x, vector * kValues + 4 * piece);
        part_a = Dot(Unpack<kType>(words_a, piece), v, part_a);
        part_b = Dot(Unpack<kType>(words_b, piece), v, part_b);
      }
      sum.x = fmaf(scale_a[u], part_a, sum.x);
      sum.y = fmaf(scale_b[u], part_b, sum.y);
    }
  }
  return sum;
}

// Products of rows `row` and `row + 1` (which may be past the last) with x [cols], padded as above, in every lane. All
// four types are inlined where it is called: a kernel should do so at one place only.
__device__ inline float2 DotRows(const DeviceMatrix& m, int row, int rows, int cols, const float* x) {
  const int second = row + 1 < rows ? row + 1 : row;
  float2 sum;
  if (m.plain) {
    sum = DotPlain(m, row, second, cols, x);
  } else {
    switch (static_cast<DType>(m.dtype)) {
      case DType::kF32: sum = DotVectors<DType::kF32>(m, row, second, cols, x); break;
      case DType::kF16: sum = DotVectors<DType::kF16>(m, row, second, cols, x); break;
      case DType::kI8: sum = DotVectors<DType::kI8>(m, row, second, cols, x); break;
      default: sum = DotVectors<DType::kI4>(m, row, second, cols, x); break;
    }
  }
  return make_float2(WarpSum(sum.x), WarpSum(sum.y));
}

}  // namespace edge_sdk::cuda
