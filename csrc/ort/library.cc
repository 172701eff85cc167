// What onnxruntime calls when a session registers this library.
#define EDGE_SDK_ORT_EXPORT extern "C" __attribute__((visibility("default")))

#include "ort/ops.h"

namespace edge_sdk {

ThreadSource SessionThreads(Ort::KernelContext& context, int threads) {
  ThreadSource source;
  source.context = &context;
  source.threads = threads;
  source.launch = [](void* raw, int count, void (*task)(void*, int), void* argument) {
    struct Bound {
      void (*task)(void*, int);
      void* argument;
    } bound{task, argument};
    static_cast<Ort::KernelContext*>(raw)->ParallelFor(
        [](void* b, size_t index) {
          static_cast<Bound*>(b)->task(static_cast<Bound*>(b)->argument, static_cast<int>(index));
        },
        static_cast<size_t>(count), static_cast<size_t>(count), &bound);
  };
  return source;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace edge_sdk

#if defined(EDGE_ORT_CUDA)
// Only its presence counts: runtimes/ort_cuda.py looks for it.
EDGE_SDK_ORT_EXPORT int edge_sdk_ort_cuda() { return 1; }
#endif

EDGE_SDK_ORT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(edge_sdk::kOrtApiVersion);
  if (!api) return nullptr;  // an onnxruntime older than this library: the ops stay unknown to it
  Ort::InitApi(api);
  try {
    // The session keeps referring to a domain: one for all sessions, alive as long as the library.
    static Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made("edge_sdk");
#if !defined(EDGE_ORT_EMULATED)
      made.Add(edge_sdk::GroupTokensCustomOp());
      made.Add(edge_sdk::SpeechHeadCustomOp());
#endif
#if defined(EDGE_ORT_CUDA)
      edge_sdk::AddCudaOps(made);
#endif
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
  } catch (const std::exception& e) {
    return api->CreateStatus(ORT_FAIL, e.what());
  }
  return nullptr;
}
