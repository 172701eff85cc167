// Host side: a launch on a stream, and CUDA's errors as Status.
#pragma once

#include <string>
#include <utility>

#include "core/status.h"
#include "kernels/cuda/device.cuh"

namespace edge_sdk::cuda {

inline Status FromCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return {Code::kDevice, std::string(what) + ": " + cudaGetErrorString(error)};
}

// cooperative: the launch fails unless all blocks can be resident together, which GridBarrier needs.
template <class... Parameters, class... Arguments>
Status Launch(const char* name, void (*kernel)(Parameters...), dim3 blocks, size_t shared_bytes, bool cooperative,
              void* stream, Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return FromCuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

inline Status DeviceAttribute(cudaDeviceAttr attribute, int* value) {
  int device = 0;
  EDGE_RETURN_IF_ERROR(FromCuda(cudaGetDevice(&device), "cudaGetDevice"));
  return FromCuda(cudaDeviceGetAttribute(value, attribute, device), "cudaDeviceGetAttribute");
}

}  // namespace edge_sdk::cuda
