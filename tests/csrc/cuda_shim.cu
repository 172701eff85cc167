// What the Python tests call: the kernels' functions with their own structs, Status as code and text, and a pick alone.
// Memory is managed: on a device both sides see it; in the emulation (cuda_emulation/) there is one side only.
#include <cstdio>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pick.cuh"
#include "kernels/group_tokens.h"
#include "kernels/speech_head.h"

namespace edge_sdk {
namespace {

// After the device is done.
int Report(const Status& status, char* message, int size) {
  if (status.ok()) {
    const Status done = cuda::FromCuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (!done.ok()) return Report(done, message, size);
  }
  std::snprintf(message, static_cast<size_t>(size), "%s", status.message().c_str());
  return static_cast<int>(status.code());
}

using cuda::PickInput;
using cuda::PickShared;

__global__ void PickKernel(PickInput in, float number, int64_t* id, int32_t* code) {
  auto& shared = *reinterpret_cast<PickShared*>(cuda::SharedMemory());
  float* scores = reinterpret_cast<float*>(cuda::SharedMemory() + (sizeof(PickShared) + 15) / 16 * 16);
  int found = -1;
  const Code result = cuda::Pick(in, number, scores, shared, &found);
  if (threadIdx.x == 0) {
    *code = static_cast<int32_t>(result);
    *id = found;
  }
}

#if defined(EDGE_CUDA_EMULATION)
void FaultyKernel(int which) {
  if (which == 0 && threadIdx.x > 3) __syncthreads();
  if (which == 1 && threadIdx.x % 2) {
    __syncwarp();
  } else if (which == 1) {
    __syncwarp();
  }
  while (which == 2 && blockIdx.x > 0) emulation::Pause();
  if (which == 3) cuda::SharedMemory()[16 + 3] = 0;
}
#endif

}  // namespace

extern "C" {

size_t edge_workspace_bytes(const SpeechHeadShape* shape, int32_t max_count) {
  return SpeechHeadWorkspaceBytes(*shape, max_count);
}

int edge_prefill(const SpeechHeadShape* shape, const SpeechHeadWeights* weights, const SpeechHeadCache* cache,
                 const float* head_input, int32_t count, SpeechHeadCudaState* state, void* workspace, char* message,
                 int size) {
  return Report(SpeechHeadPrefillCuda(*shape, *weights, *cache, head_input, count, state, workspace, nullptr), message,
                size);
}

int edge_group(const SpeechHeadShape* shape, const SpeechHeadWeights* weights, const SpeechHeadCache* cache,
               const SpeechHeadGroup* group, SpeechHeadCudaState* state, void* workspace, char* message, int size) {
  return Report(SpeechHeadGroupCuda(*shape, *weights, *cache, *group, state, workspace, nullptr), message, size);
}

int edge_group_tokens(const GroupTokensArgs* args, int32_t* bad_id, char* message, int size) {
  return Report(GroupTokensCuda(*args, bad_id, nullptr), message, size);
}

int edge_group_rows(const GroupRowsArgs* args, char* message, int size) {
  return Report(GroupRowsCuda(*args, nullptr), message, size);
}

int edge_pick(const float* logits, int32_t codes, const uint8_t* seen, const Sampling* s, float number, int64_t* id,
              int32_t* code, char* message, int size) {
  const PickInput in{logits, seen, codes, 0, s->do_sample, s->top_k, s->temperature, s->top_p, s->repetition_penalty};
  const size_t bytes = (sizeof(PickShared) + 15) / 16 * 16 + static_cast<size_t>(codes) * sizeof(float);
  return Report(cuda::Launch("Pick", PickKernel, dim3(1), bytes, false, nullptr, in, number, id, code), message, size);
}

void* edge_allocate(size_t bytes) {
  void* p = nullptr;
  return cudaMallocManaged(&p, bytes) == cudaSuccess ? p : nullptr;
}

void edge_free(void* p) { (void)cudaFree(p); }

int edge_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

#if defined(EDGE_CUDA_EMULATION)
// Faults on purpose, for the test of the emulation itself.
int edge_faulty(int which, char* message, int size) {
  return Report(cuda::Launch("Faulty", FaultyKernel, dim3(2), 16, true, nullptr, which), message, size);
}

void edge_set_order(unsigned seed) { emulation::SetOrder(seed); }
void edge_set_processors(int count) { emulation::SetProcessors(count); }
#endif

}  // extern "C"
}  // namespace edge_sdk
