// What every kernel here stands on: threads, shared memory, reductions over a warp and a block, the grid's barrier.
//
// Of CUDA only a small part is used (shuffles, shared and global atomics, fences), so that tests/csrc/cuda_emulation
// can run the same sources on a CPU. All reductions have a fixed order: a launch gives the same bits every time.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace edge_sdk::cuda {

// Threads of a block: 384 leave each 168 registers, which the head's kernel fits into; 512 would make it spill. The
// tests' emulation takes fewer: it runs each as a fiber.
#ifndef EDGE_CUDA_THREADS
#define EDGE_CUDA_THREADS 384
#endif
constexpr int kThreads = EDGE_CUDA_THREADS;
constexpr int kWarpSize = 32;
constexpr int kWarps = kThreads / kWarpSize;
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kThreads % kWarpSize == 0 && kWarps >= 4 && kWarps <= 32);

__device__ inline int Lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ inline int Warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// The block's dynamic shared memory; no kernel has another.
__device__ inline unsigned char* SharedMemory() {
#if defined(EDGE_CUDA_EMULATION)
  return emulation::DynamicShared();
#else
  extern __shared__ __align__(16) unsigned char edge_shared_memory[];
  return edge_shared_memory;
#endif
}

// Values that another block wrote in this launch: read from L2, which all blocks share.
__device__ inline float FromGrid(const float* p) { return __ldcg(p); }

__device__ inline void PrefetchToL2([[maybe_unused]] const void* p) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

__host__ __device__ inline int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// The butterfly leaves the same bits in all lanes.
__device__ inline float WarpSum(float v) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

__device__ inline float WarpMax(float v) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, offset));
  return v;
}

// Sum over the block, in every thread. scratch [kWarps]; ends with a barrier, so scratch is free again.
__device__ inline float BlockSum(float v, float* scratch) {
  v = WarpSum(v);
  if (Lane() == 0) scratch[Warp()] = v;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += scratch[w];
  __syncthreads();
  return sum;
}

__device__ inline uint64_t BlockMax(uint64_t v, uint64_t* scratch) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(v), offset);
    v = other > v ? other : v;
  }
  if (Lane() == 0) scratch[Warp()] = v;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) v = scratch[w] > v ? scratch[w] : v;
  __syncthreads();
  return v;
}

__device__ inline uint64_t WarpInclusiveScan(uint64_t v) {
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, static_cast<unsigned long long>(v), offset);
    if (Lane() >= offset) v += before;
  }
  return v;
}

// Sum over the threads before this one; `total` gets that over all.
__device__ inline uint64_t BlockExclusiveScan(uint64_t v, uint64_t* scratch, uint64_t* total) {
  const uint64_t inclusive = WarpInclusiveScan(v);
  if (Lane() == kWarpSize - 1) scratch[Warp()] = inclusive;
  __syncthreads();
  uint64_t before = 0, sum = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < Warp()) before += scratch[w];
    sum += scratch[w];
  }
  __syncthreads();
  *total = sum;
  return before + inclusive - v;
}

// A barrier of all blocks, which must all be resident (a cooperative launch sees to it). `arrived` is 0 at the start of
// the launch; `target` is this thread's count of arrivals so far.
__device__ inline void GridBarrier(unsigned* arrived, unsigned* target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    *target += gridDim.x;
    __threadfence();
    atomicAdd(arrived, 1u);
    while (*static_cast<volatile unsigned*>(arrived) < *target) {
#if defined(EDGE_CUDA_EMULATION)
      emulation::Pause();
#endif
    }
    __threadfence();
  }
  __syncthreads();
}

}  // namespace edge_sdk::cuda
