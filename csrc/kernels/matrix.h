// Weights as the bundle stores them, and the one layout every kernel reads: no repacking, no second copy.
#pragma once

#include <cstdint>

namespace edge_sdk {

enum class DType : int32_t { kF32 = 0, kF16 = 1, kI8 = 2, kI4 = 3 };

// A weight matrix [rows, cols]; row r makes output r. Quantized ones are cut along each row into blocks of `block`
// values with one scale each; a last block that cols do not fill is padded with the zero point. This is the layout of
// ONNX Runtime's MatMulNBits and GatherBlockQuantized, so the plain graphs read the same bytes.
//
//   kF32, kF16: data [rows, cols]; scales, block unused.
//   kI8: data uint8 [rows, blocks * block], value = (q - 128) * scale.
//   kI4: data uint8 [rows, blocks * block / 2], element 2i in the low and 2i+1 in the high nibble,
//        value = (q - 8) * scale.
//   scales: [rows, blocks], kF32 or kF16.
struct Matrix {
  const void* data = nullptr;
  const void* scales = nullptr;
  DType dtype = DType::kF32;
  DType scale_dtype = DType::kF32;
  int32_t rows = 0;
  int32_t cols = 0;
  int32_t block = 0;  // 32 or a multiple of 64 for kI4; any multiple of 32 for kI8

  bool quantized() const { return dtype == DType::kI8 || dtype == DType::kI4; }
  int32_t blocks() const { return quantized() ? (cols - 1) / block + 1 : 1; }
  // Bytes from one row to the next.
  int64_t row_bytes() const {
    switch (dtype) {
      case DType::kF32: return int64_t{4} * cols;
      case DType::kF16: return int64_t{2} * cols;
      case DType::kI8: return int64_t{blocks()} * block;
      default: return int64_t{blocks()} * block / 2;
    }
  }
};

}  // namespace edge_sdk
