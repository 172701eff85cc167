// From logits to an id by one block, as edge_sdk/sampling.py states it.
//
// Every block of the head's kernel makes the same pick for itself, which saves a trip around the grid; so all of them
// must come to the same id. Therefore probabilities are summed as integers (2^-40 of the largest each), in any order:
// finer than the float32 exponentials that they are made of. Ids of equal score rank by id.
#pragma once

#include "core/philox.h"
#include "kernels/cuda/device.cuh"
#include "kernels/speech_head.h"

namespace edge_sdk::cuda {

constexpr int kBins = 256;
constexpr int kMaxGroup = 32;  // largest group size

struct PickShared {
  unsigned long long histogram[kBins];
  uint64_t scratch[kWarps];
  uint64_t above;  // results of a search, from warp 0 to all
  int bin;
  int choice;
  int picks[kMaxGroup];  // of this group so far: they count as seen
};

struct PickInput {
  const float* logits;   // [codes], written by other blocks
  const uint8_t* seen;   // [codes] or null
  int32_t codes;
  int32_t picked;        // entries of PickShared::picks
  int32_t do_sample, top_k;
  float temperature, top_p, repetition_penalty;
};

// Unsigned order = descending order of scores (which are not NaN).
__device__ inline uint32_t Rank(float score) {
  const uint32_t bits = __float_as_uint(score);
  return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

__device__ inline uint64_t Mass(float score, float best) {
  return static_cast<uint64_t>(expf(score - best) * 1099511627776.0f);  // 2^40
}

__device__ inline float Processed(const PickInput& in, const PickShared& s, int id, float score) {
  bool seen = in.seen != nullptr && in.seen[id] != 0;
  for (int j = 0; j < in.picked; ++j) seen |= s.picks[j] == id;
  if (seen && in.repetition_penalty != 1.0f) {
    score = score < 0 ? score * in.repetition_penalty : score / in.repetition_penalty;
  }
  if (in.do_sample && in.temperature != 1.0f) score /= in.temperature;
  return score + 0.0f;  // -0 becomes 0: they are equal, and must rank as equals
}

// Processed scores into `scores`; the best one's rank and id. kNotFinite if a logit is not finite, kNoChoice if no
// score is.
__device__ inline Code ProcessScores(const PickInput& in, PickShared& s, float* scores, float* best, int* best_id) {
  uint64_t largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < in.codes; i += kThreads) {
    const float logit = FromGrid(in.logits + i);
    const float score = Processed(in, s, i, logit);
    scores[i] = score;
    uint64_t key = static_cast<uint64_t>(~Rank(score)) << 32 | (~static_cast<uint32_t>(i) & 0xffffffffu);
    if (!isfinite(logit)) key = ~uint64_t{0};
    largest = key > largest ? key : largest;
  }
  largest = BlockMax(largest, s.scratch);
  if (largest == ~uint64_t{0}) return Code::kNotFinite;
  *best_id = static_cast<int>(~static_cast<uint32_t>(largest));
  *best = scores[*best_id];
  return isfinite(*best) ? Code::kOk : Code::kNoChoice;
}

// Warp 0: the first bin with which the running sum reaches `target`; `above` is the sum before it.
__device__ inline void FindBin(PickShared& s, uint64_t above, uint64_t target) {
  constexpr int kEach = kBins / kWarpSize;
  uint64_t sum = 0;
  for (int i = 0; i < kEach; ++i) sum += s.histogram[Lane() * kEach + i];
  uint64_t before = above + WarpInclusiveScan(sum) - sum;
  if (before < target && before + sum >= target) {  // one lane
    int bin = Lane() * kEach;
    while (before + s.histogram[bin] < target) before += s.histogram[bin++];
    s.bin = bin;
    s.above = before;
  }
}

struct Threshold {
  uint32_t rank;   // of the last id that is reached
  uint64_t above;  // sum over all ids of lower rank, that is of higher score
};

// Walks ids of rank <= `last` from the best on until their sum (of masses, or their number) reaches `target`, which it
// must do. Bins first cut the distance from the best score evenly: that spreads the atomics over them; inside the bin
// found, digits of the rank decide.
__device__ inline Threshold Search(const float* scores, int codes, float best, uint32_t last, bool by_mass,
                                   uint64_t target, PickShared& s) {
  constexpr float kBinsPerUnit = 9.0f;  // 256 bins reach to exp(-28): beyond, masses are 0
  Threshold found{0, 0};
  int even_bin = 0;
  for (int pass = 0; pass <= 4; ++pass) {
    const int shift = 32 - 8 * pass;
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) s.histogram[i] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < codes; i += kThreads) {
      const uint32_t rank = Rank(scores[i]);
      if (rank > last) continue;
      const int even = static_cast<int>(fminf((best - scores[i]) * kBinsPerUnit, kBins - 1.0f));
      int bin = even;
      if (pass > 0) {
        if (even != even_bin) continue;
        if (pass > 1 && rank >> (shift + 8) != found.rank >> (shift + 8)) continue;
        bin = static_cast<int>(rank >> shift & 0xffu);
      }
      atomicAdd(&s.histogram[bin], by_mass ? static_cast<unsigned long long>(Mass(scores[i], best)) : 1ull);
    }
    __syncthreads();
    if (Warp() == 0) FindBin(s, found.above, target);
    __syncthreads();
    found.above = s.above;
    if (pass == 0) {
      even_bin = s.bin;
    } else {
      found.rank |= static_cast<uint32_t>(s.bin) << shift;
    }
    __syncthreads();
  }
  return found;
}

