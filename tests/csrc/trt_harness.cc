// Plays TensorRT for the plugin library and judges it:
//
//     trt_harness LIBRARY [--no-launch] [--fuzz ROUNDS] [--seed SEED] [--bound LARGEST_ERROR_OVER_LARGEST_VALUE]
//
// Built twice: over host memory, for a library with the CUDA functions of trt_host_kernels.cc, and as trt_harness_gpu
// over a device's memory, for the real one. With --no-launch the first also judges the real one, all but its kernels.
// Exits with 1 if anything was not as it must be, with 77 if there is no device for trt_harness_gpu.
#include <algorithm>
#include <cmath>
#include <functional>

#include "core/team.h"
#include "trt_cases.h"
#include "trt_fuzz.h"

namespace edge_sdk::trt_test {
namespace {

int failures = 0, checks = 0;

void Check(bool ok, const std::string& what) {
  ++checks;
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// -- what a host asks before it runs anything

class Questions {
 public:
  Questions(Library& library, const Case& c, Plugin& plugin)
      : library_(library), c_(c), plugin_(plugin), inputs_(Describe(c.inputs)), outputs_(Describe(c.outputs)) {}

  void All() {
    library_.logger.Take();
    Names();
    Types();
    Shapes();
    Formats();
    Profiles();
    Aliases();
    Runtime();
  }

 private:
  int32_t in() const { return static_cast<int32_t>(c_.inputs.size()); }
  int32_t out() const { return static_cast<int32_t>(c_.outputs.size()); }

  // A refusal is a nonzero answer and one message that names what is wrong.
  void Refused(bool refused, const std::string& name, const std::string& what) {
    const std::string said = library_.logger.Take();
    Check(refused, c_.title + ": " + what + " was not refused");
    Check(said.find(name) != std::string::npos, c_.title + ": " + what + " does not name " + name + ": " + said);
  }
  void Fine(bool ok, const std::string& what) { Check(ok, c_.title + ": " + what + ": " + library_.logger.Take()); }

  void Names() {
    Fine(plugin_.core->getPluginName() == c_.creator, "name");
    Fine(std::string(plugin_.core->getPluginVersion()) == "1", "version");
    Fine(std::string(plugin_.core->getPluginNamespace()) == "edge_sdk", "namespace");
    Fine(plugin_.build->getNbOutputs() == out(), "number of outputs");
    Fine(plugin_.get()->getCapabilityInterface(static_cast<nvinfer1::PluginCapabilityType>(9)) == nullptr,
         "capability 9");
  }

  void Types() {
    std::vector<DataType> types, found(c_.outputs.size());
    for (const Tensor& t : c_.inputs) types.push_back(t.type);
    Fine(plugin_.build->getOutputDataTypes(found.data(), out(), types.data(), in()) == 0, "types");
    for (int32_t i = 0; i < out(); ++i) Fine(found[i] == c_.outputs[i].type, "type of " + c_.outputs[i].name);
    Refused(plugin_.build->getOutputDataTypes(found.data(), out(), types.data(), in() - 1) != 0, "inputs",
            "an input less");
    Refused(plugin_.build->getOutputDataTypes(found.data(), out() + 1, types.data(), in()) != 0, "outputs",
            "an output more");
    for (int32_t i = 0; i < in(); ++i) {
      const DataType right = std::exchange(types[i], DataType::kBF16);
      Refused(plugin_.build->getOutputDataTypes(found.data(), out(), types.data(), in()) != 0, c_.inputs[i].name,
              "BF16");
      types[i] = right;
    }
  }

  // change(tensor, dims): what to do to the expressions of the inputs before the plugin sees them.
  int32_t AskShapes(const std::function<void(int32_t, nvinfer1::DimsExprs*, ExpressionBuilder*)>& change,
                    std::vector<nvinfer1::DimsExprs>* found, ExpressionBuilder* builder) {
    std::vector<nvinfer1::DimsExprs> dims(c_.inputs.size());
    for (int32_t i = 0; i < in(); ++i) {
      const Tensor& t = c_.inputs[i];
      dims[i].nbDims = static_cast<int32_t>(t.dims.size());
      for (size_t k = 0; k < t.dims.size(); ++k) dims[i].d[k] = builder->Make(t.dims[k], !t.open(k));
      change(i, &dims[i], builder);
    }
    found->resize(c_.outputs.size());
    return plugin_.build->getOutputShapes(dims.data(), in(), nullptr, 0, found->data(), out(), *builder);
  }

  void Shapes() {
    ExpressionBuilder builder;
    std::vector<nvinfer1::DimsExprs> found;
    Fine(AskShapes([](int32_t, nvinfer1::DimsExprs*, ExpressionBuilder*) {}, &found, &builder) == 0, "shapes");
    for (int32_t i = 0; i < out(); ++i) {
      const Tensor& t = c_.outputs[i];
      Fine(found[i].nbDims == static_cast<int32_t>(t.dims.size()), "rank of " + t.name);
      for (size_t k = 0; k < t.dims.size(); ++k) {
        const auto* e = static_cast<const Expression*>(found[i].d[k]);
        Fine(e->value == t.dims[k], "extent of " + t.name);
        Fine(e->isConstant() != t.open(k), "openness of " + t.name);
      }
    }
    for (int32_t wrong = 0; wrong < in(); ++wrong) {
      const std::string& name = c_.inputs[wrong].name;
      const auto rank = [&](int32_t i, nvinfer1::DimsExprs* d, ExpressionBuilder*) { d->nbDims += i == wrong; };
      Refused(AskShapes(rank, &found, &builder) != 0, name, "a wrong rank");
      const size_t last = c_.inputs[wrong].dims.size() - 1;
      if (c_.inputs[wrong].open(last)) continue;
      const auto extent = [&](int32_t i, nvinfer1::DimsExprs* d, ExpressionBuilder* b) {
        if (i == wrong) d->d[last] = b->Make(c_.inputs[i].dims[last] + 1, true);
      };
      Refused(AskShapes(extent, &found, &builder) != 0, name, "a wrong extent");
    }
  }

  // For every position exactly one type in one format is taken.
  void Formats() {
    std::vector<Tensor> all = c_.inputs;
    all.insert(all.end(), c_.outputs.begin(), c_.outputs.end());
    auto descs = Profile(all);
    for (int32_t at = 0; at < in() + out(); ++at) {
      int taken = 0;
      for (int32_t type = 0; type < nvinfer1::EnumMax<DataType>(); ++type) {
        for (int32_t format = 0; format < 13; ++format) {
          descs[at].desc.type = static_cast<DataType>(type);
          descs[at].desc.format = static_cast<TensorFormat>(format);
          taken += plugin_.build->supportsFormatCombination(at, descs.data(), in(), out());
        }
      }
      descs[at].desc.type = all[at].type;
      descs[at].desc.format = TensorFormat::kLINEAR;
      Fine(taken == 1, "formats of " + all[at].name);
      Fine(plugin_.build->supportsFormatCombination(at, descs.data(), in(), out()), "format of " + all[at].name);
    }
    Fine(!plugin_.build->supportsFormatCombination(-1, descs.data(), in(), out()), "position -1");
    Fine(!plugin_.build->supportsFormatCombination(in() + out(), descs.data(), in(), out()), "a position too far");
    Fine(!plugin_.build->supportsFormatCombination(0, descs.data(), in() + 1, out()), "an input more");
  }

  void Profiles() {
    auto inputs = Profile(c_.inputs), outputs = Profile(c_.outputs);
    Fine(plugin_.build->configurePlugin(inputs.data(), in(), outputs.data(), out()) == 0, "configure");
    Fine(plugin_.build->getWorkspaceSize(inputs.data(), in(), outputs.data(), out()) < 1 << 30, "workspace");
    Refused(plugin_.build->configurePlugin(inputs.data(), in() - 1, outputs.data(), out()) != 0, "inputs",
            "an input less");
    for (int32_t i = 0; i < in(); ++i) {
      inputs[i].max.d[0] += 1000;
      const bool open = c_.inputs[i].open(0);  // then a larger maximum is fine, unless another input shares the axis
      const int32_t answer = plugin_.build->configurePlugin(inputs.data(), in(), outputs.data(), out());
      // Whoever disagrees with an earlier tensor is named: of the two rope tables the second.
      const std::string& named = c_.inputs[i].name == "rope_cos" ? c_.inputs[i + 1].name : c_.inputs[i].name;
      if (!open) Refused(answer != 0, named, "a profile that is too large");
      inputs[i].max.d[0] -= 1000;
      inputs[i].desc.type = DataType::kFP8;
      Refused(plugin_.build->configurePlugin(inputs.data(), in(), outputs.data(), out()) != 0, c_.inputs[i].name,
              "FP8");
      inputs[i].desc.type = c_.inputs[i].type;
    }
    library_.logger.Take();
  }

  void Aliases() {
    for (int32_t i = 0; i < out(); ++i) {
      Fine(plugin_.build->getAliasedInput(i) == c_.outputs[i].aliased_input, "alias of " + c_.outputs[i].name);
    }
    Fine(plugin_.build->getAliasedInput(-1) == -1 && plugin_.build->getAliasedInput(out()) == -1, "alias of nothing");
  }

  int32_t AskRuntime() { return plugin_.runtime->onShapeChange(inputs_.data(), in(), outputs_.data(), out()); }

  void Runtime() {
    Fine(AskRuntime() == 0, "shapes of a call");
    Refused(plugin_.runtime->onShapeChange(inputs_.data(), in(), outputs_.data(), out() - 1) != 0, "outputs",
            "an output less");
    for (int32_t i = 0; i < in() + out(); ++i) {
      const Tensor& t = i < in() ? c_.inputs[i] : c_.outputs[i - in()];
      PluginTensorDesc& desc = i < in() ? inputs_[i] : outputs_[i - in()];
      const PluginTensorDesc right = desc;
      desc.dims.nbDims += 1;
      Refused(AskRuntime() != 0, t.name, "a rank");
      desc = right;
      desc.type = DataType::kFP8;
      Refused(AskRuntime() != 0, t.name, "a type");
      desc = right;
      desc.format = TensorFormat::kCHW32;
      Refused(AskRuntime() != 0, t.name, "a format");
      desc = right;
      for (size_t k = 0; k < t.dims.size(); ++k) {
        desc.dims.d[k] = -1;
        Refused(AskRuntime() != 0, "", "an open extent of " + t.name);
        desc = right;
        // Alone with its axis, or rounded up in the output: there one more may be fine.
        if (t.open(k) && (t.name == "head_input" || t.name == "kind" || c_.creator == "GroupRows")) continue;
        desc.dims.d[k] += 1;
        Refused(AskRuntime() != 0, "", "one more in " + t.name);
        desc = right;
      }
    }
  }

  Library& library_;
  const Case& c_;
  Plugin& plugin_;
  std::vector<PluginTensorDesc> inputs_, outputs_;
};

// -- fields

void CheckFields(Library& library, const Case& c) {
  const auto refused = [&](const FieldSet& fields, const std::string& name, const std::string& what) {
    library.logger.Take();
    for (TensorRTPhase phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME}) {
      Check(!library.Create(c.creator, fields, phase), c.title + ": " + what + " was not refused");
      const std::string said = library.logger.Take();
      Check(said.find(name) != std::string::npos, c.title + ": " + what + " does not name " + name + ": " + said);
    }
  };
  for (size_t i = 0; i < c.fields.fields.size(); ++i) {
    const Field& field = c.fields.fields[i];
    const auto changed = [&](const std::function<void(Field&)>& change, const std::string& name, const char* what) {
      FieldSet set = c.fields;
      change(set.fields[i]);
      refused(set, name, field.name + " " + what);
    };
    refused(c.fields.Without(field.name), field.name, "without " + field.name);
    FieldSet twice = c.fields;
    twice.fields.push_back(field);
    refused(twice, field.name, field.name + " twice");
    changed([](Field& f) { f.name += "x"; }, field.name + "x", "by another name");
    changed([](Field& f) { f.no_name = true; }, "name", "without a name");
    changed([](Field& f) { f.no_data = true; }, field.name, "without data");
    changed([](Field& f) { f.length = 0; }, field.name, "of no length");
    changed([](Field& f) { f.length = -1; }, field.name, "of negative length");
    changed([](Field& f) { f.length = INT32_MAX; }, field.name, "of huge length");
    changed([](Field& f) { f.type = PluginFieldType::kFLOAT64, f.bytes.resize(f.bytes.size() * 2); }, field.name,
            "as float64");
  }
  library.logger.Take();
  nvinfer1::PluginFieldCollection damaged{3, nullptr};
  Check(library.Find(c.creator)->createPlugin("x", nullptr, TensorRTPhase::kBUILD) == nullptr, "no collection");
  Check(library.Find(c.creator)->createPlugin("x", &damaged, TensorRTPhase::kBUILD) == nullptr, "no fields");
  damaged.nbFields = -1;
  Check(library.Find(c.creator)->createPlugin(nullptr, &damaged, TensorRTPhase::kBUILD) == nullptr, "-1 fields");
}

// Values that the right type and length do not save.
void CheckValues(Library& library, const Head& head, const Case& tokens) {
  struct Bad {
    const char* field;
    int32_t value;
  };
  const auto refused = [&](const Case& c, const Bad& bad) {
    FieldSet set = c.fields.Without(bad.field);
    set.Add(bad.field, bad.value);
    Check(!library.Create(c.creator, set), c.title + ": " + bad.field + " = " + std::to_string(bad.value));
    Check(!library.logger.Take().empty(), c.title + ": nothing was said of " + bad.field);
  };
  const Case group = head.Group(head.Input(1), false);
  for (const Bad& bad : std::vector<Bad>{{"logits", -1},
                                         {"group_size", 0},
                                         {"group_size", INT32_MAX},
                                         {"hidden", -5},
                                         {"width", 1 << 25},
                                         {"layers", 0},
                                         {"layers", INT32_MAX},
                                         {"layers", head.shape.layers + 1},
                                         {"heads", 0},
                                         {"kv_heads", 97},
                                         {"head_dim", 3},
                                         {"head_dim", 0},
                                         {"cache_head_dim", 1},
                                         {"codes", 0},
                                         {"bos", head.shape.codes},
                                         {"bos", -1},
                                         {"cache_dtype", 3},
                                         {"cache_dtype", -1},
                                         {"logits", 2}}) {
    refused(group, bad);
  }
  for (float value : {-1.0f, NAN, INFINITY}) {
    FieldSet set = group.fields.Without("eps");
    set.Add("eps", value);
    Check(!library.Create("SpeechHead", set), "SpeechHead: eps = " + std::to_string(value));
  }
  for (const char* name : {"matrix_dtypes", "matrix_blocks", "matrix_scale_dtypes"}) {
    for (int32_t value : {-1, 7, INT32_MAX, INT32_MIN}) {
      FieldSet set = group.fields.Without(name);
      std::vector<int32_t> values(head.formats.size(), 0);
      values.back() = value;
      set.Add(name, values);
      Check(!library.Create("SpeechHead", set),
            std::string("SpeechHead: ") + name + " ends in " + std::to_string(value));
    }
  }
  for (const Bad& bad : std::vector<Bad>{{"group_size", 0},
                                         {"width", -1},
                                         {"codes", 1 << 25},
                                         {"text", 2},
                                         {"table_dtype", 3},
                                         {"table_dtype", 4},
                                         {"table_block", 33},
                                         {"table_scale_dtype", 2}}) {
    refused(tokens, bad);
  }
  FieldSet settings = head.Fields(false);  // they are a tensor
  settings.Add("top_k", 4);
  Check(!library.Create("SpeechHead", settings), "settings among the fields");
  library.logger.Take();
}

// -- a plugin's life

// Made, cloned, saved and restored as an engine would: what comes out must not depend on anything that is gone.
Plugin Restored(Library& library, const Case& c) {
  library.logger.Take();
  Plugin first = library.Create(c.creator, c.fields);
  Check(static_cast<bool>(first), c.title + ": create: " + library.logger.Take());
  if (!first) throw std::runtime_error(c.title + " was not made");
  Plugin second(first.get()->clone());
  first = Plugin(nullptr);
  const FieldSet saved = FieldSet::Saved(second.runtime->getFieldsToSerialize());
  Check(saved.fields.size() == c.fields.fields.size(), c.title + ": number of saved fields");
  for (const Field& field : c.fields.fields) {
    Check(std::find(saved.fields.begin(), saved.fields.end(), field) != saved.fields.end(),
          c.title + ": saves " + field.name);
  }
  second = Plugin(nullptr);
  Plugin restored = library.Create(c.creator, saved, TensorRTPhase::kRUNTIME);
  Check(static_cast<bool>(restored), c.title + ": restore: " + library.logger.Take());
  Plugin attached(restored.runtime->attachToContext(nullptr));
  restored = Plugin(nullptr);
  Check(FieldSet::Saved(attached.runtime->getFieldsToSerialize()).fields == saved.fields,
        c.title + ": saves what it read");
  return attached;
}

// -- a call

// Runs the plugin over memory of exactly the tensors' size. Aliased outputs share their input's block, and both tensors
// hold the result; what only was read must not change.
class Run {
 public:
  Run(Library& library, Plugin& plugin, Case* c) : library_(library), plugin_(plugin), c_(*c) {
    const auto inputs = Profile(c_.inputs), outputs = Profile(c_.outputs);
    const auto in = static_cast<int32_t>(inputs.size()), out = static_cast<int32_t>(outputs.size());
    workspace_ = std::make_unique<Block>(plugin.build->getWorkspaceSize(inputs.data(), in, outputs.data(), out));
    for (Tensor& t : c_.inputs) {
      blocks_.push_back(std::make_unique<Block>(t.bytes.size()));
      blocks_.back()->Write(t.bytes);
      in_.push_back(blocks_.back()->get());
    }
    for (Tensor& t : c_.outputs) {
      if (t.aliased_input < 0) blocks_.push_back(std::make_unique<Block>(t.bytes.size()));
      out_.push_back(t.aliased_input < 0 ? blocks_.back()->get() : blocks_[t.aliased_input]->get());
    }
  }

