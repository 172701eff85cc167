#include "ort/speech_head_inputs.h"

namespace edge_sdk {
namespace {

constexpr int kLayerMatrices = 7;

int64_t ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : dtype == DType::kF16 ? 2 : 1; }

// Takes the constants one after the other.
class Constants {
 public:
  explicit Constants(const Ort::ConstKernelInfo& info) : info_(info) {}

  Ort::ConstValue Next() {
    int is_constant = 0;
    Ort::ConstValue value = info_.GetTensorConstantInput(next_, &is_constant);
    if (!is_constant) {
      ThrowIfError(InvalidArgument("SpeechHead: input " + std::to_string(next_) + " must be a constant"));
    }
    ++next_;
    return value;
  }

  const float* Vector(int64_t size) {
    const Ort::ConstValue value = Next();
    const auto info = value.GetTensorTypeAndShapeInfo();
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ||
        static_cast<int64_t>(info.GetElementCount()) != size) {
      ThrowIfError(InvalidArgument("SpeechHead: input " + std::to_string(next_ - 1) + " is " + ShapeText(info.GetShape()) +
                                   ", expected float32 [" + std::to_string(size) + "]"));
    }
    return value.GetTensorData<float>();
  }

  Matrix Next(int64_t rows, int64_t cols, int64_t bits, int64_t block) {
    const Ort::ConstValue value = Next();
    const auto info = value.GetTensorTypeAndShapeInfo();
    const auto type = info.GetElementType();
    Matrix m;
    m.rows = static_cast<int32_t>(rows);
    m.cols = static_cast<int32_t>(cols);
    m.data = value.GetTensorRawData();
    m.dtype = bits == 4   ? DType::kI4
              : bits == 8 ? DType::kI8
                          : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? DType::kF16 : DType::kF32;
    m.block = static_cast<int32_t>(block);
    const bool fits = bits ? type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 && (bits == 4 || bits == 8) && block > 0 &&
                                 block <= 1 << 24
                           : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    const int64_t element = m.dtype == DType::kF32 ? 4 : m.dtype == DType::kF16 ? 2 : 1;
    if (!fits || static_cast<int64_t>(info.GetElementCount()) * element != rows * m.row_bytes()) {
      ThrowIfError(InvalidArgument("SpeechHead: input " + std::to_string(next_ - 1) + " of " + ShapeText(info.GetShape()) +
                                   " is not a matrix [" + std::to_string(rows) + ", " + std::to_string(cols) + "] of " +
                                   std::to_string(bits) + " bits in blocks of " + std::to_string(block)));
    }
    if (bits) TakeScales(&m);
    return m;
  }

 private:
  void TakeScales(Matrix* m) {
    const Ort::ConstValue value = Next();
    const auto info = value.GetTensorTypeAndShapeInfo();
    const auto type = info.GetElementType();
    const bool half = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    if ((!half && type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) ||
        static_cast<int64_t>(info.GetElementCount()) != int64_t{m->rows} * m->blocks()) {
      ThrowIfError(InvalidArgument("SpeechHead: input " + std::to_string(next_ - 1) + " of " + ShapeText(info.GetShape()) +
                                   " does not hold one scale for each block"));
    }
    m->scales = value.GetTensorRawData();
    m->scale_dtype = half ? DType::kF16 : DType::kF32;
  }

  const Ort::ConstKernelInfo info_;
  size_t next_ = kWeights;
};

SpeechHeadShape ReadShape(const Ort::ConstKernelInfo& info) {
  const auto get = [&](const char* name) {
    const int64_t value = info.GetAttribute<int64_t>(name);
    if (value < 0 || value > 1 << 24) {
      ThrowIfError(InvalidArgument("SpeechHead: attribute " + std::string(name) + " is " + std::to_string(value)));
    }
    return static_cast<int32_t>(value);
  };
  SpeechHeadShape shape;
  shape.group_size = get("group_size");
  shape.hidden = get("hidden");
  shape.width = get("width");
  shape.layers = get("layers");
  shape.heads = get("heads");
  shape.kv_heads = get("kv_heads");
  shape.head_dim = get("head_dim");
  shape.cache_head_dim = get("cache_head_dim");
  shape.intermediate = get("intermediate");
  shape.codes = get("codes");
  shape.bos = get("bos");
  shape.eps = info.GetAttribute<float>("eps");
  return shape;
}

