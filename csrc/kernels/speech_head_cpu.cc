#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/philox.h"
#include "core/team.h"
#include "kernels/attention_cpu.h"
#include "kernels/isa.h"
#include "kernels/linear_cpu.h"
#include "kernels/sample.h"
#include "kernels/speech_head.h"

namespace edge_sdk {
namespace {

constexpr int32_t kPrefillRows = 160;  // cache rows a pass: each brings all weights through the cache once

bool AllFinite(const float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return false;
  }
  return true;
}

// One pass of rows through the stack; holds the scratch that all its layers share.
class Stack {
 public:
  Stack(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache, int32_t max_rows)
      : s_(shape),
        w_(weights),
        cache_(cache),
        isa_(CurrentIsa()),
        linear_(isa_),
        attention_(isa_, shape, cache),
        x(int64_t{max_rows} * shape.width),
        norm_(x.size()),
        sum_(x.size()),
        q_(int64_t{max_rows} * shape.heads * shape.head_dim),
        k_(int64_t{max_rows} * shape.kv_heads * shape.head_dim),
        v_(k_.size()),
        attended_(q_.size()),
        gate_(int64_t{max_rows} * shape.intermediate),
        up_(gate_.size()) {}

  // input projection: head_input [count, hidden] -> rows [count, G * width].
  void Project(Team& team, const float* head_input, int32_t count, float* rows) {
    const int32_t out = s_.group_size * s_.width;
    const LinearJob job{&w_.input, rows, out};
    linear_.Run(team, head_input, count, s_.hidden, &job, 1);
    for (int32_t i = 0; i < count; ++i) isa_.add(rows + int64_t{i} * out, w_.input_bias, out);
  }

  void ReadEmbedding(int64_t id, float* row) const { isa_.read_row(w_.input_table, id, row); }

  // x [1, width] through every layer, appended at `length`.
  void Step(Team& team, int32_t length) {
    for (int i = 0; i < s_.layers; ++i) {
      KeysAndValues(team, i, 1, length, true);
      RestOfLayer(team, i, 1, length);
    }
  }

  // x [rows, width]: only what they leave in the cache is wanted, so of the last layer no more than keys and values.
  void Fill(Team& team, int32_t rows, int32_t length) {
    for (int i = 0; i < s_.layers; ++i) {
      const bool last = i + 1 == s_.layers;
      KeysAndValues(team, i, rows, length, !last);
      if (!last) RestOfLayer(team, i, rows, length);
    }
  }

  // logits [codes] of row 0.
  void Logits(Team& team, float* logits) {
    isa_.rms_norm(x.data(), w_.final_norm, s_.width, s_.eps, norm_.data());
    const LinearJob job{&w_.output_table, logits, s_.codes};
    linear_.Run(team, norm_.data(), 1, s_.width, &job, 1);
  }

 private:
  // Into the cache; queries are made too where somebody will ask.
  void KeysAndValues(Team& team, int i, int32_t rows, int32_t length, bool queries) {
    const SpeechHeadLayer& layer = w_.layers[i];
    const int32_t q_width = s_.heads * s_.head_dim, kv_width = s_.kv_heads * s_.head_dim;
    Normalize(team, layer.input_norm, rows);
    const LinearJob jobs[] = {{&layer.k, k_.data(), kv_width}, {&layer.v, v_.data(), kv_width}, {&layer.q, q_.data(), q_width}};
    linear_.Run(team, norm_.data(), rows, s_.width, jobs, queries ? 3 : 2);
    const float scale = 1.0f / std::sqrt(static_cast<float>(s_.head_dim));
    team.For(rows, [&](int r) {
      if (queries) Rotate(q_.data() + int64_t{r} * q_width, layer.q_norm, s_.heads, length + r, scale);
      Rotate(k_.data() + int64_t{r} * kv_width, layer.k_norm, s_.kv_heads, length + r, 1.0f);
    });
    attention_.Append(i, k_.data(), v_.data(), rows, length);
  }

  void RestOfLayer(Team& team, int i, int32_t rows, int32_t length) {
    const SpeechHeadLayer& layer = w_.layers[i];
    attention_.Run(team, i, q_.data(), rows, length, attended_.data());
    AddProduct(team, layer.o, attended_.data(), rows, s_.heads * s_.head_dim);
    Normalize(team, layer.post_norm, rows);
    const LinearJob jobs[] = {{&layer.gate, gate_.data(), s_.intermediate}, {&layer.up, up_.data(), s_.intermediate}};
    linear_.Run(team, norm_.data(), rows, s_.width, jobs, 2);
    team.For(rows, [&](int r) {
      float* gate = gate_.data() + int64_t{r} * s_.intermediate;
      isa_.silu_mul(gate, up_.data() + int64_t{r} * s_.intermediate, s_.intermediate, gate);
    });
    AddProduct(team, layer.down, gate_.data(), rows, s_.intermediate);
  }

  void Normalize(Team& team, const float* weight, int32_t rows) {
    team.For(rows, [&](int r) {
      const int64_t at = int64_t{r} * s_.width;
      isa_.rms_norm(x.data() + at, weight, s_.width, s_.eps, norm_.data() + at);
    });
  }

  void AddProduct(Team& team, const Matrix& w, const float* input, int32_t rows, int32_t cols) {
    const LinearJob job{&w, sum_.data(), s_.width};
    linear_.Run(team, input, rows, cols, &job, 1);
    isa_.add(x.data(), sum_.data(), rows * s_.width);
  }

