#include "trt/plugin.h"

#include "core/guard.h"
#include "trt/log.h"

namespace edge_sdk::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::PluginTensorDesc;

std::string TypeName(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return "FLOAT";
    case DataType::kHALF: return "HALF";
    case DataType::kINT8: return "INT8";
    case DataType::kINT32: return "INT32";
    case DataType::kINT64: return "INT64";
    default: return "type " + std::to_string(static_cast<int32_t>(type));
  }
}

std::string Text(const Dims& dims) {
  std::string text = "[";
  for (int32_t i = 0; i < dims.nbDims && i < Dims::MAX_DIMS; ++i) text += (i ? ", " : "") + std::to_string(dims.d[i]);
  return text + "]";
}

std::string Text(const Description& d, const TensorSpec& spec) {
  std::string text = "[";
  for (const Extent& extent : spec.dims) {
    if (text.size() > 1) text += ", ";
    if (extent.axis < 0) {
      text += std::to_string(extent.value);
    } else {
      text += d.axes[extent.axis].name + (extent.value == 1 ? "" : "/" + std::to_string(extent.value));
    }
  }
  return text + "]";
}

Axes NothingKnown() {
  Axes axes;
  axes.fill(kUnknown);
  return axes;
}

Status CheckType(const TensorSpec& spec, const PluginTensorDesc& tensor) {
  if (tensor.type == spec.type && tensor.format == nvinfer1::TensorFormat::kLINEAR) return {};
  return InvalidArgument(spec.name + " is of " + TypeName(tensor.type) + ", format " +
                         std::to_string(static_cast<int32_t>(tensor.format)) + "; expected " + TypeName(spec.type) +
                         ", linear");
}

// Learns an axis of the call from its first tensor and holds the others to it.
bool BindExtent(const Description& d, const Extent& extent, int64_t found, Axes* axes) {
  if (extent.axis < 0) return found == extent.value;
  int64_t& known = (*axes)[extent.axis];
  if (extent.value != 1) return known != kUnknown && found == (known + extent.value - 1) / extent.value;
  if (known != kUnknown) return found == known;
  known = found;
  return found >= d.axes[extent.axis].least && found <= d.axes[extent.axis].most;
}

Status BindTensor(const Description& d, const TensorSpec& spec, const Dims& dims, Axes* axes) {
  bool fits = dims.nbDims == static_cast<int32_t>(spec.dims.size());
  for (size_t i = 0; fits && i < spec.dims.size(); ++i) fits = BindExtent(d, spec.dims[i], dims.d[i], axes);
  if (fits) return {};
  std::string message = spec.name + " is " + Text(dims) + ", expected " + Text(d, spec);
  for (size_t i = 0; i < d.axes.size(); ++i) {
    if ((*axes)[i] != kUnknown) message += ", " + std::string(d.axes[i].name) + " = " + std::to_string((*axes)[i]);
  }
  return InvalidArgument(message);
}

// As BindTensor, where a network's extents may still be open. Notes the expression of each axis.
Status BindExpressions(const Description& d, const TensorSpec& spec, const DimsExprs& dims,
                       const IDimensionExpr** axes) {
  if (dims.nbDims != static_cast<int32_t>(spec.dims.size())) {
    return InvalidArgument(spec.name + " has " + std::to_string(dims.nbDims) + " dimensions, expected " +
                           Text(d, spec));
  }
  for (size_t i = 0; i < spec.dims.size(); ++i) {
    const Extent& extent = spec.dims[i];
    const IDimensionExpr* found = dims.d[i];
    if (found == nullptr) return InvalidArgument(spec.name + " has a dimension without an expression");
    if (extent.axis >= 0) {
      if (axes[extent.axis] == nullptr) axes[extent.axis] = found;
    } else if (found->isConstant() && found->getConstantValue() != extent.value) {
      return InvalidArgument(spec.name + " has " + std::to_string(found->getConstantValue()) + " in dimension " +
                             std::to_string(i) + ", expected " + Text(d, spec));
    }
  }
  return {};
}

