// AVX2 with FMA and F16C.
#include "kernels/isa.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/half.h"

#define EDGE_ISA avx2
#define EDGE_ISA_NAME "avx2"
#define EDGE_LANES 8

namespace edge_sdk {
namespace avx2 {

typedef float Floats __attribute__((vector_size(32)));

inline float Sum(Floats v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Floats LoadBytes(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline void StoreRounded(Floats v, int32_t* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_cvtps_epi32(v));
}

struct HalfIo {
  static Floats Load(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static float One(uint16_t half) { return _cvtsh_ss(half); }
};

inline __m256i Bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i Widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

struct IntDot {
  using Acc = __m256i;   // eight int32
  using Sums = __m256;
  static constexpr int kI8ZeroPoint = 0;
  static void Accumulate(Sums* sums, Acc dot, float scale) {
    *sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(scale), *sums);
  }
  static float Total(Sums s, Floats more) { return Sum(s + more); }

  struct I8Block {
    static constexpr int kRows = 2;
    template <int M>
    static void Dot(const uint8_t* w, const int8_t* q, int64_t ld_q, int block, Acc* dot) {
      for (int m = 0; m < M; ++m) dot[m] = _mm256_setzero_si256();
      for (int i = 0; i < block; i += 32) {
        // maddubs wants one side unsigned and would saturate at 255 * 127 * 2: |w| <= 128 with w's sign moved over.
        const __m256i signed_w = _mm256_xor_si256(Bytes(w + i), _mm256_set1_epi8(-128));
        const __m256i magnitude = _mm256_abs_epi8(signed_w);
        for (int m = 0; m < M; ++m) {
          const __m256i x = _mm256_sign_epi8(Bytes(q + m * ld_q + i), signed_w);
          dot[m] = _mm256_add_epi32(dot[m], Widen(_mm256_maddubs_epi16(magnitude, x)));
        }
      }
    }
  };

  struct I4Block {
    static constexpr int kRows = 1;
    template <int M>
    static void Dot(const uint8_t* w, const int8_t* q, int64_t ld_q, int block, Acc* dot) {
      const __m256i mask = _mm256_set1_epi8(15);
      for (int m = 0; m < M; ++m) dot[m] = _mm256_setzero_si256();
      if (block == 32) {  // 16 bytes: the low nibbles in one half of a register, the high ones in the other
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
        const __m256i both = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), mask);
        for (int m = 0; m < M; ++m) dot[m] = Widen(_mm256_maddubs_epi16(both, Bytes(q + m * ld_q)));
        return;
      }
      const int half = block / 2;
      for (int i = 0; i < half; i += 32) {
        const __m256i packed = Bytes(w + i);
        const __m256i low = _mm256_and_si256(packed, mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
        for (int m = 0; m < M; ++m) {
          const int8_t* even = q + m * ld_q + i;
          // Two products of at most 2 * 15 * 127 each still fit 16 bits together.
          const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, Bytes(even)),
                                                 _mm256_maddubs_epi16(high, Bytes(even + half)));
          dot[m] = _mm256_add_epi32(dot[m], Widen(pairs));
        }
      }
    }
  };
};

struct IntAttention {
  static constexpr int kStep = 16;

