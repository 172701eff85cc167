// AArch64 NEON with dot products (Armv8.2; every Jetson from Xavier on).
#include "kernels/isa.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/half.h"

#define EDGE_ISA neon
#define EDGE_ISA_NAME "neon"
#define EDGE_LANES 4

namespace edge_sdk {
namespace neon {

typedef float Floats __attribute__((vector_size(16)));

inline float Sum(Floats v) { return vaddvq_f32(reinterpret_cast<float32x4_t>(v)); }

inline Floats LoadBytes(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return reinterpret_cast<Floats>(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))));
}

inline void StoreRounded(Floats v, int32_t* out) { vst1q_s32(out, vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(v))); }

struct HalfIo {
  static Floats Load(const uint16_t* p) {
    return reinterpret_cast<Floats>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))));
  }
  static float One(uint16_t half) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
  }
};

struct IntDot {
  using Acc = int32x4_t;
  using Sums = float32x4_t;
  static constexpr int kI8ZeroPoint = 0;
  static void Accumulate(Sums* sums, Acc dot, float scale) { *sums = vfmaq_n_f32(*sums, vcvtq_f32_s32(dot), scale); }
  static float Total(Sums s, Floats more) { return Sum(reinterpret_cast<Floats>(s) + more); }

  struct I8Block {
    static constexpr int kRows = 4;
    template <int M>
    static void Dot(const uint8_t* w, const int8_t* q, int64_t ld_q, int block, Acc* dot) {
      for (int m = 0; m < M; ++m) dot[m] = vdupq_n_s32(0);
      for (int i = 0; i < block; i += 16) {
        const int8x16_t signed_w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w + i), vdupq_n_u8(0x80)));
        for (int m = 0; m < M; ++m) dot[m] = vdotq_s32(dot[m], signed_w, vld1q_s8(q + m * ld_q + i));
      }
    }
  };

  struct I4Block {
    static constexpr int kRows = 4;
    template <int M>
    static void Dot(const uint8_t* w, const int8_t* q, int64_t ld_q, int block, Acc* dot) {
      const int half = block / 2;
      for (int m = 0; m < M; ++m) dot[m] = vdupq_n_s32(0);
      for (int i = 0; i < half; i += 16) {
        const uint8x16_t packed = vld1q_u8(w + i);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
        for (int m = 0; m < M; ++m) {
          const int8_t* even = q + m * ld_q + i;
          dot[m] = vdotq_s32(dot[m], low, vld1q_s8(even));
          dot[m] = vdotq_s32(dot[m], high, vld1q_s8(even + half));
        }
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
        const int16_t* query = q + h * ld_q;
        int32x4_t low = vdupq_n_s32(0), high = low;
        int i = 0;
        for (; i + 8 <= keys.dim; i += 8) {
          const int16x8_t wide = vmovl_s8(vld1_s8(row + i)), factor = vld1q_s16(query + i);
          low = vmlal_s16(low, vget_low_s16(wide), vget_low_s16(factor));
          high = vmlal_high_s16(high, wide, factor);
        }
        int32_t dot = vaddvq_s32(vaddq_s32(low, high));
        for (; i < keys.dim; ++i) dot += query[i] * row[i];
        out[h * ld + p] = static_cast<float>(dot) * (scale[h] * keys.scales[p]);
      }
    }
  }

  static void Sums(const CacheView& values, const int16_t* w, int ld_w, int heads, int32_t* out, int ld_out) {
    const auto* data = static_cast<const int8_t*>(values.data);
    for (int h = 0; h < heads; ++h) {
      const int16_t* weight = w + h * ld_w;
      int i = 0;
      for (; i + 8 <= values.dim; i += 8) {
        int32x4_t low = vdupq_n_s32(0), high = low;
        for (int p = 0; p < values.positions; ++p) {
          const int16x8_t wide = vmovl_s8(vld1_s8(data + int64_t{p} * values.stride + i));
          low = vmlal_n_s16(low, vget_low_s16(wide), weight[p]);
          high = vmlal_high_n_s16(high, wide, weight[p]);
        }
        vst1q_s32(out + h * ld_out + i, low);
        vst1q_s32(out + h * ld_out + i + 4, high);
      }
      for (; i < values.dim; ++i) {
        int32_t sum = 0;
        for (int p = 0; p < values.positions; ++p) sum += weight[p] * data[int64_t{p} * values.stride + i];
        out[h * ld_out + i] = sum;
      }
    }
  }
};

}  // namespace neon
}  // namespace edge_sdk

#include "kernels/isa_impl.h"

namespace edge_sdk {
const Isa* NeonIsa() { return &neon::kTable; }
}  // namespace edge_sdk

#else

namespace edge_sdk {
const Isa* NeonIsa() { return nullptr; }
}  // namespace edge_sdk

#endif
