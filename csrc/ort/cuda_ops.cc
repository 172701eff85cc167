// The ops on CUDA. Each call waits for its kernels: what they refused is the run's error.
#include "ort/group_tokens_inputs.h"
#include "ort/speech_head_inputs.h"

#include <cuda_runtime.h>  // last: the emulation's macros are not for the standard library's headers

// tests/csrc gives others, to run these ops with emulated kernels where there is no GPU.
#if !defined(EDGE_ORT_DEVICE_PROVIDER)
#define EDGE_ORT_DEVICE_PROVIDER "CUDAExecutionProvider"
#define EDGE_ORT_DEVICE_MEMORY "Cuda"
#endif

namespace edge_sdk {
namespace {

constexpr uintptr_t kAlignment = 256;  // of a workspace

void ThrowIfCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  ThrowIfError({Code::kDevice, std::string(what) + " on CUDA: " + cudaGetErrorString(error)});
}

// Memory of the session's allocator for one call.
class Scratch {
 public:
  Scratch(Ort::KernelContext& context, size_t bytes) {
    int device = 0;
    ThrowIfCuda(cudaGetDevice(&device), "scratch");
    const Ort::MemoryInfo memory(EDGE_ORT_DEVICE_MEMORY, OrtDeviceAllocator, device, OrtMemTypeDefault);
    allocator_ = context.GetAllocator(*static_cast<const OrtMemoryInfo*>(memory));
    memory_ = allocator_->Alloc(allocator_, bytes + kAlignment);
    if (!memory_) {
      Ort::GetApi().ReleaseAllocator(allocator_);
      ThrowIfError({Code::kDevice, "out of device memory: " + std::to_string(bytes) + " bytes of scratch"});
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    allocator_->Free(allocator_, memory_);
    Ort::GetApi().ReleaseAllocator(allocator_);
  }
  char* data() const {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_) + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  OrtAllocator* allocator_ = nullptr;
  void* memory_ = nullptr;
};

// A value of the kernels' on the device, sent before them and fetched behind them.
template <class T>
void Send(const T& value, T* device, cudaStream_t stream) {
  ThrowIfCuda(cudaMemcpyAsync(device, &value, sizeof(T), cudaMemcpyHostToDevice, stream), "sending");
}
template <class T>
T Fetch(const T* device, cudaStream_t stream) {
  T value;
  ThrowIfCuda(cudaMemcpyAsync(&value, device, sizeof(T), cudaMemcpyDeviceToHost, stream), "fetching");
  ThrowIfCuda(cudaStreamSynchronize(stream), "running");
  return value;
}

void CopyOnDevice(void* into, const void* from, size_t bytes, void* stream) {
  ThrowIfCuda(cudaMemcpyAsync(into, from, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)), "copying");
}

// Ends what was enqueued before its memory is given back, also where an error leaves the call.
class Finished {
 public:
  explicit Finished(cudaStream_t stream) : stream_(stream) {}
  ~Finished() { (void)cudaStreamSynchronize(stream_); }

 private:
  const cudaStream_t stream_;
};

Status FromDevice(int32_t error, const SpeechHeadShape& shape, const SpeechHeadCache& cache, int32_t length, int32_t rows) {
  const auto code = static_cast<Code>(error);
  switch (code) {
    case Code::kOk: return {};
    case Code::kNotFinite: return {code, "speech head: its input or a product of it is NaN or infinity"};
    case Code::kNoChoice: return {code, "speech head: no id has a chance under these sampling settings"};
    case Code::kCacheFull:
      return {code, "speech head: a cache of " + std::to_string(cache.capacity) + " positions cannot take " +
                        std::to_string(rows) + " more after " + std::to_string(length)};
    default: return {code, "speech head: an id outside the codebook of " + std::to_string(shape.codes)};
  }
}

Status CheckSampling(const Sampling& s) {
  if (s.temperature > 0 && s.repetition_penalty > 0 && s.top_p >= 0 && s.top_k >= 0) return {};
  return InvalidArgument("speech head: temperature and repetition_penalty are above 0, top_p and top_k not negative");
}

class SpeechHeadCudaKernel {
 public:
  explicit SpeechHeadCudaKernel(const OrtKernelInfo* info) : head_(info) {}

