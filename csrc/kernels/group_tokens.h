// Token grouping: between the 25 Hz of speech and the 5 Hz of the backbone.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/matrix.h"

namespace edge_sdk {

// G speech ids -> one backbone input row: out[m] = sum_g table[ids[m, g]], and (text[m] + that) / 2 where text is given.
// The table is the codebook with output_matching / G folded in (docs/computation.md).
struct GroupTokensArgs {
  Matrix table;                // [codes, width]; kF32, kF16 or kI8
  const int64_t* ids = nullptr;   // [count, group_size], each in [0, codes)
  const float* text = nullptr;    // [count, width] or null
  float* out = nullptr;           // [count, width]; may be `text`
  int32_t count = 0;
  int32_t group_size = 0;
};

// The encoder's side: out[m] = sum of rows [m*G, m*G+G) of the tower's, divided by G. Rows past `rows` are zero and
// counted, as the checkpoint was trained.
struct GroupRowsArgs {
  const float* rows_in = nullptr;  // [rows, width]
  float* out = nullptr;            // [ceil(rows / group_size), width]
  int32_t rows = 0;
  int32_t width = 0;
  int32_t group_size = 0;
};

Status CheckGroupTokens(const GroupTokensArgs& args);  // sizes, dtypes, pointers; not the ids' values

Status GroupTokensCpu(const GroupTokensArgs& args);  // refuses ids outside the table
Status GroupRowsCpu(const GroupRowsArgs& args);

// Device pointers throughout; `stream` is a cudaStream_t. An id outside the table adds nothing and sets *bad_id
// (device int32, may be null) to 1: a kernel cannot refuse.
Status GroupTokensCuda(const GroupTokensArgs& args, int32_t* bad_id, void* stream);
Status GroupRowsCuda(const GroupRowsArgs& args, void* stream);

}  // namespace edge_sdk
