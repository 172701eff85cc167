// IEEE half precision by integer arithmetic, for code that has no instructions for it.
#pragma once

#include <cstdint>
#include <cstring>

namespace edge_sdk {

inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7FFF;
  uint32_t bits;
  if (magnitude >= 0x7C00) {  // infinity, NaN
    bits = sign | 0x7F800000 | (magnitude & 0x3FF) << 13;
  } else if (magnitude >= 0x0400) {
    bits = sign | ((magnitude << 13) + 0x38000000);
  } else {  // subnormal: the value is magnitude * 2^-24, exact in float32
    float value = static_cast<float>(magnitude) * (1.0f / 16777216.0f);
    std::memcpy(&bits, &value, sizeof bits);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Rounds to nearest, ties to even. What is too large becomes the largest finite half: a cache must not hold infinities.
inline uint16_t FloatToHalf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7E00;
  if (magnitude >= 0x477FF000) return sign | 0x7BFF;  // 65520 and above
  if (magnitude < 0x38800000) {                        // below 2^-14: subnormal
    float scaled;
    std::memcpy(&scaled, &magnitude, sizeof scaled);
    scaled += 0.5f;  // an ulp of 2^-24 there: the addition rounds as a half does
    uint32_t rounded;
    std::memcpy(&rounded, &scaled, sizeof rounded);
    return sign | static_cast<uint16_t>(rounded - 0x3F000000);
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return sign | static_cast<uint16_t>((magnitude - 0x38000000 + 0xFFF + odd) >> 13);
}

}  // namespace edge_sdk
