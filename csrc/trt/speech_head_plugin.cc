#include "trt/speech_head_plugin.h"

#include <cuda_runtime_api.h>

#include <cmath>

#include "kernels/speech_head.h"
#include "trt/matrix_input.h"

namespace edge_sdk::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

constexpr int32_t kMaxLayers = 1024;
constexpr int64_t kMaxPositions = 1 << 24;
constexpr int32_t kStateWords = sizeof(SpeechHeadCudaState) / sizeof(int32_t);
constexpr int32_t kSamplingWords = sizeof(SpeechHeadCudaSampling) / sizeof(int32_t);
static_assert(sizeof(SpeechHeadCudaState) == 24, "state's tensor is six words");
static_assert(sizeof(SpeechHeadCudaSampling) == 28, "sampling's tensor is seven words");

enum AxisIndex { kCount, kKind, kCapacity, kPositions };  // S, kind's size, cache positions, rows of the rope tables
enum Kind { kPrefill = 1, kGroup = 2 };

// Per matrix, in the weights' order: input, input_table, output_table, then seven of each layer.
constexpr int32_t kOuterMatrices = 3, kLayerMatrices = 7;

const FieldSpecs& HeadFields() {
  static const FieldSpecs specs = {
      {"logits", PluginFieldType::kINT32},        {"group_size", PluginFieldType::kINT32},
      {"hidden", PluginFieldType::kINT32},        {"width", PluginFieldType::kINT32},
      {"layers", PluginFieldType::kINT32},        {"heads", PluginFieldType::kINT32},
      {"kv_heads", PluginFieldType::kINT32},      {"head_dim", PluginFieldType::kINT32},
      {"cache_head_dim", PluginFieldType::kINT32}, {"intermediate", PluginFieldType::kINT32},
      {"codes", PluginFieldType::kINT32},         {"bos", PluginFieldType::kINT32},
      {"eps", PluginFieldType::kFLOAT32},         {"cache_dtype", PluginFieldType::kINT32},
      {"matrix_dtypes", PluginFieldType::kINT32}, {"matrix_blocks", PluginFieldType::kINT32},
      {"matrix_scale_dtypes", PluginFieldType::kINT32}};
  return specs;
}

// The weights with their sizes and formats, and the layers they point to. Copies have their own.
struct Weights {
  SpeechHeadWeights outer;
  std::vector<SpeechHeadLayer> layers;
};

constexpr int kNoLayer = -1;

// Every weight in the order of the plugin's inputs: visit(name, layer, matrix, rows, cols) or
// visit(name, layer, vector, size).
template <class Visit>
Status VisitWeights(const SpeechHeadShape& s, Weights* w, Visit&& visit) {
  const int64_t q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim;
  const int64_t rows = int64_t{s.group_size} * s.width;
  EDGE_RETURN_IF_ERROR(visit("input", kNoLayer, w->outer.input, rows, s.hidden));
  EDGE_RETURN_IF_ERROR(visit("input_bias", kNoLayer, w->outer.input_bias, rows));
  EDGE_RETURN_IF_ERROR(visit("input_table", kNoLayer, w->outer.input_table, s.codes, s.width));
  EDGE_RETURN_IF_ERROR(visit("output_table", kNoLayer, w->outer.output_table, s.codes, s.width));
  EDGE_RETURN_IF_ERROR(visit("final_norm", kNoLayer, w->outer.final_norm, s.width));
  for (int i = 0; i < s.layers; ++i) {
    SpeechHeadLayer& layer = w->layers[i];
    EDGE_RETURN_IF_ERROR(visit("input_norm", i, layer.input_norm, s.width));
    EDGE_RETURN_IF_ERROR(visit("post_norm", i, layer.post_norm, s.width));
    EDGE_RETURN_IF_ERROR(visit("q_norm", i, layer.q_norm, s.head_dim));
    EDGE_RETURN_IF_ERROR(visit("k_norm", i, layer.k_norm, s.head_dim));
    EDGE_RETURN_IF_ERROR(visit("q", i, layer.q, q, s.width));
    EDGE_RETURN_IF_ERROR(visit("k", i, layer.k, kv, s.width));
    EDGE_RETURN_IF_ERROR(visit("v", i, layer.v, kv, s.width));
    EDGE_RETURN_IF_ERROR(visit("o", i, layer.o, s.width, q));
    EDGE_RETURN_IF_ERROR(visit("gate", i, layer.gate, s.intermediate, s.width));
    EDGE_RETURN_IF_ERROR(visit("up", i, layer.up, s.intermediate, s.width));
    EDGE_RETURN_IF_ERROR(visit("down", i, layer.down, s.width, s.intermediate));
  }
  return {};
}

