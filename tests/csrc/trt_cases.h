// Plugins to make and what must be true of them: fields, tensors in the documented order, and the arrays behind them,
// made from a seed. Stated here once more, independently of csrc/trt: only docs/plugins.md is shared.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>

#include "core/half.h"
#include "kernels/group_tokens.h"
#include "kernels/isa.h"
#include "kernels/speech_head.h"
#include "trt_host.h"

namespace edge_sdk::trt_test {

// A plugin with the tensors of one call.
struct Case {
  std::string creator, title;
  FieldSet fields;
  std::vector<Tensor> inputs, outputs;
};

// Numbers from a seed, or those that a fuzzer's bytes say: four a number, zeros behind their end.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  Random(const uint8_t* data, size_t size) : given_(true), data_(data), left_(size) {}

  uint64_t Word() {
    if (!given_) return engine_();
    uint32_t word = 0;
    const size_t count = std::min(left_, sizeof word);
    std::memcpy(&word, data_, count);
    data_ += count;
    left_ -= count;
    return word;
  }
  int32_t Int(int32_t least, int32_t most) {
    return least + static_cast<int32_t>(Word() % static_cast<uint64_t>(int64_t{most} - least + 1));
  }
  bool Chance(int in) { return Word() % static_cast<uint64_t>(in) == 0; }
  float Unit() { return static_cast<float>(Word() >> 40) * (2.0f / 16777216.0f) - 1.0f; }  // [-1, 1)
  template <class T>
  const T& Of(const std::vector<T>& values) {
    return values[Word() % values.size()];
  }

 private:
  std::mt19937_64 engine_;
  bool given_ = false;
  const uint8_t* data_ = nullptr;
  size_t left_ = 0;
};

inline Tensor Zeros(std::string name, DataType type, std::vector<int64_t> dims, std::vector<bool> open = {}) {
  Tensor t{std::move(name), type, std::move(dims), {}, std::move(open)};
  t.bytes.assign(t.count() * Bytes(type), 0);
  return t;
}

inline Tensor Floats(Random& random, std::string name, std::vector<int64_t> dims, float gain, float middle = 0,
                     std::vector<bool> open = {}) {
  Tensor t = Zeros(std::move(name), DataType::kFLOAT, std::move(dims), std::move(open));
  for (size_t i = 0; i < t.count(); ++i) t.data<float>()[i] = middle + gain * random.Unit();
  return t;
}

// -- matrices

struct Format {
  DType dtype;
  int32_t block;
  DType scale_dtype;
};

inline const std::vector<Format>& Formats() {
  static const std::vector<Format> formats = {
      {DType::kF32, 0, DType::kF32},  {DType::kF16, 0, DType::kF32},    {DType::kI8, 32, DType::kF16},
      {DType::kI8, 96, DType::kF32},  {DType::kI8, 1024, DType::kF32},  {DType::kI4, 32, DType::kF32},
      {DType::kI4, 128, DType::kF16}, {DType::kI4, 64, DType::kF32}};
  return formats;
}

inline Tensor PackedScales(Random& random, const std::string& name, const Matrix& m, float gain) {
  Tensor scales = Zeros(name, m.scale_dtype == DType::kF16 ? DataType::kHALF : DataType::kFLOAT, {m.rows, m.blocks()});
  for (size_t i = 0; i < scales.count(); ++i) {
    const float value = gain * (1.5f + 0.5f * random.Unit());
    if (m.scale_dtype == DType::kF16) {
      scales.data<uint16_t>()[i] = FloatToHalf(value);
    } else {
      scales.data<float>()[i] = value;
    }
  }
  return scales;
}

