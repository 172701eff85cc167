"""The native core, bound from its C header by cffi: one library for every Python.

    native = load()            # RuntimeUnavailableError says why, if it cannot
    head = native.head(shape, weights, threads=2)

The library lies in the installed package, or in the folder that EDGE_SDK_NATIVE names for one that was built by hand
("off": none is used); it is never taken from a bundle.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.config import ModelConfig, TransformerConfig
from edge_sdk.errors import ContextFullError, Error, RuntimeUnavailableError
from edge_sdk.runtime import Array
from edge_sdk.sampling import Sampling

FOLDER = Path(__file__).parent / "_native"
LIBRARY, ORT_LIBRARY, HEADER = "libedge_sdk.so", "libedge_sdk_ort.so", "edge_sdk.h"
TRT_LIBRARY = "libedge_sdk_trt.so"
ABI_VERSION = 1
_DTYPES = {"float32": 0, "float16": 1, "int8": 2, "int4": 3}


def folder() -> Path:
    """Where the libraries are looked for."""
    return Path(os.environ.get("EDGE_SDK_NATIVE") or FOLDER)


def unavailable() -> str:
    """ "" if the native core can be used here, else the reason."""
    try:
        load()
    except RuntimeUnavailableError as e:
        return str(e)
    return ""


def ort_ops_unavailable() -> str:
    """ "" if our ops for ONNX Runtime lie beside the package, else the reason."""
    if os.environ.get("EDGE_SDK_NATIVE") == "off":
        return "EDGE_SDK_NATIVE is off"
    if not (folder() / ORT_LIBRARY).exists():
        return f"our ops for ONNX Runtime were not built ({folder() / ORT_LIBRARY} is missing)"
    return ""


def ort_cuda_ops_unavailable() -> str:
    """ "" if that library has the ops for CUDA too, else the reason."""
    reason = ort_ops_unavailable()
    if reason:
        return reason
    library = folder() / ORT_LIBRARY
    try:
        found = hasattr(ctypes.CDLL(str(library)), "edge_sdk_ort_cuda")
    except OSError as e:
        return f"our ops for ONNX Runtime cannot be loaded: {e}"
    return (
        ""
        if found
        else f"our ops for ONNX Runtime were built for the CPU alone ({library}; README, Building from source)"
    )


def trt_plugins_unavailable() -> str:
    """ "" if our plugins for TensorRT lie beside the package, else the reason."""
    if os.environ.get("EDGE_SDK_NATIVE") == "off":
        return "EDGE_SDK_NATIVE is off"
    if not (folder() / TRT_LIBRARY).exists():
        return f"our plugins for TensorRT were not built ({folder() / TRT_LIBRARY} is missing)"
    return "" if not _cut_short(folder() / TRT_LIBRARY) else f"'{folder() / TRT_LIBRARY}' is cut short: build it again"


def load() -> Native:
    """Open the library.

    Raises:
        RuntimeUnavailableError: it was not built, or not for this machine or this version.
    """
    if os.environ.get("EDGE_SDK_NATIVE") == "off":
        raise RuntimeUnavailableError("EDGE_SDK_NATIVE is off")
    return _load(folder())


@functools.cache
def _load(where: Path) -> Native:
    if not (where / LIBRARY).exists():
        raise RuntimeUnavailableError(
            f"the native core was not built ({where / LIBRARY} is missing): install a wheel that has it, or build it "
            "from source with a C++ compiler and CMake (README, Building from source)"
        )
    try:
        import cffi
    except ImportError as e:
        raise RuntimeUnavailableError(f"the native core needs the package cffi: {e}") from e
    ffi = cffi.FFI()
    if _cut_short(where / LIBRARY):
        raise RuntimeUnavailableError(f"the native core '{where / LIBRARY}' is cut short: install or build it again")
    try:
        ffi.cdef(declarations((where / HEADER).read_text(encoding="utf-8")))
        library = ffi.dlopen(str(where / LIBRARY))
        found = library.edge_sdk_abi_version()
    except (cffi.CDefError, cffi.FFIError, OSError, AttributeError, UnicodeDecodeError) as e:
        raise RuntimeUnavailableError(f"the native core '{where / LIBRARY}' cannot be opened: {e}") from e
    if found != ABI_VERSION:
        raise RuntimeUnavailableError(
            f"the native core '{where / LIBRARY}' has ABI version {found}, this edge_sdk needs {ABI_VERSION}: build it "
            "again"
        )
    return Native(ffi, library)


def _cut_short(library: Path) -> bool:
    """An ELF file whose last part, the table of its sections, is missing: to open it would end the process."""
    with library.open("rb") as file:
        head = file.read(64)
    if head[:5] != b"\x7fELF\x02" or len(head) < 64:
        return False
    sections_at, size, count = (int.from_bytes(head[a:b], "little") for a, b in ((40, 48), (58, 60), (60, 62)))
    return library.stat().st_size < sections_at + size * count


def declarations(header: str) -> str:
    """What cffi can read of the C header: no comments, no preprocessor, no export macro."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    text = text.replace('extern "C" {', "").replace("EDGE_SDK_API ", "")
    return re.sub(r"^}\s*$", "", text, flags=re.MULTILINE)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [rows, cols] as csrc/kernels/matrix.h describes it.

    Args:
        data: float32 or float16 [rows, cols]; uint8 [rows, blocks * block] for int8, half of that for int4.
        scales: float32 or float16 [rows, blocks]; None for float32 and float16 data.
        cols: columns, without the padding of the last block.
        block: values that share a scale; 0 for float32 and float16 data.
        bits: 8 or 4 for quantized data, 0 otherwise.
    """

    data: Array
    cols: int
    scales: Array | None = None
    block: int = 0
    bits: int = 0

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (self.scales.nbytes if self.scales is not None else 0)


def _check_matrix(m: Matrix, kind: str) -> None:
    """The library takes sizes at their word: here the arrays are seen."""
    found = f"{m.data.dtype}{list(m.data.shape)}"
    if m.data.ndim < 2 or not m.data.flags.c_contiguous or (m.bits and m.data.dtype != np.uint8):
        raise Error(f"a native matrix is a contiguous array of rows, uint8 if it is quantized, got {found}")
    if kind not in ("float32", "float16", "int8", "int4"):
        raise Error(f"a native matrix holds float32, float16, int8 or int4, got {found} of {m.bits} bits")
    if not m.bits:
        if m.cols < 1 or m.data.shape != (len(m.data), m.cols):
            raise Error(f"a native matrix of {m.cols} columns is {found}")
        return
    if m.cols < 1 or m.block < 1 or m.scales is None:
        raise Error(f"a quantized matrix {found} needs columns, a block size and scales")
    blocks, row = -(-m.cols // m.block), m.data.size // max(len(m.data), 1)
    if row != blocks * m.block * m.bits // 8:
        raise Error(f"a matrix of {m.cols} columns of {m.bits} bits in blocks of {m.block} is {found}")
    s = m.scales
    if s.dtype.name not in ("float32", "float16") or not s.flags.c_contiguous or s.size != len(m.data) * blocks:
        raise Error(f"scales are {s.dtype}{list(s.shape)}, expected float32 or float16 [{len(m.data)}, {blocks}]")


class Native:
    """The opened library."""

    def __init__(self, ffi: Any, library: Any) -> None:
        self.ffi, self.library = ffi, library

    @property
    def isa(self) -> str:
        """Instruction set its kernels use here."""
        return str(self.ffi.string(self.library.edge_sdk_isa()).decode())

    def check(self, status: int) -> None:
        """Raise what a status other than OK says."""
        if status == 0:
            return
        words = self.ffi.string(self.library.edge_sdk_last_error()).decode(errors="replace")
        raise (ContextFullError if status == self.library.EDGE_SDK_CACHE_FULL else Error)(words)

    def call(self, name: str, *arguments: Any) -> None:
        """`edge_sdk_NAME(*arguments)`; raises what a status other than OK says."""
        try:
            status = getattr(self.library, f"edge_sdk_{name}")(*arguments)
        except (OverflowError, TypeError) as e:  # cffi's words for a number that C's type cannot hold
            raise Error(f"{name}: {e}") from e
        self.check(status)

    def new(self, name: str, fields: Mapping[str, Any]) -> Any:
        """A new `edge_sdk_NAME`."""
        try:
            return self.ffi.new(f"edge_sdk_{name} *", fields)
        except (OverflowError, TypeError) as e:
            raise Error(f"{name}: {e}") from e

    def matrix(self, m: Matrix) -> tuple[Any, list[Any]]:
        """The C struct of a matrix, and what must live as long as it."""
        kind = {8: "int8", 4: "int4"}.get(m.bits) or m.data.dtype.name
        _check_matrix(m, kind)
        struct = self.new(
            "matrix",
            {
                "data": self.ffi.cast("void *", m.data.ctypes.data),
                "scales": self.ffi.cast("void *", m.scales.ctypes.data) if m.scales is not None else self.ffi.NULL,
                "dtype": _DTYPES[kind],
                "scale_dtype": _DTYPES[m.scales.dtype.name] if m.scales is not None else 0,
                "rows": m.data.shape[0],
                "cols": m.cols,
                "block": m.block,
            },
        )
        return struct[0], [struct, m.data, m.scales]

    def floats(self, array: Array | None) -> Any:
        """A float32 array as `float *`; None as NULL."""
        if array is None:
            return self.ffi.NULL
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise Error(f"expected a contiguous float32 array, got {array.dtype}{list(array.shape)}")
        return self.ffi.cast("float *", array.ctypes.data)

    def group_tokens(self, table: Matrix, ids: Array, text: Array | None = None) -> Array:
        """ids int64 [M, G] -> float32 [M, cols]: sums of table rows, averaged with text [M, cols] where given."""
        ids = np.ascontiguousarray(ids, np.int64)
        if ids.ndim != 2:
            raise Error(f"group tokens: ids are {list(ids.shape)}, expected [M, G]")
        struct, _keep = self.matrix(table)
        out = np.empty((len(ids), table.cols), np.float32)
        if text is not None and text.shape != out.shape:
            raise Error(f"group tokens: text is {list(text.shape)}, expected {list(out.shape)}")
        pointer = self.ffi.new("edge_sdk_matrix *", struct)
        data = self.ffi.cast("int64_t *", ids.ctypes.data)
        self.call("group_tokens", pointer, data, len(ids), ids.shape[1], self.floats(text), self.floats(out))
        return out

    def group_rows(self, rows: Array, group_size: int) -> Array:
        """rows float32 [R, width] -> [ceil(R / G), width]: means over groups, missing rows counted as zeros."""
        rows = np.ascontiguousarray(rows, np.float32)
        if rows.ndim != 2:
            raise Error(f"group rows: rows are {list(rows.shape)}, expected [R, width]")
        out = np.empty((-(-len(rows) // max(group_size, 1)), rows.shape[1]), np.float32)
        self.call("group_rows", self.floats(rows), len(rows), rows.shape[1], group_size, self.floats(out))
        return out

    def head(
        self, model: ModelConfig, head: TransformerConfig, weights: Mapping[str, Matrix | Array], *, threads: int = 1
    ) -> NativeHead:
        """The speech head of a model over weights by their short names (`native_weight_names`)."""
        return NativeHead(self, model, head, weights, threads)


LAYER_NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")
LAYER_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class NativeHead:
    """Weights of a speech head, ready to run; shared by caches."""

    def __init__(
        self,
        native: Native,
        model: ModelConfig,
        head: TransformerConfig,
        weights: Mapping[str, Matrix | Array],
        threads: int,
    ) -> None:
        self._native, self._group_size, self._hidden = native, model.group_size, model.backbone.hidden_size
        self._codes, self._theta = model.speech_ids.codebook_size, head.rope_theta
        self._keep: list[Any] = []
        ffi = native.ffi
        layers = ffi.new("edge_sdk_head_layer[]", head.num_layers)
        for i in range(head.num_layers):
            for name in LAYER_NORMS:
                size = head.head_dim if name in ("q_norm", "k_norm") else head.hidden_size
                setattr(layers[i], name, self._vector(weights, f"layers.{i}.{name}", size))
            for name in LAYER_MATRICES:
                setattr(layers[i], name, self._matrix(weights, f"layers.{i}.{name}"))
        struct = ffi.new("edge_sdk_head_weights *")
        for name in ("input", "input_table", "output_table"):
            setattr(struct, name, self._matrix(weights, name))
        struct.input_bias = self._vector(weights, "input_bias", model.group_size * head.hidden_size)
        struct.final_norm = self._vector(weights, "final_norm", head.hidden_size)
        struct.layers = layers
        shape = native.new(
            "head_shape",
            {
                "group_size": model.group_size,
                "hidden": model.backbone.hidden_size,
                "width": head.hidden_size,
                "layers": head.num_layers,
                "heads": head.num_heads,
                "kv_heads": head.num_kv_heads,
                "head_dim": head.head_dim,
                "intermediate": head.intermediate_size,
                "codes": model.speech_ids.codebook_size,
                "bos": model.speech_ids.bos,
                "eps": head.rms_norm_eps,
            },
        )
        out = ffi.new("edge_sdk_head **")
        native.call("head_create", shape, struct, threads, out)
        self._handle = ffi.gc(out[0], native.library.edge_sdk_head_free)

    def _matrix(self, weights: Mapping[str, Matrix | Array], name: str) -> Any:
        value = self._found(weights, name)
        if not isinstance(value, Matrix):
            value = Matrix(value, value.shape[-1] if value.ndim else 0)
        struct, keep = self._native.matrix(value)
        self._keep += keep
        return struct

    def _vector(self, weights: Mapping[str, Matrix | Array], name: str, size: int) -> Any:
        value = self._found(weights, name)
        if isinstance(value, Matrix) or value.shape != (size,):
            raise Error(f"native head: '{name}' must be a plain float32 array [{size}]")
        self._keep.append(value)
        return self._native.floats(value)

    @staticmethod
    def _found(weights: Mapping[str, Matrix | Array], name: str) -> Matrix | Array:
        if name not in weights:
            raise Error(f"native head: there is no weight '{name}'")
        return weights[name]

    def cache(self, capacity: int, dtype: str = "float32") -> NativeCache:
        """A KV cache of `capacity` positions of the head (G for each of the backbone's), in float32, float16, int8."""
        ffi, library = self._native.ffi, self._native.library
        if dtype not in _DTYPES:
            raise Error(f"a KV cache is float32, float16 or int8, not {dtype!r}")
        out = ffi.new("edge_sdk_cache **")
        self._native.call("cache_create", self._handle, capacity, _DTYPES[dtype], self._theta, out)

        def free(handle: Any, head: NativeHead = self) -> None:  # bound, the head lives as long as its caches
            library.edge_sdk_cache_free(handle)

        return NativeCache(self, ffi.gc(out[0], free))

    def prefill(self, cache: NativeCache, head_input: Array) -> None:
        """Append backbone positions, head_input float32 [S, hidden], each with BOS as the id before it."""
        rows = np.ascontiguousarray(head_input, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self._hidden:
            raise Error(f"head_input is {list(rows.shape)}, expected [S, {self._hidden}]")
        self._native.call("head_prefill", self._handle, cache.handle, self._native.floats(rows), len(rows))

    def group(
        self,
        cache: NativeCache,
        head_input: Array,
        last_id: int,
        *,
        sampling: Sampling | None = None,
        seen: Array | None = None,
        seed: int = 0,
        turn: int = 0,
        step: int = 0,
        logits: Array | None = None,
    ) -> Array:
        """One group of picks, int64 [G].

        Args:
            head_input: float32 [hidden].
            last_id: the pick before this group; BOS at the start.
            seen: bool or uint8 [codes], ids the repetition penalty acts on; None for none.
            seed, turn, step: key and counter of the draws.
            logits: float32 [G, codes], filled with the scores before any processor.
        """
        ffi, settings = self._native.ffi, sampling or Sampling()
        if settings.bad_words:
            raise Error("the native head knows no bad_words")
        row = np.ascontiguousarray(head_input, np.float32).reshape(-1)
        mask = np.zeros(self._codes, np.uint8) if seen is None else np.ascontiguousarray(seen).view(np.uint8)
        for name, found, expected in (("head_input", row, self._hidden), ("seen", mask, self._codes)):
            if found.shape != (expected,):
                raise Error(f"{name} is {list(found.shape)}, expected [{expected}]")
        if logits is not None and logits.shape != (self._group_size, self._codes):
            raise Error(f"logits is {list(logits.shape)}, expected [{self._group_size}, {self._codes}]")
        ids = np.empty(self._group_size, np.int64)
        fields = {
            "do_sample": settings.do_sample,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "repetition_penalty": settings.repetition_penalty,
            "seed": seed,
            "turn": turn,
            "step": step,
        }
        struct = self._native.new("sampling", fields)
        self._native.call(
            "head_group",
            self._handle,
            cache.handle,
            self._native.floats(row),
            int(last_id),
            ffi.cast("uint8_t *", mask.ctypes.data),
            struct,
            ffi.cast("int64_t *", ids.ctypes.data),
            self._native.floats(logits),
        )
        return ids


class NativeCache:
    """Keys and values of one conversation."""

    def __init__(self, head: NativeHead, handle: Any) -> None:
        self._head, self.handle = head, handle  # the head must outlive its caches

    @property
    def length(self) -> int:
        return int(self._head._native.library.edge_sdk_cache_length(self.handle))

    @property
    def nbytes(self) -> int:
        return int(self._head._native.library.edge_sdk_cache_bytes(self.handle))

    def trim(self, length: int) -> None:
        """Forget every position from `length` on."""
        self._head._native.call("cache_trim", self.handle, length)
