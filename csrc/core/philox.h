// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a counter-based generator, so that
// NumPy, C++ and CUDA make the same numbers in any order. edge_sdk/sampling.py states the same in Python.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define EDGE_HOST_DEVICE __host__ __device__
#else
#define EDGE_HOST_DEVICE
#endif

namespace edge_sdk {

struct PhiloxWords {
  uint32_t w[4];
};

EDGE_HOST_DEVICE inline PhiloxWords Philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// One number in [0, 1) with 24 bits, exact in float32.
EDGE_HOST_DEVICE inline float Uniform(uint64_t seed, uint32_t turn, uint32_t step, uint32_t sub_step) {
  return static_cast<float>(Philox(seed, turn, step, sub_step, 0).w[0] >> 8) * (1.0f / 16777216.0f);
}

}  // namespace edge_sdk
