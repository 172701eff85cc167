// AVX-512 where no processor has it: force-included before kernels/isa_avx512.cc, which then compiles as it stands, its
// intrinsics made of AVX2 ones by SIMDe (libsimde-dev). Those that SIMDe 0.7.4 lacks are made of halves here.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h>
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

namespace imitated {

struct Halves {
  __m256 low, high;
};

inline __m512 Join(Halves halves) {
  __m512 out;
  std::memcpy(&out, &halves, sizeof out);
  return out;
}

inline __m512 cvtepi32_ps(__m512i a) {
  __m256i halves[2];
  std::memcpy(halves, &a, sizeof halves);
  return Join({_mm256_cvtepi32_ps(halves[0]), _mm256_cvtepi32_ps(halves[1])});
}

inline __m512i cvtepi8_epi32(__m128i a) {
  const __m256i halves[2] = {_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8))};
  __m512i out;
  std::memcpy(&out, halves, sizeof out);
  return out;
}

inline __m512i cvtepi8_epi16(__m256i a) {
  const __m256i halves[2] = {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(a)),
                             _mm256_cvtepi8_epi16(_mm256_extracti128_si256(a, 1))};
  __m512i out;
  std::memcpy(&out, halves, sizeof out);
  return out;
}

inline __m512i cvtps_epi32(__m512 a) {
  Halves from;
  std::memcpy(&from, &a, sizeof from);
  const __m256i halves[2] = {_mm256_cvtps_epi32(from.low), _mm256_cvtps_epi32(from.high)};
  __m512i out;
  std::memcpy(&out, halves, sizeof out);
  return out;
}

// Elements that the mask leaves out are not touched in memory, as the instructions say.
template <class Register, class Element>
inline Register masked_load(uint64_t mask, const void* p) {
  alignas(64) Element x[sizeof(Register) / sizeof(Element)] = {};
  for (size_t i = 0; i < sizeof(Register) / sizeof(Element); ++i) {
    if (mask >> i & 1) std::memcpy(x + i, static_cast<const Element*>(p) + i, sizeof(Element));
  }
  Register out;
  std::memcpy(&out, x, sizeof out);
  return out;
}

inline void mask_storeu_ps(void* p, uint64_t mask, __m128 a) {
  float x[4];
  std::memcpy(x, &a, sizeof x);
  for (int i = 0; i < 4; ++i) {
    if (mask >> i & 1) static_cast<float*>(p)[i] = x[i];
  }
}

inline __m512 cvtph_ps(__m256i a) {
  return Join({_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))});
}

inline __m512i zextsi256_si512(__m256i a) {
  __m256i halves[2] = {a, _mm256_setzero_si256()};
  __m512i out;
  std::memcpy(&out, halves, sizeof out);
  return out;
}

// In the order of the instruction's own expansion: halves, quarters, pairs.
inline float reduce_add_ps(__m512 a) {
  float x[16];
  std::memcpy(x, &a, sizeof x);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  }
  return x[0];
}

}  // namespace imitated

#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepi8_epi16
#undef _mm512_cvtps_epi32
#undef _mm512_maskz_loadu_ps
#undef _mm512_maskz_loadu_epi8
#undef _mm256_maskz_loadu_epi8
#undef _mm256_maskz_loadu_epi16
#undef _mm_maskz_loadu_ps
#undef _mm_mask_storeu_ps
#undef _mm512_cvtph_ps
#undef _mm512_zextsi256_si512
#undef _mm512_reduce_add_ps
#define _mm512_cvtepi32_ps imitated::cvtepi32_ps
#define _mm512_cvtepi8_epi32 imitated::cvtepi8_epi32
#define _mm512_cvtepi8_epi16 imitated::cvtepi8_epi16
#define _mm512_cvtps_epi32 imitated::cvtps_epi32
#define _mm512_maskz_loadu_ps imitated::masked_load<__m512, float>
#define _mm512_maskz_loadu_epi8 imitated::masked_load<__m512i, int8_t>
#define _mm256_maskz_loadu_epi8 imitated::masked_load<__m256i, int8_t>
#define _mm256_maskz_loadu_epi16 imitated::masked_load<__m256i, int16_t>
#define _mm_maskz_loadu_ps imitated::masked_load<__m128, float>
#define _mm_mask_storeu_ps imitated::mask_storeu_ps
#define _mm512_cvtph_ps imitated::cvtph_ps
#define _mm512_zextsi256_si512 imitated::zextsi256_si512
#define _mm512_reduce_add_ps imitated::reduce_add_ps

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