// Ids that may be drawn: rank below `rank`, and of those at `rank` the first `ties` by id.
struct Kept {
  uint32_t rank;
  uint64_t ties;
};

__device__ inline Kept KeptIds(const PickInput& in, const float* scores, float best, PickShared& s) {
  Kept kept{0xffffffffu, ~uint64_t{0}};
  if (in.top_k > 0 && in.top_k < in.codes) {
    kept.rank = Search(scores, in.codes, best, kept.rank, false, static_cast<uint64_t>(in.top_k), s).rank;
  }
  if (!(in.top_p < 1.0f)) return kept;
  uint64_t mass = 0, total = 0;
  for (int i = static_cast<int>(threadIdx.x); i < in.codes; i += kThreads) {
    if (Rank(scores[i]) <= kept.rank) mass += Mass(scores[i], best);
  }
  BlockExclusiveScan(mass, s.scratch, &total);
  const double share = ceil(static_cast<double>(in.top_p) * static_cast<double>(total));
  const uint64_t target = share < 1.0 ? 1 : static_cast<uint64_t>(share);  // at least one id stays
  const Threshold found = Search(scores, in.codes, best, kept.rank, true, target, s);
  // The rank's score back from its bits, for the mass of one of its ids.
  const uint32_t bits = found.rank & 0x80000000u ? found.rank : ~found.rank & 0x7fffffffu;
  const uint64_t each = Mass(__uint_as_float(bits), best);
  return {found.rank, (target - found.above + each - 1) / each};
}

// The first kept id, in ascending order, at which the cumulated mass exceeds `number` of the total.
__device__ inline int Draw(const PickInput& in, const float* scores, float best, Kept kept, float number,
                           PickShared& s) {
  const int each = CeilDiv(in.codes, kThreads);
  const int begin = static_cast<int>(threadIdx.x) * each;
  const int end = begin + each < in.codes ? begin + each : in.codes;
  uint64_t ties = 0, total = 0;
  for (int i = begin; i < end; ++i) ties += Rank(scores[i]) == kept.rank;
  const uint64_t ties_before = BlockExclusiveScan(ties, s.scratch, &total);
  const auto mass_of = [&](int i, uint64_t* tie) -> uint64_t {
    const uint32_t rank = Rank(scores[i]);
    const bool stays = rank < kept.rank || (rank == kept.rank && (*tie)++ < kept.ties);
    return stays ? Mass(scores[i], best) : 0;
  };
  uint64_t mass = 0, tie = ties_before;
  for (int i = begin; i < end; ++i) mass += mass_of(i, &tie);
  uint64_t cumulated = BlockExclusiveScan(mass, s.scratch, &total);
  const double bound = static_cast<double>(number) * static_cast<double>(total);
  if (static_cast<double>(cumulated) <= bound && static_cast<double>(cumulated + mass) > bound) {  // one thread
    tie = ties_before;
    int i = begin;
    while (static_cast<double>(cumulated += mass_of(i, &tie)) <= bound) ++i;
    s.choice = i;
  }
  __syncthreads();
  return s.choice;
}

// The whole block: picks into *id, the same in every thread. scores [codes] is shared memory.
__device__ inline Code Pick(const PickInput& in, float number, float* scores, PickShared& s, int* id) {
  float best = 0;
  const Code code = ProcessScores(in, s, scores, &best, id);
  if (code != Code::kOk || !in.do_sample) return code;
  *id = Draw(in, scores, best, KeptIds(in, scores, best, s), number, s);
  return Code::kOk;
}

}  // namespace edge_sdk::cuda
