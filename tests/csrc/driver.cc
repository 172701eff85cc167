// Runs the case list that tests/csrc/case_file.py wrote, where there is no Python: under sanitizers, on other
// processors, with instructions that are only imitated.
//
//     edge_sdk_cases FILE ISA
//
// Every array lies in memory of exactly its size, so that a sanitizer sees the first byte too many.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/guard.h"
#include "core/thread_pool.h"
#include "isa_compare.h"
#include "kernels/group_tokens.h"
#include "kernels/isa.h"
#include "kernels/sample.h"
#include "kernels/speech_head.h"
#include "team_stress.h"

using namespace edge_sdk;

namespace {

constexpr int kThreads[] = {1, 2, 3};

class Reader {
 public:
  explicit Reader(const char* path) : stream_(path, std::ios::binary) {
    stream_.exceptions(std::ios::failbit | std::ios::badbit | std::ios::eofbit);
  }

  int64_t Integer() { return Value<int64_t>(); }
  int32_t Int() { return static_cast<int32_t>(Integer()); }
  double Number() { return Value<double>(); }

  // Null where the file has an empty array. Kept as long as the reader's Forget is not called.
  template <class T>
  const T* Array(size_t* count = nullptr) {
    const auto bytes = static_cast<size_t>(Integer());
    if (count) *count = bytes / sizeof(T);
    if (!bytes) return nullptr;
    kept_.push_back(std::make_unique<char[]>(bytes));
    stream_.read(kept_.back().get(), static_cast<std::streamsize>(bytes));
    return reinterpret_cast<const T*>(kept_.back().get());
  }

  std::string Text() {
    size_t count = 0;
    const char* data = Array<char>(&count);
    return {data, count};
  }

  Matrix ReadMatrix() {
    Matrix m;
    m.dtype = static_cast<DType>(Int());
    m.scale_dtype = static_cast<DType>(Int());
    m.rows = Int();
    m.cols = Int();
    m.block = Int();
    m.data = Array<char>();
    m.scales = Array<char>();
    return m;
  }

  Sampling ReadSampling() {
    Sampling s;
    s.do_sample = Int();
    s.top_k = Int();
    s.seed = static_cast<uint64_t>(Integer());
    s.turn = static_cast<uint32_t>(Integer());
    s.step = static_cast<uint32_t>(Integer());
    s.temperature = static_cast<float>(Number());
    s.top_p = static_cast<float>(Number());
    s.repetition_penalty = static_cast<float>(Number());
    return s;
  }

  void Forget() { kept_.clear(); }

 private:
  template <class T>
  T Value() {
    T value;
    stream_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }

  std::ifstream stream_;
  std::vector<std::unique_ptr<char[]>> kept_;
};

int failed = 0;

void Fail(const std::string& name, const std::string& what) {
  std::printf("  %s: %s\n", name.c_str(), what.c_str());
  ++failed;
}

// Norm of the difference over the norm.
double Relative(const float* found, const float* expected, size_t count) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < count; ++i) {
    difference += std::pow(double{found[i]} - expected[i], 2);
    size += double{expected[i]} * expected[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / size);
}

struct Head {
  SpeechHeadShape shape;
  SpeechHeadWeights weights;
  std::vector<SpeechHeadLayer> layers;
};

Head ReadHead(Reader& in) {
  Head head;
  SpeechHeadShape& s = head.shape;
  for (int32_t* field : {&s.group_size, &s.hidden, &s.width, &s.layers, &s.heads, &s.kv_heads, &s.head_dim,
                         &s.cache_head_dim, &s.intermediate, &s.codes, &s.bos}) {
    *field = in.Int();
  }
  s.eps = static_cast<float>(in.Number());
  head.weights.input = in.ReadMatrix();
  head.weights.input_table = in.ReadMatrix();
  head.weights.output_table = in.ReadMatrix();
  head.weights.input_bias = in.Array<float>();
  head.weights.final_norm = in.Array<float>();
  head.layers.resize(s.layers);
  for (SpeechHeadLayer& layer : head.layers) {
    for (const float** norm : {&layer.input_norm, &layer.post_norm, &layer.q_norm, &layer.k_norm}) *norm = in.Array<float>();
    for (Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) *m = in.ReadMatrix();
  }
  head.weights.layers = head.layers.data();
  return head;
}