std::string WeightName(const char* name, int layer) {
  return layer == kNoLayer ? name : "layers." + std::to_string(layer) + "." + name;
}

// Gives every matrix its sizes and format, and every pointer a value that is not null, so that the kernels' own check
// can judge the whole before any tensor is there.
class Shaper {
 public:
  Shaper(const std::vector<int32_t>& dtypes, const std::vector<int32_t>& blocks,
         const std::vector<int32_t>& scale_dtypes)
      : dtypes_(dtypes), blocks_(blocks), scale_dtypes_(scale_dtypes) {}

  Status operator()(const char* name, int layer, Matrix& m, int64_t rows, int64_t cols) {
    const size_t i = at_++;
    m.data = m.scales = &kSomething;
    return MakeMatrix(WeightName(name, layer), rows, cols, dtypes_[i], blocks_[i], scale_dtypes_[i], &m);
  }
  Status operator()(const char*, int, const float*& vector, int64_t) {
    vector = &kSomething;
    return {};
  }

 private:
  static constexpr float kSomething = 0;
  const std::vector<int32_t>&dtypes_, &blocks_, &scale_dtypes_;
  size_t at_ = 0;
};

class Describer {
 public:
  explicit Describer(std::vector<TensorSpec>* inputs) : inputs_(inputs) {}

  Status operator()(const char* name, int layer, Matrix& m, int64_t, int64_t) {
    DescribeMatrix(WeightName(name, layer), m, inputs_);
    return {};
  }
  Status operator()(const char* name, int layer, const float*&, int64_t size) {
    inputs_->push_back({WeightName(name, layer), DataType::kFLOAT, {Fixed(size)}});
    return {};
  }

 private:
  std::vector<TensorSpec>* inputs_;
};

struct Settings {
  SpeechHeadShape shape;
  DType cache_dtype = DType::kF32;
  bool logits = false;
  Weights weights;  // without pointers worth reading
};

class HeadPlugin : public Plugin {
 public:
  HeadPlugin(std::shared_ptr<const Description> description, Settings settings)
      : Plugin(std::move(description)),
        s_(std::move(settings)),
        keys_(s_.weights.layers.size()),
        values_(keys_.size()) {
    if (s_.cache_dtype == DType::kI8) key_scales_.resize(keys_.size()), value_scales_.resize(keys_.size());
  }

 private:
  std::unique_ptr<Plugin> Copy() const override { return std::make_unique<HeadPlugin>(*this); }

  Status CheckAxes(const Axes& axes) const override {
    if (axes[kKind] == kGroup && axes[kCount] != 1) {
      return InvalidArgument("head_input of a group has " + std::to_string(axes[kCount]) + " rows, expected one");
    }
    if (axes[kPositions] >= axes[kCapacity]) return {};
    return InvalidArgument("rope tables of " + std::to_string(axes[kPositions]) + " positions for a cache of " +
                           std::to_string(axes[kCapacity]));
  }

  size_t WorkspaceBytes(const Axes& axes) const override {
    return SpeechHeadWorkspaceBytes(s_.shape, axes[kKind] == kPrefill ? static_cast<int32_t>(axes[kCount]) : 0);
  }

  Status Launch(const Call& call) override {
    const void* const* input = call.inputs;
    SpeechHeadGroup group;
    group.head_input = static_cast<const float*>(*input++);
    ++input;  // kind
    void* const* updated = call.outputs + (s_.logits ? 2 : 1);  // the first that is aliased: the state
    auto* state = static_cast<SpeechHeadCudaState*>(*updated++);
    ++input;
    group.cuda_sampling = static_cast<const SpeechHeadCudaSampling*>(*input++);
    group.seen = static_cast<const uint8_t*>(*input++);
    group.forced = static_cast<const int64_t*>(*input++);
    group.ids = static_cast<int64_t*>(call.outputs[0]);
    group.logits = s_.logits ? static_cast<float*>(call.outputs[1]) : nullptr;
    const SpeechHeadCache cache = BindCache(&input, updated, static_cast<int32_t>(call.axes[kCapacity]));
    BindWeights(input);
    if (call.axes[kKind] == kPrefill) {
      EDGE_RETURN_IF_ERROR(ClearPicks(group, call.stream));
      const auto count = static_cast<int32_t>(call.axes[kCount]);
      return SpeechHeadPrefillCuda(s_.shape, s_.weights.outer, cache, group.head_input, count, state, call.workspace,
                                   call.stream);
    }
    return SpeechHeadGroupCuda(s_.shape, s_.weights.outer, cache, group, state, call.workspace, call.stream);
  }

