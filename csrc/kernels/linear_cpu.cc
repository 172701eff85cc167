#include "kernels/linear_cpu.h"

#include <algorithm>

namespace edge_sdk {
namespace {

constexpr int kMaxJobs = 3;
// Bytes of weights in a chunk. What is fetched ahead at a chunk's end is another thread's, so they should be long; but
// every thread should have some, so that all end together.
constexpr int64_t kLeastChunkBytes = 64 << 10, kMostChunkBytes = 256 << 10;
constexpr int kChunksPerThread = 4;
constexpr int kRowStep = 4;  // the most rows an inner loop takes at once

int64_t ChunkBytes(const LinearJob* jobs, int job_count, int threads) {
  int64_t bytes = 0;
  for (int j = 0; j < job_count; ++j) bytes += jobs[j].w->rows * jobs[j].w->row_bytes();
  return std::clamp(bytes / (int64_t{threads} * kChunksPerThread), kLeastChunkBytes, kMostChunkBytes);
}

int RowsPerChunk(const Matrix& w, int64_t chunk_bytes) {
  const int64_t rows = chunk_bytes / std::max<int64_t>(w.row_bytes(), 1);
  return static_cast<int>(std::clamp<int64_t>(rows / kRowStep * kRowStep, kRowStep, 1 << 16));
}

}  // namespace

void Linear::Run(Team& team, const float* x, int32_t count, int32_t cols, const LinearJob* jobs, int job_count) {
  used_ = 0;
  quantized_.reserve(kMaxJobs);  // pointers into it are handed out below
  Activations inputs[kMaxJobs];
  int chunk_rows[kMaxJobs], first_chunk[kMaxJobs + 1] = {};
  const int64_t chunk_bytes = ChunkBytes(jobs, job_count, team.threads());
  for (int j = 0; j < job_count; ++j) {
    const Matrix& w = *jobs[j].w;
    inputs[j] = Prepare(team, w, x, count, cols);
    chunk_rows[j] = RowsPerChunk(w, chunk_bytes);
    first_chunk[j + 1] = first_chunk[j] + (w.rows + chunk_rows[j] - 1) / chunk_rows[j];
  }
  team.For(first_chunk[job_count], [&](int chunk) {
    int j = 0;
    while (chunk >= first_chunk[j + 1]) ++j;
    const Matrix& w = *jobs[j].w;
    const int begin = (chunk - first_chunk[j]) * chunk_rows[j];
    isa_.rows(w, inputs[j], begin, std::min(begin + chunk_rows[j], w.rows), jobs[j].y, jobs[j].ld_y);
  });
}

Activations Linear::Prepare(Team& team, const Matrix& w, const float* x, int32_t count, int32_t cols) {
  Activations out;
  out.x = x;
  out.ld = cols;
  out.count = count;
  if (!w.quantized()) return out;
  Quantized* found = nullptr;
  for (size_t i = 0; i < used_; ++i) {
    if (quantized_[i].dtype == w.dtype && quantized_[i].block == w.block) found = &quantized_[i];
  }
  const int32_t blocks = w.blocks();
  const int64_t ld_q = int64_t{blocks} * w.block;
  const int64_t ld_blocks = (blocks + kScalePadding - 1) / kScalePadding * kScalePadding;
  if (!found) {
    if (used_ == quantized_.size()) quantized_.emplace_back();
    found = &quantized_[used_++];
    found->dtype = w.dtype;
    found->block = w.block;
    found->q.resize(count * ld_q);
    found->scale.assign(count * ld_blocks, 0.0f);
    found->sum.assign(count * ld_blocks, 0.0f);
    const auto quantize = [&](int m) {
      isa_.quantize(x + int64_t{m} * cols, cols, w.block, w.dtype, found->q.data() + m * ld_q,
                    found->scale.data() + m * ld_blocks, found->sum.data() + m * ld_blocks);
    };
    if (count == 1) {
      quantize(0);
    } else {
      team.For(count, quantize);
    }
  }
  out.q = found->q.data();
  out.scale = found->scale.data();
  out.sum = found->sum.data();
  out.ld_blocks = ld_blocks;
  return out;
}

}  // namespace edge_sdk
