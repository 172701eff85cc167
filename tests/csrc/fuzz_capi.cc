// libFuzzer on the C API: bytes become shapes, matrices and calls in any order. What a call may read or write is allocated
// to the byte, for sizes as they should be; a size that lies must be refused before anything is touched.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "edge_sdk.h"

namespace {

constexpr int kMaxCalls = 24;
constexpr int32_t kAwkward[] = {0, -1, -7, 7, 1 << 16, 1 << 24, (1 << 24) + 1, INT32_MAX, INT32_MIN};

#define EXPECT(condition)                                              \
  do {                                                                 \
    if (!(condition)) {                                                \
      std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition);     \
      std::abort();                                                    \
    }                                                                  \
  } while (false)

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  bool empty() const { return left_ == 0; }
  uint8_t Byte() {
    if (!left_) return 0;
    --left_;
    return *data_++;
  }
  int In(int low, int high) { return low + Byte() % (high - low + 1); }
  bool Seldom() { return Byte() < 6; }
  template <class T>
  T Bits() {
    T value;
    uint8_t bytes[sizeof(T)];
    for (uint8_t& b : bytes) b = Byte();
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }
  // Mostly as it is, sometimes anything.
  int32_t Size(int32_t value) {
    if (!Seldom()) return value;
    return Byte() < 128 ? kAwkward[Byte() % 9] : Bits<int32_t>();
  }
  float Number(float usual) {
    if (!Seldom()) return usual;
    constexpr float kNumbers[] = {0, -1, NAN, INFINITY, -INFINITY, 1e-45f, 3e38f, -0.0f};
    return Byte() < 128 ? kNumbers[Byte() % 8] : Bits<float>();
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

// Allocations that live as long as their head.
class Memory {
 public:
  template <class T>
  T* Array(size_t count) {
    kept_.emplace_back(new char[count * sizeof(T)]);
    return reinterpret_cast<T*>(kept_.back().get());
  }
  const float* Floats(Bytes& in, size_t count) {
    auto* out = Array<float>(count);
    std::minstd_rand random(in.Byte());
    for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    if (count && in.Seldom()) out[in.Byte() % count] = in.Number(NAN);
    return in.Seldom() ? nullptr : out;
  }

 private:
  std::vector<std::unique_ptr<char[]>> kept_;
};

edge_sdk_matrix MakeMatrix(Bytes& in, Memory& memory, int32_t rows, int32_t cols) {
  constexpr int32_t kBlocks[] = {32, 64, 96, 128, 256, 1024};
  edge_sdk_matrix m{};
  m.dtype = in.Byte() % 4;
  m.scale_dtype = in.Byte() % 2;
  m.block = kBlocks[in.Byte() % (m.dtype == EDGE_SDK_INT4 ? 2 : 6)];
  const size_t blocks = (cols - 1) / m.block + 1;
  if (m.dtype == EDGE_SDK_FLOAT32) {
    m.data = memory.Floats(in, size_t(rows) * cols);
  } else {
    const size_t bytes = rows * (m.dtype == EDGE_SDK_FLOAT16 ? size_t(cols) * 2
                                                             : blocks * m.block / (m.dtype == EDGE_SDK_INT4 ? 2 : 1));
    auto* data = memory.Array<uint8_t>(bytes);
    std::minstd_rand random(in.Byte());
    // Halves of any bits hold NaN and infinities; mostly they shall be small.
    const uint8_t mask = m.dtype == EDGE_SDK_FLOAT16 && !in.Seldom() ? 0xB7 : 0xFF;
    for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(random() >> 8) & mask;
    m.data = in.Seldom() ? nullptr : data;
  }
  if (m.scale_dtype == EDGE_SDK_FLOAT32) {
    m.scales = memory.Floats(in, rows * blocks);
  } else {
    auto* scales = memory.Array<uint16_t>(rows * blocks);
    for (size_t i = 0; i < rows * blocks; ++i) scales[i] = static_cast<uint16_t>(0x2000 + i * 37 % 0x1000);
    m.scales = scales;
  }
  m.rows = in.Size(rows);
  m.cols = in.Size(cols);
  // Another dtype or block size is no lie that could be seen: the memory must be there for it.
  if (in.Seldom()) m.dtype = kAwkward[in.Byte() % 2 ? 1 : 3];
  if (in.Seldom()) m.scale_dtype = 2 + in.Byte() % 3;
  if (in.Seldom()) m.block = kAwkward[in.Byte() % 3];
  return m;
}

struct Head {
  edge_sdk_head* handle = nullptr;
  edge_sdk_head_shape shape{};
  Memory memory;
};

struct Cache {
  edge_sdk_cache* handle = nullptr;
  size_t head = 0;
  int32_t capacity = 0;
};

// A lone table is the caller's word: only what is smaller than the truth, or no dtype at all, can be given instead.
edge_sdk_matrix Smaller(edge_sdk_matrix m, int32_t rows, int32_t cols) {
  m.rows = std::min(m.rows, rows);
  m.cols = m.cols < 1 ? m.cols : cols;
  return m;
}

class Session {
 public:
  explicit Session(Bytes in) : in_(in) {}
  ~Session() {
    for (Cache& c : caches_) edge_sdk_cache_free(c.handle);
    for (auto& h : heads_) edge_sdk_head_free(h->handle);
  }

  void Run() {
    MakeHead();
    MakeCache();
    for (int call = 0; call < kMaxCalls && !in_.empty(); ++call) {
      switch (in_.Byte() % 10) {
        case 0: MakeHead(); break;
        case 1: MakeCache(); break;
        case 2: case 3: Prefill(); break;
        case 4: case 5: case 6: Group(); break;
        case 7: GroupTokens(); break;
        case 8: GroupRows(); break;
        default: TrimOrFree(); break;
      }
    }
  }

 private:
  static bool Ok(edge_sdk_status status) {
    EXPECT(status >= EDGE_SDK_OK && status <= EDGE_SDK_NO_CHOICE);  // above all not INTERNAL
    if (status != EDGE_SDK_OK) EXPECT(edge_sdk_last_error()[0] != '\0');
    return status == EDGE_SDK_OK;
  }

  void MakeHead() {
    if (heads_.size() >= 2) return;
    auto head = std::make_unique<Head>();
    edge_sdk_head_shape s{};
    s.group_size = in_.In(1, 6);
    s.hidden = in_.In(1, 70);
    s.width = in_.In(1, 70);
    s.layers = in_.In(1, 2);
    s.kv_heads = in_.In(1, 3);
    s.heads = s.kv_heads * in_.In(1, 3);
    s.head_dim = 2 * in_.In(1, 20);
    s.intermediate = in_.In(1, 70);
    s.codes = in_.In(1, 100);
    s.bos = in_.Byte() % s.codes;
    s.eps = in_.Number(1e-6f);
    const edge_sdk_head_weights weights = MakeWeights(s, head->memory);
    edge_sdk_head_shape given = s;
    for (int32_t* field : {&given.group_size, &given.hidden, &given.width, &given.heads, &given.kv_heads, &given.head_dim,
                           &given.intermediate, &given.codes, &given.bos}) {
      *field = in_.Size(*field);
    }
    if (in_.Seldom()) given.layers = in_.Byte() % 2 ? 1 : in_.Byte() % 2 ? 0 : -5;
    const int32_t threads = in_.Size(in_.Byte() < 24 ? 2 : 1);  // waiting for each other they cost most of the time
    if (Ok(edge_sdk_head_create(in_.Seldom() ? nullptr : &given, in_.Seldom() ? nullptr : &weights, threads,
                                in_.Seldom() ? nullptr : &head->handle))) {
      head->shape = given;
      EXPECT(head->handle != nullptr);
      heads_.push_back(std::move(head));
    } else {
      EXPECT(head->handle == nullptr);
    }
  }

  edge_sdk_head_weights MakeWeights(const edge_sdk_head_shape& s, Memory& memory) {
    const int32_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    edge_sdk_head_weights w{};
    w.input = MakeMatrix(in_, memory, s.group_size * s.width, s.hidden);
    w.input_bias = memory.Floats(in_, size_t(s.group_size) * s.width);
    w.input_table = MakeMatrix(in_, memory, s.codes, s.width);
    w.output_table = MakeMatrix(in_, memory, s.codes, s.width);
    w.final_norm = memory.Floats(in_, s.width);
    auto* layers = memory.Array<edge_sdk_head_layer>(s.layers);
    for (int i = 0; i < s.layers; ++i) {
      edge_sdk_head_layer& l = layers[i];
      l.input_norm = memory.Floats(in_, s.width);
      l.post_norm = memory.Floats(in_, s.width);
      l.q_norm = memory.Floats(in_, s.head_dim);
      l.k_norm = memory.Floats(in_, s.head_dim);
      l.q = MakeMatrix(in_, memory, q, s.width);
      l.k = MakeMatrix(in_, memory, kv, s.width);
      l.v = MakeMatrix(in_, memory, kv, s.width);
      l.o = MakeMatrix(in_, memory, s.width, q);
      l.gate = MakeMatrix(in_, memory, s.intermediate, s.width);
      l.up = MakeMatrix(in_, memory, s.intermediate, s.width);
      l.down = MakeMatrix(in_, memory, s.width, s.intermediate);
    }
    w.layers = in_.Seldom() ? nullptr : layers;
    return w;
  }

  void MakeCache() {
    if (heads_.empty() || caches_.size() >= 4) return;
    Cache cache;
    cache.head = in_.Byte() % heads_.size();
    cache.capacity = in_.Seldom() ? 1200 : in_.In(1, 60);  // past a stretch of the attention's, or not
    int32_t capacity = in_.Size(cache.capacity);
    // Would really be allocated, and a prefill that fills it would take minutes of this fuzzer's time.
    if (capacity > 2048 && capacity <= 1 << 24) capacity = INT32_MAX;
    const double theta = in_.Seldom() ? in_.Bits<double>() : 1e6;
    const edge_sdk_head* head = in_.Seldom() ? nullptr : heads_[cache.head]->handle;
    if (!Ok(edge_sdk_cache_create(head, capacity, in_.Size(in_.In(0, 2)), theta, &cache.handle))) {
      EXPECT(cache.handle == nullptr);
      return;
    }
    EXPECT(cache.handle != nullptr && edge_sdk_cache_length(cache.handle) == 0);
    cache.capacity = capacity;
    caches_.push_back(cache);
  }

  Cache* AnyCache() { return caches_.empty() ? nullptr : &caches_[in_.Byte() % caches_.size()]; }
  // Mostly the cache's own.
  Head& HeadOf(const Cache& cache) { return *heads_[in_.Seldom() ? in_.Byte() % heads_.size() : cache.head]; }

  void Prefill() {
    const Cache* cache = AnyCache();
    if (!cache) return;
    Head& head = HeadOf(*cache);
    const int32_t before = edge_sdk_cache_length(cache->handle);
    const int32_t room = (cache->capacity - before) / head.shape.group_size;
    int32_t count = room > 100 && in_.Byte() % 2 ? room / 2 : in_.In(0, 5);
    Memory memory;
    // No more than the cache takes is ever read.
    const float* rows = memory.Floats(in_, size_t(std::max(count, room)) * head.shape.hidden);
    count = in_.Size(count);
    const bool ok = Ok(edge_sdk_head_prefill(head.handle, in_.Seldom() ? nullptr : cache->handle, rows, count));
    const int32_t after = edge_sdk_cache_length(cache->handle);
    EXPECT(after == before + (ok ? count * head.shape.group_size : 0) && after <= cache->capacity);
  }

  void Group() {
    const Cache* cache = AnyCache();
    if (!cache) return;
    Head& head = HeadOf(*cache);
    const edge_sdk_head_shape& s = head.shape;
    edge_sdk_sampling sampling{};
    sampling.do_sample = in_.Byte() % 2;
    sampling.temperature = in_.Number(0.8f);
    sampling.top_p = in_.Number(in_.Byte() % 2 ? 1.0f : 0.9f);
    sampling.top_k = in_.Size(in_.Byte() % 8);
    sampling.repetition_penalty = in_.Number(1.2f);
    sampling.seed = in_.Byte();
    Memory memory;
    const float* row = memory.Floats(in_, s.hidden);
    auto* seen = memory.Array<uint8_t>(s.codes);
    std::memset(seen, in_.Byte() % 2, s.codes);
    auto* ids = memory.Array<int64_t>(s.group_size);
    auto* logits = memory.Array<float>(size_t(s.group_size) * s.codes);
    const int64_t last = in_.Seldom() ? in_.Bits<int64_t>() : in_.Byte() % s.codes;
    const int32_t before = edge_sdk_cache_length(cache->handle);
    const bool ok = Ok(edge_sdk_head_group(in_.Seldom() ? nullptr : head.handle, cache->handle, row, last,
                                           in_.Seldom() ? nullptr : seen, in_.Seldom() ? nullptr : &sampling,
                                           in_.Seldom() ? nullptr : ids, in_.Byte() % 2 ? nullptr : logits));
    const int32_t after = edge_sdk_cache_length(cache->handle);
    EXPECT(after == before + (ok ? s.group_size : 0) && after <= cache->capacity);
    if (!ok) return;
    for (int32_t i = 0; i < s.group_size; ++i) EXPECT(ids[i] >= 0 && ids[i] < s.codes);
  }

  void GroupTokens() {
    Memory memory;
    const int32_t rows = in_.In(1, 40), cols = in_.In(1, 70), count = in_.In(0, 4), group_size = in_.In(1, 6);
    const edge_sdk_matrix table = MakeMatrix(in_, memory, rows, cols);
    auto* ids = memory.Array<int64_t>(size_t(count) * group_size);
    for (int i = 0; i < count * group_size; ++i) ids[i] = in_.Seldom() ? in_.Bits<int64_t>() : in_.Byte() % rows;
    const float* text = in_.Byte() % 2 ? memory.Floats(in_, size_t(count) * cols) : nullptr;
    auto* out = memory.Array<float>(size_t(count) * cols);
    const edge_sdk_matrix given = Smaller(table, rows, cols);
    Ok(edge_sdk_group_tokens(in_.Seldom() ? nullptr : &given, in_.Seldom() ? nullptr : ids, count,
                             in_.Seldom() ? kAwkward[in_.Byte() % 2] : group_size, text, in_.Seldom() ? nullptr : out));
  }

  void GroupRows() {
    Memory memory;
    const int32_t rows = in_.In(0, 20), width = in_.In(1, 30), group_size = in_.Size(in_.In(1, 6));
    const float* data = memory.Floats(in_, size_t(rows) * width);
    const int32_t groups = group_size > 0 ? (rows + int64_t{group_size} - 1) / group_size : 0;
    auto* out = memory.Array<float>(size_t(groups) * width);
    const int32_t less = in_.Seldom() ? kAwkward[in_.Byte() % 2] : rows;
    Ok(edge_sdk_group_rows(data, less, in_.Seldom() ? kAwkward[in_.Byte() % 2] : width, group_size, out));
  }

  void TrimOrFree() {
    if (caches_.empty()) return;
    const size_t at = in_.Byte() % caches_.size();
    const int32_t before = edge_sdk_cache_length(caches_[at].handle), length = in_.Size(before / 2);
    const bool ok = Ok(edge_sdk_cache_trim(caches_[at].handle, length));
    EXPECT(ok == (length >= 0 && length <= before));
    EXPECT(edge_sdk_cache_length(caches_[at].handle) == (ok ? length : before));
    EXPECT(edge_sdk_cache_bytes(caches_[at].handle) > 0);
    if (in_.Byte() % 4) return;
    edge_sdk_cache_free(caches_[at].handle);
    caches_.erase(caches_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  Bytes in_;
  std::vector<std::unique_ptr<Head>> heads_;
  std::vector<Cache> caches_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Session(Bytes(data, size)).Run();
  return 0;
}