  // What a prefill leaves in the outputs that only a group fills.
  Status ClearPicks(const SpeechHeadGroup& group, cudaStream_t stream) const {
    const auto count = static_cast<size_t>(s_.shape.group_size);
    cudaError_t error = cudaMemsetAsync(group.ids, 0xff, count * sizeof(int64_t), stream);
    if (error == cudaSuccess && group.logits != nullptr) {
      const size_t bytes = count * static_cast<size_t>(s_.shape.codes) * sizeof(float);
      error = cudaMemsetAsync(group.logits, 0, bytes, stream);
    }
    if (error == cudaSuccess) return {};
    return {Code::kDevice, "cudaMemsetAsync: error " + std::to_string(error)};
  }

  // Moves `input` past rope tables and caches, whose memory is `updated`'s.
  SpeechHeadCache BindCache(const void* const** input, void* const* updated, int32_t capacity) {
    SpeechHeadCache cache;
    cache.dtype = s_.cache_dtype;
    cache.capacity = capacity;
    cache.rope_cos = static_cast<const float*>(*(*input)++);
    cache.rope_sin = static_cast<const float*>(*(*input)++);
    const bool scaled = !key_scales_.empty();
    for (size_t i = 0; i < keys_.size(); ++i) {
      keys_[i] = *updated++;
      values_[i] = *updated++;
      if (scaled) key_scales_[i] = static_cast<float*>(*updated++), value_scales_[i] = static_cast<float*>(*updated++);
      *input += scaled ? 4 : 2;
    }
    cache.keys = keys_.data();
    cache.values = values_.data();
    if (scaled) cache.key_scales = key_scales_.data(), cache.value_scales = value_scales_.data();
    return cache;
  }

  void BindWeights(const void* const* input) {
    struct Binder {
      const void* const* input;
      Status operator()(const char*, int, Matrix& m, int64_t, int64_t) {
        input += BindMatrix(input, &m);
        return {};
      }
      Status operator()(const char*, int, const float*& vector, int64_t) {
        vector = static_cast<const float*>(*input++);
        return {};
      }
    };
    static_cast<void>(VisitWeights(s_.shape, &s_.weights, Binder{input}));  // a Binder refuses nothing
    s_.weights.outer.layers = s_.weights.layers.data();
  }

  Settings s_;
  // What a call's structs point to: kept, so that a call allocates nothing.
  std::vector<void*> keys_, values_;
  std::vector<float*> key_scales_, value_scales_;
};

Status ReadShape(const FieldReader& fields, SpeechHeadShape* s) {
  const struct {
    const char* name;
    int32_t* value;
  } sizes[] = {{"group_size", &s->group_size}, {"hidden", &s->hidden},     {"width", &s->width},
               {"layers", &s->layers},         {"heads", &s->heads},       {"kv_heads", &s->kv_heads},
               {"head_dim", &s->head_dim},     {"cache_head_dim", &s->cache_head_dim},
               {"intermediate", &s->intermediate}, {"codes", &s->codes},   {"bos", &s->bos}};
  for (const auto& size : sizes) EDGE_RETURN_IF_ERROR(fields.Read(size.name, size.value));
  EDGE_RETURN_IF_ERROR(fields.Read("eps", &s->eps));
  if (!std::isfinite(s->eps)) return InvalidArgument("field 'eps' is not finite");
  // The kernels' check of the shape comes when the weights have been laid out; that takes a number of layers to trust.
  if (s->layers >= 1 && s->layers <= kMaxLayers) return {};
  return InvalidArgument("field 'layers' is " + std::to_string(s->layers) + ", expected 1 to " +
                         std::to_string(kMaxLayers));
}

Status ReadSettings(const FieldReader& fields, Settings* s, Description* d) {
  EDGE_RETURN_IF_ERROR(fields.Require(HeadFields()));
  EDGE_RETURN_IF_ERROR(fields.Read("logits", &s->logits));
  EDGE_RETURN_IF_ERROR(ReadShape(fields, &s->shape));
  int32_t cache_dtype = 0;
  EDGE_RETURN_IF_ERROR(fields.Read("cache_dtype", &cache_dtype));
  if (cache_dtype < static_cast<int32_t>(DType::kF32) || cache_dtype > static_cast<int32_t>(DType::kI8)) {
    return InvalidArgument("field 'cache_dtype' is " + std::to_string(cache_dtype) +
                           ", expected 0 to 2 (f32, f16, i8)");
  }
  s->cache_dtype = static_cast<DType>(cache_dtype);

  const int32_t matrices = kOuterMatrices + kLayerMatrices * s->shape.layers;
  std::vector<int32_t> dtypes, blocks, scale_dtypes;
  EDGE_RETURN_IF_ERROR(fields.Read("matrix_dtypes", matrices, &dtypes));
  EDGE_RETURN_IF_ERROR(fields.Read("matrix_blocks", matrices, &blocks));
  EDGE_RETURN_IF_ERROR(fields.Read("matrix_scale_dtypes", matrices, &scale_dtypes));
  s->weights.layers.resize(static_cast<size_t>(s->shape.layers));
  s->weights.outer.layers = s->weights.layers.data();
  EDGE_RETURN_IF_ERROR(VisitWeights(s->shape, &s->weights, Shaper(dtypes, blocks, scale_dtypes)));
  d->fields.Add("matrix_dtypes", dtypes);
  d->fields.Add("matrix_blocks", blocks);
  d->fields.Add("matrix_scale_dtypes", scale_dtypes);
  return CheckSpeechHead(s->shape, s->weights.outer);
}

