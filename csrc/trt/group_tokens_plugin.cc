#include "trt/group_tokens_plugin.h"

#include <cuda_runtime_api.h>

#include "kernels/group_tokens.h"
#include "trt/matrix_input.h"

namespace edge_sdk::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

constexpr int64_t kMaxSize = 1 << 24;  // of any extent: keeps every product of two within 64 bits
constexpr int kCount = 0;              // the axis of both plugins: groups, or rows of the tower

Status CheckSize(const char* name, int32_t value) {
  if (value >= 1 && value <= kMaxSize) return {};
  return InvalidArgument("field '" + std::string(name) + "' is " + std::to_string(value) + ", expected 1 to " +
                         std::to_string(kMaxSize));
}

Status ReadSize(const FieldReader& fields, const char* name, int32_t* value) {
  EDGE_RETURN_IF_ERROR(fields.Read(name, value));
  return CheckSize(name, *value);
}

const FieldSpecs& TokensFields() {
  static const FieldSpecs specs = {
      {"group_size", PluginFieldType::kINT32},  {"width", PluginFieldType::kINT32},
      {"codes", PluginFieldType::kINT32},       {"text", PluginFieldType::kINT32},
      {"table_dtype", PluginFieldType::kINT32}, {"table_block", PluginFieldType::kINT32},
      {"table_scale_dtype", PluginFieldType::kINT32}};
  return specs;
}

class TokensPlugin : public Plugin {
 public:
  TokensPlugin(std::shared_ptr<const Description> description, const Matrix& table, int32_t group_size, bool text)
      : Plugin(std::move(description)), table_(table), group_size_(group_size), text_(text) {}

 private:
  std::unique_ptr<Plugin> Copy() const override { return std::make_unique<TokensPlugin>(*this); }

  Status Launch(const Call& call) override {
    GroupTokensArgs args;
    const void* const* input = call.inputs;
    args.table = table_;
    args.ids = static_cast<const int64_t*>(*input++);
    if (text_) args.text = static_cast<const float*>(*input++);
    BindMatrix(input, &args.table);
    args.out = static_cast<float*>(call.outputs[0]);
    args.count = static_cast<int32_t>(call.axes[kCount]);
    args.group_size = group_size_;
    auto* bad_id = static_cast<int32_t*>(call.outputs[1]);
    const cudaError_t cleared = cudaMemsetAsync(bad_id, 0, sizeof *bad_id, call.stream);
    if (cleared != cudaSuccess) return {Code::kDevice, "cudaMemsetAsync: error " + std::to_string(cleared)};
    if (args.count == 0) return {};
    EDGE_RETURN_IF_ERROR(CheckGroupTokens(args));
    return GroupTokensCuda(args, bad_id, call.stream);
  }

  const Matrix table_;  // without pointers
  const int32_t group_size_;
  const bool text_;
};

Status MakeTokens(const FieldReader& fields, std::unique_ptr<Plugin>* plugin) {
  EDGE_RETURN_IF_ERROR(fields.Require(TokensFields()));
  int32_t group_size = 0, width = 0, codes = 0, dtype = 0, block = 0, scale_dtype = 0;
  bool text = false;
  EDGE_RETURN_IF_ERROR(ReadSize(fields, "group_size", &group_size));
  EDGE_RETURN_IF_ERROR(ReadSize(fields, "width", &width));
  EDGE_RETURN_IF_ERROR(ReadSize(fields, "codes", &codes));
  EDGE_RETURN_IF_ERROR(fields.Read("text", &text));
  EDGE_RETURN_IF_ERROR(fields.Read("table_dtype", &dtype));
  EDGE_RETURN_IF_ERROR(fields.Read("table_block", &block));
  EDGE_RETURN_IF_ERROR(fields.Read("table_scale_dtype", &scale_dtype));
  Matrix table;
  EDGE_RETURN_IF_ERROR(MakeMatrix("the table", codes, width, dtype, block, scale_dtype, &table));
  if (table.dtype == DType::kI4) return InvalidArgument("the table is float32, float16 or int8, not int4");
  if (table.quantized() && block % 32 != 0) {
    return InvalidArgument("the table is cut in blocks of " + std::to_string(block) + ", expected a multiple of 32");
  }

  auto d = std::make_shared<Description>();
  d->plugin = "GroupTokens";
  d->axes = {{"M", 0, kMaxSize}};
  d->inputs.push_back({"ids", DataType::kINT64, {Axis(kCount), Fixed(group_size)}});
  if (text) d->inputs.push_back({"text", DataType::kFLOAT, {Axis(kCount), Fixed(width)}});
  DescribeMatrix("table", table, &d->inputs);
  d->outputs.push_back({"rows", DataType::kFLOAT, {Axis(kCount), Fixed(width)}});
  d->outputs.push_back({"bad_id", DataType::kINT32, {Fixed(1)}});
  d->fields.Add("group_size", group_size);
  d->fields.Add("width", width);
  d->fields.Add("codes", codes);
  d->fields.Add("text", int32_t{text});
  d->fields.Add("table_dtype", dtype);
  d->fields.Add("table_block", block);
  d->fields.Add("table_scale_dtype", scale_dtype);
  *plugin = std::make_unique<TokensPlugin>(std::move(d), table, group_size, text);
  return {};
}

const FieldSpecs& RowsFields() {
  static const FieldSpecs specs = {{"group_size", PluginFieldType::kINT32}, {"width", PluginFieldType::kINT32}};
  return specs;
}

class RowsPlugin : public Plugin {
 public:
  RowsPlugin(std::shared_ptr<const Description> description, int32_t group_size, int32_t width)
      : Plugin(std::move(description)), group_size_(group_size), width_(width) {}

 private:
  std::unique_ptr<Plugin> Copy() const override { return std::make_unique<RowsPlugin>(*this); }

  Status Launch(const Call& call) override {
    GroupRowsArgs args;
    args.rows_in = static_cast<const float*>(call.inputs[0]);
    args.out = static_cast<float*>(call.outputs[0]);
    args.rows = static_cast<int32_t>(call.axes[kCount]);
    args.width = width_;
    args.group_size = group_size_;
    return args.rows == 0 ? Status() : GroupRowsCuda(args, call.stream);
  }

  const int32_t group_size_, width_;
};

Status MakeRows(const FieldReader& fields, std::unique_ptr<Plugin>* plugin) {
  EDGE_RETURN_IF_ERROR(fields.Require(RowsFields()));
  int32_t group_size = 0, width = 0;
  EDGE_RETURN_IF_ERROR(ReadSize(fields, "group_size", &group_size));
  EDGE_RETURN_IF_ERROR(ReadSize(fields, "width", &width));
  auto d = std::make_shared<Description>();
  d->plugin = "GroupRows";
  d->axes = {{"R", 0, kMaxSize}};
  d->inputs.push_back({"rows", DataType::kFLOAT, {Axis(kCount), Fixed(width)}});
  d->outputs.push_back({"grouped", DataType::kFLOAT, {Axis(kCount, group_size), Fixed(width)}});
  d->fields.Add("group_size", group_size);
  d->fields.Add("width", width);
  *plugin = std::make_unique<RowsPlugin>(std::move(d), group_size, width);
  return {};
}

}  // namespace

Creator* GroupTokensCreator() {
  static Creator creator("GroupTokens", TokensFields(), MakeTokens);
  return &creator;
}

Creator* GroupRowsCreator() {
  static Creator creator("GroupRows", RowsFields(), MakeRows);
  return &creator;
}

}  // namespace edge_sdk::trt
