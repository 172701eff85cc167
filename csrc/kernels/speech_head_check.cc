// What every call of the speech head relies on, checked once.
#include <cmath>
#include <string>

#include "kernels/speech_head.h"

namespace edge_sdk {
namespace {

constexpr int64_t kMaxSize = 1 << 24;  // of any axis: keeps every product of two within 64 bits
constexpr int32_t kMaxGroup = 64;      // and that of a pass's rows with any axis within 31
constexpr int32_t kMaxBlock = 1 << 16;  // keeps the integer product of two blocks within 31 bits

Status CheckMatrix(const char* name, int layer, const Matrix& m, int64_t rows, int64_t cols) {
  const std::string where = layer < 0 ? std::string(name) : "layer " + std::to_string(layer) + " " + name;
  if (m.data == nullptr) return InvalidArgument("speech head: " + where + " has no data");
  if (m.rows != rows || m.cols != cols) {
    return InvalidArgument("speech head: " + where + " is [" + std::to_string(m.rows) + ", " + std::to_string(m.cols) +
                           "], expected [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
  }
  if (!m.quantized()) {
    if (m.dtype == DType::kF32 || m.dtype == DType::kF16) return {};
    return InvalidArgument("speech head: " + where + " has an unknown dtype");
  }
  if (m.scales == nullptr) return InvalidArgument("speech head: " + where + " is quantized but has no scales");
  if (m.scale_dtype != DType::kF32 && m.scale_dtype != DType::kF16) {
    return InvalidArgument("speech head: the scales of " + where + " are neither float32 nor float16");
  }
  const bool fits = m.dtype == DType::kI4 ? m.block == 32 || (m.block > 0 && m.block % 64 == 0)
                                          : m.block > 0 && m.block % 32 == 0;
  if (!fits || m.block > kMaxBlock) {
    return InvalidArgument("speech head: " + where + " is cut in blocks of " + std::to_string(m.block) +
                           "; int4 takes 32 or a multiple of 64, int8 a multiple of 32, both up to " +
                           std::to_string(kMaxBlock));
  }
  return {};
}

Status CheckLayer(const SpeechHeadShape& s, const SpeechHeadLayer& layer, int i) {
  if (!layer.input_norm || !layer.post_norm || !layer.q_norm || !layer.k_norm) {
    return InvalidArgument("speech head: layer " + std::to_string(i) + " lacks a norm's weights");
  }
  const int64_t q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim;
  EDGE_RETURN_IF_ERROR(CheckMatrix("q_proj", i, layer.q, q, s.width));
  EDGE_RETURN_IF_ERROR(CheckMatrix("k_proj", i, layer.k, kv, s.width));
  EDGE_RETURN_IF_ERROR(CheckMatrix("v_proj", i, layer.v, kv, s.width));
  EDGE_RETURN_IF_ERROR(CheckMatrix("o_proj", i, layer.o, s.width, q));
  EDGE_RETURN_IF_ERROR(CheckMatrix("gate_proj", i, layer.gate, s.intermediate, s.width));
  EDGE_RETURN_IF_ERROR(CheckMatrix("up_proj", i, layer.up, s.intermediate, s.width));
  return CheckMatrix("down_proj", i, layer.down, s.width, s.intermediate);
}

Status CheckShape(const SpeechHeadShape& s) {
  const struct {
    const char* name;
    int32_t value;
  } sizes[] = {{"group_size", s.group_size}, {"hidden", s.hidden},     {"width", s.width},
               {"layers", s.layers},         {"heads", s.heads},       {"kv_heads", s.kv_heads},
               {"head_dim", s.head_dim},     {"codes", s.codes},       {"intermediate", s.intermediate}};
  for (const auto& size : sizes) {
    if (size.value < 1 || size.value > kMaxSize) {
      return InvalidArgument("speech head: " + std::string(size.name) + " is " + std::to_string(size.value));
    }
  }
  if (s.group_size > kMaxGroup) {
    return InvalidArgument("speech head: group_size is " + std::to_string(s.group_size) + ", at most " +
                           std::to_string(kMaxGroup) + " are made at once");
  }
  if (s.heads % s.kv_heads) {
    return InvalidArgument("speech head: " + std::to_string(s.heads) + " heads cannot share " +
                           std::to_string(s.kv_heads) + " KV heads");
  }
  if (s.head_dim % 2) return InvalidArgument("speech head: head_dim " + std::to_string(s.head_dim) + " is odd");
  if (s.cache_head_dim < s.head_dim || s.cache_head_dim > kMaxSize) {
    return InvalidArgument("speech head: cache_head_dim " + std::to_string(s.cache_head_dim) + " is below head_dim " +
                           std::to_string(s.head_dim));
  }
  if (s.bos < 0 || s.bos >= s.codes) return InvalidArgument("speech head: bos is outside the codebook");
  if (!(s.eps >= 0) || !std::isfinite(s.eps)) return InvalidArgument("speech head: eps is negative or not finite");
  return {};
}

}  // namespace

Status CheckSpeechHead(const SpeechHeadShape& shape, const SpeechHeadWeights& weights) {
  EDGE_RETURN_IF_ERROR(CheckShape(shape));
  EDGE_RETURN_IF_ERROR(
      CheckMatrix("the input projection", -1, weights.input, int64_t{shape.group_size} * shape.width, shape.hidden));
  EDGE_RETURN_IF_ERROR(CheckMatrix("the input table", -1, weights.input_table, shape.codes, shape.width));
  EDGE_RETURN_IF_ERROR(CheckMatrix("the output table", -1, weights.output_table, shape.codes, shape.width));
  if (!weights.input_bias || !weights.final_norm) return InvalidArgument("speech head: input bias or final norm missing");
  if (!weights.layers) return InvalidArgument("speech head: no layers");
  for (int i = 0; i < shape.layers; ++i) EDGE_RETURN_IF_ERROR(CheckLayer(shape, weights.layers[i], i));
  return {};
}

Status CheckSpeechHeadCache(const SpeechHeadShape& shape, const SpeechHeadCache& cache) {
  if (cache.dtype != DType::kF32 && cache.dtype != DType::kF16 && cache.dtype != DType::kI8) {
    return InvalidArgument("speech head: the KV cache is float32, float16 or int8");
  }
  if (cache.capacity < 1 || cache.capacity > kMaxSize) {
    return InvalidArgument("speech head: a KV cache of " + std::to_string(cache.capacity) + " positions");
  }
  if (!cache.keys || !cache.values || !cache.rope_cos || !cache.rope_sin) {
    return InvalidArgument("speech head: the KV cache or its rope tables are missing");
  }
  for (int i = 0; i < shape.layers; ++i) {
    const bool scaled = cache.dtype != DType::kI8 || (cache.key_scales && cache.value_scales && cache.key_scales[i] &&
                                                      cache.value_scales[i]);
    if (!cache.keys[i] || !cache.values[i] || !scaled) {
      return InvalidArgument("speech head: the KV cache of layer " + std::to_string(i) + " is missing");
    }
  }
  return {};
}

}  // namespace edge_sdk