  // Qwen3: each head normalised by itself, then rotated, first half against second.
  void Rotate(float* row, const float* norm, int heads, int32_t position, float scale) {
    const int half = s_.head_dim / 2;
    const float* cosine = cache_.rope_cos + int64_t{position} * half;
    const float* sine = cache_.rope_sin + int64_t{position} * half;
    for (int h = 0; h < heads; ++h) {
      float* head = row + int64_t{h} * s_.head_dim;
      isa_.rms_norm(head, norm, s_.head_dim, s_.eps, head);
      for (int i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        head[i] = (a * cosine[i] - b * sine[i]) * scale;
        head[i + half] = (b * cosine[i] + a * sine[i]) * scale;
      }
    }
  }

  const SpeechHeadShape& s_;
  const SpeechHeadWeights& w_;
  const SpeechHeadCache& cache_;
  const Isa& isa_;
  Linear linear_;
  Attention attention_;

 public:
  std::vector<float> x;  // residual stream [rows, width]

 private:
  std::vector<float> norm_, sum_, q_, k_, v_, attended_, gate_, up_;
};

Status CheckRoom(const SpeechHeadCache& cache, int32_t length, int64_t rows) {
  if (length < 0) return InvalidArgument("speech head: a negative cache length");
  if (length + rows > cache.capacity) {
    return {Code::kCacheFull, "speech head: a cache of " + std::to_string(cache.capacity) + " positions cannot take " +
                                  std::to_string(rows) + " more after " + std::to_string(length)};
  }
  return {};
}

Status CheckGroup(const SpeechHeadShape& shape, const SpeechHeadCache& cache, const SpeechHeadGroup& group) {
  if (!group.head_input || !group.seen || !group.ids) return InvalidArgument("speech head: a group without buffers");
  EDGE_RETURN_IF_ERROR(CheckRoom(cache, group.length, shape.group_size));
  if (group.last_id < 0 || group.last_id >= shape.codes) {
    return InvalidArgument("speech head: last id " + std::to_string(group.last_id) + " is outside the codebook of " +
                           std::to_string(shape.codes));
  }
  for (int32_t j = 0; group.forced && j < shape.group_size; ++j) {
    if (group.forced[j] >= shape.codes) return InvalidArgument("speech head: a forced id is outside the codebook");
  }
  const Sampling& sampling = group.sampling;
  if (!(sampling.temperature > 0) || !(sampling.repetition_penalty > 0) || !(sampling.top_p >= 0) || sampling.top_k < 0) {
    return InvalidArgument("speech head: temperature and repetition_penalty are above 0, top_p and top_k not negative");
  }
  if (!AllFinite(group.head_input, shape.hidden)) {
    return {Code::kNotFinite, "speech head: the backbone's hidden state holds NaN or infinity"};
  }
  return {};
}

}  // namespace

Status SpeechHeadPrefillCpu(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache,
                            const float* head_input, int32_t count, int32_t length, Team& team) {
  if (count < 0 || (count && !head_input)) return InvalidArgument("speech head: a prefill without input");
  EDGE_RETURN_IF_ERROR(CheckRoom(cache, length, int64_t{count} * shape.group_size));
  if (!AllFinite(head_input, int64_t{count} * shape.hidden)) {
    return {Code::kNotFinite, "speech head: the backbone's hidden states hold NaN or infinity"};
  }
  const int32_t step = std::max(1, kPrefillRows / shape.group_size);  // backbone positions a pass
  Stack stack(shape, weights, cache, std::min(step, std::max(count, 1)) * shape.group_size);
  std::vector<float> bos(shape.width);
  stack.ReadEmbedding(shape.bos, bos.data());
  for (int32_t at = 0; at < count; at += step) {
    const int32_t positions = std::min(step, count - at), rows = positions * shape.group_size;
    stack.Project(team, head_input + int64_t{at} * shape.hidden, positions, stack.x.data());
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t i = 0; i < shape.width; ++i) stack.x[int64_t{r} * shape.width + i] += bos[i];
    }
    stack.Fill(team, rows, length + at * shape.group_size);
  }
  return {};
}

Status SpeechHeadGroupCpu(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache,
                          const SpeechHeadGroup& group, Team& team) {
  EDGE_RETURN_IF_ERROR(CheckGroup(shape, cache, group));
  Stack stack(shape, weights, cache, 1);
  std::vector<float> rows(int64_t{shape.group_size} * shape.width), scores(shape.codes), embedding(shape.width);
  std::vector<uint8_t> seen(group.seen, group.seen + shape.codes);
  stack.Project(team, group.head_input, 1, rows.data());
  int64_t id = group.last_id;
  for (int32_t j = 0; j < shape.group_size; ++j) {
    stack.ReadEmbedding(id, embedding.data());
    for (int32_t i = 0; i < shape.width; ++i) stack.x[i] = rows[int64_t{j} * shape.width + i] + embedding[i];
    stack.Step(team, group.length + j);
    stack.Logits(team, scores.data());
    if (group.logits) std::copy(scores.begin(), scores.end(), group.logits + int64_t{j} * shape.codes);
    const Sampling& s = group.sampling;
    const float number = s.do_sample ? Uniform(s.seed, s.turn, s.step, static_cast<uint32_t>(j)) : 0.0f;
    EDGE_RETURN_IF_ERROR(PickCpu(scores.data(), shape.codes, seen.data(), s, number, &id));
    if (group.forced && group.forced[j] >= 0) id = group.forced[j];
    seen[id] = 1;
    group.ids[j] = id;
  }
  return {};
}

}  // namespace edge_sdk
