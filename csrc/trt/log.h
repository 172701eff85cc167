// Where the plugins say what went wrong: the host's logger where it gave us one, standard error before that.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "core/status.h"

namespace edge_sdk::trt {

void SetLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

// Logs what is not OK. Returns what TensorRT's functions do: 0, or the Code.
int32_t Report(const char* who, const Status& status) noexcept;

}  // namespace edge_sdk::trt
