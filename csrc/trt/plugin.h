// What all our TensorRT plugins share. A plugin describes its tensors once; every question TensorRT has about types,
// formats, shapes and aliases is answered from that description, and every tensor of a call is checked against it
// before the kernel sees a pointer.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "trt/fields.h"

namespace edge_sdk::trt {

constexpr const char* kNamespace = "edge_sdk";
constexpr const char* kVersion = "1";

// One extent of a tensor: `value` itself, or an axis of the call divided by `value`, rounded up.
struct Extent {
  int64_t value = 0;
  int axis = -1;
};

inline Extent Fixed(int64_t value) { return {value, -1}; }
inline Extent Axis(int axis, int64_t divisor = 1) { return {divisor, axis}; }

struct TensorSpec {
  std::string name;
  nvinfer1::DataType type;
  std::vector<Extent> dims;    // of inputs: fixed, or an axis undivided
  int32_t aliased_input = -1;  // of outputs: the input whose memory it is
};

struct AxisSpec {
  const char* name;
  int64_t least, most;
};

constexpr int kMaxAxes = 4;

struct Description {
  const char* plugin = "";
  std::vector<TensorSpec> inputs, outputs;
  std::vector<AxisSpec> axes;
  SavedFields fields;
};

using Axes = std::array<int64_t, kMaxAxes>;  // extents of a call

constexpr int64_t kUnknown = -1;

struct Call {
  const Axes& axes;
  const void* const* inputs;
  void* const* outputs;
  void* workspace;
  cudaStream_t stream;
};

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuildV2,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept final;
  nvinfer1::IPluginV3* clone() noexcept final;

  const char* getPluginName() const noexcept final { return description_->plugin; }
  const char* getPluginVersion() const noexcept final { return kVersion; }
  const char* getPluginNamespace() const noexcept final { return kNamespace; }

  int32_t getNbOutputs() const noexcept final { return static_cast<int32_t>(description_->outputs.size()); }
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs, const nvinfer1::DataType* input_types,
                             int32_t inputs) const noexcept final;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept final;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t outputs) noexcept final;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept final;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t output_count) const noexcept final;
  int32_t getAliasedInput(int32_t output) noexcept final;

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t output_count) noexcept final;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept final;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept final;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept final {
    return description_->fields.collection();
  }

 protected:
  explicit Plugin(std::shared_ptr<const Description> description) : description_(std::move(description)) {}
  Plugin(const Plugin&) = default;

  const Description& description() const { return *description_; }

 private:
  virtual std::unique_ptr<Plugin> Copy() const = 0;
  virtual Status CheckAxes(const Axes&) const { return {}; }  // what single extents cannot say
  virtual size_t WorkspaceBytes(const Axes&) const { return 0; }
  virtual Status Launch(const Call& call) = 0;  // tensors and pointers are checked

  Status CheckCounts(int32_t inputs, int32_t outputs) const;
  Status Bind(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc* outputs, Axes* axes) const;
  Status BindProfile(const nvinfer1::DynamicPluginTensorDesc* inputs, Axes* most) const;
  Status CheckPointers(const Axes& axes, const void* const* inputs, void* const* outputs, const void* workspace) const;

  std::shared_ptr<const Description> description_;  // clones share it
};

// Makes plugins of one kind from fields.
class Creator : public nvinfer1::IPluginCreatorV3One {
 public:
  using Make = Status (*)(const FieldReader& fields, std::unique_ptr<Plugin>* plugin);

  Creator(const char* name, FieldSpecs fields, Make make);

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept final;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept final { return &advertised_; }
  const char* getPluginName() const noexcept final { return name_; }
  const char* getPluginVersion() const noexcept final { return kVersion; }
  const char* getPluginNamespace() const noexcept final { return kNamespace; }

 private:
  const char* name_;
  const FieldSpecs known_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection advertised_;
  Make make_;
};

}  // namespace edge_sdk::trt
