// CUDA for a CPU, as much of it as csrc/kernels uses: the kernels' sources compile against this header with a plain C++
// compiler, and every CUDA thread runs as a fiber. For tests: it is slow, and finds what a device would hide.
//
// - A barrier, or a shuffle, that some thread of its block or warp does not reach, or reaches at another line, is an
//   error with both places, not a hang. So is a grid's barrier that a block does not reach.
// - Shared memory starts as NaNs and has guards behind it.
// - emulation::SetOrder changes in which order threads and blocks run between barriers. Code without races gives the
//   same bits in every order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {

struct Place {
  const char* file;
  int line;
};

unsigned char* DynamicShared();
void BlockBarrier(Place place);
void WarpBarrier(unsigned mask, Place place);
// Puts 8 bytes where the warp's other lanes can read them; returns the 32 lanes' words.
const uint64_t* Exchange(unsigned mask, uint64_t word, Place place);
int LaneOfWarp();
void Pause();  // inside a loop that waits for another block

void SetOrder(unsigned seed);  // 0: as numbered, 1: backwards, else shuffled at every launch
void SetProcessors(int count);

template <class T>
T Shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  const uint64_t* words = Exchange(mask, word, place);
  if (source < 0 || source > 31) source = LaneOfWarp();
  std::memcpy(&value, &words[source], sizeof(T));
  return value;
}

int Launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, bool cooperative,
           const std::function<void()>& thread);
int AllowSharedBytes(const void* kernel, int bytes);
const char* LastError();

}  // namespace emulation

// -- the language

#define __global__
#define __device__
#define __host__
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the running thread: set whenever another one goes on

#define EMULATION_PLACE (::emulation::Place{__FILE__, __LINE__})
#define __syncthreads() ::emulation::BlockBarrier(EMULATION_PLACE)
#define __syncwarp() ::emulation::WarpBarrier(0xffffffffu, EMULATION_PLACE)
#define __shfl_sync(mask, v, lane) ::emulation::Shuffle(mask, v, lane, EMULATION_PLACE)
#define __shfl_xor_sync(mask, v, bits) __shfl_sync(mask, v, ::emulation::LaneOfWarp() ^ (bits))
#define __shfl_up_sync(mask, v, by) __shfl_sync(mask, v, ::emulation::LaneOfWarp() - (by))
inline void __threadfence() {}

template <class T>
T atomicAdd(T* p, T v) {
  const T before = *p;
  *p += v;
  return before;
}

using std::isfinite;
using std::max;
using std::min;

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class T>
T AlignedLoad(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) __builtin_trap();  // a device faults, too
  return *p;
}
template <class T>
T __ldcg(const T* p) { return AlignedLoad(p); }
template <class T>
T __ldcs(const T* p) { return AlignedLoad(p); }

template <class To, class From>
To BitCast(From v) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&to, &v, sizeof(To));
  return to;
}
inline unsigned __float_as_uint(float v) { return BitCast<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return BitCast<float>(v); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7u) & 0xffu) << 8 * i;
  return out;
}

// -- the runtime

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union { int cooperative; } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t) { return emulation::LastError(); }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
inline cudaError_t cudaMemcpyAsync(void* into, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(into, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaMallocManaged(void** p, size_t bytes) {
  *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *p == nullptr;
}
inline cudaError_t cudaFree(void* p) {
  std::free(p);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  return emulation::AllowSharedBytes(reinterpret_cast<const void*>(kernel), bytes);
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  const bool cooperative = config->numAttrs > 0 && config->attrs[0].val.cooperative;
  return emulation::Launch(reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim,
                           config->dynamicSmemBytes, cooperative, [&] { std::apply(kernel, copies); });
}
