// Body of an instruction set's file (with isa_products.h, isa_rounding.h, isa_attention.h, isa_many.h): everything but the integer
// products, written once in GCC's vector extensions
// and compiled with that set's flags. The including file defines
//   EDGE_ISA        its namespace
//   EDGE_LANES      float32 lanes of a register
// and, in that namespace before this header,
//   Floats, Sum     a register of float32, and the sum of its lanes
//   HalfIo          Load: EDGE_LANES halves as Floats; One: a single one
//   StoreRounded    a register of Floats as int32, rounded to nearest, ties to even
//   LoadBytes       EDGE_LANES signed bytes as Floats (GCC 12 takes a vector conversion apart, byte by byte)
//   IntDot          integer dot products of one block, and how they add up over blocks; see QuantTile
//   IntAttention    integer products over an int8 cache, its rows `view.stride` apart:
//                     Dots: out[h * ld + p] = scale[h] * view.scales[p] * sum_i q[h * ld_q + i] * row p[i]; behind
//                           view.dim, q holds zeros up to a multiple of kStep
//                     Sums: out[h * ld_out + i] = sum_p w[h * ld_w + p] * row p[i]; behind view.positions, w holds
//                           zeros up to ld_w. out may be written up to ld_out
// Everything is in that namespace, so that no inline function of one set is ever linked into another.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace edge_sdk {
namespace EDGE_ISA {

constexpr int kLanes = EDGE_LANES;

inline Floats Load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void Store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
inline Floats Splat(float a) { return a - Floats{}; }  // a + 0 would be computed: it is not a where a is -0

// exp by 2^n * 2^f, a polynomial of degree 6 for 2^f on [-1/2, 1/2]: relative error below 3e-7.
inline Floats Exp(Floats x) {
  typedef uint32_t Bits __attribute__((vector_size(EDGE_LANES * 4)));
  const Floats low = Splat(-87.3f), high = Splat(88.3f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Floats magic = Splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats shifted = x * 1.44269504f + magic;
  const Floats n = shifted - magic;
  Floats r = x - n * 0.693359375f;  // ln 2 in two parts
  r = r + n * 2.12194440e-4f;
  Floats p = Splat(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // Of vectors a cast keeps the bits: those of `shifted` end in n. A NaN stays one, through p.
  const Bits exponent = ((Bits)shifted + 127) << 23;
  return p * (Floats)exponent;
}

inline float ScalarExp(float x) {
  return Exp(Splat(x))[0];
}

// -- one element, one register or the first elements of one, of each storage type

#if !defined(EDGE_MASKED_LOADS)
inline Floats LoadPart(const float* p, int count) {
  float padded[kLanes] = {};
  std::memcpy(padded, p, sizeof(*p) * count);
  return Load(padded);
}
inline Floats LoadPart(const uint16_t* p, int count) {
  uint16_t padded[kLanes] = {};
  std::memcpy(padded, p, sizeof(*p) * count);
  return HalfIo::Load(padded);
}
#endif

struct F32Io {
  using Element = float;
  static Floats Load(const float* p) { return EDGE_ISA::Load(p); }
  static Floats Part(const float* p, int count) { return LoadPart(p, count); }
  static float One(const float* p) { return *p; }
};
struct F16Io {
  using Element = uint16_t;
  static Floats Load(const uint16_t* p) { return HalfIo::Load(p); }
  static Floats Part(const uint16_t* p, int count) { return LoadPart(p, count); }
  static float One(const uint16_t* p) { return HalfIo::One(*p); }
};
struct I8Io {
  using Element = int8_t;
  static Floats Load(const int8_t* p) { return LoadBytes(p); }
  static float One(const int8_t* p) { return *p; }
};

inline float ScaleAt(const Matrix& w, int64_t index) {
  return w.scale_dtype == DType::kF16 ? HalfIo::One(static_cast<const uint16_t*>(w.scales)[index])
                                      : static_cast<const float*>(w.scales)[index];
}

}  // namespace EDGE_ISA
}  // namespace edge_sdk

#include "kernels/isa_products.h"
#include "kernels/isa_rounding.h"
// Rounds its factors with the above.
#include "kernels/isa_attention.h"
#include "kernels/isa_many.h"

namespace edge_sdk {
namespace EDGE_ISA {

// -- softmax, and rows of the cache

float ExpSum(float* x, int count, float top) {
  Floats sum{};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats e = Exp(Load(x + i) - top);
    Store(x + i, e);
    sum += e;
  }
  float total = Sum(sum);
  for (; i < count; ++i) total += x[i] = ScalarExp(x[i] - top);
  return total;
}

float Max(const float* x, int count) {
  float top = x[0];
  int i = 0;
  if (count >= kLanes) {
    Floats tops = Load(x);
    for (i = kLanes; i + kLanes <= count; i += kLanes) {
      const Floats next = Load(x + i);
      tops = tops < next ? next : tops;
    }
    for (int lane = 0; lane < kLanes; ++lane) top = std::max(top, tops[lane]);
  }
  for (; i < count; ++i) top = std::max(top, x[i]);
  return top;
}

void StoreRow(const float* x, int dim, int stride, DType dtype, void* out, float* scale) {
  if (dtype == DType::kF32) {
    auto* row = static_cast<float*>(out);
    std::memcpy(row, x, sizeof(float) * dim);
    std::fill(row + dim, row + stride, 0.0f);
  } else if (dtype == DType::kF16) {
    auto* row = static_cast<uint16_t*>(out);
    for (int i = 0; i < dim; ++i) row[i] = FloatToHalf(x[i]);
    std::fill(row + dim, row + stride, uint16_t{0});
  } else {
    auto* row = static_cast<int8_t*>(out);
    const Step step = StepFor(AbsMax(x, dim));
    RoundAll(x, dim, step, row);
    std::fill(row + dim, row + stride, int8_t{0});
    *scale = step.scale;
  }
}

// -- elementwise

void RmsNorm(const float* x, const float* weight, int count, float eps, float* y) {
  Floats acc{};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) acc += Load(x + i) * Load(x + i);
  float sum = Sum(acc);
  for (; i < count; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(count) + eps);
  for (i = 0; i < count; ++i) y[i] = x[i] * scale * weight[i];
}

void SiluMul(const float* gate, const float* up, int count, float* y) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats g = Load(gate + i);
    Store(y + i, g / (1.0f + Exp(-g)) * Load(up + i));
  }
  for (; i < count; ++i) y[i] = gate[i] / (1.0f + ScalarExp(-gate[i])) * up[i];
}