  int32_t Enqueue() {
    const auto inputs = Describe(c_.inputs), outputs = Describe(c_.outputs);
    return plugin_.runtime->enqueue(inputs.data(), outputs.data(), in_.data(), out_.data(), workspace_->get(), nullptr);
  }

  void Go() {
    library_.logger.Take();
    Check(Enqueue() == 0, c_.title + ": enqueue: " + library_.logger.Take());
    size_t own = c_.inputs.size();
    std::vector<bool> written(c_.inputs.size());
    for (Tensor& t : c_.outputs) {
      const size_t block = t.aliased_input < 0 ? own++ : static_cast<size_t>(t.aliased_input);
      blocks_[block]->Read(&t.bytes);
      if (t.aliased_input >= 0) written[t.aliased_input] = true;
    }
    for (size_t i = 0; i < c_.inputs.size(); ++i) {
      std::vector<unsigned char> now;
      blocks_[i]->Read(&now);
      if (!written[i]) Check(now == c_.inputs[i].bytes, c_.title + ": wrote to " + c_.inputs[i].name);
    }
  }

  // Calls that must be refused before any kernel runs.
  void Refusals() {
    const auto refused = [&](const std::string& name, const std::string& what) {
      library_.logger.Take();
      Check(Enqueue() != 0, c_.title + ": " + what + " was not refused");
      const std::string said = library_.logger.Take();
      Check(said.find(name) != std::string::npos, c_.title + ": " + what + " does not name " + name + ": " + said);
    };
    for (size_t i = 0; i < in_.size(); ++i) {
      const void* right = std::exchange(in_[i], nullptr);
      refused(c_.inputs[i].name, "an input without memory");
      in_[i] = right;
    }
    Block elsewhere(1 << 20);
    for (size_t i = 0; i < out_.size(); ++i) {
      void* right = std::exchange(out_[i], nullptr);
      refused(c_.outputs[i].name, "an output without memory");
      out_[i] = elsewhere.get();
      if (c_.outputs[i].aliased_input >= 0) refused("kALIASED_PLUGIN_IO_10_03", "an output elsewhere");
      out_[i] = right;
    }
    for (size_t i = 0; i < c_.inputs.size(); ++i) {
      c_.inputs[i].dims.push_back(1);
      refused(c_.inputs[i].name, "another rank");
      c_.inputs[i].dims.pop_back();
    }
    for (size_t i = 0; i < 2 && c_.inputs[1].name == "kind"; ++i) {
      const int64_t right = std::exchange(c_.inputs[i].dims[0], 3);  // a third kind; a group of three rows
      if (i == 1 || c_.inputs[1].dims[0] == 2) refused(c_.inputs[i].name, "a size of three");
      c_.inputs[i].dims[0] = right;
    }
    Check(plugin_.runtime->enqueue(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr) != 0, "an empty call");
  }

