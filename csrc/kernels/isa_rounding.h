// Part of isa_impl.h: float32 to the integers that products and caches are of.

namespace edge_sdk {
namespace EDGE_ISA {

// NaN where x holds one: as integers, the bits of magnitudes stand in the order of the values, NaN above all.
inline float AbsMax(const float* x, int count) {
  uint32_t top = 0;
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    top = std::max(top, bits & 0x7FFFFFFF);
  }
  float out;
  std::memcpy(&out, &top, sizeof out);
  return out;
}

// q = rint(x * inverse), value = q * scale, for values up to `top`. A block that holds NaN or infinity has a scale of
// NaN, so that whatever is made of it is refused in the end; below kNothing 127 / top would overflow.
struct Step {
  float scale, inverse;
};
inline Step StepFor(float top, float steps = 127.0f) {
  constexpr float kNothing = 1e-30f;
  if (!std::isfinite(top)) return {std::numeric_limits<float>::quiet_NaN(), 0};
  return top < kNothing ? Step{0, 0} : Step{top / steps, steps / top};
}

// out[i] = rint(x[i] * inverse), ties to even; zeros where the step is NaN. Returns their sum.
template <class T>
inline int32_t RoundAll(const float* x, int count, Step step, T* out) {
  if (std::isnan(step.scale)) {
    std::memset(out, 0, sizeof(T) * count);
    return 0;
  }
  int32_t total = 0;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    int32_t lanes[kLanes];
    StoreRounded(Load(x + i) * step.inverse, lanes);
    for (int j = 0; j < kLanes; ++j) {
      out[i + j] = static_cast<T>(lanes[j]);
      total += lanes[j];
    }
  }
  for (; i < count; ++i) {
    out[i] = static_cast<T>(std::nearbyint(x[i] * step.inverse));
    total += out[i];
  }
  return total;
}

// RoundAll, the elements at even places before those at odd ones, which begin at `half`.
inline int32_t RoundParted(const float* x, int count, Step step, int half, int8_t* out) {
  constexpr int kSome = 128;
  int8_t some[kSome];
  int32_t total = 0;
  for (int at = 0; at < count; at += kSome) {
    const int n = std::min(kSome, count - at);
    total += RoundAll(x + at, n, step, some);
    for (int i = 0; i < n; i += 2) out[(at + i) / 2] = some[i];
    for (int i = 1; i < n; i += 2) out[half + (at + i) / 2] = some[i];
  }
  return total;
}

void Quantize(const float* x, int cols, int block, DType dtype, int8_t* q, float* scale, float* sum) {
  for (int begin = 0, b = 0; begin < cols; begin += block, ++b) {
    const int count = std::min(block, cols - begin), half = block / 2;
    const Step step = StepFor(AbsMax(x + begin, count));
    int8_t* out = q + begin;
    if (count < block) std::memset(out, 0, block);
    const int32_t total = dtype == DType::kI4 ? RoundParted(x + begin, count, step, half, out)
                                              : RoundAll(x + begin, count, step, out);
    scale[b] = step.scale;
    sum[b] = scale[b] * static_cast<float>(total);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge_sdk
