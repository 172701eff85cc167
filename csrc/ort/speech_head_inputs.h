// What the op edge_sdk::SpeechHead is given, on every provider.
//
// Inputs
//   0 head_input  float32 [S, hidden]; S is 1 for a group
//   1 control     int64 [9]: group (0 prefill, 1 group), length (filled cache positions), last id, do_sample, top_k,
//                 seed (its bits), turn, step, threads (of the session; an op cannot ask)
//   2 sampling    float32 [3]: temperature, top_p, repetition_penalty
//   3 seen        uint8 [codes]
//   4 forced      int64 [G]: ids to take instead of the picks, -1 for none
//   5 rope_cos, 6 rope_sin  float32 [P, head_dim / 2], P >= capacity
//   7 cache       uint8: the bytes of [layers, 2, kv_heads, capacity, cache_head_dim] of cache_dtype, keys before values
//   8 cache_scales  float32 [layers, 2, kv_heads, capacity], or [1, 1, 1, 1] where the cache is not int8
//   9.. weights, constants: input_bias, final_norm; input_norm, post_norm, q_norm, k_norm of every layer; then the
//       matrices input, input_table, output_table and q, k, v, o, gate, up, down of every layer, each followed by its
//       scales if it is quantized
// Outputs
//   0 ids int64 [G]; -1 after a prefill.   1 logits float32 [G, codes] before any processor; zeros after a prefill
//   2 cache, 3 cache_scales: bind the inputs' memory, else everything is copied
// Attributes: group_size, hidden, width, layers, heads, kv_heads, head_dim, cache_head_dim, intermediate, codes, bos,
//   cache_dtype (edge_sdk_dtype), eps, bits and blocks (of each matrix in order; bits 0: float, by its tensor's type)
//
// On CUDA control, sampling and forced lie in host memory, all else on the device; the op waits for its kernels, since
// it has to say what they refused, so that it cannot be part of a captured CUDA graph.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/speech_head.h"
#include "ort/ops.h"

namespace edge_sdk {

enum SpeechHeadInput { kHeadInput, kControl, kSampling, kSeen, kForced, kRopeCos, kRopeSin, kCache, kCacheScales, kWeights };
enum SpeechHeadControl { kGroup, kLength, kLastId, kDoSample, kTopK, kSeed, kTurn, kStep, kThreads, kControls };

// Attributes and constants: read once, when the op is made. The constants' memory is the session's.
struct SpeechHeadConstants {
  explicit SpeechHeadConstants(const OrtKernelInfo* info);
  SpeechHeadConstants(const SpeechHeadConstants&) = delete;
  SpeechHeadConstants& operator=(const SpeechHeadConstants&) = delete;

  SpeechHeadShape shape;
  SpeechHeadWeights weights;
  DType cache_dtype;

 private:
  std::vector<SpeechHeadLayer> layers_;
};

struct CacheBinding {
  std::vector<void*> keys, values;
  std::vector<float*> key_scales, value_scales;
  SpeechHeadCache view;
};

// Outputs 2 and 3 as the cache. Where they are not their inputs' memory, `copy` brings the bytes over.
using CopyBytes = void (*)(void* into, const void* from, size_t bytes, void* stream);
CacheBinding BindCache(Ort::KernelContext& context, const SpeechHeadConstants& head, CopyBytes copy, void* stream);

// Input `index`, which must hold `size` values.
template <class T>
const T* CheckedInput(const Ort::KernelContext& context, size_t index, int64_t size) {
  const auto value = context.GetInput(index);
  if (static_cast<int64_t>(value.GetTensorTypeAndShapeInfo().GetElementCount()) != size) {
    ThrowIfError(InvalidArgument("SpeechHead: input " + std::to_string(index) + " must hold " + std::to_string(size) +
                                 " values"));
  }
  return value.GetTensorData<T>();
}

// How many positions head_input has.
int32_t CheckedPositions(const Ort::KernelContext& context, const SpeechHeadShape& shape, const int64_t* control);

inline int32_t CacheLength(int64_t value) { return static_cast<int32_t>(std::clamp<int64_t>(value, -1, 1 << 24)); }

SpeechHeadGroup ReadGroup(const Ort::KernelContext& context, const SpeechHeadShape& shape, const int64_t* control);

template <class Op, class Kernel>
struct SpeechHeadOpBase : Ort::CustomOpBase<Op, Kernel> {
  void* CreateKernel(const OrtApi&, const OrtKernelInfo* info) const { return new Kernel(info); }
  const char* GetName() const { return "SpeechHead"; }

  size_t GetInputTypeCount() const { return kWeights + 1; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    switch (index) {
      case kControl:
      case kForced: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
      case kSeen:
      case kCache: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
      case kWeights: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index == kWeights ? INPUT_OUTPUT_VARIADIC : INPUT_OUTPUT_REQUIRED;
  }
  bool GetVariadicInputHomogeneity() const { return false; }

  size_t GetOutputTypeCount() const { return 4; }
  ONNXTensorElementDataType GetOutputType(size_t index) const {
    constexpr ONNXTensorElementDataType kTypes[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
    return kTypes[index];
  }
};

}  // namespace edge_sdk