  void Compute(OrtKernelContext* raw) {
    Ort::KernelContext context(raw);
    const SpeechHeadShape& shape = head_.shape;
    auto* stream = static_cast<cudaStream_t>(context.GetGPUComputeStream());
    const auto* control = CheckedInput<int64_t>(context, kControl, kControls);
    const int32_t positions = CheckedPositions(context, shape, control);
    const CacheBinding binding = BindCache(context, head_, CopyOnDevice, stream);
    SpeechHeadGroup group = ReadGroup(context, shape, control);
    ThrowIfError(CheckSampling(group.sampling));
    group.ids = context.GetOutput(0, {shape.group_size}).GetTensorMutableData<int64_t>();
    group.logits = context.GetOutput(1, {shape.group_size, shape.codes}).GetTensorMutableData<float>();

    const Scratch scratch(context, kAlignment + SpeechHeadWorkspaceBytes(shape, control[kGroup] ? 0 : positions));
    const Finished finished(stream);
    auto* state = reinterpret_cast<SpeechHeadCudaState*>(scratch.data());
    void* workspace = scratch.data() + kAlignment;
    Send({group.last_id, group.length, group.sampling.turn, group.sampling.step, 0}, state, stream);
    if (control[kGroup]) {
      ThrowIfError(SpeechHeadGroupCuda(shape, head_.weights, binding.view, group, state, workspace, stream));
    } else {
      const size_t logits = sizeof(float) * shape.group_size * shape.codes;
      ThrowIfCuda(cudaMemsetAsync(group.ids, 0xFF, sizeof(int64_t) * shape.group_size, stream), "clearing");
      ThrowIfCuda(cudaMemsetAsync(group.logits, 0, logits, stream), "clearing");
      ThrowIfError(SpeechHeadPrefillCuda(shape, head_.weights, binding.view, group.head_input, positions, state,
                                         workspace, stream));
    }
    const int32_t error = Fetch(&state->error, stream);
    ThrowIfError(FromDevice(error, shape, binding.view, group.length, positions * shape.group_size));
  }

 private:
  const SpeechHeadConstants head_;
};

struct SpeechHeadCudaOp : SpeechHeadOpBase<SpeechHeadCudaOp, SpeechHeadCudaKernel> {
  const char* GetExecutionProviderType() const { return EDGE_ORT_DEVICE_PROVIDER; }
  OrtMemType GetInputMemoryType(size_t index) const {
    return index == kControl || index == kSampling ? OrtMemTypeCPUInput : OrtMemTypeDefault;
  }
};

class GroupTokensCudaKernel {
 public:
  explicit GroupTokensCudaKernel(const OrtKernelInfo* info) : inputs_(info) {}

  void Compute(OrtKernelContext* raw) {
    Ort::KernelContext context(raw);
    auto* stream = static_cast<cudaStream_t>(context.GetGPUComputeStream());
    const GroupTokensArgs args = inputs_.Read(context);
    ThrowIfError(CheckGroupTokens(args));
    const Scratch scratch(context, sizeof(int32_t));
    const Finished finished(stream);
    auto* bad_id = reinterpret_cast<int32_t*>(scratch.data());
    Send(int32_t{0}, bad_id, stream);
    ThrowIfError(GroupTokensCuda(args, bad_id, stream));
    if (Fetch(bad_id, stream)) {
      ThrowIfError(InvalidArgument("group tokens: a speech id is outside the table of " + std::to_string(args.table.rows)));
    }
  }

 private:
  const GroupTokensInputs inputs_;
};

struct GroupTokensCudaOp : GroupTokensOpBase<GroupTokensCudaOp, GroupTokensCudaKernel> {
  const char* GetExecutionProviderType() const { return EDGE_ORT_DEVICE_PROVIDER; }
};

}  // namespace

void AddCudaOps(Ort::CustomOpDomain& domain) {
  static const SpeechHeadCudaOp speech_head;
  static const GroupTokensCudaOp group_tokens;
  domain.Add(&speech_head);
  domain.Add(&group_tokens);
}

}  // namespace edge_sdk