void Add(float* x, const float* y, int count) {
  for (int i = 0; i < count; ++i) x[i] += y[i];
}

void Axpy(float* x, const float* y, float a, int count) {
  for (int i = 0; i < count; ++i) x[i] += a * y[i];
}

void ReadRow(const Matrix& table, int64_t row, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(table.data) + row * table.row_bytes();
  switch (table.dtype) {
    case DType::kF32:
      std::memcpy(out, bytes, sizeof(float) * table.cols);
      return;
    case DType::kF16:
      for (int i = 0; i < table.cols; ++i) out[i] = HalfIo::One(reinterpret_cast<const uint16_t*>(bytes)[i]);
      return;
    case DType::kI8:
      for (int i = 0; i < table.cols; ++i) {
        out[i] = static_cast<float>(bytes[i] - 128) * ScaleAt(table, row * table.blocks() + i / table.block);
      }
      return;
    case DType::kI4:
      for (int i = 0; i < table.cols; ++i) {
        const int q = (i & 1 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15) - 8;
        out[i] = static_cast<float>(q) * ScaleAt(table, row * table.blocks() + i / table.block);
      }
      return;
  }
}

constexpr Isa kTable{EDGE_ISA_NAME, Rows, Quantize, Scores,  WeightedSum, ExpSum, Max,  SoftmaxLanes, MultiplyLanes,
                     Widen,         StoreRow, RmsNorm,  SiluMul, Add,         Axpy,   ReadRow};

}  // namespace EDGE_ISA
}  // namespace edge_sdk
