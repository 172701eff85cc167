// What a group of the speech head costs on a GPU, beside the limit that memory sets, measured in the same run.
//
//     nvcc -std=c++17 -O3 -arch=native -Icsrc tests/bench/speech_head_cuda.cu csrc/kernels/speech_head_cuda.cu -o bench
//     ./bench [int8|int4|fp16] [int8|fp16|fp32: cache] [positions]      (without arguments: the table)
//
// Full size: 28 layers, 1024 wide, 16/8 heads of 128, 3072, 5 tokens a group, random weights. Prints a table, and one
// JSON line last. That the kernels compute the right thing is tests/csrc/test_cuda.py's to show, on the same machine.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/speech_head.h"

namespace {

using edge_sdk::DType;
using edge_sdk::Matrix;

constexpr int kRepeats = 30;
constexpr size_t kReadBytes = size_t{1} << 30;  // far above any L2

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

void Check(const edge_sdk::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

__global__ void FillBytes(uint8_t* p, size_t count, uint32_t seed) {
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13;
    p[i] = static_cast<uint8_t>(x >> 8);
  }
}

template <class T>
__global__ void FillValues(T* p, size_t count, float value, float spread) {
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + 12345u;
    x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13;
    p[i] = static_cast<T>(value + spread * (static_cast<float>(x >> 8) * 1.1920929e-7f - 1.0f));
  }
}

__global__ void Read(const uint4* p, size_t count, uint32_t* out) {
  uint32_t sum = 0;
#pragma unroll 8
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    const uint4 v = p[i];
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *out = sum;  // never, as far as the compiler knows: it may not drop the loads
}

class Device {
 public:
  Device() {
    Check(cudaGetDeviceProperties(&properties_, 0), "cudaGetDeviceProperties");
    Check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    Check(cudaEventCreate(&begin_), "cudaEventCreate");
    Check(cudaEventCreate(&end_), "cudaEventCreate");
  }

  cudaStream_t stream() const { return stream_; }
  const cudaDeviceProp& properties() const { return properties_; }
  int blocks() const { return properties_.multiProcessorCount * 8; }

  void* Bytes(size_t count) {
    void* p = nullptr;
    Check(cudaMalloc(&p, count), "cudaMalloc");
    Check(cudaMemset(p, 0, count), "cudaMemset");
    owned_.push_back(p);
    return p;
  }
  template <class T>
  T* Values(size_t count, float value, float spread) {
    T* p = static_cast<T*>(Bytes(count * sizeof(T)));
    FillValues<T><<<blocks(), 256>>>(p, count, value, spread);
    return p;
  }
  uint8_t* Noise(size_t count) {
    auto* p = static_cast<uint8_t*>(Bytes(count));
    FillBytes<<<blocks(), 256>>>(p, count, static_cast<uint32_t>(owned_.size()));
    return p;
  }
  void Free() {
    Check(cudaDeviceSynchronize(), "before freeing");
    for (void* p : owned_) Check(cudaFree(p), "cudaFree");
    owned_.clear();
  }

