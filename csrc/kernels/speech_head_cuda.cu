// Host side of the speech head on CUDA: what the caller gave becomes kernel parameters, and kernels are enqueued.
#include "kernels/cuda/head_group.cuh"
#include "kernels/cuda/head_prefill.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/speech_head.h"

namespace edge_sdk {
namespace {

using namespace cuda;

// Cuts the workspace into pieces, or counts the bytes it needs if there is none.
class Cutter {
 public:
  explicit Cutter(void* workspace) : at_(static_cast<char*>(workspace)) {}

  template <class T>
  void Take(T** piece, int64_t count) {
    *piece = at_ == nullptr ? nullptr : reinterpret_cast<T*>(at_ + bytes_);
    constexpr size_t kAlignment = 256;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
  size_t bytes() const { return bytes_; }

 private:
  char* at_;
  size_t bytes_ = 0;
};

size_t ControlBytes(const SpeechHeadShape& s) { return (size_t{1} + s.heads) * sizeof(unsigned); }

// `count` backbone positions of prefill; 0 for a group.
size_t CutWorkspace(const SpeechHeadShape& s, int count, void* workspace, HeadScratch* scratch) {
  const int64_t q = int64_t{s.heads} * s.head_dim, qkv = q + int64_t{2} * s.kv_heads * s.head_dim;
  const int64_t rows = int64_t{count < kPrefillPositions ? count : kPrefillPositions} * s.group_size;
  Cutter cut(workspace);
  cut.Take(&scratch->barrier, 1 + s.heads);
  scratch->tickets = scratch->barrier == nullptr ? nullptr : scratch->barrier + 1;
  cut.Take(&scratch->rows, int64_t{s.group_size} * s.width);
  cut.Take(&scratch->x, s.width);
  cut.Take(&scratch->qkv, qkv);
  cut.Take(&scratch->attention, q);
  cut.Take(&scratch->ffn, s.intermediate);
  cut.Take(&scratch->logits, s.codes);
  cut.Take(&scratch->parts, int64_t{s.heads} * kMaxSplits * (2 + s.head_dim));
  cut.Take(&scratch->many_x, rows * s.width);
  cut.Take(&scratch->many_h, rows * s.width);
  cut.Take(&scratch->many_qkv, rows * qkv);
  cut.Take(&scratch->many_attention, rows * q);
  cut.Take(&scratch->many_gate, rows * s.intermediate);
  cut.Take(&scratch->many_up, rows * s.intermediate);
  return cut.bytes();
}

Status CheckForCuda(const SpeechHeadShape& s, const SpeechHeadCache& cache) {
  const auto limit = [](const char* what, int found, int largest) {
    return InvalidArgument("speech head on CUDA: " + std::string(what) + " is " + std::to_string(found) +
                           ", at most " + std::to_string(largest) + " are supported");
  };
  if (s.layers > kMaxLayers) return limit("layers", s.layers, kMaxLayers);
  if (s.group_size > kMaxGroup) return limit("group_size", s.group_size, kMaxGroup);
  if (s.cache_head_dim > kMaxCacheHeadDim) return limit("cache_head_dim", s.cache_head_dim, kMaxCacheHeadDim);
  for (int l = 0; l < s.layers; ++l) {
    for (const void* p : {cache.keys[l], cache.values[l]}) {
      if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
        return InvalidArgument("speech head on CUDA: the cache of layer " + std::to_string(l) +
                               " is not aligned to 16 bytes");
      }
    }
  }
  return {};
}

DeviceLayer LayerToDevice(const SpeechHeadLayer& layer, const SpeechHeadCache& cache, int l) {
  DeviceLayer d{};
  d.q = ToDevice(layer.q), d.k = ToDevice(layer.k), d.v = ToDevice(layer.v), d.o = ToDevice(layer.o);
  d.gate = ToDevice(layer.gate), d.up = ToDevice(layer.up), d.down = ToDevice(layer.down);
  d.input_norm = layer.input_norm, d.post_norm = layer.post_norm;
  d.q_norm = layer.q_norm, d.k_norm = layer.k_norm;
  d.cache.keys = cache.keys[l], d.cache.values = cache.values[l];
  if (cache.dtype == DType::kI8) {
    d.cache.key_scales = cache.key_scales[l], d.cache.value_scales = cache.value_scales[l];
  }
  return d;
}

// Everything but the fields of a group.
Status MakeParams(const SpeechHeadShape& s, const SpeechHeadWeights& weights, const SpeechHeadCache& cache, int count,
                  const float* head_input, SpeechHeadCudaState* state, void* workspace, HeadParams* p) {
  EDGE_RETURN_IF_ERROR(CheckForCuda(s, cache));
  p->group_size = s.group_size, p->hidden = s.hidden, p->width = s.width, p->layers = s.layers;
  p->intermediate = s.intermediate, p->codes = s.codes;
  p->geometry = {s.heads, s.kv_heads, s.head_dim, s.cache_head_dim, cache.capacity,
                 cache.dtype, s.eps, cache.rope_cos, cache.rope_sin};
  p->input = ToDevice(weights.input);
  p->input_table = ToDevice(weights.input_table), p->output_table = ToDevice(weights.output_table);
  p->input_bias = weights.input_bias, p->final_norm = weights.final_norm;
  p->head_input = head_input, p->state = state;
  CutWorkspace(s, count, workspace, &p->scratch);
  for (int l = 0; l < s.layers; ++l) p->layer[l] = LayerToDevice(weights.layers[l], cache, l);
  return {};
}

int Largest(std::initializer_list<int> values) {
  int largest = 0;
  for (int v : values) largest = v > largest ? v : largest;
  return largest;
}

// Lets `kernel` have that much shared memory, beyond the 48 KB that need no asking.
template <class Kernel>
Status AllowShared(const char* name, Kernel kernel, int bytes) {
  if (bytes <= 48 * 1024) return {};
  int most = 0;
  EDGE_RETURN_IF_ERROR(DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &most));
  if (bytes > most) {
    return InvalidArgument(std::string(name) + ": needs " + std::to_string(bytes) +
                           " bytes of shared memory (codes or a matrix too wide), this device has " +
                           std::to_string(most));
  }
  return FromCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
}

int GroupSharedBytes(const SpeechHeadShape& s) {
  const int widest = PaddedSize(Largest({s.hidden, s.width, s.heads * s.head_dim, s.intermediate}));
  const int floats = Largest({widest, AttentionFloats(s.cache_head_dim), s.codes});
  return kHeadSharedBytes + floats * static_cast<int>(sizeof(float));
}

// Enqueues the prefill of one piece of positions, offset cache positions behind state->length.
class PrefillPiece {
 public:
  PrefillPiece(const HeadParams& p, int bos, const float* head_input, int count, int offset, void* stream)
      : p_(p), bos_(bos), head_input_(head_input), count_(count), rows_(count * p.group_size), offset_(offset),
        stream_(stream) {}

