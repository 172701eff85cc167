// AVX-512 (F, BW, DQ, VL) with VNNI.
#include "kernels/isa.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/half.h"

#define EDGE_ISA avx512
#define EDGE_ISA_NAME "avx512"
#define EDGE_LANES 16
#define EDGE_MASKED_LOADS

namespace edge_sdk {
namespace avx512 {

typedef float Floats __attribute__((vector_size(64)));

inline float Sum(Floats v) { return _mm512_reduce_add_ps(v); }

inline Floats LoadBytes(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline __mmask16 First(int count) { return static_cast<__mmask16>((1u << count) - 1); }

inline Floats LoadPart(const float* p, int count) { return _mm512_maskz_loadu_ps(First(count), p); }
inline Floats LoadPart(const uint16_t* p, int count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(First(count), p));
}

inline void StoreRounded(Floats v, int32_t* out) { _mm512_storeu_si512(out, _mm512_cvtps_epi32(v)); }

struct HalfIo {
  static Floats Load(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static float One(uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }
};

inline __m512i Bytes(const void* p) { return _mm512_loadu_si512(p); }
inline __m512i Bytes32(const void* p) {  // upper half zero: adds nothing to a dot product
  return _mm512_zextsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

struct IntDot {
  using Acc = __m512i;  // sixteen int32
  using Sums = __m512;
  static constexpr int kI8ZeroPoint = 128;  // the unsigned bytes are multiplied as they are stored
  static void Accumulate(Sums* sums, Acc dot, float scale) {
    *sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(scale), *sums);
  }
  static float Total(Sums s, Floats more) { return Sum(s + more); }

  struct I8Block {
    static constexpr int kRows = 1;
    template <int M>
    static void Dot(const uint8_t* w, const int8_t* q, int64_t ld_q, int block, Acc* dot) {
      for (int m = 0; m < M; ++m) dot[m] = _mm512_setzero_si512();
      int i = 0;
      for (; i + 64 <= block; i += 64) {
        const __m512i packed = Bytes(w + i);
        for (int m = 0; m < M; ++m) dot[m] = _mm512_dpbusd_epi32(dot[m], packed, Bytes(q + m * ld_q + i));
      }
      if (i < block) {
        const __m512i packed = Bytes32(w + i);
        for (int m = 0; m < M; ++m) dot[m] = _mm512_dpbusd_epi32(dot[m], packed, Bytes32(q + m * ld_q + i));
      }
    }
  };

  struct I4Block {
    static constexpr int kRows = 4;
    template <int M>
    static void Dot(const uint8_t* w, const int8_t* q, int64_t ld_q, int block, Acc* dot) {
      const __m512i mask = _mm512_set1_epi8(15);
      for (int m = 0; m < M; ++m) dot[m] = _mm512_setzero_si512();
      const int half = block / 2;
      if (block == 32) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
        const __m256i both = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), _mm256_set1_epi8(15));
        for (int m = 0; m < M; ++m) {
          dot[m] = _mm512_dpbusd_epi32(dot[m], _mm512_zextsi256_si512(both), Bytes32(q + m * ld_q));
        }
        return;
      }
      int i = 0;
      for (; i + 64 <= half; i += 64) {
        const __m512i packed = Bytes(w + i);
        const __m512i low = _mm512_and_si512(packed, mask), high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
        for (int m = 0; m < M; ++m) {
          const int8_t* even = q + m * ld_q + i;
          dot[m] = _mm512_dpbusd_epi32(dot[m], low, Bytes(even));
          dot[m] = _mm512_dpbusd_epi32(dot[m], high, Bytes(even + half));
        }
      }
      if (i < half) {
        const __m512i packed = Bytes32(w + i);
        const __m512i low = _mm512_and_si512(packed, mask), high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
        for (int m = 0; m < M; ++m) {
          const int8_t* even = q + m * ld_q + i;
          dot[m] = _mm512_dpbusd_epi32(dot[m], low, Bytes32(even));
          dot[m] = _mm512_dpbusd_epi32(dot[m], high, Bytes32(even + half));
        }
      }
    }
  };
};

struct IntAttention {
  static constexpr int kStep = 32;
  static constexpr int kRows = 4;  // positions at once