void* InPlace(const Ort::ConstValue& from, Ort::UnownedValue into, size_t element, CopyBytes copy, void* stream) {
  void* target = into.GetTensorMutableRawData();
  const size_t bytes = from.GetTensorTypeAndShapeInfo().GetElementCount() * element;
  if (bytes && from.GetTensorRawData() != target) copy(target, from.GetTensorRawData(), bytes, stream);
  return target;
}

}  // namespace

SpeechHeadConstants::SpeechHeadConstants(const OrtKernelInfo* raw) {
  const Ort::ConstKernelInfo info(raw);
  shape = ReadShape(info);
  cache_dtype = static_cast<DType>(info.GetAttribute<int64_t>("cache_dtype"));
  const auto bits = info.GetAttributes<int64_t>("bits"), blocks = info.GetAttributes<int64_t>("blocks");
  const size_t matrices = 3 + kLayerMatrices * size_t(shape.layers);
  if (bits.size() != matrices || blocks.size() != matrices) {
    ThrowIfError(InvalidArgument("SpeechHead: bits and blocks must name " + std::to_string(matrices) + " matrices"));
  }
  Constants given(info);
  const SpeechHeadShape& s = shape;
  weights.input_bias = given.Vector(int64_t{s.group_size} * s.width);
  weights.final_norm = given.Vector(s.width);
  layers_.resize(s.layers);
  for (SpeechHeadLayer& layer : layers_) {
    layer.input_norm = given.Vector(s.width);
    layer.post_norm = given.Vector(s.width);
    layer.q_norm = given.Vector(s.head_dim);
    layer.k_norm = given.Vector(s.head_dim);
  }
  size_t i = 0;
  const auto next = [&](int64_t rows, int64_t cols) {
    const Matrix m = given.Next(rows, cols, bits[i], blocks[i]);
    ++i;
    return m;
  };
  weights.input = next(int64_t{s.group_size} * s.width, s.hidden);
  weights.input_table = next(s.codes, s.width);
  weights.output_table = next(s.codes, s.width);
  const int64_t q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim;
  for (SpeechHeadLayer& layer : layers_) {
    layer.q = next(q, s.width);
    layer.k = next(kv, s.width);
    layer.v = next(kv, s.width);
    layer.o = next(s.width, q);
    layer.gate = next(s.intermediate, s.width);
    layer.up = next(s.intermediate, s.width);
    layer.down = next(s.width, s.intermediate);
  }
  weights.layers = layers_.data();
  ThrowIfError(CheckSpeechHead(shape, weights));
}

int32_t CheckedPositions(const Ort::KernelContext& context, const SpeechHeadShape& shape, const int64_t* control) {
  const auto found = context.GetInput(kHeadInput).GetTensorTypeAndShapeInfo().GetShape();
  if (found.size() != 2 || found[1] != shape.hidden || (control[kGroup] && found[0] != 1)) {
    ThrowIfError(InvalidArgument("SpeechHead: head_input is " + ShapeText(found)));
  }
  return static_cast<int32_t>(found[0]);
}