void SaveSettings(const Settings& s, SavedFields* fields) {
  fields->Add("logits", int32_t{s.logits});
  fields->Add("group_size", s.shape.group_size);
  fields->Add("hidden", s.shape.hidden);
  fields->Add("width", s.shape.width);
  fields->Add("layers", s.shape.layers);
  fields->Add("heads", s.shape.heads);
  fields->Add("kv_heads", s.shape.kv_heads);
  fields->Add("head_dim", s.shape.head_dim);
  fields->Add("cache_head_dim", s.shape.cache_head_dim);
  fields->Add("intermediate", s.shape.intermediate);
  fields->Add("codes", s.shape.codes);
  fields->Add("bos", s.shape.bos);
  fields->Add("eps", s.shape.eps);
  fields->Add("cache_dtype", static_cast<int32_t>(s.cache_dtype));
}

// An input that the kernel writes: once more among the outputs, in the same memory.
void DescribeUpdated(TensorSpec spec, Description* d) {
  TensorSpec out = spec;
  out.name += "_out";
  out.aliased_input = static_cast<int32_t>(d->inputs.size());
  d->inputs.push_back(std::move(spec));
  d->outputs.push_back(std::move(out));
}

Status Describe(Settings* s, Description* d) {
  const SpeechHeadShape& shape = s->shape;
  d->plugin = "SpeechHead";
  d->axes = {{"S", 0, kMaxPositions},
             {"kind", kPrefill, kGroup},
             {"capacity", 1, kMaxPositions},
             {"positions", 1, kMaxPositions}};
  d->outputs.push_back({"ids", DataType::kINT64, {Fixed(shape.group_size)}});
  if (s->logits) d->outputs.push_back({"logits", DataType::kFLOAT, {Fixed(shape.group_size), Fixed(shape.codes)}});
  d->inputs.push_back({"head_input", DataType::kFLOAT, {Axis(kCount), Fixed(shape.hidden)}});
  d->inputs.push_back({"kind", DataType::kINT32, {Axis(kKind)}});
  DescribeUpdated({"state", DataType::kINT32, {Fixed(kStateWords)}}, d);
  d->inputs.push_back({"sampling", DataType::kINT32, {Fixed(kSamplingWords)}});
  d->inputs.push_back({"seen", DataType::kINT8, {Fixed(shape.codes)}});
  d->inputs.push_back({"forced", DataType::kINT64, {Fixed(shape.group_size)}});
  for (const char* name : {"rope_cos", "rope_sin"}) {
    d->inputs.push_back({name, DataType::kFLOAT, {Axis(kPositions), Fixed(shape.head_dim / 2)}});
  }
  const std::vector<Extent> rows = {Fixed(shape.kv_heads), Axis(kCapacity), Fixed(shape.cache_head_dim)};
  for (int32_t i = 0; i < shape.layers; ++i) {
    const std::string layer = "." + std::to_string(i);
    DescribeUpdated({"key_cache" + layer, TensorType(s->cache_dtype), rows}, d);
    DescribeUpdated({"value_cache" + layer, TensorType(s->cache_dtype), rows}, d);
    if (s->cache_dtype != DType::kI8) continue;
    DescribeUpdated({"key_scales" + layer, DataType::kFLOAT, {rows[0], rows[1]}}, d);
    DescribeUpdated({"value_scales" + layer, DataType::kFLOAT, {rows[0], rows[1]}}, d);
  }
  return VisitWeights(shape, &s->weights, Describer(&d->inputs));
}

Status MakeHead(const FieldReader& fields, std::unique_ptr<Plugin>* plugin) {
  auto description = std::make_shared<Description>();
  Settings settings;
  EDGE_RETURN_IF_ERROR(ReadSettings(fields, &settings, description.get()));
  SaveSettings(settings, &description->fields);
  EDGE_RETURN_IF_ERROR(Describe(&settings, description.get()));
  *plugin = std::make_unique<HeadPlugin>(std::move(description), std::move(settings));
  return {};
}

}  // namespace

Creator* SpeechHeadCreator() {
  static Creator creator("SpeechHead", HeadFields(), MakeHead);
  return &creator;
}

}  // namespace edge_sdk::trt