  // The sums of four registers' lanes, in order.
  static __m128i SumFour(const __m512i* x) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }

  // kBlocks: 32 values each of a row, where the compiler may know how many: then a row is widened once for all heads.
  template <int kBlocks>
  static void DotsOf(const CacheView& keys, const int16_t* q, int ld_q, const float* scale, int heads, float* out,
                     int ld) {
    const int blocks = kBlocks ? kBlocks : (keys.dim + kStep - 1) / kStep;
    const auto last = static_cast<__mmask32>(0xFFFFFFFFu >> (blocks * kStep - keys.dim));
    const auto widened = [&](const int8_t* row, int b) {
      const __mmask32 mask = b + 1 < blocks ? 0xFFFFFFFFu : last;
      return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, row + b * kStep));
    };
    for (int p = 0; p < keys.positions; p += kRows) {
      const int rows = std::min(kRows, keys.positions - p);
      const int8_t* row[kRows];
      __m512i wide[kRows][kBlocks ? kBlocks : 1];
      for (int r = 0; r < kRows; ++r) {
        row[r] = static_cast<const int8_t*>(keys.data) + int64_t{p + std::min(r, rows - 1)} * keys.stride;
        for (int at = 0; at < keys.stride; at += kLineBytes) EDGE_FETCH_AHEAD(row[r] + at);
        for (int b = 0; b < kBlocks; ++b) wide[r][b] = widened(row[r], b);
      }
      const __m128 row_scale = _mm_maskz_loadu_ps(First(rows), keys.scales + p);
      for (int h = 0; h < heads; ++h) {
        __m512i dot[kRows];
        for (int r = 0; r < kRows; ++r) dot[r] = _mm512_setzero_si512();
        for (int b = 0; b < blocks; ++b) {
          const __m512i query = Bytes(q + h * ld_q + b * kStep);
          for (int r = 0; r < kRows; ++r) {
            dot[r] = _mm512_dpwssd_epi32(dot[r], kBlocks ? wide[r][b] : widened(row[r], b), query);
          }
        }
        const __m128 scaled = _mm_mul_ps(_mm_cvtepi32_ps(SumFour(dot)), _mm_mul_ps(_mm_set1_ps(scale[h]), row_scale));
        _mm_mask_storeu_ps(out + h * ld + p, First(rows), scaled);
      }
    }
  }

  static void Dots(const CacheView& keys, const int16_t* q, int ld_q, const float* scale, int heads, float* out,
                   int ld) {
    switch ((keys.dim + kStep - 1) / kStep) {
      case 2: return DotsOf<2>(keys, q, ld_q, scale, heads, out, ld);
      case 4: return DotsOf<4>(keys, q, ld_q, scale, heads, out, ld);
      default: return DotsOf<0>(keys, q, ld_q, scale, heads, out, ld);
    }
  }

  // 64 columns of H heads. Four positions' bytes of a column lie side by side, as dpbusd wants them, unsigned; weights
  // come as their high and low bytes, [H][2][positions].
  template <int H>
  static void SumTile(const CacheView& values, int at, const int8_t* planes, int ld, const int32_t* weight_sum,
                      int32_t* out, int ld_out) {
    const int columns = std::min(64, values.dim - at);
    const __mmask64 mask = ~uint64_t{0} >> (64 - columns);
    const auto* data = static_cast<const int8_t*>(values.data) + at;
    __m512i sum[H][2][4];
    for (auto& head : sum) {
      for (auto& plane : head) {
        for (__m512i& part : plane) part = _mm512_setzero_si512();
      }
    }
    for (int p = 0; p < values.positions; p += kRows) {
      __m512i row[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int8_t* source = data + int64_t{std::min(p + r, values.positions - 1)} * values.stride;
        EDGE_FETCH_AHEAD(source);
        row[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, source), _mm512_set1_epi8(-128));
      }
      const __m512i ab[2] = {_mm512_unpacklo_epi8(row[0], row[1]), _mm512_unpackhi_epi8(row[0], row[1])};
      const __m512i cd[2] = {_mm512_unpacklo_epi8(row[2], row[3]), _mm512_unpackhi_epi8(row[2], row[3])};
      const __m512i part[4] = {_mm512_unpacklo_epi16(ab[0], cd[0]), _mm512_unpackhi_epi16(ab[0], cd[0]),
                               _mm512_unpacklo_epi16(ab[1], cd[1]), _mm512_unpackhi_epi16(ab[1], cd[1])};
      for (int h = 0; h < H; ++h) {
        for (int plane = 0; plane < 2; ++plane) {
          int32_t four;
          std::memcpy(&four, planes + (2 * h + plane) * ld + p, sizeof four);
          for (int k = 0; k < 4; ++k) sum[h][plane][k] = _mm512_dpbusd_epi32(sum[h][plane][k], part[k], _mm512_set1_epi32(four));
        }
      }
    }
    for (int h = 0; h < H; ++h) {
      const __m512i offset = _mm512_set1_epi32(128 * weight_sum[h]);
      for (int k = 0; k < 4; ++k) {
        const __m512i high = _mm512_slli_epi32(sum[h][0][k], 8);
        const __m512i total = _mm512_sub_epi32(_mm512_add_epi32(high, sum[h][1][k]), offset);
        alignas(64) int32_t lanes[16];  // columns 4k to 4k + 3 of every 16
        _mm512_store_si512(lanes, total);
        for (int lane = 0; lane < 4; ++lane) std::memcpy(out + h * ld_out + at + 16 * lane + 4 * k, lanes + 4 * lane, 16);
      }
    }
  }

  static void Sums(const CacheView& values, const int16_t* w, int ld_w, int heads, int32_t* out, int ld_out) {
    constexpr int kMost = 128;  // positions, kIntPositions of the caller
    int8_t planes[2][2][kMost];
    int32_t weight_sum[2];
    for (int begin = 0; begin < heads; begin += 2) {
      const int count = std::min(2, heads - begin);
      for (int h = 0; h < count; ++h) {
        const int16_t* weight = w + (begin + h) * ld_w;
        weight_sum[h] = 0;
        for (int p = 0; p < ld_w; ++p) {
          const int high = (weight[p] + 128) >> 8;
          planes[h][0][p] = static_cast<int8_t>(high);
          planes[h][1][p] = static_cast<int8_t>(weight[p] - 256 * high);
          weight_sum[h] += weight[p];
        }
      }
      int32_t* rows = out + begin * ld_out;
      for (int at = 0; at < values.dim; at += 64) {
        count == 2 ? SumTile<2>(values, at, planes[0][0], kMost, weight_sum, rows, ld_out)
                   : SumTile<1>(values, at, planes[0][0], kMost, weight_sum, rows, ld_out);
      }
    }
  }
};

}  // namespace avx512
}  // namespace edge_sdk

#include "kernels/isa_impl.h"

namespace edge_sdk {
const Isa* Avx512Isa() { return &avx512::kTable; }
}  // namespace edge_sdk

#else

namespace edge_sdk {
const Isa* Avx512Isa() { return nullptr; }
}  // namespace edge_sdk

#endif
