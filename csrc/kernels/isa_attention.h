// Part of isa_impl.h: scores and sums over a stretch of the cache.

namespace edge_sdk {
namespace EDGE_ISA {

// -- attention

template <class Io>
void ScoresOf(const CacheView& keys, const float* q, int heads, float* out, int ld) {
  const auto* row = static_cast<const typename Io::Element*>(keys.data);
  const int whole = keys.dim / kLanes * kLanes;
  for (int p = 0; p < keys.positions; ++p, row += keys.stride) {
    const float scale = keys.scales ? keys.scales[p] : 1.0f;
    for (int h = 0; h < heads; ++h) {
      const float* query = q + h * keys.dim;
      Floats a{}, b{};
      int i = 0;
      for (; i + 2 * kLanes <= whole; i += 2 * kLanes) {
        a += Io::Load(row + i) * Load(query + i);
        b += Io::Load(row + i + kLanes) * Load(query + i + kLanes);
      }
      for (; i < whole; i += kLanes) a += Io::Load(row + i) * Load(query + i);
      float sum = Sum(a + b);
      for (; i < keys.dim; ++i) sum += Io::One(row + i) * query[i];
      out[h * ld + p] = sum * scale;
    }
  }
}

// H heads by C registers of the row stay in registers over all positions.
template <class Io, int H, int C>
inline void SumTile(const CacheView& values, const float* weights, int ld, int at, float* out) {
  Floats acc[H][C];
  for (int h = 0; h < H; ++h) {
    for (int c = 0; c < C; ++c) acc[h][c] = Load(out + h * values.dim + at + c * kLanes);
  }
  const auto* row = static_cast<const typename Io::Element*>(values.data) + at;
  for (int p = 0; p < values.positions; ++p, row += values.stride) {
    const float scale = values.scales ? values.scales[p] : 1.0f;
    Floats v[C];
    for (int c = 0; c < C; ++c) v[c] = Io::Load(row + c * kLanes);
    for (int h = 0; h < H; ++h) {
      const Floats weight = Splat(weights[h * ld + p] * scale);
      for (int c = 0; c < C; ++c) acc[h][c] += weight * v[c];
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int c = 0; c < C; ++c) Store(out + h * values.dim + at + c * kLanes, acc[h][c]);
  }
}

template <class Io, int H>
void SumHeads(const CacheView& values, const float* weights, int ld, float* out) {
  int at = 0;
  for (; at + 4 * kLanes <= values.dim; at += 4 * kLanes) SumTile<Io, H, 4>(values, weights, ld, at, out);
  for (; at + kLanes <= values.dim; at += kLanes) SumTile<Io, H, 1>(values, weights, ld, at, out);
  const auto* data = static_cast<const typename Io::Element*>(values.data);
  for (; at < values.dim; ++at) {
    for (int p = 0; p < values.positions; ++p) {
      const float value = Io::One(data + int64_t{p} * values.stride + at) * (values.scales ? values.scales[p] : 1.0f);
      for (int h = 0; h < H; ++h) out[h * values.dim + at] += weights[h * ld + p] * value;
    }
  }
}

template <class Io>
void WeightedSumOf(const CacheView& values, const float* weights, int ld, int heads, float* out) {
  int h = 0;
  for (; h + 2 <= heads; h += 2) SumHeads<Io, 2>(values, weights + h * ld, ld, out + h * values.dim);
  for (; h < heads; ++h) SumHeads<Io, 1>(values, weights + h * ld, ld, out + h * values.dim);
}

// -- attention over int8: the other factor is rounded to 15 bits and a sign, 250 times finer than the cache, so that
// products are of integers. Widening every byte to float32 took three times as long as reading it.

// At once. Sums of so many products fit 32 bits; a longer head is widened to float32.
constexpr int kIntHeads = 4, kIntDim = 512, kIntPositions = 128;
// The largest of rounded values: 127 * 256, so that a value's high byte and its low one, both signed, fit a byte each.
constexpr float kIntTop = 32512.0f;

// `count` values and zeros up to `padded`. Returns the scale.
inline float RoundTo16(const float* x, int count, int padded, int16_t* out) {
  const Step step = StepFor(AbsMax(x, count), kIntTop);
  RoundAll(x, count, step, out);
  std::fill(out + count, out + padded, int16_t{0});
  return step.scale;
}

void ScoresI8(const CacheView& keys, const float* q, int heads, float* out, int ld) {
  alignas(64) int16_t rounded[kIntHeads * kIntDim];
  float scale[kIntHeads];
  const int padded = (keys.dim + IntAttention::kStep - 1) / IntAttention::kStep * IntAttention::kStep;
  for (int begin = 0; begin < heads; begin += kIntHeads) {
    const int count = std::min(kIntHeads, heads - begin);
    for (int h = 0; h < count; ++h) {
      scale[h] = RoundTo16(q + (begin + h) * keys.dim, keys.dim, padded, rounded + h * kIntDim);
    }
    IntAttention::Dots(keys, rounded, kIntDim, scale, count, out + begin * ld, ld);
  }
}

void WeightedSumI8(const CacheView& values, const float* weights, int ld, int heads, float* out) {
  alignas(64) int16_t rounded[kIntHeads * kIntPositions];
  alignas(64) int32_t sums[kIntHeads * kIntDim];
  float products[kIntPositions], scale[kIntHeads];
  for (int at = 0; at < values.positions; at += kIntPositions) {
    CacheView piece = values;
    piece.data = static_cast<const int8_t*>(values.data) + int64_t{at} * values.stride;
    piece.positions = std::min(kIntPositions, values.positions - at);
    for (int begin = 0; begin < heads; begin += kIntHeads) {
      const int count = std::min(kIntHeads, heads - begin);
      for (int h = 0; h < count; ++h) {
        const float* weight = weights + (begin + h) * ld + at;
        for (int p = 0; p < piece.positions; ++p) products[p] = weight[p] * values.scales[at + p];
        scale[h] = RoundTo16(products, piece.positions, kIntPositions, rounded + h * kIntPositions);
      }
      IntAttention::Sums(piece, rounded, kIntPositions, count, sums, kIntDim);
      for (int h = 0; h < count; ++h) {
        float* row = out + (begin + h) * values.dim;
        for (int i = 0; i < values.dim; ++i) row[i] += scale[h] * static_cast<float>(sums[h * kIntDim + i]);
      }
    }
  }
}

void Scores(const CacheView& keys, const float* q, int heads, float* out, int ld) {
  switch (keys.dtype) {
    case DType::kF32: return ScoresOf<F32Io>(keys, q, heads, out, ld);
    case DType::kF16: return ScoresOf<F16Io>(keys, q, heads, out, ld);
    default: return keys.dim <= kIntDim ? ScoresI8(keys, q, heads, out, ld) : ScoresOf<I8Io>(keys, q, heads, out, ld);
  }
}

void WeightedSum(const CacheView& values, const float* weights, int ld, int heads, float* out) {
  switch (values.dtype) {
    case DType::kF32: return WeightedSumOf<F32Io>(values, weights, ld, heads, out);
    case DType::kF16: return WeightedSumOf<F16Io>(values, weights, ld, heads, out);
    default:
      return values.dim <= kIntDim ? WeightedSumI8(values, weights, ld, heads, out)
                                   : WeightedSumOf<I8Io>(values, weights, ld, heads, out);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge_sdk