 private:
  Library& library_;
  Plugin& plugin_;
  Case& c_;
  std::vector<std::unique_ptr<Block>> blocks_;  // inputs, then outputs with memory of their own
  std::unique_ptr<Block> workspace_;
  std::vector<const void*> in_;
  std::vector<void*> out_;
};

// -- results against the CPU kernels

bool launch = true;
double bound = 0;  // largest difference over the largest value; 0: equal to the bit

void CheckClose(const float* found, const float* expected, size_t count, const std::string& what) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < count; ++i) {
    difference = std::max(difference, std::fabs(double{found[i]} - double{expected[i]}));
    largest = std::max(largest, std::fabs(double{expected[i]}));
    if (!std::isfinite(found[i])) difference = INFINITY;
  }
  Check(difference <= bound * largest, what + ": differs by " + std::to_string(difference));
}

void RunTokens(Library& library, GroupCase c, bool bad_id) {
  Plugin plugin = Restored(library, c);
  Questions(library, c, plugin).All();
  if (c.args.count > 0) Run(library, plugin, &c).Refusals();
  if (!launch) return;
  Run(library, plugin, &c).Go();
  Check(c.outputs[1].data<int32_t>()[0] == bad_id, c.title + ": bad_id");
  if (bad_id || c.args.count == 0) return;
  size_t at = 0;
  std::vector<float> expected(c.outputs[0].count());
  c.args.ids = c.inputs[at++].data<int64_t>();
  if (c.inputs[1].name == "text") c.args.text = c.inputs[at++].data<float>();
  c.args.table.data = c.inputs[at++].bytes.data();
  if (c.args.table.quantized()) c.args.table.scales = c.inputs[at].bytes.data();
  c.args.out = expected.data();
  Check(GroupTokensCpu(c.args).ok(), c.title + ": CPU");
  CheckClose(c.outputs[0].data<float>(), expected.data(), expected.size(), c.title);
}