  Status Run() const {
    const HeadScratch& s = p_.scratch;
    const int all = p_.group_size * p_.width;
    // [count, G * width] is [count * G, width]
    EDGE_RETURN_IF_ERROR(
        Linear({p_.input, head_input_, p_.input_bias, s.many_x, all, p_.hidden, count_, all, 0, p_.state}));
    const RowsParams entry{s.many_x, nullptr, nullptr, p_.input_table, p_.width, bos_, 0, p_.state};
    EDGE_RETURN_IF_ERROR(Launch("AddEntry", AddEntryKernel, dim3(rows_), 0, false, stream_, entry));
    for (int l = 0; l < p_.layers; ++l) {
      EDGE_RETURN_IF_ERROR(KeysAndValues(p_.layer[l]));
      // Nothing but its keys and values is wanted from the last layer.
      if (l + 1 < p_.layers) EDGE_RETURN_IF_ERROR(RestOfLayer(p_.layer[l]));
    }
    return {};
  }

 private:
  Status Linear(const LinearParams& p) const {
    const dim3 blocks(CeilDiv(p.rows, kWarps * kRowsPerWarp), CeilDiv(p.count, kTilePositions));
    return Launch("Linear", LinearKernel, blocks, kLinearSharedBytes, false, stream_, p);
  }

  Status Linear(const DeviceMatrix& m, const float* x, float* y, int rows, int cols, int y_stride, bool add) const {
    return Linear({m, x, nullptr, y, rows, cols, rows_, y_stride, add, p_.state});
  }

  Status Norm(const float* weight) const {
    const RowsParams p{p_.scratch.many_x, p_.scratch.many_h, weight, {}, p_.width, 0, p_.geometry.eps, p_.state};
    return Launch("Norm", NormKernel, dim3(rows_), kWarps * sizeof(float), false, stream_, p);
  }

  PrefillAttentionParams Attention(const DeviceLayer& layer) const {
    return {p_.geometry, layer.cache, p_.scratch.many_qkv, p_.scratch.many_attention, layer.q_norm, layer.k_norm,
            offset_, p_.state};
  }

  Status KeysAndValues(const DeviceLayer& layer) const {
    const HeadScratch& s = p_.scratch;
    const int q = p_.q_size(), kv = p_.kv_size(), qkv = p_.qkv_size();
    EDGE_RETURN_IF_ERROR(Norm(layer.input_norm));
    EDGE_RETURN_IF_ERROR(Linear(layer.q, s.many_h, s.many_qkv, q, p_.width, qkv, false));
    EDGE_RETURN_IF_ERROR(Linear(layer.k, s.many_h, s.many_qkv + q, kv, p_.width, qkv, false));
    EDGE_RETURN_IF_ERROR(Linear(layer.v, s.many_h, s.many_qkv + q + kv, kv, p_.width, qkv, false));
    const size_t shared = size_t{2} * p_.geometry.cache_head_dim * sizeof(float);
    return Launch("Append", AppendKernel, dim3(rows_, p_.geometry.kv_heads), shared, false, stream_, Attention(layer));
  }