// Appends the tensors of one matrix; `m` gets its sizes and format, not yet its pointers.
inline void AddMatrix(Random& random, const std::string& name, int32_t rows, int32_t cols, const Format& f, Matrix* m,
                      std::vector<Tensor>* tensors) {
  m->rows = rows, m->cols = cols, m->dtype = f.dtype, m->block = f.block, m->scale_dtype = f.scale_dtype;
  const float gain = 1.7f / std::sqrt(static_cast<float>(cols));
  if (f.dtype == DType::kF32) {
    tensors->push_back(Floats(random, name, {rows, cols}, gain));
  } else if (f.dtype == DType::kF16) {
    Tensor t = Zeros(name, DataType::kHALF, {rows, cols});
    for (size_t i = 0; i < t.count(); ++i) t.data<uint16_t>()[i] = FloatToHalf(gain * random.Unit());
    tensors->push_back(std::move(t));
  } else {
    const bool nibbles = f.dtype == DType::kI4;
    const int32_t padded = m->blocks() * f.block;
    Tensor t = Zeros(name, DataType::kINT8, {rows, nibbles ? padded / 2 : padded});
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t c = 0; c < padded; ++c) {
        const auto q = static_cast<unsigned>(c < cols ? random.Int(0, nibbles ? 15 : 255) : nibbles ? 8 : 128);
        unsigned char& at = t.bytes[static_cast<size_t>(r) * t.dims[1] + (nibbles ? c / 2 : c)];
        at = static_cast<unsigned char>(nibbles ? at | q << (c % 2 * 4) : q);
      }
    }
    tensors->push_back(std::move(t));
    tensors->push_back(PackedScales(random, name + ".scales", *m, gain / (nibbles ? 8 : 128)));
  }
}

// -- token grouping

struct GroupCase : Case {
  GroupTokensArgs args;  // without pointers
};

inline GroupCase TokensCase(uint64_t seed, bool with_text, const Format& format, int32_t count, bool bad_id = false) {
  Random random(seed);
  GroupCase c;
  const int32_t group_size = random.Int(1, 6), width = random.Int(1, 200), codes = random.Int(2, 60);
  c.creator = "GroupTokens";
  c.title = "GroupTokens " + std::to_string(seed);
  c.args.count = count, c.args.group_size = group_size;
  Tensor ids = Zeros("ids", DataType::kINT64, {count, group_size}, {true, false});
  for (size_t i = 0; i < ids.count(); ++i) ids.data<int64_t>()[i] = random.Int(0, codes - 1);
  if (bad_id) ids.data<int64_t>()[ids.count() / 2] = codes;
  c.inputs.push_back(std::move(ids));
  if (with_text) c.inputs.push_back(Floats(random, "text", {count, width}, 1, 0, {true, false}));
  AddMatrix(random, "table", codes, width, format, &c.args.table, &c.inputs);
  c.outputs = {Zeros("rows", DataType::kFLOAT, {count, width}, {true, false}), Zeros("bad_id", DataType::kINT32, {1})};
  c.fields.Add("group_size", group_size);
  c.fields.Add("width", width);
  c.fields.Add("codes", codes);
  c.fields.Add("text", int32_t{with_text});
  c.fields.Add("table_dtype", static_cast<int32_t>(format.dtype));
  c.fields.Add("table_block", format.block);
  c.fields.Add("table_scale_dtype", static_cast<int32_t>(format.scale_dtype));
  return c;
}

inline Case RowsCase(uint64_t seed, int32_t rows) {
  Random random(seed);
  const int32_t group_size = random.Int(1, 6), width = random.Int(1, 300);
  Case c{"GroupRows", "GroupRows " + std::to_string(seed), {}, {}, {}};
  c.fields.Add("group_size", group_size);
  c.fields.Add("width", width);
  c.inputs = {Floats(random, "rows", {rows, width}, 1, 0, {true, false})};
  c.outputs = {Zeros("grouped", DataType::kFLOAT, {(rows + group_size - 1) / group_size, width}, {true, false})};
  return c;
}

// -- the speech head

// One head with everything a conversation needs. `View` states the kernels' structs over the same arrays.
struct Head {
  uint64_t seed = 0;
  SpeechHeadShape shape;
  DType cache_dtype = DType::kF32;
  int32_t capacity = 0;
  Sampling sampling;
  std::vector<Format> formats;
  Tensor state, seen, forced, rope_cos, rope_sin;
  std::vector<Tensor> caches, weights;

  struct View {
    std::vector<SpeechHeadLayer> layers;
    SpeechHeadWeights weights;
    std::vector<void*> keys, values;
    std::vector<float*> key_scales, value_scales;
    SpeechHeadCache cache;
  };
  void Fill(View* view);
  // The same head with float32 matrices: CUDA multiplies by what a packed weight stands for, the CPU kernels in
  // integers.
  Head Dequantized();