// A cache of its own for every number of threads, full of NaN: what is read before it was written is seen.
class CacheMemory {
 public:
  CacheMemory(const SpeechHeadShape& s, DType dtype, int32_t capacity, const float* rope_cos, const float* rope_sin) {
    const size_t rows = size_t(s.kv_heads) * capacity, element = dtype == DType::kF32 ? 4 : dtype == DType::kF16 ? 2 : 1;
    for (int i = 0; i < 2 * s.layers; ++i) {
      data_.emplace_back(rows * s.cache_head_dim * element, static_cast<char>(0xFF));
      scales_.emplace_back(dtype == DType::kI8 ? rows : 0, NAN);
    }
    for (int i = 0; i < s.layers; ++i) {
      pointers_[0].push_back(data_[2 * i].data());
      pointers_[1].push_back(data_[2 * i + 1].data());
      scale_pointers_[0].push_back(scales_[2 * i].data());
      scale_pointers_[1].push_back(scales_[2 * i + 1].data());
    }
    view.dtype = dtype;
    view.capacity = capacity;
    view.keys = pointers_[0].data();
    view.values = pointers_[1].data();
    view.key_scales = scale_pointers_[0].data();
    view.value_scales = scale_pointers_[1].data();
    view.rope_cos = rope_cos;
    view.rope_sin = rope_sin;
  }
  CacheMemory(const CacheMemory&) = delete;

  SpeechHeadCache view;

 private:
  std::vector<std::vector<char>> data_;
  std::vector<std::vector<float>> scales_;
  std::vector<void*> pointers_[2];
  std::vector<float*> scale_pointers_[2];
};

struct Call {
  bool is_group;
  Code code;
  double bound;
  int32_t count = 0;  // of a prefill
  SpeechHeadGroup group;
  const int64_t* ids;
  const float* logits;
};

Call ReadCall(Reader& in, const SpeechHeadShape& shape) {
  Call call;
  call.is_group = in.Integer() != 0;
  call.group.length = in.Int();
  call.group.last_id = in.Integer();
  call.code = static_cast<Code>(in.Int());
  call.bound = in.Number();
  size_t values = 0;
  call.group.head_input = in.Array<float>(&values);
  call.count = static_cast<int32_t>(values / shape.hidden);
  call.group.seen = in.Array<uint8_t>();
  call.group.sampling = in.ReadSampling();
  call.ids = in.Array<int64_t>();
  call.logits = in.Array<float>();
  return call;
}

struct Output {
  std::vector<int64_t> ids;
  std::vector<float> logits;
};

Status Make(const Head& head, const SpeechHeadCache& cache, Call call, ThreadPool& pool, Output* out) {
  out->ids.assign(head.shape.group_size, -1);
  out->logits.assign(size_t(head.shape.group_size) * head.shape.codes, 0.0f);
  call.group.ids = out->ids.data();
  call.group.logits = out->logits.data();
  Status status;
  Team::Run(pool.source(), [&](Team& team) {
    status = Guard([&] {
      return call.is_group ? SpeechHeadGroupCpu(head.shape, head.weights, cache, call.group, team)
                           : SpeechHeadPrefillCpu(head.shape, head.weights, cache, call.group.head_input, call.count,
                                                  call.group.length, team);
    });
  });
  return status;
}

void Compare(const std::string& name, const Call& call, const Status& status, const Output& out, double* worst) {
  if (status.code() != call.code) return Fail(name, "code " + std::to_string(static_cast<int>(status.code())) + " " + status.message());
  if (!call.ids || !status.ok()) return;
  if (!std::equal(out.ids.begin(), out.ids.end(), call.ids)) return Fail(name, "other ids");
  const double relative = Relative(out.logits.data(), call.logits, out.logits.size());
  if (!(relative <= call.bound)) Fail(name, "logits differ by " + std::to_string(relative));
  *worst = std::max(*worst, relative);
}