  Status RestOfLayer(const DeviceLayer& layer) const {
    const HeadScratch& s = p_.scratch;
    const int shared = AttentionFloats(p_.geometry.cache_head_dim) * static_cast<int>(sizeof(float));
    EDGE_RETURN_IF_ERROR(AllowShared("PrefillAttention", PrefillAttentionKernel, shared));
    EDGE_RETURN_IF_ERROR(Launch("PrefillAttention", PrefillAttentionKernel, dim3(rows_, p_.geometry.pairs()), shared,
                                false, stream_, Attention(layer)));
    EDGE_RETURN_IF_ERROR(Linear(layer.o, s.many_attention, s.many_x, p_.width, p_.q_size(), p_.width, true));
    EDGE_RETURN_IF_ERROR(Norm(layer.post_norm));
    EDGE_RETURN_IF_ERROR(Linear(layer.gate, s.many_h, s.many_gate, p_.intermediate, p_.width, p_.intermediate, false));
    EDGE_RETURN_IF_ERROR(Linear(layer.up, s.many_h, s.many_up, p_.intermediate, p_.width, p_.intermediate, false));
    const SiluParams silu{s.many_gate, s.many_up, int64_t{rows_} * p_.intermediate, p_.state};
    const dim3 blocks(static_cast<unsigned>((silu.count + kThreads - 1) / kThreads));
    EDGE_RETURN_IF_ERROR(Launch("Silu", SiluKernel, blocks, 0, false, stream_, silu));
    return Linear(layer.down, s.many_gate, s.many_x, p_.width, p_.intermediate, p_.width, true);
  }

  const HeadParams& p_;
  const int bos_;
  const float* head_input_;  // [count, hidden]
  const int count_, rows_, offset_;
  void* stream_;
};

}  // namespace

size_t SpeechHeadWorkspaceBytes(const SpeechHeadShape& shape, int32_t max_count) {
  HeadScratch scratch{};
  return CutWorkspace(shape, max_count, nullptr, &scratch);
}

Status SpeechHeadPrefillCuda(const SpeechHeadShape& shape, const SpeechHeadWeights& weights,
                             const SpeechHeadCache& cache, const float* head_input, int32_t count,
                             SpeechHeadCudaState* state, void* workspace, void* stream) {
  if (count < 0) return InvalidArgument("speech head: prefill of " + std::to_string(count) + " positions");
  if (count == 0) return {};
  HeadParams p{};
  EDGE_RETURN_IF_ERROR(MakeParams(shape, weights, cache, count, head_input, state, workspace, &p));
  const StateParams whole{state, head_input, count, shape.hidden, shape.group_size, cache.capacity};
  EDGE_RETURN_IF_ERROR(Launch("BeginPrefill", BeginPrefillKernel, dim3(1), kHeadSharedBytes, false, stream, whole));
  for (int at = 0; at < count; at += kPrefillPositions) {
    const int piece = count - at < kPrefillPositions ? count - at : kPrefillPositions;
    const float* rows = head_input + int64_t{at} * shape.hidden;
    EDGE_RETURN_IF_ERROR(PrefillPiece(p, shape.bos, rows, piece, at * shape.group_size, stream).Run());
  }
  return Launch("EndPrefill", EndPrefillKernel, dim3(1), 0, false, stream, whole);
}

Status SpeechHeadGroupCuda(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache,
                           const SpeechHeadGroup& group, SpeechHeadCudaState* state, void* workspace, void* stream) {
  HeadParams p{};
  EDGE_RETURN_IF_ERROR(MakeParams(shape, weights, cache, 0, group.head_input, state, workspace, &p));
  p.seen = group.seen, p.ids = group.ids, p.logits = group.logits, p.sampling = group.sampling;
  p.device_sampling = group.cuda_sampling, p.forced = group.forced;
  const int shared = GroupSharedBytes(shape);
  EDGE_RETURN_IF_ERROR(AllowShared("SpeechHeadGroup", GroupKernel, shared));
  int processors = 0;
  EDGE_RETURN_IF_ERROR(DeviceAttribute(cudaDevAttrMultiProcessorCount, &processors));
  // The grid's barrier and the tickets start at zero, whatever an earlier, broken launch left.
  const cudaError_t cleared =
      cudaMemsetAsync(p.scratch.barrier, 0, ControlBytes(shape), static_cast<cudaStream_t>(stream));
  EDGE_RETURN_IF_ERROR(FromCuda(cleared, "SpeechHeadGroup"));
  return Launch("SpeechHeadGroup", GroupKernel, dim3(processors), shared, true, stream, p);
}

}  // namespace edge_sdk