  FieldSet Fields(bool logits) const;
  Tensor Settings() const;  // `sampling` as its words
  Case Make(const char* title, int32_t kind, const Tensor& head_input, bool logits) const;
  Case Group(const Tensor& head_input, bool logits) const { return Make("group", 2, head_input, logits); }
  Case Prefill(const Tensor& head_input, bool logits = true) const { return Make("prefill", 1, head_input, logits); }
  Tensor Input(int32_t count) const {
    Random random(seed + 77 + static_cast<uint64_t>(count));
    return Floats(random, "head_input", {count, shape.hidden}, 1.5f, 0, {true, false});
  }
};

inline SpeechHeadShape RandomShape(Random& random) {
  SpeechHeadShape s;
  s.group_size = random.Int(1, 5), s.hidden = random.Int(8, 70), s.width = random.Int(8, 80);
  s.layers = random.Int(1, 3), s.kv_heads = random.Int(1, 3), s.heads = s.kv_heads * random.Int(1, 3);
  s.head_dim = 2 * random.Int(1, 9), s.cache_head_dim = (s.head_dim + 7) / 8 * 8;
  s.intermediate = random.Int(8, 90), s.codes = random.Int(5, 120), s.bos = random.Int(0, s.codes - 1);
  s.eps = 1e-6f;
  return s;
}

// The weights' tensors in the documented order, and the structs that point into them.
class WeightMaker {
 public:
  WeightMaker(Head* head, Random* random) : head_(*head), random_(*random) {}

  void Matrix_(const std::string& name, int32_t rows, int32_t cols) {
    Matrix m;
    AddMatrix(random_, name, rows, cols, head_.formats[next_++], &m, &head_.weights);
  }
  void Vector(const std::string& name, int32_t size, float middle) {
    head_.weights.push_back(Floats(random_, name, {size}, 0.2f, middle));
  }
  void All() {
    const SpeechHeadShape& s = head_.shape;
    const int32_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    Matrix_("input", s.group_size * s.width, s.hidden);
    Vector("input_bias", s.group_size * s.width, 0);
    Matrix_("input_table", s.codes, s.width);
    Matrix_("output_table", s.codes, s.width);
    Vector("final_norm", s.width, 1);
    for (int32_t i = 0; i < s.layers; ++i) {
      const std::string at = "layers." + std::to_string(i) + ".";
      for (const char* norm : {"input_norm", "post_norm"}) Vector(at + norm, s.width, 1);
      for (const char* norm : {"q_norm", "k_norm"}) Vector(at + norm, s.head_dim, 1);
      Matrix_(at + "q", q, s.width);
      for (const char* name : {"k", "v"}) Matrix_(at + name, kv, s.width);
      Matrix_(at + "o", s.width, q);
      for (const char* name : {"gate", "up"}) Matrix_(at + name, s.intermediate, s.width);
      Matrix_(at + "down", s.width, s.intermediate);
    }
  }

 private:
  Head& head_;
  Random& random_;
  size_t next_ = 0;
};