  // Up to 16 bytes as int16; `count` of them where fewer are left, then zeros.
  static __m256i Widened(const int8_t* p, int count) {
    if (count >= kStep) return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    alignas(16) int8_t padded[kStep] = {};
    std::memcpy(padded, p, count);
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(padded)));
  }

  // The sums of four registers' lanes, in order.
  static __m128i SumFour(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    const __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    const __m256i all = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  }

  static __m256i MulAdd(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

  // Two heads by two positions; a single one of either stands for both.
  static void Dots(const CacheView& keys, const int16_t* q, int ld_q, const float* scale, int heads, float* out,
                   int ld) {
    for (int p = 0; p < keys.positions; p += 2) {
      const int last = std::min(p + 1, keys.positions - 1);
      const auto* row0 = static_cast<const int8_t*>(keys.data) + int64_t{p} * keys.stride;
      const auto* row1 = static_cast<const int8_t*>(keys.data) + int64_t{last} * keys.stride;
      for (int at = 0; at < 2 * keys.stride; at += kLineBytes) EDGE_FETCH_AHEAD(row0 + at);
      for (int h = 0; h < heads; h += 2) {
        const int next = std::min(h + 1, heads - 1);
        const int16_t *q0 = q + h * ld_q, *q1 = q + next * ld_q;
        __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
        for (int i = 0; i < keys.dim; i += kStep) {
          const __m256i k0 = Widened(row0 + i, keys.dim - i), k1 = Widened(row1 + i, keys.dim - i);
          a = MulAdd(a, k0, Bytes(q0 + i));
          b = MulAdd(b, k1, Bytes(q0 + i));
          c = MulAdd(c, k0, Bytes(q1 + i));
          d = MulAdd(d, k1, Bytes(q1 + i));
        }
        alignas(16) int32_t dot[4];
        _mm_store_si128(reinterpret_cast<__m128i*>(dot), SumFour(a, b, c, d));
        out[h * ld + p] = static_cast<float>(dot[0]) * (scale[h] * keys.scales[p]);
        out[h * ld + last] = static_cast<float>(dot[1]) * (scale[h] * keys.scales[last]);
        out[next * ld + p] = static_cast<float>(dot[2]) * (scale[next] * keys.scales[p]);
        out[next * ld + last] = static_cast<float>(dot[3]) * (scale[next] * keys.scales[last]);
      }
    }
  }

  // 16 columns of two heads, two positions at a time: their values side by side, as madd wants them.
  static void Sums(const CacheView& values, const int16_t* w, int ld_w, int heads, int32_t* out, int ld_out) {
    for (int i = 0; i < values.dim; i += kStep) {
      for (int h = 0; h < heads; h += 2) SumTile(values, i, w + h * ld_w, ld_w, std::min(2, heads - h), out + h * ld_out, ld_out);
    }
  }

  static void SumTile(const CacheView& values, int at, const int16_t* w, int ld_w, int heads, int32_t* out, int ld_out) {
    const auto* data = static_cast<const int8_t*>(values.data) + at;
    const int left = values.dim - at, next = heads - 1;
    __m256i low0 = _mm256_setzero_si256(), high0 = low0, low1 = low0, high1 = low0;
    for (int p = 0; p < values.positions; p += 2) {
      const int8_t* row = data + int64_t{p} * values.stride;
      const bool single = p + 1 == values.positions;  // then the second weight is zero
      if (at % kLineBytes == 0) EDGE_FETCH_AHEAD(row), EDGE_FETCH_AHEAD(row + values.stride);
      const __m256i a = Widened(row, left), b = Widened(single ? row : row + values.stride, left);
      const __m256i ab_low = _mm256_unpacklo_epi16(a, b), ab_high = _mm256_unpackhi_epi16(a, b);
      const __m256i pair0 = Pair(w + p), pair1 = Pair(w + next * ld_w + p);
      low0 = MulAdd(low0, ab_low, pair0);
      high0 = MulAdd(high0, ab_high, pair0);
      low1 = MulAdd(low1, ab_low, pair1);
      high1 = MulAdd(high1, ab_high, pair1);
    }
    StoreColumns(low0, high0, out + at);
    if (next) StoreColumns(low1, high1, out + ld_out + at);
  }

  static __m256i Pair(const int16_t* w) {
    int32_t pair;
    std::memcpy(&pair, w, sizeof pair);
    return _mm256_set1_epi32(pair);
  }

  // Columns 0 to 3 and 8 to 11 lie in `low`.
  static void StoreColumns(__m256i low, __m256i high, int32_t* out) {
    auto* to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
  }
};

}  // namespace avx2
}  // namespace edge_sdk

#include "kernels/isa_impl.h"

namespace edge_sdk {
const Isa* Avx2Isa() { return &avx2::kTable; }
}  // namespace edge_sdk

#else

namespace edge_sdk {
const Isa* Avx2Isa() { return nullptr; }
}  // namespace edge_sdk

#endif
