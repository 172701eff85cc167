// Plugin fields in both directions. On the way in they come from a network's author, a parser or an engine file, so
// nothing about them is believed; on the way out they are what such a file keeps.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"

namespace edge_sdk::trt {

struct FieldSpec {
  const char* name;
  nvinfer1::PluginFieldType type;  // kINT32 or kFLOAT32
};

using FieldSpecs = std::vector<FieldSpec>;

// The fields of one createPlugin call; valid as long as the host's collection is.
class FieldReader {
 public:
  // Refuses a collection with a field that `known` does not list, one that stands twice, or one of another type.
  static Status Open(const nvinfer1::PluginFieldCollection* collection, const FieldSpecs& known, FieldReader* out);

  Status Require(const FieldSpecs& specs) const;  // names every one that is missing

  Status Read(const char* name, int32_t* value) const { return Copy(name, kInt32, 1, value, sizeof *value); }
  Status Read(const char* name, float* value) const { return Copy(name, kFloat, 1, value, sizeof *value); }
  Status Read(const char* name, bool* value) const;  // an int32, 0 or 1
  Status Read(const char* name, int32_t count, std::vector<int32_t>* values) const;

 private:
  static constexpr auto kInt32 = nvinfer1::PluginFieldType::kINT32;
  static constexpr auto kFloat = nvinfer1::PluginFieldType::kFLOAT32;

  const nvinfer1::PluginField* Find(const char* name) const;
  Status Copy(const char* name, nvinfer1::PluginFieldType type, int32_t count, void* to, size_t bytes) const;

  const nvinfer1::PluginField* fields_ = nullptr;
  int32_t count_ = 0;
};

// Owns what it lists. Filled once, then only read: clones of a plugin share one.
class SavedFields {
 public:
  SavedFields() = default;
  SavedFields(const SavedFields&) = delete;
  SavedFields& operator=(const SavedFields&) = delete;

  void Add(const char* name, int32_t value) { Add(name, nvinfer1::PluginFieldType::kINT32, &value, 1, sizeof value); }
  void Add(const char* name, float value) { Add(name, nvinfer1::PluginFieldType::kFLOAT32, &value, 1, sizeof value); }
  void Add(const char* name, const std::vector<int32_t>& values) {
    Add(name, nvinfer1::PluginFieldType::kINT32, values.data(), values.size(), values.size() * sizeof(int32_t));
  }

  const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

 private:
  void Add(const char* name, nvinfer1::PluginFieldType type, const void* values, size_t count, size_t bytes);

  std::vector<std::vector<unsigned char>> bytes_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace edge_sdk::trt