inline Head MakeHead(uint64_t seed, DType cache_dtype, int32_t capacity, bool one_format = false) {
  Random random(seed);
  Head h;
  h.seed = seed;
  h.shape = RandomShape(random);
  h.cache_dtype = cache_dtype;
  h.capacity = capacity;
  for (int32_t i = 0; i < 3 + 7 * h.shape.layers; ++i) {
    h.formats.push_back(one_format && i ? h.formats[0] : random.Of(Formats()));
  }
  if (seed % 2) {
    h.sampling.do_sample = 1;
    h.sampling.temperature = 0.8f, h.sampling.top_p = 0.9f, h.sampling.top_k = 20, h.sampling.seed = random.Word();
  }
  h.sampling.repetition_penalty = 1.2f;
  WeightMaker(&h, &random).All();
  h.state = Zeros("state", DataType::kINT32, {6});
  h.state.data<SpeechHeadCudaState>()->last_id = h.shape.bos;
  h.state.data<SpeechHeadCudaState>()->turn = 3;
  h.seen = Zeros("seen", DataType::kINT8, {h.shape.codes});
  for (unsigned char& id : h.seen.bytes) id = random.Chance(4);
  h.forced = Zeros("forced", DataType::kINT64, {h.shape.group_size});
  for (int32_t i = 0; i < h.shape.group_size; ++i) {
    h.forced.data<int64_t>()[i] = random.Chance(5) ? random.Int(0, h.shape.codes - 1) : -1;
  }
  const int32_t positions = capacity + random.Int(0, 3), half = h.shape.head_dim / 2;
  h.rope_cos = Zeros("rope_cos", DataType::kFLOAT, {positions, half});
  h.rope_sin = Zeros("rope_sin", DataType::kFLOAT, {positions, half});
  for (int32_t i = 0; i < positions * half; ++i) {
    const float angle =
        static_cast<float>(i / half) * std::pow(1e4f, -static_cast<float>(i % half) / static_cast<float>(half));
    h.rope_cos.data<float>()[i] = std::cos(angle);
    h.rope_sin.data<float>()[i] = std::sin(angle);
  }
  const DataType type = cache_dtype == DType::kF32   ? DataType::kFLOAT
                        : cache_dtype == DType::kF16 ? DataType::kHALF
                                                     : DataType::kINT8;
  for (int32_t i = 0; i < h.shape.layers; ++i) {
    const std::string at = "." + std::to_string(i);
    for (const char* name : {"key_cache", "value_cache"}) {
      h.caches.push_back(
          Zeros(name + at, type, {h.shape.kv_heads, capacity, h.shape.cache_head_dim}, {false, true, false}));
    }
    if (cache_dtype != DType::kI8) continue;
    for (const char* name : {"key_scales", "value_scales"}) {
      h.caches.push_back(Zeros(name + at, DataType::kFLOAT, {h.shape.kv_heads, capacity}, {false, true}));
    }
  }
  return h;
}

inline FieldSet Head::Fields(bool logits) const {
  FieldSet f;
  f.Add("logits", int32_t{logits});
  f.Add("group_size", shape.group_size);
  f.Add("hidden", shape.hidden);
  f.Add("width", shape.width);
  f.Add("layers", shape.layers);
  f.Add("heads", shape.heads);
  f.Add("kv_heads", shape.kv_heads);
  f.Add("head_dim", shape.head_dim);
  f.Add("cache_head_dim", shape.cache_head_dim);
  f.Add("intermediate", shape.intermediate);
  f.Add("codes", shape.codes);
  f.Add("bos", shape.bos);
  f.Add("eps", shape.eps);
  f.Add("cache_dtype", static_cast<int32_t>(cache_dtype));
  std::vector<int32_t> dtypes, blocks, scale_dtypes;
  for (const Format& format : formats) {
    dtypes.push_back(static_cast<int32_t>(format.dtype));
    blocks.push_back(format.block);
    scale_dtypes.push_back(static_cast<int32_t>(format.scale_dtype));
  }
  f.Add("matrix_dtypes", dtypes);
  f.Add("matrix_blocks", blocks);
  f.Add("matrix_scale_dtypes", scale_dtypes);
  return f;
}

inline void AddUpdated(const Tensor& t, Case* c) {
  c->outputs.push_back(t);
  c->outputs.back().name += "_out";
  c->outputs.back().aliased_input = static_cast<int>(c->inputs.size());
  c->inputs.push_back(t);
}

inline Tensor Head::Settings() const {
  Tensor t = Zeros("sampling", DataType::kINT32, {7});
  const uint32_t words[] = {static_cast<uint32_t>(sampling.seed), static_cast<uint32_t>(sampling.seed >> 32)};
  const float numbers[] = {sampling.temperature, sampling.top_p, sampling.repetition_penalty};
  t.data<int32_t>()[0] = sampling.do_sample, t.data<int32_t>()[1] = sampling.top_k;
  std::memcpy(t.data<int32_t>() + 2, numbers, sizeof numbers);
  std::memcpy(t.data<int32_t>() + 5, words, sizeof words);
  return t;
}

