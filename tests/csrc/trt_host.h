// TensorRT's part in a plugin's life, without TensorRT: expressions of dimensions, a logger, fields that own their
// bytes, tensors with their memory, and the questions and calls in the order in which a builder and a context make
// them.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(EDGE_SDK_HARNESS_GPU)
#include <cuda_runtime_api.h>
#endif

namespace edge_sdk::trt_test {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

inline size_t Bytes(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
    case DataType::kINT32: return 4;
    case DataType::kHALF: return 2;
    case DataType::kINT64: return 8;
    default: return 1;
  }
}

// -- logger

class Logger : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) last_ = message;
  }
  nvinfer1::ILogger* findLogger() override { return this; }
  // What was said since the last call.
  std::string Take() { return std::exchange(last_, std::string()); }

 private:
  std::string last_;
};

// -- dimensions: an expression knows its value, and says whether a builder would

class Expression : public nvinfer1::apiv::VDimensionExpr, public nvinfer1::IDimensionExpr {
 public:
  Expression(int64_t value, bool constant) : value(value), constant_(constant) { mImpl = this; }
  ~Expression() noexcept override = default;
  bool isConstant() const override { return constant_; }
  int64_t getConstantValue() const override { return constant_ ? value : INT64_MIN; }
  bool isSizeTensor() const override { return false; }

  const int64_t value;

 private:
  const bool constant_;
};

class ExpressionBuilder : public nvinfer1::apiv::VExprBuilder, public nvinfer1::IExprBuilder {
 public:
  using Expr = const nvinfer1::IDimensionExpr;
  ExpressionBuilder() { mImpl = this; }
  ~ExpressionBuilder() noexcept override = default;

  Expr* Make(int64_t value, bool constant) { return &made_.emplace_back(value, constant); }
  Expr* constant(int64_t value) override { return Make(value, true); }
  Expr* operation(nvinfer1::DimensionOperation op, Expr& first, Expr& second) override {
    const auto &a = static_cast<const Expression&>(first), &b = static_cast<const Expression&>(second);
    if (op != nvinfer1::DimensionOperation::kCEIL_DIV) return nullptr;  // nothing else is asked for
    return Make((a.value + b.value - 1) / b.value, a.isConstant() && b.isConstant());
  }
  Expr* declareSizeTensor(int32_t, Expr&, Expr&) override { return nullptr; }

 private:
  std::list<Expression> made_;
};

// -- fields that own their bytes, each in a block of its own

struct Field {
  std::string name;
  PluginFieldType type;
  std::vector<unsigned char> bytes;
  int32_t length;
  bool no_name = false, no_data = false;
};

inline bool operator==(const Field& a, const Field& b) {
  return a.name == b.name && a.type == b.type && a.bytes == b.bytes && a.length == b.length;
}

struct FieldSet {
  std::vector<Field> fields;

  template <class T>
  void Add(const char* name, PluginFieldType type, const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    fields.push_back({name, type, {bytes, bytes + values.size() * sizeof(T)}, static_cast<int32_t>(values.size())});
  }
  void Add(const char* name, int32_t value) { Add<int32_t>(name, PluginFieldType::kINT32, {value}); }
  void Add(const char* name, float value) { Add<float>(name, PluginFieldType::kFLOAT32, {value}); }
  void Add(const char* name, const std::vector<int32_t>& values) { Add(name, PluginFieldType::kINT32, values); }

  FieldSet Without(const std::string& name) const {
    FieldSet rest;
    for (const Field& f : fields) {
      if (f.name != name) rest.fields.push_back(f);
    }
    return rest;
  }

  static size_t Size(PluginFieldType type) {
    switch (type) {
      case PluginFieldType::kFLOAT32:
      case PluginFieldType::kINT32: return 4;
      case PluginFieldType::kFLOAT64:
      case PluginFieldType::kINT64: return 8;
      case PluginFieldType::kDIMS: return sizeof(Dims);
      case PluginFieldType::kFLOAT16:
      case PluginFieldType::kINT16: return 2;
      default: return 1;
    }
  }

  // What an engine file would keep of a plugin.
  static FieldSet Saved(const nvinfer1::PluginFieldCollection* c) {
    FieldSet set;
    for (int32_t i = 0; i < c->nbFields; ++i) {
      const nvinfer1::PluginField& f = c->fields[i];
      const auto* bytes = static_cast<const unsigned char*>(f.data);
      set.fields.push_back({f.name, f.type, {bytes, bytes + Size(f.type) * static_cast<size_t>(f.length)}, f.length});
    }
    return set;
  }
};

