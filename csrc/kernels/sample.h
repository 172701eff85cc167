// From logits to an id, as edge_sdk/sampling.py states it.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/speech_head.h"

namespace edge_sdk {

// scores [codes] are changed. `seen` [codes]: ids the repetition penalty acts on. `number` in [0, 1) decides a draw.
Status PickCpu(float* scores, int32_t codes, const uint8_t* seen, const Sampling& sampling, float number, int64_t* id);

}  // namespace edge_sdk