Status MakeExpressions(const TensorSpec& spec, const IDimensionExpr* const* axes, nvinfer1::IExprBuilder& builder,
                       DimsExprs* out) {
  out->nbDims = static_cast<int32_t>(spec.dims.size());
  for (size_t i = 0; i < spec.dims.size(); ++i) {
    const Extent& extent = spec.dims[i];
    if (extent.axis < 0) {
      out->d[i] = builder.constant(extent.value);
    } else if (extent.value == 1) {
      out->d[i] = axes[extent.axis];
    } else {
      const IDimensionExpr* divisor = builder.constant(extent.value);
      out->d[i] = divisor == nullptr ? nullptr
                                     : builder.operation(nvinfer1::DimensionOperation::kCEIL_DIV, *axes[extent.axis],
                                                         *divisor);
    }
    if (out->d[i] == nullptr) return {Code::kInternal, "the host made no expression for " + spec.name};
  }
  return {};
}

bool IsEmpty(const TensorSpec& spec, const Axes& axes) {
  for (const Extent& extent : spec.dims) {
    if ((extent.axis < 0 ? extent.value : axes[extent.axis]) == 0) return true;
  }
  return false;
}

}  // namespace

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  std::unique_ptr<Plugin> copy;
  const Status status = Guard([&]() -> Status {
    copy = Copy();
    return {};
  });
  return Report(getPluginName(), status) == 0 ? copy.release() : nullptr;
}

// Every execution context gets a copy of its own, so a copy's scratch is used by one thread at a time.
nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

Status Plugin::CheckCounts(int32_t inputs, int32_t outputs) const {
  const auto expected_inputs = static_cast<int32_t>(description_->inputs.size());
  if (inputs == expected_inputs && outputs == getNbOutputs()) return {};
  return InvalidArgument(std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, expected " +
                         std::to_string(expected_inputs) + " and " + std::to_string(getNbOutputs()));
}

int32_t Plugin::getOutputDataTypes(DataType* output_types, int32_t outputs, const DataType* input_types,
                                   int32_t inputs) const noexcept {
  return Report(getPluginName(), Guard([&]() -> Status {
    EDGE_RETURN_IF_ERROR(CheckCounts(inputs, outputs));
    for (int32_t i = 0; i < inputs; ++i) {
      const TensorSpec& spec = description_->inputs[i];
      if (input_types[i] != spec.type) {
        return InvalidArgument(spec.name + " is of " + TypeName(input_types[i]) + ", expected " + TypeName(spec.type));
      }
    }
    for (int32_t i = 0; i < outputs; ++i) output_types[i] = description_->outputs[i].type;
    return {};
  }));
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*,
                                int32_t shape_input_count, DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder& builder) noexcept {
  return Report(getPluginName(), Guard([&]() -> Status {
    EDGE_RETURN_IF_ERROR(CheckCounts(input_count, output_count));
    if (shape_input_count != 0) return InvalidArgument("takes no shape tensors");
    const IDimensionExpr* axes[kMaxAxes] = {};
    for (int32_t i = 0; i < input_count; ++i) {
      EDGE_RETURN_IF_ERROR(BindExpressions(*description_, description_->inputs[i], inputs[i], axes));
    }
    for (int32_t i = 0; i < output_count; ++i) {
      EDGE_RETURN_IF_ERROR(MakeExpressions(description_->outputs[i], axes, builder, &outputs[i]));
    }
    return {};
  }));
}

// A "no" is an ordinary answer here: TensorRT asks for every type and format there is.
bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t inputs,
                                       int32_t outputs) noexcept {
  if (inputs != static_cast<int32_t>(description_->inputs.size()) || outputs != getNbOutputs()) return false;
  if (position < 0 || position >= inputs + outputs) return false;
  const TensorSpec& spec =
      position < inputs ? description_->inputs[position] : description_->outputs[position - inputs];
  return tensors[position].desc.type == spec.type && tensors[position].desc.format == nvinfer1::TensorFormat::kLINEAR;
}

