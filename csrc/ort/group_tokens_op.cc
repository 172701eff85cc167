// edge_sdk::GroupTokens: what it is given, and the op on the CPU.
#include "ort/group_tokens_inputs.h"

namespace edge_sdk {
namespace {

constexpr int64_t kLargestBlock = 1 << 24;

class GroupTokensKernel {
 public:
  explicit GroupTokensKernel(const OrtKernelInfo* info) : inputs_(info) {}

  void Compute(OrtKernelContext* raw) {
    Ort::KernelContext context(raw);
    const GroupTokensArgs args = inputs_.Read(context);
    if (args.count) ThrowIfError(GroupTokensCpu(args));
  }

 private:
  const GroupTokensInputs inputs_;
};

struct GroupTokensOp : GroupTokensOpBase<GroupTokensOp, GroupTokensKernel> {};

}  // namespace

GroupTokensInputs::GroupTokensInputs(const OrtKernelInfo* info) {
  int64_t block = 0;  // stays where there is no such attribute
  if (OrtStatus* absent = Ort::GetApi().KernelInfoGetAttribute_int64(info, "block", &block)) {
    Ort::GetApi().ReleaseStatus(absent);
  }
  if (block < 0 || block > kLargestBlock) {
    ThrowIfError(InvalidArgument("GroupTokens: attribute block is " + std::to_string(block)));
  }
  block_ = static_cast<int32_t>(block);
}

GroupTokensArgs GroupTokensInputs::Read(Ort::KernelContext& context) const {
  const auto ids = context.GetInput(1), text = context.GetInput(2);
  const auto ids_shape = ids.GetTensorTypeAndShapeInfo().GetShape();
  const auto text_shape = text.GetTensorTypeAndShapeInfo().GetShape();
  if (ids_shape.size() != 2 || text_shape.size() != 2 || text_shape[0] != ids_shape[0]) {
    ThrowIfError(InvalidArgument("GroupTokens: ids " + ShapeText(ids_shape) + " and text " + ShapeText(text_shape) +
                                 " do not fit [M, G], [M, W]"));
  }
  GroupTokensArgs args;
  args.table = Table(context, text_shape[1]);
  args.ids = ids.GetTensorData<int64_t>();
  args.text = text.GetTensorData<float>();
  args.count = static_cast<int32_t>(ids_shape[0]);
  args.group_size = static_cast<int32_t>(ids_shape[1]);
  args.out = context.GetOutput(0, text_shape).GetTensorMutableData<float>();
  return args;
}

Matrix GroupTokensInputs::Table(Ort::KernelContext& context, int64_t width) const {
  const auto value = context.GetInput(0);
  const auto info = value.GetTensorTypeAndShapeInfo();
  const auto shape = info.GetShape();
  const auto type = info.GetElementType();
  const bool bytes = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, half = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  Matrix table;
  table.data = value.GetTensorRawData();
  table.dtype = bytes ? DType::kI8 : half ? DType::kF16 : DType::kF32;
  table.rows = shape.empty() ? 0 : static_cast<int32_t>(shape[0]);
  table.cols = static_cast<int32_t>(width);
  table.block = bytes ? block_ : 0;
  const bool known = half || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || (bytes && block_ > 0);
  const int64_t row = known ? table.row_bytes() / (table.dtype == DType::kF32 ? 4 : half ? 2 : 1) : -1;
  if (!known || shape != std::vector<int64_t>{table.rows, row}) {
    ThrowIfError(InvalidArgument("GroupTokens: the table " + ShapeText(shape) + " and text of width " +
                                 std::to_string(width) + " do not fit: float32 or float16 [C, W], or int8 in blocks of " +
                                 std::to_string(block_)));
  }
  if (!bytes) return table;
  const auto scales = context.GetInputCount() > 3 ? context.GetInput(3) : Ort::ConstValue{};
  const std::vector<int64_t> expected{table.rows, table.blocks()};
  const auto scale_type = scales ? scales.GetTensorTypeAndShapeInfo().GetElementType() : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  table.scale_dtype = scale_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? DType::kF16 : DType::kF32;
  if ((table.scale_dtype == DType::kF32 && scale_type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) ||
      scales.GetTensorTypeAndShapeInfo().GetShape() != expected) {
    ThrowIfError(InvalidArgument("GroupTokens: an int8 table needs scales, float32 or float16 " + ShapeText(expected)));
  }
  table.scales = scales.GetTensorRawData();
  return table;
}

const OrtCustomOp* GroupTokensCustomOp() {
  static const GroupTokensOp op;
  return &op;
}

}  // namespace edge_sdk
