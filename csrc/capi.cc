// The C API over the kernels. Guard stands at every entry; nothing is thrown across.
#include <cmath>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/guard.h"
#include "core/thread_pool.h"
#include "edge_sdk.h"
#include "kernels/group_tokens.h"
#include "kernels/isa.h"
#include "kernels/speech_head.h"

using edge_sdk::Code;
using edge_sdk::DType;
using edge_sdk::Guard;
using edge_sdk::InvalidArgument;
using edge_sdk::Matrix;
using edge_sdk::SpeechHeadCache;
using edge_sdk::SpeechHeadLayer;
using edge_sdk::SpeechHeadShape;
using edge_sdk::SpeechHeadWeights;
using edge_sdk::Status;

struct edge_sdk_head {
  SpeechHeadShape shape;
  SpeechHeadWeights weights;
  std::vector<SpeechHeadLayer> layers;
  std::unique_ptr<edge_sdk::ThreadPool> pool;
  std::mutex mutex;
};

struct edge_sdk_cache {
  const edge_sdk_head* head = nullptr;
  int32_t length = 0;
  std::vector<unsigned char> memory;
  std::vector<float> scales, rope_cos, rope_sin;
  std::vector<void*> keys, values;
  std::vector<float*> key_scales, value_scales;
  SpeechHeadCache view;
};

