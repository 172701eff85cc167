// One group of the speech head as one kernel: as many blocks as the device holds at once walk all phases of all layers
// of all G steps together, with a barrier of the grid between phases. A phase is mostly the reading of one or two
// weight matrices; whoever waits at a barrier has already asked for what it reads next.
#pragma once

#include "kernels/cuda/head.cuh"

namespace edge_sdk::cuda {

enum class Phase : int32_t { kInput, kQkv, kAttention, kOut, kGateUp, kDown, kLogits };

// Where in a group the grid is. Phases follow each other in one loop, so that the products' code, which is long, stands
// in the kernel once: called as a function it would save and restore its registers for every pair of rows.
struct Cursor {
  Phase phase = Phase::kInput;
  int layer = 0;
  int index = 0;  // of the G steps

  __device__ Cursor Next(int layers) const {
    switch (phase) {
      case Phase::kInput: return {Phase::kQkv, 0, 0};
      case Phase::kLogits: return {Phase::kQkv, 0, index + 1};
      case Phase::kDown:
        if (layer + 1 == layers) return {Phase::kLogits, layer, index};
        return {Phase::kQkv, layer + 1, index};
      default: return {static_cast<Phase>(static_cast<int32_t>(phase) + 1), layer, index};
    }
  }
};

struct GroupStep {
  const HeadParams& p;
  int position;  // that this step appends
  int previous;  // id before it
  unsigned barrier_target;

  __device__ void Barrier() { GridBarrier(p.scratch.barrier, &barrier_target); }
};

// y[r] = m[r] * x + add[r], or silu(m[r] * x) * (up[r] * x); x stands in the area.
struct Job {
  const DeviceMatrix* m;
  const DeviceMatrix* up;  // or null
  float* y;
  const float* add;  // or null; may be y
  int rows, cols;
};

__device__ inline int Jobs(Phase phase) { return phase == Phase::kQkv ? 3 : phase == Phase::kAttention ? 0 : 1; }

__device__ inline float* Logits(const HeadParams& p, int index) {
  return p.logits == nullptr ? p.scratch.logits : p.logits + static_cast<int64_t>(index) * p.codes;
}

// The i-th product of a phase.
__device__ inline Job MakeJob(const HeadParams& p, const Cursor& at, int i) {
  const DeviceLayer& layer = p.layer[at.layer];
  const HeadScratch& s = p.scratch;
  switch (at.phase) {
    case Phase::kInput: return {&p.input, nullptr, s.rows, p.input_bias, p.group_size * p.width, p.hidden};
    case Phase::kQkv:
      if (i == 0) return {&layer.q, nullptr, s.qkv, nullptr, p.q_size(), p.width};
      return {i == 1 ? &layer.k : &layer.v, nullptr, s.qkv + p.q_size() + (i - 1) * p.kv_size(), nullptr, p.kv_size(),
              p.width};
    case Phase::kOut: return {&layer.o, nullptr, s.x, s.x, p.width, p.q_size()};
    case Phase::kGateUp: return {&layer.gate, &layer.up, s.ffn, nullptr, p.intermediate, p.width};
    case Phase::kDown: return {&layer.down, nullptr, s.x, s.x, p.width, p.intermediate};
    default: return {&p.output_table, nullptr, Logits(p, at.index), nullptr, p.codes, p.width};
  }
}

// Pairs of matrix rows are dealt to the grid's warps in turn, neighbours to different blocks. `dealt` counts the pairs
// that went out before in the same phase.
struct Deal {
  int warps, own;

  __device__ Deal()
      : warps(static_cast<int>(gridDim.x) * kWarps),
        own(Warp() * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)) {}
  __device__ int First(int dealt) const { return (own + warps - dealt % warps) % warps; }
};

__device__ inline int RowPairs(int rows) { return CeilDiv(rows, kRowsPerWarp); }

__device__ inline void StoreProduct(const Job& job, int row, float y, float up) {
  if (row >= job.rows) return;
  if (job.up != nullptr) y = SiluTimes(y, up);
  if (job.add != nullptr) y += FromGrid(job.add + row);
  job.y[row] = y;
}