void RunRows(Library& library, Case c) {
  Plugin plugin = Restored(library, c);
  Questions(library, c, plugin).All();
  if (!launch) return;
  Run(library, plugin, &c).Go();
  std::vector<float> expected(c.outputs[0].count());
  GroupRowsArgs args{c.inputs[0].data<float>(), expected.data(), static_cast<int32_t>(c.inputs[0].dims[0]),
                     static_cast<int32_t>(c.inputs[0].dims[1]), 0};
  std::memcpy(&args.group_size, c.fields.fields[0].bytes.data(), 4);
  if (args.rows > 0) Check(GroupRowsCpu(args).ok(), c.title + ": CPU");
  CheckClose(c.outputs[0].data<float>(), expected.data(), expected.size(), c.title);
}

// A conversation: prefill, groups, an error, a full cache; beside it the CPU kernels on copies.
class Conversation {
 public:
  Conversation(Library& library, const Head& head) : library_(library), plugin_head_(head), cpu_head_(head) {
    if (bound > 0) cpu_head_ = plugin_head_.Dequantized();
    cpu_head_.Fill(&view_);
  }

  void Go() {
    Prefill(plugin_head_.Input(2));
    Prefill(plugin_head_.Input(0));
    Group(plugin_head_.Input(1), true);
    Tensor broken = plugin_head_.Input(1);
    broken.data<float>()[broken.count() / 2] = NAN;
    Group(broken, true);
    Group(plugin_head_.Input(1), true);  // behind an error nothing happens
    ClearError();
    Group(plugin_head_.Input(1), false);
    OtherSettings();
    Prefill(plugin_head_.Input(40));  // more than the cache takes
  }

