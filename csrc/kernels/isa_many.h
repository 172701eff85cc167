// Part of isa_impl.h: attention of many queries at once, one in each lane. Registers are full whatever the width of a
// head, and neither products nor softmax add up across lanes: a query's result does not depend on its neighbours.

namespace edge_sdk {
namespace EDGE_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kColumns = 4;  // registers of lanes beside kOutputs of them: a tile leaves some of all registers free
#else
constexpr int kColumns = 2;
#endif
constexpr int kOutputs = 4;

template <int O, int C>
inline void LaneTile(const LaneProduct& j, int output, int lane) {
  Floats acc[O][C] = {};
  float* y = j.y + int64_t{output} * j.lanes + lane;
  if (j.keep) {
    for (int o = 0; o < O; ++o) {
      for (int c = 0; c < C; ++c) {
        acc[o][c] = Load(y + int64_t{o} * j.lanes + c * kLanes) * Load(j.keep + lane + c * kLanes);
      }
    }
  }
  const float* a = j.a + output * j.output_step;
  const float* x = j.x + lane;
  for (int t = 0; t < j.terms; ++t, a += j.term_step, x += j.lanes) {
    Floats row[C];
    for (int c = 0; c < C; ++c) row[c] = Load(x + c * kLanes);
    for (int o = 0; o < O; ++o) {
      for (int c = 0; c < C; ++c) acc[o][c] += a[o * j.output_step] * row[c];
    }
  }
  for (int o = 0; o < O; ++o) {
    for (int c = 0; c < C; ++c) Store(y + int64_t{o} * j.lanes + c * kLanes, acc[o][c]);
  }
}

template <int C>
inline void LaneColumns(const LaneProduct& j, int lane) {
  int o = 0;
  for (; o + kOutputs <= j.outputs; o += kOutputs) LaneTile<kOutputs, C>(j, o, lane);
  for (; o < j.outputs; ++o) LaneTile<1, C>(j, o, lane);
}

void MultiplyLanes(const LaneProduct& j) {
  int lane = 0;
  for (; lane + kColumns * kLanes <= j.lanes; lane += kColumns * kLanes) LaneColumns<kColumns>(j, lane);
  for (; lane < j.lanes; lane += kLanes) LaneColumns<1>(j, lane);
}

void SoftmaxLanes(float* scores, int positions, int lanes, const float* ends, float* top, float* sum, float* keep) {
  for (int lane = 0; lane < lanes; lane += kLanes) {
    const Floats end = Load(ends + lane), before = Load(top + lane);
    Floats most = before, total{};
    for (int p = 0; p < positions; ++p) {
      const Floats at = Splat(static_cast<float>(p)), score = Load(scores + p * lanes + lane);
      const Floats seen = at < end ? score : most;
      most = most < seen ? seen : most;
    }
    for (int p = 0; p < positions; ++p) {
      const Floats at = Splat(static_cast<float>(p));
      const Floats weight = Exp(Load(scores + p * lanes + lane) - most);
      const Floats taken = at < end ? weight : Floats{};
      Store(scores + p * lanes + lane, taken);
      total += taken;
    }
    const Floats shrink = Exp(before - most);
    Store(keep + lane, shrink);
    Store(sum + lane, Load(sum + lane) * shrink + total);
    Store(top + lane, most);
  }
}

template <class Io>
void WidenOf(const CacheView& rows, float* out) {
  const auto* row = static_cast<const typename Io::Element*>(rows.data);
  for (int p = 0; p < rows.positions; ++p, row += rows.stride, out += rows.dim) {
    const float scale = rows.scales ? rows.scales[p] : 1.0f;
    int i = 0;
    for (; i + kLanes <= rows.dim; i += kLanes) Store(out + i, Io::Load(row + i) * scale);
    for (; i < rows.dim; ++i) out[i] = Io::One(row + i) * scale;
  }
}

void Widen(const CacheView& rows, float* out) {
  switch (rows.dtype) {
    case DType::kF32: return WidenOf<F32Io>(rows, out);
    case DType::kF16: return WidenOf<F16Io>(rows, out);
    default: return WidenOf<I8Io>(rows, out);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge_sdk