__device__ inline void Products(const HeadParams& p, const Cursor& at) {
  const Deal deal;
  int dealt = 0;
#pragma unroll 1
  for (int i = 0; i < Jobs(at.phase); ++i) {
    const Job job = MakeJob(p, at, i);
#pragma unroll 1
    for (int pair = deal.First(dealt); pair < RowPairs(job.rows); pair += deal.warps) {
      const int row = pair * kRowsPerWarp;
      float2 y = make_float2(0, 0), up = y;
#pragma unroll 1
      for (int part = job.up != nullptr; part >= 0; --part) {
        const float2 product = DotRows(part == 1 ? *job.up : *job.m, row, job.rows, job.cols, Area());
        (part == 1 ? up : y) = product;
      }
      if (Lane() == 0) {
        StoreProduct(job, row, y.x, up.x);
        StoreProduct(job, row + 1, y.y, up.y);
      }
    }
    dealt += RowPairs(job.rows);
  }
}

// Asks for the rows that this warp will read first in a phase. At most 4 KB a matrix: no cache is flooded.
__device__ inline void Prefetch(const HeadParams& p, const Cursor& at) {
  constexpr int kLine = 128;
  const Deal deal;
  int dealt = 0;
  for (int i = 0; i < Jobs(at.phase); ++i) {
    const Job job = MakeJob(p, at, i);
    const int pair = deal.First(dealt);
    dealt += RowPairs(job.rows);
    if (pair >= job.rows / kRowsPerWarp) continue;
    for (const DeviceMatrix* m : {job.m, job.up}) {
      if (m == nullptr) continue;
      const int64_t bytes = static_cast<int64_t>(m->row_bytes) * kRowsPerWarp, offset = Lane() * kLine;
      if (offset < bytes) PrefetchToL2(static_cast<const char*>(m->data) + pair * bytes + offset);
    }
  }
}

__device__ inline float* Part(const HeadParams& p, int head, int split) {
  return p.scratch.parts + (static_cast<int64_t>(head) * kMaxSplits + split) * (2 + p.geometry.head_dim);
}

// The block that finished a pair's last part adds all of them up: in their order, whichever block it is.
__device__ inline void CombineParts(const HeadParams& p, int pair, int splits) {
  const HeadGeometry& g = p.geometry;
  for (int h = 0; h < g.heads_of(pair); ++h) {
    const int head = g.first_head(pair) + h;
    float largest = -INFINITY;
    for (int s = 0; s < splits; ++s) largest = fmaxf(largest, FromGrid(Part(p, head, s)));
    for (int i = static_cast<int>(threadIdx.x); i < g.head_dim; i += kThreads) {
      float sum = 0, value = 0;
      for (int s = 0; s < splits; ++s) {
        const float* part = Part(p, head, s);
        const float weight = expf(FromGrid(part) - largest);
        sum = fmaf(weight, FromGrid(part + 1), sum);
        value = fmaf(weight, FromGrid(part + 2 + i), value);
      }
      p.scratch.attention[head * g.head_dim + i] = value / sum;
    }
  }
}

// Result of one part to where it is needed: attention itself if it is the only part.
__device__ inline void StorePart(const HeadParams& p, int pair, int split, int splits, const AttentionShared& a) {
  const HeadGeometry& g = p.geometry;
  for (int h = 0; h < g.heads_of(pair); ++h) {
    const int head = g.first_head(pair) + h;
    const float largest = a.stats[h * 3], sum = a.stats[h * 3 + 1];
    float* part = Part(p, head, split);
    for (int i = static_cast<int>(threadIdx.x); i < g.head_dim; i += kThreads) {
      const float value = a.sums[h * g.cache_head_dim + i];
      if (splits == 1) {
        p.scratch.attention[head * g.head_dim + i] = value / sum;
      } else {
        part[2 + i] = value;
      }
    }
    if (splits > 1 && threadIdx.x == 0) part[0] = largest, part[1] = sum;
  }
  if (splits == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(p.scratch.tickets + pair, 1u) == static_cast<unsigned>(splits) - 1;
    if (last) p.scratch.tickets[pair] = 0;
    Head().last_part = last;
    __threadfence();
  }
  __syncthreads();
  if (Head().last_part) CombineParts(p, pair, splits);
}

