// Attention of a few query rows over one layer's cache, over a Team's threads.
#pragma once

#include <cstdint>
#include <vector>

#include "core/team.h"
#include "kernels/isa.h"
#include "kernels/speech_head.h"

namespace edge_sdk {

class Attention {
 public:
  Attention(const Isa& isa, const SpeechHeadShape& shape, const SpeechHeadCache& cache)
      : isa_(isa), shape_(shape), cache_(cache) {}

  // Writes rows k, v [rows, kv_heads * head_dim] at positions length, length + 1, ... of `layer`.
  void Append(int layer, const float* k, const float* v, int32_t rows, int32_t length);

  // out [rows, heads * head_dim]; row r sees positions 0 .. length + r. q is scaled already.
  void Run(Team& team, int layer, const float* q, int32_t rows, int32_t length, float* out);

 private:
  struct Partial {  // of one KV head over one stretch of positions, per query head
    float* top;     // [group]
    float* sum;     // [group]
    float* rows;    // [group, head_dim], not divided by sum
    float* scores;  // scratch
  };
  // Rows [begin, end) of the pass, with the query heads of one KV head: one query a lane (kernels/isa_many.h).
  struct Tile {
    int begin, end, kv_head;
  };
  void RunOne(Team& team, int layer, const float* q, int32_t length, float* out);
  void RunTile(int layer, Tile tile, const float* q, int32_t length, float* scratch, float* out) const;
  const float* Rows(void* const* data, float* const* scales, int layer, int kv_head, int begin, int end, float* spare,
                    int64_t* stride) const;
  int RowsPerTile() const;
  int64_t TileFloats(int lanes) const;
  void Stretch(int layer, int kv_head, const float* q, int begin, int end, Partial out) const;
  Partial At(int64_t index);
  static void Merge(Partial from, Partial into, int group, int dim);
  CacheView View(void* const* data, float* const* scales, int layer, int kv_head, int begin, int end) const;
  int group() const { return shape_.heads / shape_.kv_heads; }

  const Isa& isa_;
  const SpeechHeadShape& shape_;
  const SpeechHeadCache& cache_;
  std::vector<float> partials_;
};

}  // namespace edge_sdk
