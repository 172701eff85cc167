#include "trt/fields.h"

#include <cstring>

namespace edge_sdk::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr int32_t kMaxFields = 256;  // far above what any plugin of ours has

const char* TypeName(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kINT32: return "INT32";
    case PluginFieldType::kFLOAT32: return "FLOAT32";
    default: return "another type";
  }
}

// A name from outside, short and printable.
std::string Quoted(const char* name) {
  constexpr size_t kMost = 64;
  std::string text(name, strnlen(name, kMost));
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return "'" + text + "'";
}

const FieldSpec* FindSpec(const FieldSpecs& specs, const char* name) {
  for (const FieldSpec& spec : specs) {
    if (std::strcmp(spec.name, name) == 0) return &spec;
  }
  return nullptr;
}

Status CheckField(const PluginField& field, const FieldSpecs& known) {
  if (field.name == nullptr) return InvalidArgument("a field without a name");
  const FieldSpec* spec = FindSpec(known, field.name);
  if (spec == nullptr) return InvalidArgument("unknown field " + Quoted(field.name));
  if (field.type != spec->type) {
    return InvalidArgument("field " + Quoted(field.name) + " is of " + TypeName(field.type) + " (" +
                           std::to_string(static_cast<int32_t>(field.type)) + "), expected " + TypeName(spec->type));
  }
  if (field.length < 1 || field.data == nullptr) return InvalidArgument("field " + Quoted(field.name) + " is empty");
  return {};
}

}  // namespace

Status FieldReader::Open(const PluginFieldCollection* collection, const FieldSpecs& known, FieldReader* out) {
  if (collection == nullptr) return InvalidArgument("no fields were given");
  const int32_t count = collection->nbFields;
  if (count < 0 || count > kMaxFields || (count > 0 && collection->fields == nullptr)) {
    return InvalidArgument("a damaged collection of " + std::to_string(count) + " fields");
  }
  for (int32_t i = 0; i < count; ++i) {
    EDGE_RETURN_IF_ERROR(CheckField(collection->fields[i], known));
    for (int32_t j = 0; j < i; ++j) {
      if (std::strcmp(collection->fields[i].name, collection->fields[j].name) == 0) {
        return InvalidArgument("field " + Quoted(collection->fields[i].name) + " is given twice");
      }
    }
  }
  out->fields_ = collection->fields;
  out->count_ = count;
  return {};
}

Status FieldReader::Require(const FieldSpecs& specs) const {
  std::string missing;
  for (const FieldSpec& spec : specs) {
    if (Find(spec.name) == nullptr) missing += (missing.empty() ? "" : ", ") + std::string(spec.name);
  }
  return missing.empty() ? Status() : InvalidArgument("missing fields: " + missing);
}

Status FieldReader::Read(const char* name, bool* value) const {
  int32_t number = 0;
  EDGE_RETURN_IF_ERROR(Read(name, &number));
  if (number != 0 && number != 1) {
    return InvalidArgument("field " + Quoted(name) + " is " + std::to_string(number) + ", expected 0 or 1");
  }
  *value = number != 0;
  return {};
}

Status FieldReader::Read(const char* name, int32_t count, std::vector<int32_t>* values) const {
  values->resize(static_cast<size_t>(count));
  return Copy(name, kInt32, count, values->data(), values->size() * sizeof(int32_t));
}

const PluginField* FieldReader::Find(const char* name) const {
  for (int32_t i = 0; i < count_; ++i) {
    if (std::strcmp(fields_[i].name, name) == 0) return &fields_[i];
  }
  return nullptr;
}

Status FieldReader::Copy(const char* name, PluginFieldType type, int32_t count, void* to, size_t bytes) const {
  const PluginField* field = Find(name);
  if (field == nullptr) return InvalidArgument("missing fields: " + std::string(name));
  if (field->type != type) return InvalidArgument("field " + Quoted(name) + " is not of " + TypeName(type));
  if (field->length != count) {
    return InvalidArgument("field " + Quoted(name) + " has " + std::to_string(field->length) + " values, expected " +
                           std::to_string(count));
  }
  std::memcpy(to, field->data, bytes);  // an engine file's fields need not be aligned
  return {};
}

void SavedFields::Add(const char* name, PluginFieldType type, const void* values, size_t count, size_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(values);
  bytes_.emplace_back(begin, begin + bytes);
  fields_.emplace_back(name, bytes_.back().data(), type, static_cast<int32_t>(count));
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

}  // namespace edge_sdk::trt