// Queries of a pair into shared memory, by a warp each. Whoever attends to the newest position writes it to the cache
// first: the pairs of a kv head write the same bytes, and each reads what it wrote itself.
__device__ inline void PreparePair(const GroupStep& step, const DeviceLayer& layer, int pair, bool newest,
                                   const AttentionShared& a) {
  const HeadParams& p = step.p;
  const HeadGeometry& g = p.geometry;
  const int kv_head = pair / g.pairs_per_kv_head(), warp = Warp();
  if (warp < g.heads_of(pair)) {
    PrepareRow(g, p.scratch.qkv + (g.first_head(pair) + warp) * g.head_dim, layer.q_norm, step.position,
               1.0f / sqrtf(static_cast<float>(g.head_dim)), a.query + warp * g.cache_head_dim);
  } else if (newest && warp == kQueries) {
    PrepareRow(g, p.scratch.qkv + p.q_size() + kv_head * g.head_dim, layer.k_norm, step.position, 1.0f, a.append);
    StoreRow(g, a.append, kv_head, step.position, layer.cache.keys, layer.cache.key_scales);
  } else if (newest && warp == kQueries + 1) {
    float* value = a.append + g.cache_head_dim;
    PrepareRow(g, p.scratch.qkv + p.q_size() + p.kv_size() + kv_head * g.head_dim, nullptr, step.position, 1.0f, value);
    StoreRow(g, value, kv_head, step.position, layer.cache.values, layer.cache.value_scales);
  }
  __syncthreads();
}

__device__ inline void AttentionPhase(GroupStep& step, int l) {
  constexpr int kLeastPositions = 128;  // of a part: below, starting it costs more than it saves
  const HeadParams& p = step.p;
  const HeadGeometry& g = p.geometry;
  const int total = step.position + 1, pairs = g.pairs();
  int splits = min(min(static_cast<int>(gridDim.x) / pairs, CeilDiv(total, kLeastPositions)), kMaxSplits);
  const int each = CeilDiv(total, max(splits, 1));
  splits = CeilDiv(total, each);
  const AttentionShared a = CutShared(Area(), g.cache_head_dim);
  for (int item = static_cast<int>(blockIdx.x); item < pairs * splits; item += static_cast<int>(gridDim.x)) {
    const int pair = item / splits, split = item % splits;
    const int begin = split * each, end = min(begin + each, total);
    PreparePair(step, p.layer[l], pair, end == total, a);
    Attend(g, p.layer[l].cache, pair / g.pairs_per_kv_head(), g.heads_of(pair), begin, end, a);
    StorePart(p, pair, split, splits, a);
    __syncthreads();  // the area is free again
  }
}

// What the phase's products are applied to, into the area; for attention, all of the phase.
__device__ inline void StagePhase(GroupStep& step, const Cursor& at) {
  const HeadParams& p = step.p;
  const DeviceLayer& layer = p.layer[at.layer];
  const float eps = p.geometry.eps;
  const auto x = [&](int i) { return FromGrid(p.scratch.x + i); };
  // The step's input row: block 0 also starts the residual stream with it, which nobody reads before two barriers.
  const auto entry = [&](int i) {
    const int64_t row = static_cast<int64_t>(at.index) * p.width + i;
    const float v = FromGrid(p.scratch.rows + row) + Element(p.input_table, step.previous, i);
    if (blockIdx.x == 0) p.scratch.x[i] = v;
    return v;
  };
  switch (at.phase) {
    case Phase::kInput: return Stage(p.hidden, [&](int i) { return p.head_input[i]; });
    case Phase::kQkv:
      if (at.layer == 0) return StageNormed(p.width, layer.input_norm, eps, entry);
      return StageNormed(p.width, layer.input_norm, eps, x);
    case Phase::kAttention: return AttentionPhase(step, at.layer);
    case Phase::kOut: return Stage(p.q_size(), [&](int i) { return FromGrid(p.scratch.attention + i); });
    case Phase::kGateUp: return StageNormed(p.width, layer.post_norm, eps, x);
    case Phase::kDown: return Stage(p.intermediate, [&](int i) { return FromGrid(p.scratch.ffn + i); });
    default: return StageNormed(p.width, p.final_norm, eps, x);
  }
}

