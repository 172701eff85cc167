#include "kernels/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace edge_sdk {
namespace {

constexpr float kRemoved = -std::numeric_limits<float>::infinity();

// Sets everything below the k-th largest to minus infinity; ties with it stay.
void KeepTopK(float* scores, int32_t codes, int32_t k) {
  if (k >= codes) return;
  std::vector<float> sorted(scores, scores + codes);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
  const float threshold = sorted[k - 1];
  for (int32_t i = 0; i < codes; ++i) {
    if (scores[i] < threshold) scores[i] = kRemoved;
  }
}

// Keeps an id exactly if the likelier ones sum to less than p, and the likeliest always.
void KeepTopP(float* scores, int32_t codes, float p) {
  const float top = *std::max_element(scores, scores + codes);
  std::vector<float> probability(codes);
  double total = 0;
  for (int32_t i = 0; i < codes; ++i) total += probability[i] = std::exp(scores[i] - top);
  // A heap gives the likeliest first: few of thousands are ever taken out.
  std::vector<int32_t> heap(codes);
  std::iota(heap.begin(), heap.end(), 0);
  const auto less_likely = [&](int32_t a, int32_t b) {
    return probability[a] < probability[b] || (probability[a] == probability[b] && a > b);
  };
  std::make_heap(heap.begin(), heap.end(), less_likely);
  std::vector<std::pair<int32_t, float>> kept;
  double above = 0;
  while (!heap.empty() && (kept.empty() || above < static_cast<double>(p) * total)) {
    std::pop_heap(heap.begin(), heap.end(), less_likely);
    const int32_t id = heap.back();
    heap.pop_back();
    kept.emplace_back(id, scores[id]);
    above += probability[id];
  }
  std::fill(scores, scores + codes, kRemoved);
  for (const auto& [id, score] : kept) scores[id] = score;
}

// Walks the ids that are left in ascending order, to the first whose cumulated probability exceeds number * total.
int64_t Draw(const float* scores, int32_t codes, float best, float number) {
  double total = 0;
  for (int32_t i = 0; i < codes; ++i) {
    if (scores[i] > kRemoved) total += std::exp(static_cast<double>(scores[i]) - best);
  }
  const double target = static_cast<double>(number) * total;
  double cumulated = 0;
  int64_t last = 0;
  for (int32_t i = 0; i < codes; ++i) {
    if (!(scores[i] > kRemoved)) continue;
    cumulated += std::exp(static_cast<double>(scores[i]) - best);
    last = i;
    if (cumulated > target) break;
  }
  return last;
}

}  // namespace

Status PickCpu(float* scores, int32_t codes, const uint8_t* seen, const Sampling& sampling, float number, int64_t* id) {
  for (int32_t i = 0; i < codes; ++i) {
    if (!std::isfinite(scores[i])) return {Code::kNotFinite, "the speech head's scores are not finite"};
    if (seen[i] && sampling.repetition_penalty != 1.0f) {
      scores[i] = scores[i] < 0 ? scores[i] * sampling.repetition_penalty : scores[i] / sampling.repetition_penalty;
    }
  }
  if (sampling.do_sample && sampling.temperature != 1.0f) {
    for (int32_t i = 0; i < codes; ++i) scores[i] /= sampling.temperature;
  }
  const int64_t best = std::max_element(scores, scores + codes) - scores;  // the first of equals
  if (!std::isfinite(scores[best])) return {Code::kNoChoice, "temperature or penalty drive the scores out of range"};
  if (sampling.do_sample) {
    if (sampling.top_k > 0) KeepTopK(scores, codes, sampling.top_k);
    if (sampling.top_p < 1.0f) KeepTopP(scores, codes, sampling.top_p);
  }
  *id = sampling.do_sample ? Draw(scores, codes, scores[best], number) : best;
  return {};
}

}  // namespace edge_sdk