CacheBinding BindCache(Ort::KernelContext& context, const SpeechHeadConstants& head, CopyBytes copy, void* stream) {
  const SpeechHeadShape& shape = head.shape;
  const auto rope_shape = context.GetInput(kRopeCos).GetTensorTypeAndShapeInfo().GetShape();
  const auto cache = context.GetInput(kCache), scales = context.GetInput(kCacheScales);
  const auto cache_shape = cache.GetTensorTypeAndShapeInfo().GetShape();
  const auto scales_shape = scales.GetTensorTypeAndShapeInfo().GetShape();
  const int64_t row = shape.cache_head_dim * ElementBytes(head.cache_dtype);
  const int64_t capacity = cache_shape.size() == 5 ? cache_shape[3] : 0;
  const std::vector<int64_t> expected{shape.layers, 2, shape.kv_heads, capacity, row};
  const bool scaled = head.cache_dtype == DType::kI8;
  if (cache_shape != expected || (scaled && scales_shape != std::vector<int64_t>(expected.begin(), expected.end() - 1))) {
    ThrowIfError(InvalidArgument("SpeechHead: the cache is " + ShapeText(cache_shape) + " with scales " +
                                 ShapeText(scales_shape) + ", expected " + ShapeText(expected)));
  }
  if (rope_shape.size() != 2 || rope_shape[0] < capacity || rope_shape[1] != shape.head_dim / 2 ||
      context.GetInput(kRopeSin).GetTensorTypeAndShapeInfo().GetShape() != rope_shape) {
    ThrowIfError(InvalidArgument("SpeechHead: rope tables of " + ShapeText(rope_shape) + " do not fit the cache"));
  }
  auto* data = static_cast<uint8_t*>(InPlace(cache, context.GetOutput(2, cache_shape), 1, copy, stream));
  auto* scale = static_cast<float*>(InPlace(scales, context.GetOutput(3, scales_shape), sizeof(float), copy, stream));
  CacheBinding binding;
  const int64_t heads = int64_t{shape.kv_heads} * capacity;
  for (int64_t i = 0; i < shape.layers; ++i) {
    binding.keys.push_back(data + 2 * i * heads * row);
    binding.values.push_back(data + (2 * i + 1) * heads * row);
    if (!scaled) continue;
    binding.key_scales.push_back(scale + 2 * i * heads);
    binding.value_scales.push_back(scale + (2 * i + 1) * heads);
  }
  binding.view.dtype = head.cache_dtype;
  binding.view.capacity = CacheLength(capacity);
  binding.view.keys = binding.keys.data();
  binding.view.values = binding.values.data();
  binding.view.key_scales = scaled ? binding.key_scales.data() : nullptr;
  binding.view.value_scales = scaled ? binding.value_scales.data() : nullptr;
  binding.view.rope_cos = context.GetInput(kRopeCos).GetTensorData<float>();
  binding.view.rope_sin = context.GetInput(kRopeSin).GetTensorData<float>();
  ThrowIfError(CheckSpeechHeadCache(shape, binding.view));
  return binding;
}

SpeechHeadGroup ReadGroup(const Ort::KernelContext& context, const SpeechHeadShape& shape, const int64_t* control) {
  const auto* sampling = CheckedInput<float>(context, kSampling, 3);
  SpeechHeadGroup group;
  group.head_input = context.GetInput(kHeadInput).GetTensorData<float>();
  group.last_id = control[kLastId];
  group.length = CacheLength(control[kLength]);
  group.seen = CheckedInput<uint8_t>(context, kSeen, shape.codes);
  group.forced = CheckedInput<int64_t>(context, kForced, shape.group_size);
  group.sampling.do_sample = control[kDoSample] != 0;
  group.sampling.temperature = sampling[0];
  group.sampling.top_p = sampling[1];
  group.sampling.top_k = static_cast<int32_t>(std::clamp<int64_t>(control[kTopK], -1, INT32_MAX));
  group.sampling.repetition_penalty = sampling[2];
  group.sampling.seed = static_cast<uint64_t>(control[kSeed]);
  group.sampling.turn = static_cast<uint32_t>(control[kTurn]);
  group.sampling.step = static_cast<uint32_t>(control[kStep]);
  return group;
}

}  // namespace edge_sdk