// Leaves the group's settings in Head().sampling. kInvalidArgument, as the CPU has it, if they or a forced id are out of
// range; the same in every block.
__device__ inline Code ReadSettings(const HeadParams& p) {
  Sampling& s = Head().sampling;
  if (threadIdx.x == 0) {
    s = p.sampling;
    if (p.device_sampling != nullptr) {
      const SpeechHeadCudaSampling& d = *p.device_sampling;
      s.do_sample = d.do_sample, s.top_k = d.top_k;
      s.temperature = d.temperature, s.top_p = d.top_p, s.repetition_penalty = d.repetition_penalty;
      s.seed = static_cast<uint64_t>(d.seed_high) << 32 | d.seed_low;
    }
  }
  __syncthreads();
  bool fine = s.temperature > 0 && s.repetition_penalty > 0 && s.top_p >= 0 && s.top_k >= 0;
  for (int j = 0; p.forced != nullptr && j < p.group_size; ++j) fine &= p.forced[j] < p.codes;
  return fine ? Code::kOk : Code::kInvalidArgument;
}

// The id picked from this step's logits, into step.previous: the same in every thread of every block.
__device__ inline Code PickId(GroupStep& step, int index, const SpeechHeadCudaState& start) {
  const HeadParams& p = step.p;
  const Sampling& s = Head().sampling;
  const PickInput in{Logits(p, index), p.seen, p.codes, index, s.do_sample, s.top_k, s.temperature, s.top_p,
                     s.repetition_penalty};
  const float number = Uniform(s.seed, start.turn, start.step, static_cast<uint32_t>(index));
  const Code code = Pick(in, number, Area(), Head().pick, &step.previous);
  if (p.forced != nullptr && p.forced[index] >= 0) step.previous = static_cast<int>(p.forced[index]);
  __syncthreads();
  if (threadIdx.x == 0) Head().pick.picks[index] = step.previous;
  __syncthreads();
  return code;
}

__device__ inline void FinishGroup(const HeadParams& p, Code code) {
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  SpeechHeadCudaState& s = *p.state;
  s.error = static_cast<int32_t>(code);
  if (code != Code::kOk) return;
  for (int j = 0; j < p.group_size; ++j) p.ids[j] = Head().pick.picks[j];
  s.last_id = Head().pick.picks[p.group_size - 1];
  s.length += p.group_size;
  s.step += 1;
}

// __grid_constant__: addresses into the parameters are taken, which must not copy them to each thread.
__global__ void __launch_bounds__(kThreads, 1) GroupKernel(const __grid_constant__ HeadParams p) {
  Code code = Refusal(p.state, p.head_input, 1, p.hidden, p.group_size, p.geometry.capacity);
  const SpeechHeadCudaState start = Head().state;
  if (code == Code::kOk && (start.last_id < 0 || start.last_id >= p.codes)) code = Code::kInvalidArgument;
  if (code == Code::kOk) code = ReadSettings(p);
  // Block 0 writes the error while others may not have looked at the state yet: any error stops them as well.
  if (code != Code::kOk) return FinishGroup(p, code);
  GroupStep step{p, start.length, static_cast<int>(start.last_id), 0};
  for (Cursor at; at.index < p.group_size;) {
    StagePhase(step, at);
    Products(p, at);
    const Cursor next = at.Next(p.layers);
    Prefetch(p, next);
    if (next.phase == Phase::kAttention) Prefetch(p, next.Next(p.layers));
    step.Barrier();
    if (at.phase == Phase::kLogits) {
      code = PickId(step, at.index, start);
      if (code != Code::kOk) break;
      ++step.position;
    }
    at = next;
  }
  FinishGroup(p, code);
}

}  // namespace edge_sdk::cuda
