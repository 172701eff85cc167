// Plain C++: the truth the other instruction sets are held against, and what runs where none of them does.
#include <cmath>
#include <cstdint>

#include "core/half.h"
#include "kernels/isa.h"

#define EDGE_ISA plain
#define EDGE_ISA_NAME "plain"
#define EDGE_LANES 4

namespace edge_sdk {
namespace plain {

typedef float Floats __attribute__((vector_size(16)));

inline float Sum(Floats v) { return (v[0] + v[1]) + (v[2] + v[3]); }

inline Floats LoadBytes(const int8_t* p) {
  return Floats{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}

inline void StoreRounded(Floats v, int32_t* out) {
  for (int i = 0; i < EDGE_LANES; ++i) out[i] = static_cast<int32_t>(std::nearbyint(v[i]));
}

struct HalfIo {
  static Floats Load(const uint16_t* p) {
    return Floats{HalfToFloat(p[0]), HalfToFloat(p[1]), HalfToFloat(p[2]), HalfToFloat(p[3])};
  }
  static float One(uint16_t half) { return HalfToFloat(half); }
};

struct IntDot {
  using Acc = int32_t;
  using Sums = float;
  static constexpr int kI8ZeroPoint = 0;  // taken off within the product
  static void Accumulate(Sums* sums, Acc dot, float scale) { *sums += static_cast<float>(dot) * scale; }
  static float Total(Sums sums, Floats more) { return sums + Sum(more); }

  struct I8Block {
    static constexpr int kRows = 4;
    template <int M>
    static void Dot(const uint8_t* w, const int8_t* q, int64_t ld_q, int block, Acc* dot) {
      for (int m = 0; m < M; ++m) {
        dot[m] = 0;
        for (int i = 0; i < block; ++i) dot[m] += (w[i] - 128) * q[m * ld_q + i];
      }
    }
  };
  struct I4Block {
    static constexpr int kRows = 4;
    template <int M>
    static void Dot(const uint8_t* w, const int8_t* q, int64_t ld_q, int block, Acc* dot) {
      for (int m = 0; m < M; ++m) {
        dot[m] = 0;
        const int8_t* even = q + m * ld_q;
        for (int i = 0; i < block / 2; ++i) dot[m] += (w[i] & 15) * even[i] + (w[i] >> 4) * even[block / 2 + i];
      }
    }
  };
};

struct IntAttention {
  static constexpr int kStep = 1;

  static void Dots(const CacheView& keys, const int16_t* q, int ld_q, const float* scale, int heads, float* out,
                   int ld) {
    const auto* row = static_cast<const int8_t*>(keys.data);
    for (int p = 0; p < keys.positions; ++p, row += keys.stride) {
      for (int h = 0; h < heads; ++h) {
        int32_t dot = 0;
        for (int i = 0; i < keys.dim; ++i) dot += q[h * ld_q + i] * row[i];
        out[h * ld + p] = static_cast<float>(dot) * (scale[h] * keys.scales[p]);
      }
    }
  }

  static void Sums(const CacheView& values, const int16_t* w, int ld_w, int heads, int32_t* out, int ld_out) {
    const auto* data = static_cast<const int8_t*>(values.data);
    for (int h = 0; h < heads; ++h) {
      for (int i = 0; i < values.dim; ++i) {
        int32_t sum = 0;
        for (int p = 0; p < values.positions; ++p) sum += w[h * ld_w + p] * data[int64_t{p} * values.stride + i];
        out[h * ld_out + i] = sum;
      }
    }
  }
};

}  // namespace plain
}  // namespace edge_sdk

#include "kernels/isa_impl.h"

namespace edge_sdk {
const Isa& PlainIsa() { return plain::kTable; }
}  // namespace edge_sdk