 private:
  SpeechHeadCudaState& state() { return *cpu_head_.state.data<SpeechHeadCudaState>(); }

  void ClearError() {
    state().error = 0;
    plugin_head_.state.data<SpeechHeadCudaState>()->error = 0;
  }

  // Other settings in the same engine; such that are out of range stop it, as an error does.
  void OtherSettings() {
    const Sampling right = plugin_head_.sampling;
    Use({1, 1.3f, 0.7f, 9, 1.1f, uint64_t{0xfedcba9876543210}, 0, 0});
    Group(plugin_head_.Input(1), true);
    Use({1, 0.0f, 0.7f, 9, 1.1f, 7, 0, 0});
    Group(plugin_head_.Input(1), false);
    Check(!launch || state().error == static_cast<int32_t>(Code::kInvalidArgument), "a temperature of 0");
    ClearError();
    Use(right);
  }

  void Use(const Sampling& sampling) { plugin_head_.sampling = cpu_head_.sampling = sampling; }

  // The plugin's updated tensors become the next call's inputs.
  void Keep(const Case& c, size_t first_output) {
    plugin_head_.state.bytes = c.outputs[first_output].bytes;
    for (size_t i = 0; i < plugin_head_.caches.size(); ++i) {
      plugin_head_.caches[i].bytes = c.outputs[first_output + 1 + i].bytes;
    }
  }

