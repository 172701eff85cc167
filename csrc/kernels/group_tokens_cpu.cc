#include <algorithm>
#include <string>
#include <vector>

#include "kernels/group_tokens.h"
#include "kernels/isa.h"

namespace edge_sdk {

Status CheckGroupTokens(const GroupTokensArgs& args) {
  const Matrix& table = args.table;
  if (args.count < 0 || args.group_size < 1) return InvalidArgument("group tokens: count or group size out of range");
  if (table.rows < 1 || table.cols < 1 || !table.data) return InvalidArgument("group tokens: the table is empty");
  if (table.dtype == DType::kI4) return InvalidArgument("group tokens: the table is float32, float16 or int8");
  if (table.dtype == DType::kI8 && (!table.scales || table.block < 1)) {
    return InvalidArgument("group tokens: an int8 table needs scales and a block size");
  }
  if (table.dtype == DType::kI8 && table.scale_dtype != DType::kF32 && table.scale_dtype != DType::kF16) {
    return InvalidArgument("group tokens: the table's scales are neither float32 nor float16");
  }
  if (args.count && (!args.ids || !args.out)) return InvalidArgument("group tokens: no buffers");
  return {};
}

Status GroupTokensCpu(const GroupTokensArgs& args) {
  EDGE_RETURN_IF_ERROR(CheckGroupTokens(args));
  const int64_t ids = int64_t{args.count} * args.group_size;
  for (int64_t i = 0; i < ids; ++i) {
    if (args.ids[i] < 0 || args.ids[i] >= args.table.rows) {
      return InvalidArgument("group tokens: speech id " + std::to_string(args.ids[i]) + " is outside the table of " +
                             std::to_string(args.table.rows));
    }
  }
  const Isa& isa = CurrentIsa();
  const int32_t width = args.table.cols;
  std::vector<float> sum(width), row(width);
  for (int32_t m = 0; m < args.count; ++m) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int32_t g = 0; g < args.group_size; ++g) {
      isa.read_row(args.table, args.ids[int64_t{m} * args.group_size + g], row.data());
      isa.add(sum.data(), row.data(), width);
    }
    float* out = args.out + int64_t{m} * width;
    const float* text = args.text ? args.text + int64_t{m} * width : nullptr;
    for (int32_t i = 0; i < width; ++i) out[i] = text ? (text[i] + sum[i]) * 0.5f : sum[i];
  }
  return {};
}

Status GroupRowsCpu(const GroupRowsArgs& args) {
  if (args.rows < 0 || args.width < 1 || args.group_size < 1) return InvalidArgument("group rows: sizes out of range");
  if (args.rows && (!args.rows_in || !args.out)) return InvalidArgument("group rows: no buffers");
  const Isa& isa = CurrentIsa();
  const float share = 1.0f / static_cast<float>(args.group_size);
  const int64_t rows = args.rows, group = args.group_size;
  float* out = args.out;
  for (int64_t begin = 0; begin < rows; begin += group, out += args.width) {
    std::fill(out, out + args.width, 0.0f);
    const int64_t end = std::min(begin + group, rows);
    for (int64_t r = begin; r < end; ++r) isa.axpy(out, args.rows_in + r * args.width, share, args.width);
  }
  return {};
}

}  // namespace edge_sdk
