// Products of weight matrices with few vectors, over a Team's threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/team.h"
#include "kernels/isa.h"
#include "kernels/matrix.h"

namespace edge_sdk {

struct LinearJob {
  const Matrix* w;
  float* y;       // [count, ld_y]
  int64_t ld_y;
};

// Holds the quantized form of a phase's activations, so that matrices cut alike share it.
class Linear {
 public:
  explicit Linear(const Isa& isa) : isa_(isa) {}

  // y = w x for every job, all of them of the same x [count, cols]: one phase of the team.
  void Run(Team& team, const float* x, int32_t count, int32_t cols, const LinearJob* jobs, int job_count);

 private:
  struct Quantized {
    DType dtype;
    int32_t block;
    std::vector<int8_t> q;
    std::vector<float> scale, sum;
  };
  Activations Prepare(Team& team, const Matrix& w, const float* x, int32_t count, int32_t cols);

  const Isa& isa_;
  std::vector<Quantized> quantized_;  // kept for its memory; `used_` of them belong to the current x
  size_t used_ = 0;
};

}  // namespace edge_sdk
