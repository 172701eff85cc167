// Single kernels for tests and benchmarks, over NumPy's own memory: pybind11 where the product's binding is cffi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "core/guard.h"
#include "core/half.h"
#include "core/philox.h"
#include "core/thread_pool.h"
#include "kernels/group_tokens.h"
#include "kernels/isa.h"
#include "kernels/sample.h"
#include "kernels/speech_head.h"
#include "team_stress.h"

namespace py = pybind11;
using namespace edge_sdk;

namespace {

class Refused : public std::runtime_error {
 public:
  explicit Refused(const Status& status) : std::runtime_error(status.message()), code(static_cast<int>(status.code())) {}
  int code;
};

void Check(const Status& status) {
  if (!status.ok()) throw Refused(status);
}

const float* Floats(const py::array& a) { return static_cast<const float*>(a.request().ptr); }
float* Writable(py::array a) {
  if (!a.writeable()) throw std::invalid_argument("a read-only array");
  return static_cast<float*>(a.mutable_data());
}

// packed: an object with data, scales (or None), dtype, scale_dtype, rows, cols, block
Matrix ToMatrix(const py::object& packed) {
  Matrix m;
  m.data = packed.attr("data").cast<py::array>().request().ptr;
  const py::object scales = packed.attr("scales");
  m.scales = scales.is_none() ? nullptr : scales.cast<py::array>().request().ptr;
  m.dtype = static_cast<DType>(packed.attr("dtype").cast<int>());
  m.scale_dtype = static_cast<DType>(packed.attr("scale_dtype").cast<int>());
  m.rows = packed.attr("rows").cast<int32_t>();
  m.cols = packed.attr("cols").cast<int32_t>();
  m.block = packed.attr("block").cast<int32_t>();
  return m;
}

Sampling ToSampling(const py::object& s) {
  Sampling out;
  out.do_sample = s.attr("do_sample").cast<bool>();
  out.temperature = s.attr("temperature").cast<float>();
  out.top_p = s.attr("top_p").cast<float>();
  out.top_k = s.attr("top_k").cast<int32_t>();
  out.repetition_penalty = s.attr("repetition_penalty").cast<float>();
  out.seed = s.attr("seed").cast<uint64_t>();
  out.turn = s.attr("turn").cast<uint32_t>();
  out.step = s.attr("step").cast<uint32_t>();
  return out;
}

SpeechHeadShape ToShape(const py::object& s) {
  const auto get = [&](const char* name) { return s.attr(name).cast<int32_t>(); };
  SpeechHeadShape out;
  out.group_size = get("group_size");
  out.hidden = get("hidden");
  out.width = get("width");
  out.layers = get("layers");
  out.heads = get("heads");
  out.kv_heads = get("kv_heads");
  out.head_dim = get("head_dim");
  out.cache_head_dim = get("cache_head_dim");
  out.intermediate = get("intermediate");
  out.codes = get("codes");
  out.bos = get("bos");
  out.eps = s.attr("eps").cast<float>();
  return out;
}

// A head over the arrays of tests/csrc/reference.py: Shape, Weights, Cache. They must outlive it.
class Head {
 public:
  Head(const py::object& shape, const py::object& weights, const py::object& cache, int threads)
      : shape_(ToShape(shape)), pool_(threads) {
    for (const py::handle& handle : weights.attr("layers")) layers_.push_back(ToLayer(handle.cast<py::object>()));
    weights_.input = ToMatrix(weights.attr("input"));
    weights_.input_bias = Floats(weights.attr("input_bias"));
    weights_.input_table = ToMatrix(weights.attr("input_table"));
    weights_.output_table = ToMatrix(weights.attr("output_table"));
    weights_.final_norm = Floats(weights.attr("final_norm"));
    weights_.layers = layers_.data();
    Check(CheckSpeechHead(shape_, weights_));
    BindCache(cache);
    Check(CheckSpeechHeadCache(shape_, cache_));
  }

  void Prefill(const py::array_t<float, py::array::c_style>& head_input, int32_t length) {
    const float* data = head_input.data();
    const auto count = static_cast<int32_t>(head_input.shape(0));
    Status status;
    {
      py::gil_scoped_release release;
      Team::Run(pool_.source(), [&](Team& team) {
        status = Guard([&] { return SpeechHeadPrefillCpu(shape_, weights_, cache_, data, count, length, team); });
      });
    }
    Check(status);
  }

  py::tuple Group(const py::array_t<float, py::array::c_style>& head_input, int64_t last_id, int32_t length,
                  const py::array_t<uint8_t, py::array::c_style>& seen, const py::object& sampling,
                  std::optional<py::array> ids_out, std::optional<py::array> logits_out) {
    // Given arrays are filled where they lie, guard bytes around them: no conversion may make a copy of them.
    auto ids = ids_out ? py::reinterpret_borrow<py::array_t<int64_t>>(*ids_out) : py::array_t<int64_t>(shape_.group_size);
    auto logits = logits_out ? py::reinterpret_borrow<py::array_t<float>>(*logits_out)
                             : py::array_t<float>({shape_.group_size, shape_.codes});
    SpeechHeadGroup group;
    group.head_input = head_input.data();
    group.last_id = last_id;
    group.length = length;
    group.seen = seen.data();
    group.sampling = ToSampling(sampling);
    group.ids = ids.mutable_data();
    group.logits = logits.mutable_data();
    Status status;
    {
      py::gil_scoped_release release;
      Team::Run(pool_.source(), [&](Team& team) {
        status = Guard([&] { return SpeechHeadGroupCpu(shape_, weights_, cache_, group, team); });
      });
    }
    Check(status);
    return py::make_tuple(ids, logits);
  }