// The largest sizes of a profile; the smallest are checked on the way, since a profile must fit at both ends.
Status Plugin::BindProfile(const DynamicPluginTensorDesc* inputs, Axes* most) const {
  Axes least = NothingKnown();
  *most = NothingKnown();
  for (size_t i = 0; i < description_->inputs.size(); ++i) {
    EDGE_RETURN_IF_ERROR(BindTensor(*description_, description_->inputs[i], inputs[i].min, &least));
    EDGE_RETURN_IF_ERROR(BindTensor(*description_, description_->inputs[i], inputs[i].max, most));
  }
  EDGE_RETURN_IF_ERROR(CheckAxes(least));
  return CheckAxes(*most);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept {
  return Report(getPluginName(), Guard([&]() -> Status {
    EDGE_RETURN_IF_ERROR(CheckCounts(input_count, output_count));
    for (int32_t i = 0; i < input_count; ++i) {
      EDGE_RETURN_IF_ERROR(CheckType(description_->inputs[i], inputs[i].desc));
    }
    for (int32_t i = 0; i < output_count; ++i) {
      EDGE_RETURN_IF_ERROR(CheckType(description_->outputs[i], outputs[i].desc));
    }
    Axes most;
    return BindProfile(inputs, &most);
  }));
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*, int32_t output_count) const noexcept {
  size_t bytes = 0;
  Report(getPluginName(), Guard([&]() -> Status {
    EDGE_RETURN_IF_ERROR(CheckCounts(input_count, output_count));
    Axes most;
    EDGE_RETURN_IF_ERROR(BindProfile(inputs, &most));
    bytes = WorkspaceBytes(most);
    return {};
  }));
  return bytes;
}

int32_t Plugin::getAliasedInput(int32_t output) noexcept {
  return output < 0 || output >= getNbOutputs() ? -1 : description_->outputs[output].aliased_input;
}

Status Plugin::Bind(const PluginTensorDesc* inputs, const PluginTensorDesc* outputs, Axes* axes) const {
  *axes = NothingKnown();
  for (size_t i = 0; i < description_->inputs.size(); ++i) {
    EDGE_RETURN_IF_ERROR(CheckType(description_->inputs[i], inputs[i]));
    EDGE_RETURN_IF_ERROR(BindTensor(*description_, description_->inputs[i], inputs[i].dims, axes));
  }
  for (size_t i = 0; i < description_->outputs.size(); ++i) {
    EDGE_RETURN_IF_ERROR(CheckType(description_->outputs[i], outputs[i]));
    EDGE_RETURN_IF_ERROR(BindTensor(*description_, description_->outputs[i], outputs[i].dims, axes));
  }
  return CheckAxes(*axes);
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc* outputs,
                              int32_t output_count) noexcept {
  return Report(getPluginName(), Guard([&]() -> Status {
    EDGE_RETURN_IF_ERROR(CheckCounts(input_count, output_count));
    Axes axes;
    return Bind(inputs, outputs, &axes);
  }));
}

Status Plugin::CheckPointers(const Axes& axes, const void* const* inputs, void* const* outputs,
                             const void* workspace) const {
  for (size_t i = 0; i < description_->inputs.size(); ++i) {
    const TensorSpec& spec = description_->inputs[i];
    if (inputs[i] == nullptr && !IsEmpty(spec, axes)) return InvalidArgument(spec.name + " has no memory");
  }
  for (size_t i = 0; i < description_->outputs.size(); ++i) {
    const TensorSpec& spec = description_->outputs[i];
    if (outputs[i] == nullptr && !IsEmpty(spec, axes)) return InvalidArgument(spec.name + " has no memory");
    // Written where the host did not ask for it, an update would be lost and the next call read an old cache.
    if (spec.aliased_input >= 0 && outputs[i] != inputs[spec.aliased_input]) {
      return InvalidArgument(spec.name + " does not share the memory of input " +
                             description_->inputs[spec.aliased_input].name +
                             "; build with PreviewFeature::kALIASED_PLUGIN_IO_10_03 and bind both to one address");
    }
  }
  if (workspace == nullptr && WorkspaceBytes(axes) > 0) return InvalidArgument("no workspace");
  return {};
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  return Report(getPluginName(), Guard([&]() -> Status {
    if (!input_descs || !output_descs || !inputs || !outputs) return InvalidArgument("a call without tensors");
    Axes axes;
    EDGE_RETURN_IF_ERROR(Bind(input_descs, output_descs, &axes));
    EDGE_RETURN_IF_ERROR(CheckPointers(axes, inputs, outputs, workspace));
    return Launch({axes, inputs, outputs, workspace, stream});
  }));
}

Creator::Creator(const char* name, FieldSpecs fields, Make make) : name_(name), known_(std::move(fields)), make_(make) {
  for (const FieldSpec& spec : known_) fields_.emplace_back(spec.name, nullptr, spec.type, 1);
  advertised_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

// Both phases take the same fields: what is saved in an engine is all that a plugin is made from.
nvinfer1::IPluginV3* Creator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  std::unique_ptr<Plugin> plugin;
  const Status status = Guard([&]() -> Status {
    FieldReader reader;
    EDGE_RETURN_IF_ERROR(FieldReader::Open(fields, known_, &reader));
    return make_(reader, &plugin);
  });
  return Report(name_, status) == 0 ? plugin.release() : nullptr;
}

}  // namespace edge_sdk::trt
