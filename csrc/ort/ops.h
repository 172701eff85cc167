// The custom ops of domain edge_sdk, and what both share.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <string>
#include <vector>

#include "core/status.h"
#include "core/team.h"
#include "kernels/matrix.h"

namespace edge_sdk {

constexpr int kOrtApiVersion = 17;  // the oldest interface that has everything used here

inline void ThrowIfError(const Status& status) {
  if (!status.ok()) throw Ort::Exception(std::string(status.message()), ORT_INVALID_ARGUMENT);
}

// Threads of the session that runs the op.
ThreadSource SessionThreads(Ort::KernelContext& context, int threads);

// The shape of a tensor, as text for messages.
std::string ShapeText(const std::vector<int64_t>& shape);

const OrtCustomOp* GroupTokensCustomOp();
const OrtCustomOp* SpeechHeadCustomOp();
// The same for CUDAExecutionProvider, in a library that was built with CUDA.
void AddCudaOps(Ort::CustomOpDomain& domain);

}  // namespace edge_sdk
