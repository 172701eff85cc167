// What TensorRT's plugin registry looks for in a library it loads: these two functions and nothing else.
#include <NvInferRuntime.h>

#include "core/guard.h"
#include "trt/group_tokens_plugin.h"
#include "trt/log.h"
#include "trt/speech_head_plugin.h"

#define EDGE_EXPORT extern "C" __attribute__((visibility("default")))

EDGE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* creators[3] = {};
  const edge_sdk::Status status = edge_sdk::Guard([]() -> edge_sdk::Status {
    creators[0] = edge_sdk::trt::GroupTokensCreator();
    creators[1] = edge_sdk::trt::GroupRowsCreator();
    creators[2] = edge_sdk::trt::SpeechHeadCreator();
    return {};
  });
  count = edge_sdk::trt::Report("library", status) == 0 ? 3 : 0;
  return creators;
}

EDGE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { edge_sdk::trt::SetLoggerFinder(finder); }
