// edge_sdk::SpeechHead on the CPU; kernels/speech_head.h, and ort/speech_head_inputs.h for what it is given.
#include <algorithm>
#include <cstring>

#include "core/guard.h"
#include "ort/speech_head_inputs.h"

namespace edge_sdk {
namespace {

constexpr int64_t kMaxThreads = 256;

class SpeechHeadKernel {
 public:
  explicit SpeechHeadKernel(const OrtKernelInfo* info) : head_(info) {}

  void Compute(OrtKernelContext* raw) {
    Ort::KernelContext context(raw);
    const SpeechHeadShape& shape = head_.shape;
    const auto* control = CheckedInput<int64_t>(context, kControl, kControls);
    const int32_t positions = CheckedPositions(context, shape, control);
    CacheBinding binding = BindCache(
        context, head_, [](void* into, const void* from, size_t bytes, void*) { std::memcpy(into, from, bytes); },
        nullptr);
    const std::vector<int64_t> ids_shape{shape.group_size}, logits_shape{shape.group_size, shape.codes};
    auto* ids = context.GetOutput(0, ids_shape).GetTensorMutableData<int64_t>();
    auto* logits = context.GetOutput(1, logits_shape).GetTensorMutableData<float>();
    const int threads = static_cast<int>(std::clamp<int64_t>(control[kThreads], 1, kMaxThreads));
    Status status;
    Team::Run(SessionThreads(context, threads), [&](Team& team) {
      status = Guard([&] {
        SpeechHeadGroup group = ReadGroup(context, shape, control);
        if (!control[kGroup]) {
          std::fill(ids, ids + shape.group_size, int64_t{-1});
          std::memset(logits, 0, sizeof(float) * shape.group_size * shape.codes);
          return SpeechHeadPrefillCpu(shape, head_.weights, binding.view, group.head_input, positions, group.length, team);
        }
        group.ids = ids;
        group.logits = logits;
        return SpeechHeadGroupCpu(shape, head_.weights, binding.view, group, team);
      });
    });
    ThrowIfError(status);
  }

 private:
  const SpeechHeadConstants head_;
};

struct SpeechHeadOp : SpeechHeadOpBase<SpeechHeadOp, SpeechHeadKernel> {};

}  // namespace

const OrtCustomOp* SpeechHeadCustomOp() {
  static const SpeechHeadOp op;
  return &op;
}

}  // namespace edge_sdk