namespace {

constexpr int32_t kMaxThreads = 256;
constexpr int32_t kHeadAlign = 8;
constexpr double kMaxCacheBytes = 1ull << 46;  // of keys and values; scales and rope tables take less each
thread_local std::string last_error;

edge_sdk_status Report(const Status& status) noexcept {
  if (!status.ok()) {
    try {
      last_error = status.message();
    } catch (...) {
      last_error.clear();
    }
  }
  return static_cast<edge_sdk_status>(status.code());
}

Matrix ToMatrix(const edge_sdk_matrix& m) {
  Matrix out;
  out.data = m.data;
  out.scales = m.scales;
  out.dtype = static_cast<DType>(m.dtype);
  out.scale_dtype = static_cast<DType>(m.scale_dtype);
  out.rows = m.rows;
  out.cols = m.cols;
  out.block = m.block;
  return out;
}

Status CheckDtype(int32_t dtype) {
  if (dtype >= EDGE_SDK_FLOAT32 && dtype <= EDGE_SDK_INT4) return {};
  return InvalidArgument("dtype " + std::to_string(dtype) + " is none of edge_sdk_dtype");
}

SpeechHeadShape ToShape(const edge_sdk_head_shape& s) {
  SpeechHeadShape out;
  out.group_size = s.group_size;
  out.hidden = s.hidden;
  out.width = s.width;
  out.layers = s.layers;
  out.heads = s.heads;
  out.kv_heads = s.kv_heads;
  out.head_dim = s.head_dim;
  // Clamped for the addition; a size out of range is refused by the check that follows.
  out.cache_head_dim = s.head_dim > 0 && s.head_dim < 1 << 24 ? (s.head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign : s.head_dim;
  out.intermediate = s.intermediate;
  out.codes = s.codes;
  out.bos = s.bos;
  out.eps = s.eps;
  return out;
}

SpeechHeadLayer ToLayer(const edge_sdk_head_layer& l) {
  SpeechHeadLayer out;
  out.input_norm = l.input_norm;
  out.post_norm = l.post_norm;
  out.q_norm = l.q_norm;
  out.k_norm = l.k_norm;
  out.q = ToMatrix(l.q);
  out.k = ToMatrix(l.k);
  out.v = ToMatrix(l.v);
  out.o = ToMatrix(l.o);
  out.gate = ToMatrix(l.gate);
  out.up = ToMatrix(l.up);
  out.down = ToMatrix(l.down);
  return out;
}

Status CreateHead(const edge_sdk_head_shape* shape, const edge_sdk_head_weights* weights, int32_t threads,
                  edge_sdk_head** out) {
  if (!shape || !weights || !out) return InvalidArgument("head_create: a null pointer");
  if (threads < 1 || threads > kMaxThreads) {
    return InvalidArgument("head_create: threads must be 1 to 256, got " + std::to_string(threads));
  }
  auto head = std::make_unique<edge_sdk_head>();
  head->shape = ToShape(*shape);
  if (weights->layers && shape->layers > 0 && shape->layers < 4096) {
    for (int32_t i = 0; i < shape->layers; ++i) head->layers.push_back(ToLayer(weights->layers[i]));
    head->weights.layers = head->layers.data();
  }
  head->weights.input = ToMatrix(weights->input);
  head->weights.input_bias = weights->input_bias;
  head->weights.input_table = ToMatrix(weights->input_table);
  head->weights.output_table = ToMatrix(weights->output_table);
  head->weights.final_norm = weights->final_norm;
  EDGE_RETURN_IF_ERROR(edge_sdk::CheckSpeechHead(head->shape, head->weights));
  head->pool = std::make_unique<edge_sdk::ThreadPool>(threads);
  *out = head.release();
  return {};
}

// As upstream evaluates it: frequencies and angles in float32.
void FillRope(edge_sdk_cache* cache, int32_t head_dim, double theta, int32_t positions) {
  const int32_t half = head_dim / 2;
  cache->rope_cos.resize(size_t(positions) * half);
  cache->rope_sin.resize(size_t(positions) * half);
  for (int32_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    const float frequency = 1.0f / std::pow(static_cast<float>(theta), exponent);
    for (int32_t p = 0; p < positions; ++p) {
      const float angle = static_cast<float>(p) * frequency;
      cache->rope_cos[size_t(p) * half + i] = std::cos(angle);
      cache->rope_sin[size_t(p) * half + i] = std::sin(angle);
    }
  }
}

Status CreateCache(const edge_sdk_head* head, int32_t capacity, int32_t dtype, double theta, edge_sdk_cache** out) {
  if (!head || !out) return InvalidArgument("cache_create: a null pointer");
  if (!(theta > 0) || !std::isfinite(theta)) return InvalidArgument("cache_create: rope_theta must be above 0");
  if (dtype != EDGE_SDK_FLOAT32 && dtype != EDGE_SDK_FLOAT16 && dtype != EDGE_SDK_INT8) {
    return InvalidArgument("cache_create: keys and values are FLOAT32, FLOAT16 or INT8");
  }
  if (capacity < 1 || capacity > 1 << 24) {
    return InvalidArgument("cache_create: a capacity of " + std::to_string(capacity) + " positions");
  }
  const SpeechHeadShape& s = head->shape;
  const size_t element = dtype == EDGE_SDK_FLOAT32 ? 4 : dtype == EDGE_SDK_FLOAT16 ? 2 : 1;
  // In double, where nothing wraps round: each factor may be 2^24.
  if (2.0 * s.layers * s.kv_heads * s.cache_head_dim * capacity * element > kMaxCacheBytes) {
    return InvalidArgument("cache_create: " + std::to_string(capacity) + " positions are more than memory can address");
  }
  const size_t heads = size_t(s.kv_heads) * capacity, bytes = heads * s.cache_head_dim * element;
  auto cache = std::make_unique<edge_sdk_cache>();
  cache->head = head;
  cache->memory.resize(bytes * 2 * s.layers);
  if (dtype == EDGE_SDK_INT8) cache->scales.resize(heads * 2 * s.layers);
  for (int32_t i = 0; i < s.layers; ++i) {
    cache->keys.push_back(cache->memory.data() + bytes * (2 * i));
    cache->values.push_back(cache->memory.data() + bytes * (2 * i + 1));
    if (cache->scales.empty()) continue;
    cache->key_scales.push_back(cache->scales.data() + heads * (2 * i));
    cache->value_scales.push_back(cache->scales.data() + heads * (2 * i + 1));
  }
  FillRope(cache.get(), s.head_dim, theta, capacity);
  cache->view.dtype = static_cast<DType>(dtype);
  cache->view.capacity = capacity;
  cache->view.keys = cache->keys.data();
  cache->view.values = cache->values.data();
  cache->view.key_scales = cache->key_scales.data();
  cache->view.value_scales = cache->value_scales.data();
  cache->view.rope_cos = cache->rope_cos.data();
  cache->view.rope_sin = cache->rope_sin.data();
  EDGE_RETURN_IF_ERROR(edge_sdk::CheckSpeechHeadCache(s, cache->view));
  *out = cache.release();
  return {};
}

Status CheckPair(const edge_sdk_head* head, const edge_sdk_cache* cache) {
  if (!head || !cache) return InvalidArgument("a null handle");
  if (cache->head != head) return InvalidArgument("the cache belongs to another head");
  return {};
}

Status Prefill(edge_sdk_head* head, edge_sdk_cache* cache, const float* head_input, int32_t count) {
  EDGE_RETURN_IF_ERROR(CheckPair(head, cache));
  std::lock_guard<std::mutex> lock(head->mutex);
  Status status;
  edge_sdk::Team::Run(head->pool->source(), [&](edge_sdk::Team& team) {
    status = Guard([&] {
      return SpeechHeadPrefillCpu(head->shape, head->weights, cache->view, head_input, count, cache->length, team);
    });
  });
  if (status.ok()) cache->length += count * head->shape.group_size;
  return status;
}

Status Group(edge_sdk_head* head, edge_sdk_cache* cache, edge_sdk::SpeechHeadGroup group,
             const edge_sdk_sampling* sampling) {
  EDGE_RETURN_IF_ERROR(CheckPair(head, cache));
  if (!sampling) return InvalidArgument("head_group: no sampling settings");
  group.length = cache->length;
  group.sampling.do_sample = sampling->do_sample;
  group.sampling.temperature = sampling->temperature;
  group.sampling.top_p = sampling->top_p;
  group.sampling.top_k = sampling->top_k;
  group.sampling.repetition_penalty = sampling->repetition_penalty;
  group.sampling.seed = sampling->seed;
  group.sampling.turn = sampling->turn;
  group.sampling.step = sampling->step;
  std::lock_guard<std::mutex> lock(head->mutex);
  Status status;
  edge_sdk::Team::Run(head->pool->source(), [&](edge_sdk::Team& team) {
    status = Guard([&] { return SpeechHeadGroupCpu(head->shape, head->weights, cache->view, group, team); });
  });
  if (status.ok()) cache->length += head->shape.group_size;
  return status;
}

}  // namespace

extern "C" {

int32_t edge_sdk_abi_version(void) { return EDGE_SDK_ABI_VERSION; }

const char* edge_sdk_isa(void) { return edge_sdk::CurrentIsa().name; }

const char* edge_sdk_last_error(void) { return last_error.c_str(); }

edge_sdk_status edge_sdk_head_create(const edge_sdk_head_shape* shape, const edge_sdk_head_weights* weights,
                                     int32_t threads, edge_sdk_head** head) {
  return Report(Guard([&] { return CreateHead(shape, weights, threads, head); }));
}

void edge_sdk_head_free(edge_sdk_head* head) { delete head; }

edge_sdk_status edge_sdk_cache_create(const edge_sdk_head* head, int32_t capacity, int32_t dtype, double rope_theta,
                                      edge_sdk_cache** cache) {
  return Report(Guard([&] { return CreateCache(head, capacity, dtype, rope_theta, cache); }));
}

void edge_sdk_cache_free(edge_sdk_cache* cache) { delete cache; }

int32_t edge_sdk_cache_length(const edge_sdk_cache* cache) { return cache ? cache->length : 0; }

size_t edge_sdk_cache_bytes(const edge_sdk_cache* cache) {
  return cache ? cache->memory.size() + cache->scales.size() * sizeof(float) : 0;
}

edge_sdk_status edge_sdk_cache_trim(edge_sdk_cache* cache, int32_t length) {
  return Report(Guard([&]() -> Status {
    if (!cache) return InvalidArgument("cache_trim: a null handle");
    if (length < 0 || length > cache->length) {
      return InvalidArgument("cache_trim: the cache holds " + std::to_string(cache->length) +
                             " positions, cannot trim to " + std::to_string(length));
    }
    cache->length = length;
    return {};
  }));
}

edge_sdk_status edge_sdk_head_prefill(edge_sdk_head* head, edge_sdk_cache* cache, const float* head_input,
                                      int32_t count) {
  return Report(Guard([&] { return Prefill(head, cache, head_input, count); }));
}

edge_sdk_status edge_sdk_head_group(edge_sdk_head* head, edge_sdk_cache* cache, const float* head_input,
                                    int64_t last_id, const uint8_t* seen, const edge_sdk_sampling* sampling,
                                    int64_t* ids, float* logits) {
  return Report(Guard([&] {
    edge_sdk::SpeechHeadGroup group;
    group.head_input = head_input;
    group.last_id = last_id;
    group.seen = seen;
    group.ids = ids;
    group.logits = logits;
    return Group(head, cache, group, sampling);
  }));
}

edge_sdk_status edge_sdk_group_tokens(const edge_sdk_matrix* table, const int64_t* ids, int32_t count,
                                      int32_t group_size, const float* text, float* out) {
  return Report(Guard([&]() -> Status {
    if (!table) return InvalidArgument("group tokens: no table");
    EDGE_RETURN_IF_ERROR(CheckDtype(table->dtype));
    edge_sdk::GroupTokensArgs args;
    args.table = ToMatrix(*table);
    args.ids = ids;
    args.text = text;
    args.out = out;
    args.count = count;
    args.group_size = group_size;
    return GroupTokensCpu(args);
  }));
}

edge_sdk_status edge_sdk_group_rows(const float* rows_in, int32_t rows, int32_t width, int32_t group_size, float* out) {
  return Report(Guard([&] {
    edge_sdk::GroupRowsArgs args;
    args.rows_in = rows_in;
    args.out = out;
    args.rows = rows;
    args.width = width;
    args.group_size = group_size;
    return GroupRowsCpu(args);
  }));
}

}  // extern "C"
