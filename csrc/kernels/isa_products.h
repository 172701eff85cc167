// Part of isa_impl.h: products of matrix rows with vectors.

namespace edge_sdk {
namespace EDGE_ISA {

// -- dense rows: R rows by M vectors at once

template <class Io, int R, int M>
inline void DenseTile(const Matrix& w, const Activations& x, int row, int vec, float* y, int64_t ld_y) {
  const auto* data = static_cast<const typename Io::Element*>(w.data) + int64_t{row} * w.cols;
  Floats acc[R][M] = {};
  int i = 0;
  for (; i + kLanes <= w.cols; i += kLanes) {
    for (int r = 0; r < R; ++r) {
      const Floats a = Io::Load(data + int64_t{r} * w.cols + i);
      for (int m = 0; m < M; ++m) acc[r][m] += a * Load(x.x + (vec + m) * x.ld + i);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      float sum = Sum(acc[r][m]);
      for (int j = i; j < w.cols; ++j) sum += Io::One(data + int64_t{r} * w.cols + j) * x.x[(vec + m) * x.ld + j];
      y[(vec + m) * ld_y + row + r] = sum;
    }
  }
}

struct F32Tiles {
  static constexpr int kRows = 4;
  template <int R, int M>
  static void Tile(const Matrix& w, const Activations& x, int row, int vec, float* y, int64_t ld_y) {
    DenseTile<F32Io, R, M>(w, x, row, vec, y, ld_y);
  }
};
struct F16Tiles {
  static constexpr int kRows = 4;
  template <int R, int M>
  static void Tile(const Matrix& w, const Activations& x, int row, int vec, float* y, int64_t ld_y) {
    DenseTile<F16Io, R, M>(w, x, row, vec, y, ld_y);
  }
};

// -- quantized rows: integers within a block, float32 across blocks

// Scales of up to kLanes blocks of a row; zeros behind the last.
template <class Io>
inline Floats LoadScales(const void* scales, int64_t at, int count) {
  const auto* p = static_cast<const typename Io::Element*>(scales) + at;
  return count >= kLanes ? Io::Load(p) : Io::Part(p, count);
}

// A strip of kLanes blocks at a time: their scales are multiplied at once, then each block's integers are added up with
// its product. kBlock: the block size where the compiler may know it, else 0.
template <class Block, class Io, int kZeroPoint, int kBlock, int R, int M>
inline void QuantTile(const Matrix& w, const Activations& x, int row, int vec, float* y, int64_t ld_y) {
  const int blocks = w.blocks(), block = kBlock ? kBlock : w.block;
  const int64_t row_bytes = w.row_bytes(), block_bytes = row_bytes / blocks, ld_q = int64_t{blocks} * block;
  const auto* data = static_cast<const uint8_t*>(w.data) + row * row_bytes;
  const int8_t* q = x.q + vec * ld_q;
  typename IntDot::Sums acc[R][M] = {};
  Floats offset[R][M] = {};
  for (int strip = 0; strip < blocks; strip += kLanes) {
    const int count = std::min(kLanes, blocks - strip);
    float factor[R][M][kLanes];
    for (int r = 0; r < R; ++r) {
      const Floats scale = LoadScales<Io>(w.scales, int64_t{row + r} * blocks + strip, count);
      for (int m = 0; m < M; ++m) {
        Store(factor[r][m], scale * Load(x.scale + (vec + m) * x.ld_blocks + strip));
        if (kZeroPoint) offset[r][m] += scale * Load(x.sum + (vec + m) * x.ld_blocks + strip);
      }
    }
    for (int b = 0; b < count; ++b) {
      for (int r = 0; r < R; ++r) {
        const uint8_t* stored = data + r * row_bytes + (strip + b) * block_bytes;
        for (int64_t at = 0; at < block_bytes; at += kLineBytes) EDGE_FETCH_AHEAD(stored + at);
        typename IntDot::Acc dot[M];
        Block::template Dot<M>(stored, q + int64_t{strip + b} * block, ld_q, block, dot);
        for (int m = 0; m < M; ++m) IntDot::Accumulate(&acc[r][m], dot[m], factor[r][m][b]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      y[(vec + m) * ld_y + row + r] = IntDot::Total(acc[r][m], offset[r][m] * static_cast<float>(-kZeroPoint));
    }
  }
}

template <class Block, int kZeroPoint, class Io, int kBlock>
struct QuantTiles {
  static constexpr int kRows = Block::kRows;
  template <int R, int M>
  static void Tile(const Matrix& w, const Activations& x, int row, int vec, float* y, int64_t ld_y) {
    QuantTile<Block, Io, kZeroPoint, kBlock, R, M>(w, x, row, vec, y, ld_y);
  }
};

// Many vectors: four share what a row brings. One: as many rows at once as the type reads fastest from memory.
template <class Tiles>
void RowsOf(const Matrix& w, const Activations& x, int begin, int end, float* y, int64_t ld_y) {
  constexpr int kRows = Tiles::kRows;
  int vec = 0;
  for (; vec + 4 <= x.count; vec += 4) {
    for (int row = begin; row < end; ++row) Tiles::template Tile<1, 4>(w, x, row, vec, y, ld_y);
  }
  for (; vec < x.count; ++vec) {
    int row = begin;
    for (; row + kRows <= end; row += kRows) Tiles::template Tile<kRows, 1>(w, x, row, vec, y, ld_y);
    for (; row < end; ++row) Tiles::template Tile<1, 1>(w, x, row, vec, y, ld_y);
  }
}

template <class Block, int kZeroPoint, class Io>
void QuantRows(const Matrix& w, const Activations& x, int begin, int end, float* y, int64_t ld_y) {
  switch (w.block) {
    case 32: return RowsOf<QuantTiles<Block, kZeroPoint, Io, 32>>(w, x, begin, end, y, ld_y);
    case 128: return RowsOf<QuantTiles<Block, kZeroPoint, Io, 128>>(w, x, begin, end, y, ld_y);
    default: return RowsOf<QuantTiles<Block, kZeroPoint, Io, 0>>(w, x, begin, end, y, ld_y);
  }
}

void Rows(const Matrix& w, const Activations& x, int begin, int end, float* y, int64_t ld_y) {
  const bool half_scales = w.scale_dtype == DType::kF16;
  switch (w.dtype) {
    case DType::kF32: return RowsOf<F32Tiles>(w, x, begin, end, y, ld_y);
    case DType::kF16: return RowsOf<F16Tiles>(w, x, begin, end, y, ld_y);
    case DType::kI8:
      return half_scales ? QuantRows<IntDot::I8Block, IntDot::kI8ZeroPoint, F16Io>(w, x, begin, end, y, ld_y)
                         : QuantRows<IntDot::I8Block, IntDot::kI8ZeroPoint, F32Io>(w, x, begin, end, y, ld_y);
    case DType::kI4:
      return half_scales ? QuantRows<IntDot::I4Block, 8, F16Io>(w, x, begin, end, y, ld_y)
                         : QuantRows<IntDot::I4Block, 8, F32Io>(w, x, begin, end, y, ld_y);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge_sdk
