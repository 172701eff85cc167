#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matrix.cuh"
#include "kernels/group_tokens.h"

namespace edge_sdk {
namespace {

using namespace cuda;

struct TokensParams {
  DeviceMatrix table;
  const int64_t* ids;
  const float* text;
  float* out;
  int32_t codes, width, group_size;
  int32_t* bad_id;
};

// Block (m, c): columns c * kThreads and on of group m.
__global__ void __launch_bounds__(kThreads) TokensKernel(const TokensParams p) {
  const int col = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (col >= p.width) return;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * p.width + col;
  const int64_t* ids = p.ids + static_cast<int64_t>(blockIdx.x) * p.group_size;
  float sum = 0;
  for (int g = 0; g < p.group_size; ++g) {
    const int64_t id = ids[g];
    if (id >= 0 && id < p.codes) {
      sum += Element(p.table, static_cast<int>(id), col);
    } else if (p.bad_id != nullptr && col == 0) {
      *p.bad_id = 1;
    }
  }
  p.out[at] = p.text == nullptr ? sum : (p.text[at] + sum) / 2;
}

__global__ void __launch_bounds__(kThreads) RowsKernel(const GroupRowsArgs p) {
  const int col = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (col >= p.width) return;
  float sum = 0;
  for (int g = 0; g < p.group_size; ++g) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * p.group_size + g;
    if (row < p.rows) sum += p.rows_in[row * p.width + col];
  }
  p.out[static_cast<int64_t>(blockIdx.x) * p.width + col] = sum / static_cast<float>(p.group_size);
}

dim3 Blocks(int groups, int width) {
  return dim3(static_cast<unsigned>(groups), static_cast<unsigned>(CeilDiv(width, kThreads)));
}

}  // namespace

Status GroupTokensCuda(const GroupTokensArgs& args, int32_t* bad_id, void* stream) {
  if (args.count == 0) return {};
  const TokensParams p{ToDevice(args.table), args.ids, args.text, args.out, args.table.rows, args.table.cols,
                       args.group_size, bad_id};
  return Launch("GroupTokens", TokensKernel, Blocks(args.count, p.width), 0, false, stream, p);
}

Status GroupRowsCuda(const GroupRowsArgs& args, void* stream) {
  if (args.rows == 0) return {};
  return Launch("GroupRows", RowsKernel, Blocks(CeilDiv(args.rows, args.group_size), args.width), 0, false, stream,
                args);
}

}  // namespace edge_sdk