  void CheckState(const std::string& what) {
    Check(plugin_head_.state.bytes == cpu_head_.state.bytes, what + ": state");
    for (size_t i = 0; bound == 0 && i < plugin_head_.caches.size(); ++i) {
      Check(plugin_head_.caches[i].bytes == cpu_head_.caches[i].bytes, what + ": " + plugin_head_.caches[i].name);
    }
  }

  void Prefill(const Tensor& input) {
    Case c = plugin_head_.Prefill(input);
    Plugin plugin = Restored(library_, c);
    Questions(library_, c, plugin).All();
    if (!launch) return;
    Run(library_, plugin, &c).Go();
    Keep(c, 2);
    const std::vector<unsigned char> none(c.outputs[0].bytes.size(), 0xff), zeros(c.outputs[1].bytes.size());
    Check(c.outputs[0].bytes == none && c.outputs[1].bytes == zeros, c.title + ": picks of a prefill");
    const auto count = static_cast<int32_t>(input.dims[0]);
    if (count == 0 || state().error != 0) return CheckState(c.title);
    Team team(1);
    const Status status = SpeechHeadPrefillCpu(cpu_head_.shape, view_.weights, view_.cache, input.data<float>(), count,
                                               state().length, team);
    state().error = static_cast<int32_t>(status.code());
    if (status.ok()) state().length += count * cpu_head_.shape.group_size;
    CheckState(c.title + " of " + std::to_string(count));
  }

