// edge_sdk::GroupTokens(table, ids, text, scales?) -> rows, on every provider; see kernels/group_tokens.h.
//   table   float32 or float16 [codes, width], or uint8 [codes, blocks * block]: int8 in blocks (kernels/matrix.h)
//   ids     int64 [M, G]
//   text    float32 [M, width]
//   scales  float32 or float16 [codes, blocks], of a uint8 table alone
//   rows    float32 [M, width] = (text + sum of G table rows) / 2
// Attribute: block, of a uint8 table alone
#pragma once

#include "kernels/group_tokens.h"
#include "ort/ops.h"

namespace edge_sdk {

class GroupTokensInputs {
 public:
  explicit GroupTokensInputs(const OrtKernelInfo* info);

  // Inputs and output of a call, their shapes and types checked.
  GroupTokensArgs Read(Ort::KernelContext& context) const;

 private:
  Matrix Table(Ort::KernelContext& context, int64_t width) const;

  int32_t block_ = 0;
};

template <class Op, class Kernel>
struct GroupTokensOpBase : Ort::CustomOpBase<Op, Kernel> {
  void* CreateKernel(const OrtApi&, const OrtKernelInfo* info) const { return new Kernel(info); }
  const char* GetName() const { return "GroupTokens"; }
  size_t GetInputTypeCount() const { return 4; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    constexpr ONNXTensorElementDataType kTypes[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED};
    return kTypes[index];
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index == 3 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
};

}  // namespace edge_sdk