 private:
  static SpeechHeadLayer ToLayer(const py::object& l) {
    SpeechHeadLayer out;
    out.input_norm = Floats(l.attr("input_norm"));
    out.post_norm = Floats(l.attr("post_norm"));
    out.q_norm = Floats(l.attr("q_norm"));
    out.k_norm = Floats(l.attr("k_norm"));
    out.q = ToMatrix(l.attr("q"));
    out.k = ToMatrix(l.attr("k"));
    out.v = ToMatrix(l.attr("v"));
    out.o = ToMatrix(l.attr("o"));
    out.gate = ToMatrix(l.attr("gate"));
    out.up = ToMatrix(l.attr("up"));
    out.down = ToMatrix(l.attr("down"));
    return out;
  }

  void BindCache(const py::object& cache) {
    for (const py::handle& a : cache.attr("keys")) keys_.push_back(a.cast<py::array>().mutable_data());
    for (const py::handle& a : cache.attr("values")) values_.push_back(a.cast<py::array>().mutable_data());
    for (const py::handle& a : cache.attr("key_scales")) key_scales_.push_back(Writable(a.cast<py::array>()));
    for (const py::handle& a : cache.attr("value_scales")) value_scales_.push_back(Writable(a.cast<py::array>()));
    cache_.dtype = static_cast<DType>(cache.attr("dtype").cast<int>());
    cache_.capacity = cache.attr("capacity").cast<int32_t>();
    cache_.keys = keys_.data();
    cache_.values = values_.data();
    cache_.key_scales = key_scales_.empty() ? nullptr : key_scales_.data();
    cache_.value_scales = value_scales_.empty() ? nullptr : value_scales_.data();
    cache_.rope_cos = Floats(cache.attr("rope_cos"));
    cache_.rope_sin = Floats(cache.attr("rope_sin"));
  }