  void Group(const Tensor& input, bool logits) {
    Case c = plugin_head_.Group(input, logits);
    Plugin plugin = Restored(library_, c);
    Questions(library_, c, plugin).All();
    Run(library_, plugin, &c).Refusals();
    if (!launch) return;
    Run(library_, plugin, &c).Go();
    Keep(c, logits ? 2 : 1);
    if (state().error != 0) return CheckState(c.title + " behind an error");
    std::vector<int64_t> ids(cpu_head_.shape.group_size);
    std::vector<float> scores(ids.size() * cpu_head_.shape.codes);
    SpeechHeadGroup group{input.data<float>(), state().last_id, state().length, cpu_head_.seen.bytes.data(),
                          cpu_head_.sampling, ids.data(), scores.data(), cpu_head_.forced.data<int64_t>()};
    group.sampling.turn = state().turn, group.sampling.step = state().step;
    Team team(1);
    const Status status = SpeechHeadGroupCpu(cpu_head_.shape, view_.weights, view_.cache, group, team);
    state().error = static_cast<int32_t>(status.code());
    if (status.ok()) {
      state().last_id = ids.back(), state().length += cpu_head_.shape.group_size, state().step += 1;
      Check(std::equal(ids.begin(), ids.end(), c.outputs[0].data<int64_t>()), c.title + ": ids");
      if (logits) CheckClose(c.outputs[1].data<float>(), scores.data(), scores.size(), c.title + ": logits");
    }
    CheckState(c.title);
  }

