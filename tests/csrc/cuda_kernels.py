"""The CUDA kernels for tests: their sources built for a GPU, or with the emulation for the CPU, and a Python face."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import weakref
from ctypes import byref, c_float, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from tests.csrc import cases, structs
from tests.csrc import reference as ref

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ("csrc/kernels/group_tokens_cuda.cu", "csrc/kernels/speech_head_cuda.cu")
SHIM = "tests/csrc/cuda_shim.cu"
EMULATION = "tests/csrc/cuda_emulation"
THREADS = 128  # of an emulated block
EMULATED = (
    "g++", "-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    "-ffp-contract=off", "-DEDGE_CUDA_EMULATION", f"-DEDGE_CUDA_THREADS={THREADS}", f"-I{EMULATION}", "-Icsrc",
    "-x", "c++", *KERNELS, SHIM, f"{EMULATION}/fibers.cc",
)  # fmt: skip
NATIVE = ("nvcc", "-std=c++17", "-O3", "-arch=native", "-Xcompiler", "-fPIC", "-shared", "-Icsrc", *KERNELS, SHIM)


def build(folder: Path, command: tuple[str, ...] = EMULATED) -> ctypes.CDLL:
    """The library, made anew where a source has changed since it was left in `folder`."""
    made_of = hashlib.sha256(" ".join(command).encode())
    headers = sorted((ROOT / "csrc").rglob("*.*h")) + sorted((ROOT / EMULATION).glob("*.h"))
    for path in [*headers, *(ROOT / word for word in command if word.endswith((".cu", ".cc")))]:
        made_of.update(path.read_bytes())
    target = folder / f"cuda_{command[0]}_{made_of.hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{os.getpid()}_{target.name}"  # several test processes may build at once
        subprocess.run([*command, "-o", str(unfinished)], cwd=ROOT, check=True)
        unfinished.replace(target)
    library = ctypes.CDLL(str(target))
    library.edge_workspace_bytes.restype = c_size_t
    library.edge_allocate.restype = c_void_p
    library.edge_allocate.argtypes = [c_size_t]
    library.edge_free.argtypes = [c_void_p]
    return library


class DeviceError(Exception):
    """A launch failed: the emulation found a fault, or the kernel's host side refused."""


