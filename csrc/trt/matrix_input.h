// A packed weight matrix as plugin inputs: its data and, where it is quantized, its scales.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "kernels/matrix.h"
#include "trt/plugin.h"

namespace edge_sdk::trt {

// dtype, block and scale_dtype as fields hold them; sizes as the plugin's other fields give them. Sizes that do not fit
// become -1, which every check of a matrix refuses.
inline Status MakeMatrix(const std::string& name, int64_t rows, int64_t cols, int32_t dtype, int32_t block,
                         int32_t scale_dtype, Matrix* out) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  constexpr int32_t kMaxBlock = 1 << 24;
  if (dtype < static_cast<int32_t>(DType::kF32) || dtype > static_cast<int32_t>(DType::kI4)) {
    return InvalidArgument("dtype of " + name + " is " + std::to_string(dtype) +
                           ", expected 0 to 3 (f32, f16, i8, i4)");
  }
  if (scale_dtype != static_cast<int32_t>(DType::kF32) && scale_dtype != static_cast<int32_t>(DType::kF16)) {
    return InvalidArgument("scale dtype of " + name + " is " + std::to_string(scale_dtype) +
                           ", expected 0 or 1 (f32, f16)");
  }
  out->dtype = static_cast<DType>(dtype);
  out->scale_dtype = static_cast<DType>(scale_dtype);
  out->rows = static_cast<int32_t>(rows <= kMost ? rows : -1);
  out->cols = static_cast<int32_t>(cols <= kMost ? cols : -1);
  out->block = block;
  // One way to say "no blocks", so that equal plugins have equal fields.
  if (!out->quantized() && (block != 0 || scale_dtype != 0)) {
    return InvalidArgument(name + " is not quantized, but has a block of " + std::to_string(block) +
                           " or a scale dtype");
  }
  if (out->quantized() && (block < 1 || block > kMaxBlock)) {
    return InvalidArgument(name + " is quantized in blocks of " + std::to_string(block));
  }
  return {};
}

inline nvinfer1::DataType TensorType(DType dtype) {
  switch (dtype) {
    case DType::kF32: return nvinfer1::DataType::kFLOAT;
    case DType::kF16: return nvinfer1::DataType::kHALF;
    default: return nvinfer1::DataType::kINT8;  // packed bytes
  }
}

// Appends the matrix's tensors to a plugin's inputs; BindMatrix takes their pointers in the same order.
inline void DescribeMatrix(const std::string& name, const Matrix& m, std::vector<TensorSpec>* inputs) {
  const int64_t extent = m.quantized() ? m.row_bytes() : m.cols;
  inputs->push_back({name, TensorType(m.dtype), {Fixed(m.rows), Fixed(extent)}});
  if (m.quantized()) {
    inputs->push_back({name + ".scales", TensorType(m.scale_dtype), {Fixed(m.rows), Fixed(m.blocks())}});
  }
}

// Returns the number of pointers taken.
inline int BindMatrix(const void* const* inputs, Matrix* m) {
  m->data = inputs[0];
  m->scales = m->quantized() ? inputs[1] : nullptr;
  return m->quantized() ? 2 : 1;
}

}  // namespace edge_sdk::trt