// A collection over a FieldSet, which must outlive it. Names and data are copied to blocks of their exact size, the
// data at an odd address: an engine file promises no alignment, and a reader that goes too far is caught.
class Collection {
 public:
  explicit Collection(const FieldSet& set) {
    for (const Field& f : set.fields) {
      names_.emplace_back(f.name.c_str(), f.name.c_str() + std::strlen(f.name.c_str()) + 1);
      data_.emplace_back(1).insert(data_.back().end(), f.bytes.begin(), f.bytes.end());
      data_.back().shrink_to_fit();
      fields_.emplace_back(f.no_name ? nullptr : names_.back().data(), f.no_data ? nullptr : data_.back().data() + 1,
                           f.type, f.length);
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  }
  const nvinfer1::PluginFieldCollection* get() const { return &collection_; }

 private:
  std::vector<std::vector<char>> names_;
  std::vector<std::vector<unsigned char>> data_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// -- tensors

struct Tensor {
  std::string name;
  DataType type;
  std::vector<int64_t> dims;
  std::vector<unsigned char> bytes;
  std::vector<bool> dynamic;  // dims that a network leaves open; empty: none
  int aliased_input = -1;     // of outputs

  size_t count() const {
    size_t n = 1;
    for (int64_t d : dims) n *= static_cast<size_t>(d);
    return n;
  }
  bool open(size_t i) const { return i < dynamic.size() && dynamic[i]; }
  template <class T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <class T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

inline PluginTensorDesc Describe(const Tensor& t) {
  PluginTensorDesc desc{};
  desc.dims.nbDims = static_cast<int32_t>(t.dims.size());
  for (size_t i = 0; i < t.dims.size(); ++i) desc.dims.d[i] = t.dims[i];
  desc.type = t.type;
  desc.format = TensorFormat::kLINEAR;
  desc.scale = -1.0f;
  return desc;
}

inline std::vector<PluginTensorDesc> Describe(const std::vector<Tensor>& tensors) {
  std::vector<PluginTensorDesc> descs;
  for (const Tensor& t : tensors) descs.push_back(Describe(t));
  return descs;
}

// A profile whose largest sizes are the tensors' own.
inline std::vector<nvinfer1::DynamicPluginTensorDesc> Profile(const std::vector<Tensor>& tensors) {
  std::vector<nvinfer1::DynamicPluginTensorDesc> descs;
  for (const Tensor& t : tensors) {
    const PluginTensorDesc desc = Describe(t);
    descs.push_back({desc, desc.dims, desc.dims, desc.dims});
    for (size_t i = 0; i < t.dims.size(); ++i) {
      if (t.open(i)) descs.back().desc.dims.d[i] = -1;
    }
  }
  return descs;
}

// -- memory of a call: the device's in a harness built for one, the host's otherwise; blocks of the exact size

class Block {
 public:
  explicit Block(size_t bytes) : bytes_(bytes) {
#if defined(EDGE_SDK_HARNESS_GPU)
    if (cudaMalloc(&at_, bytes + 1) != cudaSuccess) throw std::runtime_error("cudaMalloc");
#else
    at_ = ::operator new(bytes, kAlignment);
#endif
  }
  ~Block() {
#if defined(EDGE_SDK_HARNESS_GPU)
    cudaFree(at_);
#else
    ::operator delete(at_, kAlignment);
#endif
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* get() const { return at_; }
  void Write(const std::vector<unsigned char>& from) { Move(at_, from.data(), from.size()); }
  void Read(std::vector<unsigned char>* to) const {
    to->resize(bytes_);
    Move(to->data(), at_, bytes_);
  }

 private:
  static void Move(void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
#if defined(EDGE_SDK_HARNESS_GPU)
    // In the default stream: waits for the plugin's kernels.
    if (cudaMemcpy(to, from, bytes, cudaMemcpyDefault) != cudaSuccess) throw std::runtime_error("cudaMemcpy");
#else
    std::memcpy(to, from, bytes);
#endif
  }

  static constexpr std::align_val_t kAlignment{256};  // what TensorRT gives its tensors
  size_t bytes_;
  void* at_ = nullptr;
};

// -- a plugin with its three faces

class Plugin {
 public:
  explicit Plugin(nvinfer1::IPluginV3* plugin) : plugin_(plugin) {
    if (plugin == nullptr) return;
    using nvinfer1::PluginCapabilityType;
    core = static_cast<nvinfer1::IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    build = static_cast<nvinfer1::IPluginV3OneBuildV2*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    runtime =
        static_cast<nvinfer1::IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  }
  explicit operator bool() const { return plugin_ != nullptr; }
  nvinfer1::IPluginV3* get() const { return plugin_.get(); }

  nvinfer1::IPluginV3OneCore* core = nullptr;
  nvinfer1::IPluginV3OneBuildV2* build = nullptr;
  nvinfer1::IPluginV3OneRuntime* runtime = nullptr;

 private:
  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
};

// -- the library, as the registry opens it

class Library {
 public:
  explicit Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) throw std::runtime_error(dlerror());
    auto* finder = reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(dlsym(handle_, "setLoggerFinder"));
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
    auto* creators = reinterpret_cast<GetCreators>(dlsym(handle_, "getCreators"));
    if (finder == nullptr || creators == nullptr) throw std::runtime_error("getCreators or setLoggerFinder is missing");
    finder(&logger);
    int32_t count = -1;
    nvinfer1::IPluginCreatorInterface* const* list = creators(count);
    for (int32_t i = 0; i < count; ++i) this->creators.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(list[i]));
  }
  ~Library() { dlclose(handle_); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  nvinfer1::IPluginCreatorV3One* Find(const std::string& name) const {
    for (auto* creator : creators) {
      if (name == creator->getPluginName()) return creator;
    }
    throw std::runtime_error("no creator of " + name);
  }
  Plugin Create(const std::string& name, const FieldSet& fields, TensorRTPhase phase = TensorRTPhase::kBUILD) const {
    return Plugin(Find(name)->createPlugin("test", Collection(fields).get(), phase));
  }

  Logger logger;
  std::vector<nvinfer1::IPluginCreatorV3One*> creators;

 private:
  void* handle_;
};

}  // namespace edge_sdk::trt_test
