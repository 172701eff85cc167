#include "isa_compare.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "core/half.h"

namespace edge_sdk {
namespace {

using Floats = std::vector<float>;
using Bytes = std::vector<uint8_t>;

std::mt19937 generator(1);  // the same numbers everywhere, unlike a distribution's

float Number() { return static_cast<float>(generator() >> 8) / 8388608.0f - 1.0f; }

Floats Numbers(size_t count, float gain = 1) {
  Floats out(count);
  for (float& x : out) x = Number() * gain;
  return out;
}

double Relative(const Floats& found, const Floats& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += std::pow(double{found[i]} - expected[i], 2);
    size += double{expected[i]} * expected[i];
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

class Comparison {
 public:
  Comparison(const Isa& isa, double bound) : isa_(isa), bound_(bound) {}

  void Quantize(int cols, int block, DType dtype, float gain) {
    const Floats x = Numbers(cols, gain);
    const int blocks = (cols - 1) / block + 1;
    std::vector<int8_t> q[2];
    Floats scale[2], sum[2];
    for (int i = 0; i < 2; ++i) {
      q[i].resize(size_t(blocks) * block);
      scale[i].resize(blocks);
      sum[i].resize(blocks);
      Of(i).quantize(x.data(), cols, block, dtype, q[i].data(), scale[i].data(), sum[i].data());
    }
    Exact("quantize", q[0] == q[1] && scale[0] == scale[1] && sum[0] == sum[1], cols, block);
  }

  // Every weight, activation and scale of a quantized product; the first row has the largest values there are.
  void Rows(int rows, int cols, int count, DType dtype, int block, DType scale_dtype) {
    Matrix w;
    w.dtype = dtype;
    w.scale_dtype = scale_dtype;
    w.rows = rows;
    w.cols = cols;
    w.block = block;
    const int blocks = w.blocks();
    Bytes data(rows * w.row_bytes());
    if (w.quantized()) {
      for (uint8_t& b : data) b = static_cast<uint8_t>(generator());
      std::memset(data.data(), 0, w.row_bytes());
    } else {
      for (int64_t i = 0; i < int64_t{rows} * cols; ++i) Put(dtype, data.data(), i, Number());
    }
    Bytes scales(size_t(rows) * blocks * (scale_dtype == DType::kF16 ? 2 : 4));
    for (int64_t i = 0; i < int64_t{rows} * blocks; ++i) Put(scale_dtype, scales.data(), i, Number());
    w.data = data.data();
    w.scales = scales.data();
    Floats y[2];
    for (int i = 0; i < 2; ++i) y[i] = Product(Of(i), w, count);
    Near("rows", Relative(y[0], y[1]), static_cast<int>(dtype) * 1000000 + rows * 1000 + count, cols * 1000 + block);
  }

  void Store(int dim, int stride, DType dtype, float gain) {
    const Floats x = Numbers(dim, gain);
    Bytes out[2];
    float scale[2] = {};
    for (int i = 0; i < 2; ++i) {
      out[i].assign(size_t(stride) * 4, 0xA5);
      Of(i).store(x.data(), dim, stride, dtype, out[i].data(), &scale[i]);
    }
    Exact("store", out[0] == out[1] && scale[0] == scale[1], dim, stride);
  }

  void Attention(int dim, int positions, int heads, DType dtype) {
    const int stride = (dim + 7) / 8 * 8, ld = positions + 3;
    Bytes cache(size_t(positions) * stride * 4);
    Floats scales(positions);
    const int element = dtype == DType::kF32 ? 4 : dtype == DType::kF16 ? 2 : 1;
    for (int p = 0; p < positions; ++p) {
      const Floats row = Numbers(dim);
      PlainIsa().store(row.data(), dim, stride, dtype, cache.data() + size_t(p) * stride * element, &scales[p]);
    }
    CacheView view;
    view.data = cache.data();
    view.scales = dtype == DType::kI8 ? scales.data() : nullptr;
    view.dtype = dtype;
    view.stride = stride;
    view.dim = dim;
    view.positions = positions;
    const Floats q = Numbers(size_t(heads) * dim);
    Floats scores[2], sums[2];
    for (int i = 0; i < 2; ++i) {
      scores[i].assign(size_t(heads) * ld, 0.5f);
      Of(i).scores(view, q.data(), heads, scores[i].data(), ld);
      sums[i].assign(size_t(heads) * dim, 0.25f);
      Of(i).weighted_sum(view, scores[0].data(), ld, heads, sums[i].data());
    }
    Near("scores", Relative(scores[0], scores[1]), dim, positions);
    Near("weighted sum", Relative(sums[0], sums[1]), dim, positions);
  }

  // Many queries over a cache of which every lane sees another length, in two pieces.
  void Many(int dim, int positions, int lanes, DType dtype) {
    const int stride = (dim + 7) / 8 * 8, element = dtype == DType::kF32 ? 4 : dtype == DType::kF16 ? 2 : 1;
    Bytes cache(size_t(positions) * stride * element);
    Floats scales(positions), ends(lanes), wide[2], scores[2], sums[2], state[2];
    for (int p = 0; p < positions; ++p) {
      PlainIsa().store(Numbers(dim).data(), dim, stride, dtype, cache.data() + size_t(p) * stride * element, &scales[p]);
    }
    for (int l = 0; l < lanes; ++l) ends[l] = static_cast<float>(1 + l % positions);
    CacheView view;
    view.data = cache.data();
    view.scales = dtype == DType::kI8 ? scales.data() : nullptr;
    view.dtype = dtype;
    view.stride = stride;
    view.dim = dim;
    view.positions = positions;
    const Floats q = Numbers(size_t(dim) * lanes, 3);
    for (int i = 0; i < 2; ++i) {
      wide[i].resize(size_t(positions) * dim);
      scores[i].resize(size_t(positions) * lanes);
      sums[i].assign(size_t(dim) * lanes, 0.0f);
      state[i].assign(3 * size_t(lanes), 0.0f);  // top, sum, keep
      std::fill_n(state[i].begin(), lanes, -INFINITY);
      float *top = state[i].data(), *sum = top + lanes, *keep = sum + lanes;
      Of(i).widen(view, wide[i].data());
      for (int piece = 0; piece < 2; ++piece) {  // the same positions again, all but one of them now out of sight
        Of(i).multiply_lanes({wide[i].data(), dim, 1, positions, dim, lanes, q.data(), nullptr, scores[i].data()});
        const Floats seen = piece ? Floats(lanes, 1.0f) : ends;
        Of(i).softmax_lanes(scores[i].data(), positions, lanes, seen.data(), top, sum, keep);
        Of(i).multiply_lanes({wide[i].data(), 1, dim, dim, positions, lanes, scores[i].data(), keep, sums[i].data()});
      }
    }
    Exact("widen", wide[0] == wide[1], dim, positions);
    Near("lanes: weights", Relative(scores[0], scores[1]), dim, positions);
    Near("lanes: state", Relative(state[0], state[1]), dim, positions);
    Near("lanes: sums", Relative(sums[0], sums[1]), dim, positions);
  }

  void Elementwise(int count, float gain) {
    const Floats x = Numbers(count, gain), y = Numbers(count);
    Floats out[2][4];
    for (int i = 0; i < 2; ++i) {
      for (Floats& o : out[i]) o = x;
      Of(i).rms_norm(x.data(), y.data(), count, 1e-6f, out[i][0].data());
      Of(i).silu_mul(x.data(), y.data(), count, out[i][1].data());
      Of(i).axpy(out[i][2].data(), y.data(), 0.3f, count);
      const float top = Of(i).max(x.data(), count);
      const float sum = Of(i).exp_sum(out[i][3].data(), count, top);
      out[i][3].push_back(top);
      out[i][3].push_back(sum);
    }
    for (int k = 0; k < 4; ++k) Near("elementwise", Relative(out[0][k], out[1][k]), count, k);
  }

  int failed() const { return failed_; }

 private:
  const Isa& Of(int i) const { return i ? PlainIsa() : isa_; }

  static void Put(DType dtype, void* data, int64_t at, float value) {
    if (dtype == DType::kF16) {
      static_cast<uint16_t*>(data)[at] = FloatToHalf(value);
    } else {
      static_cast<float*>(data)[at] = value;
    }
  }

  static Floats Product(const Isa& isa, const Matrix& w, int count) {
    std::mt19937 mine(7);
    const int64_t width = w.quantized() ? int64_t{w.blocks()} * w.block : 0;
    const int64_t ld = (w.blocks() + kScalePadding - 1) / kScalePadding * kScalePadding;
    Floats x(size_t(count) * w.cols), scale(count * ld), sum(count * ld), y(size_t(count) * w.rows);
    for (float& v : x) v = static_cast<float>(mine() >> 8) / 8388608.0f - 0.7f;
    std::vector<int8_t> q(count * width);
    for (int m = 0; m < count && w.quantized(); ++m) {
      isa.quantize(&x[size_t(m) * w.cols], w.cols, w.block, w.dtype, &q[m * width], &scale[m * ld], &sum[m * ld]);
    }
    Activations in;
    in.x = x.data();
    in.ld = w.cols;
    in.q = q.data();
    in.scale = scale.data();
    in.sum = sum.data();
    in.ld_blocks = ld;
    in.count = count;
    isa.rows(w, in, 0, w.rows, y.data(), w.rows);
    return y;
  }

  void Exact(const char* what, bool same, int a, int b) {
    if (!same) Report(what, a, b, NAN);
  }
  void Near(const char* what, double relative, int a, int b) {
    if (!(relative <= bound_)) Report(what, a, b, relative);
  }
  void Report(const char* what, int a, int b, double relative) {
    std::printf("  %s against plain: %s (%d, %d): %.1e\n", isa_.name, what, a, b, relative);
    ++failed_;
  }

  const Isa& isa_;
  const double bound_;
  int failed_ = 0;
};

}  // namespace

int CompareIsa(const Isa& isa, double bound) {
  Comparison compare(isa, bound);
  for (const int cols : {1, 31, 33, 64, 130, 700, 1025}) {
    for (const int count : {1, 3, 4, 9}) {
      for (const int rows : {1, 4, 7}) {
        for (const DType dtype : {DType::kF32, DType::kF16}) compare.Rows(rows, cols, count, dtype, 0, DType::kF32);
        for (const DType half : {DType::kF32, DType::kF16}) {
          for (const int block : {32, 64, 96, 128, 1024}) compare.Rows(rows, cols, count, DType::kI8, block, half);
          for (const int block : {32, 64, 128, 192, 1024}) compare.Rows(rows, cols, count, DType::kI4, block, half);
        }
      }
    }
    for (const float gain : {0.0f, 1e-38f, 1.0f, 3e38f}) {
      compare.Quantize(cols, 32, DType::kI4, gain);
      compare.Quantize(cols, 128, DType::kI8, gain);
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) compare.Store(cols, cols + 5, dtype, gain);
    }
    for (const float gain : {1.0f, 30.0f, 1000.0f}) compare.Elementwise(cols, gain);
  }
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
    for (const int dim : {2, 8, 10, 16, 24, 64, 128, 130, 512, 514}) {  // the last: too long for integer products
      for (const int positions : {1, 5, 64, 131}) {
        for (const int heads : {1, 2, 5}) compare.Attention(dim, positions, heads, dtype);
        for (const int lanes : {16, 48, 64, 112}) compare.Many(dim, positions, lanes, dtype);
      }
    }
  }
  return compare.failed();
}

}  // namespace edge_sdk
