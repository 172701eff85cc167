#include "trt/log.h"

#include <atomic>
#include <cstdio>
#include <string>

namespace edge_sdk::trt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void SetLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder.store(finder); }

int32_t Report(const char* who, const Status& status) noexcept {
  if (status.ok()) return 0;
  // findLogger is the host's and may throw; so may putting the message together. What is left then is the code.
  try {
    const std::string message = std::string("edge_sdk::") + who + ": " + status.message();
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger != nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    } else {
      std::fprintf(stderr, "%s\n", message.c_str());
    }
  } catch (...) {
  }
  return static_cast<int32_t>(status.code());
}

}  // namespace edge_sdk::trt