  // Median time of `work`, which enqueues on the stream, in milliseconds; `prepare` comes before each and is not timed.
  template <class Prepare, class Work>
  float MedianMs(Prepare&& prepare, Work&& work) {
    std::vector<float> times;
    for (int i = 0; i < kRepeats + 3; ++i) {
      prepare();
      Check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
      work();
      Check(cudaEventRecord(end_, stream_), "cudaEventRecord");
      Check(cudaEventSynchronize(end_), "cudaEventSynchronize");
      float ms = 0;
      Check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
      if (i >= 3) times.push_back(ms);  // the first ones warm up
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

 private:
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::vector<void*> owned_;
};

struct Precision {
  DType weights;
  DType cache;
  int positions;
};

const char* Name(DType d) {
  constexpr const char* kNames[] = {"fp32", "fp16", "int8", "int4"};
  return kNames[static_cast<int>(d)];
}

Matrix RandomMatrix(Device& device, DType dtype, int rows, int cols) {
  Matrix m;
  m.dtype = dtype, m.rows = rows, m.cols = cols;
  const float spread = 1.7f / std::sqrt(static_cast<float>(cols));
  if (!m.quantized()) {
    m.data = dtype == DType::kF16 ? static_cast<void*>(device.Values<__half>(size_t(rows) * cols, 0, spread))
                                  : device.Values<float>(size_t(rows) * cols, 0, spread);
    return m;
  }
  m.block = 128, m.scale_dtype = DType::kF16;
  m.data = device.Noise(static_cast<size_t>(m.row_bytes()) * rows);
  const float step = spread / (dtype == DType::kI8 ? 127.0f : 7.0f);
  m.scales = device.Values<__half>(size_t(rows) * m.blocks(), step, 0);
  return m;
}

size_t MatrixBytes(const Matrix& m) {
  const size_t scales = m.quantized() ? size_t(m.rows) * m.blocks() * (m.scale_dtype == DType::kF16 ? 2 : 4) : 0;
  return static_cast<size_t>(m.row_bytes()) * m.rows + scales;
}

class Head {
 public:
  Head(Device& device, const Precision& precision) : device_(device), precision_(precision) {
    MakeWeights();
    MakeCache();
    group_.head_input = device.Values<float>(shape_.hidden, 0, 1);
    group_.seen = static_cast<uint8_t*>(device.Bytes(shape_.codes));
    group_.ids = static_cast<int64_t*>(device.Bytes(sizeof(int64_t) * shape_.group_size));
    group_.sampling = {1, 0.8f, 0.9f, 0, 1.2f, 7, 0, 0};
    state_ = static_cast<edge_sdk::SpeechHeadCudaState*>(device.Bytes(sizeof(*state_)));
    workspace_ = device.Bytes(edge_sdk::SpeechHeadWorkspaceBytes(shape_, 32));
    Check(cudaDeviceSynchronize(), "filling");
  }

  void Group() {
    Check(edge_sdk::SpeechHeadGroupCuda(shape_, weights_, cache_, group_, state_, workspace_, device_.stream()));
  }

  // Back to `positions` filled: otherwise the repeats would measure a growing cache.
  void Rewind() {
    const edge_sdk::SpeechHeadCudaState state{0, precision_.positions, 0, 0, 0};
    Check(cudaMemcpyAsync(state_, &state, sizeof(state), cudaMemcpyHostToDevice, device_.stream()), "cudaMemcpyAsync");
    Check(cudaStreamSynchronize(device_.stream()), "rewinding");
  }

  void MustBeFine() {
    edge_sdk::SpeechHeadCudaState state{};
    Check(cudaMemcpy(&state, state_, sizeof(state), cudaMemcpyDeviceToHost), "cudaMemcpy");
    if (state.error == 0 && state.length > precision_.positions) return;
    std::fprintf(stderr, "the group failed: code %d, length %d\n", state.error, state.length);
    std::exit(1);
  }

  // Read from memory by one group: all weights for each of the G steps, the cache as it grows, the input projection.
  size_t Bytes() const {
    size_t step = MatrixBytes(weights_.output_table);
    for (const auto& l : layers_) {
      for (const Matrix* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) step += MatrixBytes(*m);
    }
    size_t total = MatrixBytes(weights_.input) + step * shape_.group_size;
    for (int j = 0; j < shape_.group_size; ++j) total += RowBytes() * (precision_.positions + j);
    return total;
  }

 private:
  // Of one position, all layers, keys and values.
  size_t RowBytes() const {
    const size_t value = precision_.cache == DType::kF32 ? 4 : precision_.cache == DType::kF16 ? 2 : 1;
    const size_t scale = precision_.cache == DType::kI8 ? sizeof(float) : 0;
    return size_t{2} * shape_.layers * shape_.kv_heads * (value * shape_.cache_head_dim + scale);
  }

  void MakeWeights() {
    const int q = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
    const auto matrix = [&](int rows, int cols) { return RandomMatrix(device_, precision_.weights, rows, cols); };
    for (int l = 0; l < shape_.layers; ++l) {
      edge_sdk::SpeechHeadLayer layer;
      layer.input_norm = device_.Values<float>(shape_.width, 1, 0.1f);
      layer.post_norm = device_.Values<float>(shape_.width, 1, 0.1f);
      layer.q_norm = device_.Values<float>(shape_.head_dim, 1, 0.1f);
      layer.k_norm = device_.Values<float>(shape_.head_dim, 1, 0.1f);
      layer.q = matrix(q, shape_.width), layer.k = matrix(kv, shape_.width), layer.v = matrix(kv, shape_.width);
      layer.o = matrix(shape_.width, q);
      layer.gate = matrix(shape_.intermediate, shape_.width), layer.up = matrix(shape_.intermediate, shape_.width);
      layer.down = matrix(shape_.width, shape_.intermediate);
      layers_.push_back(layer);
    }
    weights_.input = matrix(shape_.group_size * shape_.width, shape_.hidden);
    weights_.input_bias = device_.Values<float>(size_t(shape_.group_size) * shape_.width, 0, 0.1f);
    weights_.input_table = matrix(shape_.codes, shape_.width);
    weights_.output_table = matrix(shape_.codes, shape_.width);
    weights_.final_norm = device_.Values<float>(shape_.width, 3, 0.1f);
    weights_.layers = layers_.data();
  }

  void MakeCache() {
    cache_.dtype = precision_.cache, cache_.capacity = precision_.positions + shape_.group_size;
    const size_t rows = size_t(shape_.kv_heads) * cache_.capacity, values = rows * shape_.cache_head_dim;
    const auto data = [&]() -> void* {
      if (cache_.dtype == DType::kI8) return device_.Noise(values);
      if (cache_.dtype == DType::kF16) return device_.Values<__half>(values, 0, 1);
      return device_.Values<float>(values, 0, 1);
    };
    for (int l = 0; l < shape_.layers; ++l) {
      keys_.push_back(data()), values_.push_back(data());
      key_scales_.push_back(device_.Values<float>(rows, 0.01f, 0));
      value_scales_.push_back(device_.Values<float>(rows, 0.01f, 0));
    }
    cache_.keys = keys_.data(), cache_.values = values_.data();
    cache_.key_scales = key_scales_.data(), cache_.value_scales = value_scales_.data();
    cache_.rope_cos = device_.Values<float>(size_t(cache_.capacity) * shape_.head_dim / 2, 0, 0.7f);
    cache_.rope_sin = device_.Values<float>(size_t(cache_.capacity) * shape_.head_dim / 2, 0, 0.7f);
  }

  Device& device_;
  const Precision precision_;
  const edge_sdk::SpeechHeadShape shape_{5, 4096, 1024, 28, 16, 8, 128, 128, 3072, 6565, 6561, 1e-6f};
  std::vector<edge_sdk::SpeechHeadLayer> layers_;
  std::vector<void*> keys_, values_;
  std::vector<float*> key_scales_, value_scales_;
  edge_sdk::SpeechHeadWeights weights_;
  edge_sdk::SpeechHeadCache cache_;
  edge_sdk::SpeechHeadGroup group_;
  edge_sdk::SpeechHeadCudaState* state_ = nullptr;
  void* workspace_ = nullptr;
};

float ReadMs(Device& device) {
  const uint8_t* data = device.Noise(kReadBytes);
  auto* out = static_cast<uint32_t*>(device.Bytes(sizeof(uint32_t)));
  const auto* vectors = reinterpret_cast<const uint4*>(data);
  return device.MedianMs([] {}, [&] {
    Read<<<device.blocks(), 256, 0, device.stream()>>>(vectors, kReadBytes / sizeof(uint4), out);
  });
}

// One row of the table, and its part of the JSON line.
std::string Run(Device& device, const Precision& precision) {
  const double read_bytes_per_ms = static_cast<double>(kReadBytes) / ReadMs(device);
  device.Free();
  Head head(device, precision);
  const float launched = device.MedianMs([&] { head.Rewind(); }, [&] { head.Group(); });
  head.MustBeFine();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t captured = nullptr;
  Check(cudaStreamBeginCapture(device.stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  head.Group();
  Check(cudaStreamEndCapture(device.stream(), &graph), "cudaStreamEndCapture");
  Check(cudaGraphInstantiate(&captured, graph, 0), "cudaGraphInstantiate");
  const float replayed = device.MedianMs(
      [&] { head.Rewind(); }, [&] { Check(cudaGraphLaunch(captured, device.stream()), "cudaGraphLaunch"); });
  head.MustBeFine();
  Check(cudaGraphExecDestroy(captured), "cudaGraphExecDestroy");
  Check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  const double limit = static_cast<double>(head.Bytes()) / read_bytes_per_ms;
  std::printf("%-7s %-6s %9d %10.1f %9.0f %9.3f %10.3f %9.3f %6.2f\n", Name(precision.weights), Name(precision.cache),
              precision.positions, static_cast<double>(head.Bytes()) / 1e6, read_bytes_per_ms / 1e6, limit, launched,
              replayed, limit / replayed);
  char json[300];
  std::snprintf(json, sizeof(json),
                "{\"weights\": \"%s\", \"cache\": \"%s\", \"positions\": %d, \"limit_ms\": %.4f, "
                "\"launched_ms\": %.4f, \"graph_ms\": %.4f, \"of_limit\": %.3f}",
                Name(precision.weights), Name(precision.cache), precision.positions, limit, launched, replayed,
                limit / replayed);
  device.Free();
  return json;
}

DType Parse(const std::string& name) {
  for (DType d : {DType::kF32, DType::kF16, DType::kI8, DType::kI4}) {
    if (name == Name(d)) return d;
  }
  std::fprintf(stderr, "unknown precision %s: fp32, fp16, int8, int4\n", name.c_str());
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Precision> wanted;
  if (argc == 4) {
    wanted.push_back({Parse(argv[1]), Parse(argv[2]), std::atoi(argv[3])});
  } else {
    for (DType weights : {DType::kI8, DType::kI4, DType::kF16}) {
      for (DType cache : {DType::kI8, DType::kF16}) {
        for (int positions : {100, 2000, 10000}) wanted.push_back({weights, cache, positions});
      }
    }
  }
  Device device;
  std::printf("%s, %d processors; medians of %d\n", device.properties().name, device.properties().multiProcessorCount,
              kRepeats);
  std::printf("weights cache  positions  MB/group read GB/s  limit ms  launch ms  graph ms  ratio\n");
  std::string rows;
  for (const Precision& precision : wanted) rows += (rows.empty() ? "" : ", ") + Run(device, precision);
  std::printf("{\"device\": \"%s\", \"speech_head_group\": [%s]}\n", device.properties().name, rows.c_str());
  return 0;
}