  SpeechHeadShape shape_;
  SpeechHeadWeights weights_;
  SpeechHeadCache cache_;
  std::vector<SpeechHeadLayer> layers_;
  std::vector<void*> keys_, values_;
  std::vector<float*> key_scales_, value_scales_;
  ThreadPool pool_;
};

const Isa& IsaNamed(const std::string& name) {
  const Isa* isa = FindIsa(name.c_str());
  if (!isa) throw py::key_error(name);
  return *isa;
}

// y [count, rows] of one instruction set; x float32 [count, cols].
py::array_t<float> Rows(const std::string& isa_name, const py::object& packed,
                        const py::array_t<float, py::array::c_style>& x) {
  const Isa& isa = IsaNamed(isa_name);
  const Matrix m = ToMatrix(packed);
  const auto count = static_cast<int32_t>(x.shape(0));
  const int64_t blocks = m.blocks(), width = m.quantized() ? blocks * m.block : 0;
  std::vector<int8_t> q(count * width);
  const int64_t ld = (blocks + kScalePadding - 1) / kScalePadding * kScalePadding;
  std::vector<float> scale(count * ld), sum(count * ld);
  for (int32_t i = 0; i < count && m.quantized(); ++i) {
    isa.quantize(x.data(i, 0), m.cols, m.block, m.dtype, &q[i * width], &scale[i * ld], &sum[i * ld]);
  }
  Activations in;
  in.x = x.data();
  in.ld = m.cols;
  in.q = q.data();
  in.scale = scale.data();
  in.sum = sum.data();
  in.ld_blocks = ld;
  in.count = count;
  py::array_t<float> y({count, m.rows});
  isa.rows(m, in, 0, m.rows, y.mutable_data(), m.rows);
  return y;
}

using FloatArray = py::array_t<float, py::array::c_style>;

// q, scale, sum of Activations for one vector.
py::tuple Quantize(const std::string& isa_name, const FloatArray& x, int block, int dtype) {
  const auto cols = static_cast<int>(x.size());
  const int blocks = (cols - 1) / block + 1;
  py::array_t<int8_t> q(blocks * block);
  py::array_t<float> scale(blocks), sum(blocks);
  IsaNamed(isa_name).quantize(x.data(), cols, block, static_cast<DType>(dtype), q.mutable_data(), scale.mutable_data(),
                              sum.mutable_data());
  return py::make_tuple(q, scale, sum);
}

py::array_t<float> ReadRow(const std::string& isa_name, const py::object& packed, int64_t row) {
  const Matrix m = ToMatrix(packed);
  py::array_t<float> out(m.cols);
  IsaNamed(isa_name).read_row(m, row, out.mutable_data());
  return out;
}

// One row of a cache into `out`; its scale, 0 for a cache without scales.
float Store(const std::string& isa_name, const FloatArray& x, int dtype, py::array out) {
  float scale = 0;
  IsaNamed(isa_name).store(x.data(), static_cast<int>(x.size()), static_cast<int>(out.size()), static_cast<DType>(dtype),
                           out.mutable_data(), &scale);
  return scale;
}

// exp(x - top) and their sum.
py::tuple Exp(const std::string& isa_name, const FloatArray& x, float top) {
  py::array_t<float> out(x.size());
  std::copy(x.data(), x.data() + x.size(), out.mutable_data());
  const float sum = IsaNamed(isa_name).exp_sum(out.mutable_data(), static_cast<int>(x.size()), top);
  return py::make_tuple(out, sum);
}

py::array_t<float> SiluMul(const std::string& isa_name, const FloatArray& gate, const FloatArray& up) {
  py::array_t<float> out(gate.size());
  IsaNamed(isa_name).silu_mul(gate.data(), up.data(), static_cast<int>(gate.size()), out.mutable_data());
  return out;
}

py::array_t<float> RmsNorm(const std::string& isa_name, const FloatArray& x, const FloatArray& weight, float eps) {
  py::array_t<float> out(x.size());
  IsaNamed(isa_name).rms_norm(x.data(), weight.data(), static_cast<int>(x.size()), eps, out.mutable_data());
  return out;
}

py::array_t<float> GroupTokens(const py::object& table, const py::array_t<int64_t, py::array::c_style>& ids,
                               const std::optional<py::array_t<float, py::array::c_style>>& text) {
  GroupTokensArgs args;
  args.table = ToMatrix(table);
  args.ids = ids.data();
  args.count = static_cast<int32_t>(ids.shape(0));
  args.group_size = static_cast<int32_t>(ids.shape(1));
  args.text = text ? text->data() : nullptr;
  py::array_t<float> out({args.count, args.table.cols});
  args.out = out.mutable_data();
  Check(GroupTokensCpu(args));
  return out;
}

py::array_t<float> GroupRows(const py::array_t<float, py::array::c_style>& rows, int32_t group_size) {
  GroupRowsArgs args;
  args.rows_in = rows.data();
  args.rows = static_cast<int32_t>(rows.shape(0));
  args.width = static_cast<int32_t>(rows.shape(1));
  args.group_size = group_size;
  py::array_t<float> out({group_size > 0 ? (args.rows + group_size - 1) / group_size : 0, args.width});
  args.out = out.mutable_data();
  Check(GroupRowsCpu(args));
  return out;
}

int64_t Pick(py::array_t<float> logits, const py::array_t<uint8_t>& seen, const py::object& sampling, float number) {
  std::vector<float> scores(logits.data(), logits.data() + logits.size());
  int64_t id = -1;
  Check(PickCpu(scores.data(), static_cast<int32_t>(scores.size()), seen.data(), ToSampling(sampling), number, &id));
  return id;
}

}  // namespace

PYBIND11_MODULE(edge_sdk_kernels, m) {
  // Local: a copy of this module may be loaded for each instruction set.
  static py::exception<Refused> refused(m, "Refused");
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const Refused& e) {
      py::object error = py::reinterpret_borrow<py::object>(refused)(e.what());
      error.attr("code") = e.code;
      PyErr_SetObject(refused.ptr(), error.ptr());
    }
  });
  m.def("isas", [] {
    std::vector<std::string> found;
    for (const char* name : {"plain", "avx2", "avx512", "neon"}) {
      if (FindIsa(name)) found.emplace_back(name);
    }
    return found;
  });
  m.def("current_isa", [] { return CurrentIsa().name; });
  m.def("rows", &Rows);
  m.def("group_tokens", &GroupTokens);
  m.def("group_rows", &GroupRows);
  m.def("pick", &Pick);
  m.def("philox", [](uint64_t key, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const PhiloxWords words = Philox(key, a, b, c, d);
    return std::vector<uint32_t>(words.w, words.w + 4);
  });
  m.def("quantize", &Quantize);
  m.def("read_row", &ReadRow);
  m.def("store", &Store);
  m.def("exp", &Exp);
  m.def("silu_mul", &SiluMul);
  m.def("rms_norm", &RmsNorm);
  m.def("team_stress", [](int pool, int threads, int calls, int phases) {
    py::gil_scoped_release release;
    return TeamStress(static_cast<Pool>(pool), threads, calls, phases);
  });
  m.def("half_to_float", py::vectorize(&HalfToFloat));
  m.def("float_to_half", py::vectorize(&FloatToHalf));
  py::class_<Head>(m, "Head", py::module_local())
      .def(py::init<const py::object&, const py::object&, const py::object&, int>(), py::arg("shape"),
           py::arg("weights"), py::arg("cache"), py::arg("threads") = 1, py::keep_alive<1, 3>(), py::keep_alive<1, 4>())
      .def("prefill", &Head::Prefill)
      .def("group", &Head::Group, py::arg("head_input"), py::arg("last_id"), py::arg("length"), py::arg("seen"),
           py::arg("sampling"), py::arg("ids") = py::none(), py::arg("logits") = py::none());
}