void RunHead(Reader& in, double* worst) {
  const std::string name = in.Text();
  const Head head = ReadHead(in);
  const auto dtype = static_cast<DType>(in.Int());
  const int32_t capacity = in.Int();
  const float *rope_cos = in.Array<float>(), *rope_sin = in.Array<float>();
  const Status checked = CheckSpeechHead(head.shape, head.weights);
  if (!checked.ok()) Fail(name, checked.message());
  std::vector<Call> calls(in.Integer());
  for (Call& call : calls) call = ReadCall(in, head.shape);
  std::vector<Output> first(calls.size());
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    const CacheMemory cache(head.shape, dtype, capacity, rope_cos, rope_sin);
    for (size_t i = 0; i < calls.size(); ++i) {
      Output out;
      const Status status = Make(head, cache.view, calls[i], pool, &out);
      Compare(name, calls[i], status, out, worst);
      if (threads == 1) {
        first[i] = out;
      } else if (status.ok() && (out.ids != first[i].ids || out.logits != first[i].logits)) {
        Fail(name, "other numbers with " + std::to_string(threads) + " threads");
      }
    }
  }
}

void RunPick(Reader& in) {
  const std::string name = in.Text();
  size_t codes = 0;
  const float* logits = in.Array<float>(&codes);
  const uint8_t* seen = in.Array<uint8_t>();
  const Sampling sampling = in.ReadSampling();
  const auto number = static_cast<float>(in.Number());
  const auto code = static_cast<Code>(in.Int());
  const int64_t expected = in.Integer();
  std::vector<float> scores(logits, logits + codes);
  int64_t id = 0;
  const Status status = PickCpu(scores.data(), static_cast<int32_t>(codes), seen, sampling, number, &id);
  if (status.code() != code || (status.ok() && id != expected)) {
    Fail("pick " + name, "id " + std::to_string(id) + " instead of " + std::to_string(expected) + " " + status.message());
  }
}

void RunGroup(Reader& in, double bound) {
  const std::string name = "group " + in.Text();
  GroupTokensArgs args;
  args.table = in.ReadMatrix();
  args.count = in.Int();
  args.group_size = in.Int();
  const bool bad = in.Integer() != 0;
  GroupRowsArgs rows;
  rows.rows = in.Int();
  rows.width = args.table.cols;
  rows.group_size = args.group_size;
  args.ids = in.Array<int64_t>();
  args.text = in.Array<float>();
  rows.rows_in = in.Array<float>();
  size_t count = 0, rows_count = 0;
  const float *expected = in.Array<float>(&count), *expected_rows = in.Array<float>(&rows_count);
  std::vector<float> out(count), rows_out(rows_count);
  args.out = out.data();
  rows.out = rows_out.data();
  const Status status = GroupTokensCpu(args);
  if (status.ok() == bad) Fail(name, "code " + std::to_string(static_cast<int>(status.code())));
  if (!bad && !(Relative(out.data(), expected, count) <= bound)) Fail(name, "other sums");
  if (!GroupRowsCpu(rows).ok() || !(Relative(rows_out.data(), expected_rows, rows_count) <= bound)) Fail(name, "other means");
}

void StressTeams() {
  for (const Pool pool : {Pool::kThreads, Pool::kOneByOne, Pool::kBackwards, Pool::kLate, Pool::kLeaderOnly}) {
    const int calls = pool == Pool::kThreads ? 40 : 5;
    const int wrong = TeamStress(pool, 3, calls, 500);
    if (wrong) Fail("team", std::to_string(wrong) + " chunks ran never or twice");
  }
}

void RunAll(const char* path) {
  Reader in(path);
  const double bound = in.Number();
  const int64_t heads = in.Integer(), picks = in.Integer(), groups = in.Integer();
  double worst = 0;
  for (int64_t i = 0; i < heads; ++i, in.Forget()) RunHead(in, &worst);
  for (int64_t i = 0; i < picks; ++i, in.Forget()) RunPick(in);
  for (int64_t i = 0; i < groups; ++i, in.Forget()) RunGroup(in, bound);
  StressTeams();
  failed += CompareIsa(CurrentIsa(), bound);
  std::printf("%s: %d heads (logits differ by at most %.1e), %d picks, %d groups, teams, against plain: %d failed\n",
              CurrentIsa().name, static_cast<int>(heads), worst, static_cast<int>(picks), static_cast<int>(groups), failed);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::puts("edge_sdk_cases FILE ISA");
    return 2;
  }
  setenv("EDGE_SDK_ISA", argv[2], 1);
  if (std::strcmp(CurrentIsa().name, argv[2]) != 0) {
    std::printf("%s does not run on this processor\n", argv[2]);
    return 3;
  }
  try {
    RunAll(argv[1]);
  } catch (const std::exception& e) {
    std::printf("%s: %s\n", argv[1], e.what());
    return 1;
  }
  return failed ? 1 : 0;
}