class Kernels:
    """The library's functions with arrays for arguments."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.emulated = hasattr(library, "edge_set_order")

    def arena(self) -> structs.Arena:
        """Arrays that the kernels can reach, until the arena is gone."""
        return structs.Arena(self._allocate)

    def _allocate(self, size: int) -> Array:
        address = self._library.edge_allocate(size)
        if not address:
            raise MemoryError(f"{size} bytes of the device's memory")
        memory = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(memory, self._library.edge_free, address)
        return np.ctypeslib.as_array(memory)

    def call(self, name: str, *arguments: Any) -> None:
        message = ctypes.create_string_buffer(1000)
        code = getattr(self._library, name)(*arguments, message, len(message))
        if message.value:
            raise DeviceError(message.value.decode())
        if code:
            raise ref.RefusedError(ref.Code(code))

    def workspace_bytes(self, shape: ref.Shape, max_count: int) -> int:
        return int(self._library.edge_workspace_bytes(byref(structs.Shape.of(shape)), max_count))

    def order(self, seed: int) -> None:
        """How emulated threads take turns."""
        if self.emulated:
            self._library.edge_set_order(seed)

    def processors(self, count: int) -> None:
        """How many blocks an emulated device holds."""
        if self.emulated:
            self._library.edge_set_processors(count)

    def pick(self, case: cases.PickCase) -> int:
        arena = self.arena()
        logits, seen = arena.put(case.logits), arena.put(case.seen)
        found, code = arena.put(np.full(1, -1, np.int64)), arena.put(np.zeros(1, np.int32))
        self.call(
            "edge_pick", address(logits), len(logits), address(seen), byref(structs.Sampling.of(case.sampling)),
            c_float(case.number), address(found), address(code),
        )  # fmt: skip
        arena.check()
        if code[0]:
            raise ref.RefusedError(ref.Code(int(code[0])))
        return int(found[0])

    def group_tokens(self, table: ref.Packed, ids: Array, text: Array | None, in_place: bool) -> tuple[Array, int]:
        """The rows, and whether an id was outside the table. in_place: out is `text`."""
        arena = self.arena()
        bad = arena.put(np.zeros(1, np.int32))
        given = None if text is None else arena.put(text)
        out = given if in_place and given is not None else arena.put(np.zeros((len(ids), table.cols), np.float32))
        args = structs.GroupTokensArgs(
            structs.Matrix.of(table, arena), arena.pointer(ids), None if given is None else given.ctypes.data,
            out.ctypes.data, *ids.shape,
        )  # fmt: skip
        self.call("edge_group_tokens", byref(args), address(bad))
        arena.check()
        return out, int(bad[0])

    def group_rows(self, rows: Array, group_size: int) -> Array:
        arena = self.arena()
        out = arena.put(np.zeros((-(-len(rows) // group_size), rows.shape[1]), np.float32))
        args = structs.GroupRowsArgs(arena.pointer(rows), out.ctypes.data, *rows.shape, group_size)
        self.call("edge_group_rows", byref(args))
        arena.check()
        return out


def address(array: Array) -> c_void_p:
    return c_void_p(array.ctypes.data)


class Head:
    """The speech head on CUDA with the face of SpeechHeadReference. `cache` shows the kernel's own arrays."""

    def __init__(self, kernels: Kernels, case: cases.Case, cache: ref.Cache) -> None:
        self.arena = kernels.arena()
        self._kernels, self._case = kernels, case
        self._shape = structs.Shape.of(case.shape)
        self._weights = structs.Weights.of(cases.make_weights(case), self.arena)
        self._cache, self.cache = structs.Cache.of(cache, self.arena)
        largest = max(case.prefill, default=0)
        garbage = np.full(kernels.workspace_bytes(case.shape, largest), 0xFF, np.uint8)  # NaNs
        self._workspace = self.arena.put(garbage).ctypes.data
        state = self.arena.put(np.zeros(ctypes.sizeof(structs.CudaState), np.uint8))
        self.state = structs.CudaState.from_buffer(state)
        self.state.last_id = case.first_id
        self.state.turn, self.state.step = case.sampling.turn, case.sampling.step

    def _heads(self) -> tuple[Any, ...]:
        return byref(self._shape), byref(self._weights), byref(self._cache)

    def prefill(self, head_input: Array) -> None:
        rows = address(self.arena.put(head_input))
        rest = (rows, len(head_input), byref(self.state), c_void_p(self._workspace))
        self._kernels.call("edge_prefill", *self._heads(), *rest)
        self._refuse()

    def group(
        self,
        head_input: Array,
        seen: Array,
        keep_logits: bool = True,
        forced: Array | None = None,
        device_sampling: ref.Sampling | None = None,
    ) -> ref.Group:
        """One group; the id before it, the turn and the step are the state's. device_sampling: settings that stand in
        device memory; those among the parameters are then others, which must not matter."""
        s = self._case.shape
        ids = self.arena.put(np.full(s.group_size, -7, np.int64))
        logits = self.arena.put(np.full((s.group_size, s.codes), np.nan, np.float32))
        settings, on_device = self._case.sampling, None
        if device_sampling is not None:
            settings = ref.Sampling(do_sample=True, temperature=-1.0, repetition_penalty=9.0, seed=1)
            on_device = self.arena.pointer(np.frombuffer(bytes(structs.CudaSampling.of(device_sampling)), np.uint8))
        group = structs.Group(
            self.arena.pointer(head_input), -1, -1, self.arena.pointer(seen), structs.Sampling.of(settings),
            ids.ctypes.data, logits.ctypes.data if keep_logits else None, self.arena.pointer(forced), on_device,
        )  # fmt: skip
        rest = (byref(group), byref(self.state), c_void_p(self._workspace))
        self._kernels.call("edge_group", *self._heads(), *rest)
        self.arena.check()
        if self.state.error:
            assert (ids == -7).all(), "a refused group makes no ids"
        self._refuse()
        return ref.Group([int(i) for i in ids], list(logits))

    def _refuse(self) -> None:
        if self.state.error:
            raise ref.RefusedError(ref.Code(self.state.error))
