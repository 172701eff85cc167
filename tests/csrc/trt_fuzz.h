// Damaged fields and damaged questions, from a seed. A plugin may refuse or be made; it may not read what it was not
// given, overflow, or refuse without a word. Sanitizers are the judge.
#pragma once

#include "trt_cases.h"

namespace edge_sdk::trt_test {

struct FuzzResult {
  long made = 0, silent = 0;
};

class Fuzzer {
 public:
  Fuzzer(Library& library, uint64_t seed) : library_(library), random_(seed) {
    for (int i = 0; i < 4; ++i) {
      const Head head = MakeHead(seed + 1000 + i, static_cast<DType>(i % 3), 9 + i, true);
      seeds_.push_back(head.Group(head.Input(1), i % 2 == 0));
      seeds_.push_back(head.Prefill(head.Input(3)));
      seeds_.push_back(TokensCase(seed + 2000 + i, i % 2, Formats()[i], 2));
      seeds_.push_back(RowsCase(seed + 3000 + i, 6));
    }
  }

  // With the numbers of `random`; without, with those that follow the seed's.
  void Round(Random random, FuzzResult* result) {
    random_ = std::move(random);
    Round(result);
  }

  void Round(FuzzResult* result) {
    const Case& c = random_.Of(seeds_);
    FieldSet fields = c.fields;
    for (int n = random_.Int(0, 3); n >= 0; --n) Damage(&fields);
    library_.logger.Take();
    const auto phase = random_.Chance(2) ? TensorRTPhase::kBUILD : TensorRTPhase::kRUNTIME;
    Plugin plugin = library_.Create(random_.Chance(50) ? random_.Of(seeds_).creator : c.creator, fields, phase);
    if (!plugin) {
      result->silent += library_.logger.Take().empty();
      return;
    }
    ++result->made;
    Ask(c, plugin);
    Plugin copy(plugin.get()->clone());
    const FieldSet saved = FieldSet::Saved(copy.runtime->getFieldsToSerialize());
    if (!library_.Create(copy.core->getPluginName(), saved, TensorRTPhase::kRUNTIME)) ++result->silent;  // must restore
  }

 private:
  int32_t Number() {
    static const std::vector<int32_t> hard = {
        0,       1,         -1,       2,   3,    7,    8,    31,    32,    33,      64,
        127,     128,       255,      256, 1023, 1024, 1025, 65535, 65536, 1 << 24, (1 << 24) + 1,
        1 << 30, INT32_MAX, INT32_MIN};
    return random_.Chance(3) ? static_cast<int32_t>(random_.Word()) : random_.Of(hard);
  }

  // The host vouches for a field's length: its bytes are there. A huge length is claimed over few bytes only where no
  // length like it can be right.
  void Resize(Field* f, int32_t length) {
    constexpr int32_t kMost = 1 << 14;  // above 3 + 7 * 1024 matrices
    f->length = length;
    const size_t bytes = length < 0 ? 0 : static_cast<size_t>(std::min(length, kMost)) * FieldSet::Size(f->type);
    f->bytes.resize(bytes, static_cast<unsigned char>(random_.Word()));
  }

  void Damage(FieldSet* set) {
    if (set->fields.empty()) return;
    const size_t at = random_.Word() % set->fields.size();
    Field& f = set->fields[at];
    switch (random_.Int(0, 11)) {
      case 0: set->fields.erase(set->fields.begin() + static_cast<std::ptrdiff_t>(at)); return;
      case 1: set->fields.push_back(Field(f)); return;
      case 2:
        f.name = std::string(static_cast<size_t>(random_.Int(0, 300)), static_cast<char>(random_.Int(1, 127)));
        return;
      case 3: std::swap(f.name, set->fields[random_.Word() % set->fields.size()].name); return;
      case 4:
        f.type = static_cast<PluginFieldType>(random_.Chance(4) ? Number() : random_.Int(0, 13));
        return Resize(&f, f.length);
      case 5: return Resize(&f, random_.Chance(2) ? Number() : std::clamp(f.length, 0, 1 << 20) + random_.Int(-2, 2));
      case 6: f.no_data = random_.Chance(4); return;
      case 7: f.no_name = random_.Chance(4); return;
      case 8:
        for (unsigned char& byte : f.bytes) byte = static_cast<unsigned char>(random_.Word());
        return;
      case 9:
        if (!f.bytes.empty())
          f.bytes[random_.Word() % f.bytes.size()] ^= static_cast<unsigned char>(1 << random_.Int(0, 7));
        return;
      default: {
        const int32_t value = Number();
        for (size_t i = 0; i + 4 <= f.bytes.size(); i += 4) {
          if (f.bytes.size() == 4 || random_.Chance(3)) std::memcpy(f.bytes.data() + i, &value, 4);
        }
      }
    }
  }

  void DamageDims(Dims* dims) {
    if (random_.Chance(2)) dims->nbDims = random_.Int(-1, Dims::MAX_DIMS);
    dims->d[random_.Int(0, Dims::MAX_DIMS - 1)] = random_.Chance(2) ? Number() : static_cast<int64_t>(random_.Word());
  }

  // The questions of a builder and a context, with the shapes of `c` here and there damaged. No answer is expected but
  // an answer.
  void Ask(const Case& c, Plugin& plugin) {
    auto inputs = Profile(c.inputs), outputs = Profile(c.outputs);
    auto call_in = Describe(c.inputs), call_out = Describe(c.outputs);
    const auto in = static_cast<int32_t>(inputs.size()), out = static_cast<int32_t>(outputs.size());
    for (int n = random_.Int(0, 3); n > 0; --n) {
      const size_t at = random_.Word() % inputs.size();
      DamageDims(random_.Chance(2) ? &inputs[at].max : &inputs[at].min);
      DamageDims(&call_in[at].dims);
      if (random_.Chance(3)) DamageDims(&call_out[random_.Word() % call_out.size()].dims);
      if (random_.Chance(5)) inputs[at].desc.type = static_cast<DataType>(Number());
    }
    plugin.build->configurePlugin(inputs.data(), in, outputs.data(), out);
    plugin.build->getWorkspaceSize(inputs.data(), in, outputs.data(), out);
    plugin.runtime->onShapeChange(call_in.data(), in, call_out.data(), out);
    for (int n = 0; n < 4; ++n) plugin.build->getAliasedInput(Number());
    auto all = inputs;
    all.insert(all.end(), outputs.begin(), outputs.end());
    for (int n = 0; n < 4; ++n) plugin.build->supportsFormatCombination(Number(), all.data(), in, out);
    ExpressionBuilder builder;
    std::vector<nvinfer1::DimsExprs> dims(inputs.size()), found(outputs.size());
    for (int32_t i = 0; i < in; ++i) {
      dims[i].nbDims = random_.Chance(20) ? random_.Int(-1, Dims::MAX_DIMS) : call_in[i].dims.nbDims;
      for (int32_t k = 0; k < Dims::MAX_DIMS; ++k) dims[i].d[k] = builder.Make(call_in[i].dims.d[k], random_.Chance(2));
    }
    plugin.build->getOutputShapes(dims.data(), in, nullptr, 0, found.data(), out, builder);
  }

  Library& library_;
  Random random_;
  std::vector<Case> seeds_;
};

inline FuzzResult Fuzz(Library& library, long rounds, uint64_t seed) {
  FuzzResult result;
  Fuzzer fuzzer(library, seed);
  for (long i = 0; i < rounds; ++i) fuzzer.Round(&result);
  return result;
}

}  // namespace edge_sdk::trt_test