  Library& library_;
  Head plugin_head_, cpu_head_;
  Head::View view_;
};

void CheckLibrary(Library& library) {
  Check(library.creators.size() == 3, "three creators");
  for (auto* creator : library.creators) {
    const std::string name = creator->getPluginName();
    Check(std::string(creator->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE", name + ": kind");
    Check(std::string(creator->getPluginNamespace()) == "edge_sdk", name + ": namespace");
    Check(std::string(creator->getPluginVersion()) == "1", name + ": version");
    const auto* fields = creator->getFieldNames();
    Check(fields != nullptr && fields->nbFields > 0, name + ": field names");
    for (int32_t i = 0; i < fields->nbFields; ++i) Check(fields->fields[i].name != nullptr, name + ": a field's name");
  }
}

void All(Library& library, uint64_t seed) {
  CheckLibrary(library);
  uint64_t next = seed;
  for (const Format& format : Formats()) {
    if (format.dtype == DType::kI4) continue;
    for (bool text : {false, true}) RunTokens(library, TokensCase(next++, text, format, text ? 4 : 1), false);
  }
  RunTokens(library, TokensCase(next++, true, Formats()[0], 3, true), true);
  RunTokens(library, TokensCase(next++, true, Formats()[2], 0), false);
  for (int32_t rows : {1, 7, 30, 0}) RunRows(library, RowsCase(next++, rows));
  for (DType cache : {DType::kF32, DType::kF16, DType::kI8}) {
    for (int i = 0; i < 6; ++i) Conversation(library, MakeHead(next++, cache, 31 + i)).Go();
  }
  const GroupCase tokens = TokensCase(next++, true, Formats()[2], 2);
  const Head head = MakeHead(next++, DType::kI8, 9);
  for (const Case& c :
       {Case(tokens), RowsCase(next++, 5), head.Group(head.Input(1), true), head.Prefill(head.Input(2))}) {
    CheckFields(library, c);
  }
  CheckValues(library, head, tokens);
}

}  // namespace
}  // namespace edge_sdk::trt_test

int main(int count, char** arguments) {
  using namespace edge_sdk::trt_test;
  const char* path = nullptr;
  long rounds = 0;
  uint64_t seed = 1;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    const bool value = i + 1 < count;
    if (argument == "--no-launch") {
      launch = false;
    } else if (argument == "--fuzz" && value) {
      rounds = std::atol(arguments[++i]);
    } else if (argument == "--seed" && value) {
      seed = std::strtoull(arguments[++i], nullptr, 10);
    } else if (argument == "--bound" && value) {
      bound = std::atof(arguments[++i]);
    } else {
      path = arguments[i];
    }
  }
  if (path == nullptr) {
    std::fprintf(stderr, "usage: trt_harness LIBRARY [--no-launch] [--fuzz ROUNDS] [--seed SEED] [--bound ERROR]\n");
    return 2;
  }
#if defined(EDGE_SDK_HARNESS_GPU)
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
#endif
  try {
    Library library(path);
    All(library, seed);
    if (rounds > 0) {
      const FuzzResult fuzzed = Fuzz(library, rounds, seed);
      std::printf("fuzz: %ld rounds, %ld plugins made\n", rounds, fuzzed.made);
      Check(fuzzed.silent == 0, "refusals without a word: " + std::to_string(fuzzed.silent));
      Check(fuzzed.made > rounds / 1000 && fuzzed.made < rounds, "a fuzz that is neither hopeless nor harmless");
    }
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