inline Case Head::Make(const char* title, int32_t kind, const Tensor& head_input, bool logits) const {
  Case c{"SpeechHead", "SpeechHead " + std::string(title) + " " + std::to_string(seed), Fields(logits), {}, {}};
  c.inputs = {head_input, Zeros("kind", DataType::kINT32, {kind}, {true})};
  c.outputs.push_back(Zeros("ids", DataType::kINT64, {shape.group_size}));
  if (logits) c.outputs.push_back(Zeros("logits", DataType::kFLOAT, {shape.group_size, shape.codes}));
  AddUpdated(state, &c);
  c.inputs.push_back(Settings());
  for (const Tensor* t : {&seen, &forced, &rope_cos, &rope_sin}) c.inputs.push_back(*t);
  for (const Tensor& t : caches) AddUpdated(t, &c);
  c.inputs.insert(c.inputs.end(), weights.begin(), weights.end());
  return c;
}

inline void Head::Fill(View* view) {
  size_t at = 0, matrix = 0;
  const auto vector = [&] { return static_cast<const float*>(weights[at++].data<float>()); };
  const auto packed = [&](int32_t rows, int32_t cols) {
    Matrix m;
    const Format& f = formats[matrix++];
    m.dtype = f.dtype, m.block = f.block, m.scale_dtype = f.scale_dtype, m.rows = rows, m.cols = cols;
    m.data = weights[at++].bytes.data();
    if (m.quantized()) m.scales = weights[at++].bytes.data();
    return m;
  };
  const int32_t q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
  SpeechHeadWeights& w = view->weights;
  w.input = packed(shape.group_size * shape.width, shape.hidden);
  w.input_bias = vector();
  w.input_table = packed(shape.codes, shape.width);
  w.output_table = packed(shape.codes, shape.width);
  w.final_norm = vector();
  for (int32_t i = 0; i < shape.layers; ++i) {
    SpeechHeadLayer layer;
    layer.input_norm = vector(), layer.post_norm = vector(), layer.q_norm = vector(), layer.k_norm = vector();
    layer.q = packed(q, shape.width), layer.k = packed(kv, shape.width), layer.v = packed(kv, shape.width);
    layer.o = packed(shape.width, q);
    layer.gate = packed(shape.intermediate, shape.width), layer.up = packed(shape.intermediate, shape.width);
    layer.down = packed(shape.width, shape.intermediate);
    view->layers.push_back(layer);
  }
  w.layers = view->layers.data();
  const size_t each = cache_dtype == DType::kI8 ? 4 : 2;
  for (size_t i = 0; i < caches.size(); i += each) {
    view->keys.push_back(caches[i].bytes.data());
    view->values.push_back(caches[i + 1].bytes.data());
    if (each == 2) continue;
    view->key_scales.push_back(caches[i + 2].data<float>());
    view->value_scales.push_back(caches[i + 3].data<float>());
  }
  view->cache = {cache_dtype, capacity, view->keys.data(), view->values.data(), view->key_scales.data(),
                 view->value_scales.data(), rope_cos.data<float>(), rope_sin.data<float>()};
}

inline Head Head::Dequantized() {
  Head out = *this;
  out.weights.clear();
  size_t at = 0;
  const auto matrix = [&](const Matrix& m) {
    Tensor t = Zeros(weights[at].name, DataType::kFLOAT, {m.rows, m.cols});
    for (int32_t r = 0; r < m.rows; ++r) CurrentIsa().read_row(m, r, t.data<float>() + int64_t{r} * m.cols);
    out.weights.push_back(std::move(t));
    at += m.quantized() ? 2 : 1;
  };
  const auto vectors = [&](int count) {
    for (; count > 0; --count) out.weights.push_back(weights[at++]);
  };
  View view;
  Fill(&view);
  matrix(view.weights.input);
  vectors(1);
  matrix(view.weights.input_table);
  matrix(view.weights.output_table);
  vectors(1);
  for (const SpeechHeadLayer& layer : view.layers) {
    vectors(4);
    for (const Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) matrix(*m);
  }
  for (Format& format : out.formats) format = Formats()[0];
  return out;
}

}  // namespace edge_sdk::trt_test
