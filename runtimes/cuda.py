"""The few calls of the CUDA driver that running engines needs, by ctypes: nothing but the GPU's driver is required.

The driver's interface is versioned and stable; the runtime library (libcudart) is not always installed and is not used.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import lru_cache
from typing import Any

import numpy as np

from edge_sdk.errors import RuntimeUnavailableError
from edge_sdk.runtime import Array

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_OUT_OF_MEMORY = 2
_ATTRIBUTES = {"major": 75, "minor": 76, "integrated": 18, "concurrent_managed": 89}
_ATTACH_GLOBAL, _HOST_PORTABLE_MAPPED = 1, 1 | 2
_CAPTURE_RELAXED = 2
# Names without a version where the first one was never replaced.
_CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemAllocManaged": (c_void_p, c_size_t, c_uint),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (c_void_p, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuGetErrorString": (c_int, c_void_p),
}


class CudaError(RuntimeUnavailableError):
    """The driver refused something."""


@lru_cache
def driver() -> Driver:
    """The driver, loaded and started once.

    Raises:
        CudaError: there is none, or it does not start.
    """
    return Driver()


def unavailable(device_id: int = 0) -> str:
    """ "" if there is such a GPU and its driver works, else the reason."""
    try:
        count = driver().device_count()
    except CudaError as e:
        return str(e)
    if count <= device_id:
        return f"there is no CUDA device {device_id}: the driver shows {count}"
    return ""


class Driver:
    def __init__(self) -> None:
        self._library = _load()
        for name, types in _CALLS.items():
            try:
                getattr(self._library, name).argtypes = types
            except AttributeError as e:
                raise CudaError(f"the CUDA driver is too old: it has no {name}; update it") from e
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._library, name)(*arguments))
        if status == _OUT_OF_MEMORY:
            raise MemoryError("the GPU has not enough free memory")  # as NumPy does: callers free and try less
        if status:
            text = c_char_p()
            self._library.cuGetErrorString(status, byref(text))
            said = (text.value or b"unknown error").decode()
            raise CudaError(f"the CUDA driver refused {name.partition('_')[0]}: {said} ({status})")

    def device_count(self) -> int:
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value


def _load() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError("no CUDA driver is installed (libcuda.so.1 is not found); install the GPU's driver")


class Device:
    """One GPU with its primary context, which is the one TensorRT and PyTorch use too."""

    def __init__(self, device_id: int) -> None:
        self._driver = driver()
        handle, context = c_int(), c_void_p()
        self._driver.call("cuDeviceGet", byref(handle), device_id)
        self._handle = handle.value
        self._driver.call("cuDevicePrimaryCtxRetain", byref(context), self._handle)
        self._context = context
        self._local = threading.local()
        self.sm = 10 * self._attribute("major") + self._attribute("minor")
        name = ctypes.create_string_buffer(256)
        self._driver.call("cuDeviceGetName", name, 256, self._handle)
        self.name = name.value.decode(errors="replace")
        # Managed memory that host and GPU may touch side by side; else memory of the host that the GPU reads, which on
        # an integrated GPU is the same memory and on a discrete one (Windows) is slow.
        self.managed = bool(self._attribute("concurrent_managed"))
        self.integrated = bool(self._attribute("integrated"))

    def _attribute(self, name: str) -> int:
        value = c_int()
        self._driver.call("cuDeviceGetAttribute", byref(value), _ATTRIBUTES[name], self._handle)
        return value.value

    def call(self, name: str, *arguments: Any) -> None:
        """A driver call with this device current in this thread."""
        if not getattr(self._local, "current", False):
            self._driver.call("cuCtxSetCurrent", self._context)
            self._local.current = True
        self._driver.call(name, *arguments)

    def enter(self) -> None:
        """Make the device current in this thread for libraries that need it to be."""
        self._driver.call("cuCtxSetCurrent", self._context)
        self._local.current = True

    def shared(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zeros that host and GPU both see, at one fixed address. Freed with the last view of it."""
        array = _array(_Memory(self, _nbytes(shape, dtype), managed=self.managed), shape, dtype)
        array.fill(0)
        return array

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Host memory that the GPU copies from and to without the processor."""
        return _array(_Memory(self, _nbytes(shape, dtype), managed=False), shape, dtype)

    def shares(self, array: Array) -> bool:
        """Whether `array` is a view of memory that `shared` gave."""
        owner: Any = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        return isinstance(owner, _Memory)

    def memory(self, nbytes: int) -> DeviceMemory:
        return DeviceMemory(self, nbytes)

    def stream(self) -> Stream:
        return Stream(self)


class _Memory:
    """Memory with an address that host and GPU share. Arrays over it keep it alive."""

    def __init__(self, device: Device, nbytes: int, *, managed: bool) -> None:
        self._device, self._address = device, 0
        self._free = "cuMemFree_v2" if managed else "cuMemFreeHost"
        pointer = c_void_p()
        if managed:
            device.call("cuMemAllocManaged", byref(pointer), nbytes, _ATTACH_GLOBAL)
        else:
            device.call("cuMemHostAlloc", byref(pointer), nbytes, _HOST_PORTABLE_MAPPED)
        self._address = int(pointer.value or 0)
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (self._address, False), "version": 3}

    def __del__(self) -> None:
        if self._address:
            _quietly(self._device, self._free, self._address)


def _nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    return max(_size(shape) * int(np.dtype(dtype).itemsize), 1)


def _array(memory: _Memory, shape: tuple[int, ...], dtype: Any) -> Array:
    whole: Array = np.asarray(memory)
    part: Array = whole[: _size(shape) * np.dtype(dtype).itemsize].view(dtype)
    return part.reshape(shape)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


class DeviceMemory:
    """Memory of the GPU alone."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self._device, self.address = device, 0
        self.nbytes = max(nbytes, 1)
        pointer = c_uint64()
        device.call("cuMemAlloc_v2", byref(pointer), self.nbytes)
        self.address = pointer.value

    def __del__(self) -> None:
        if self.address:
            _quietly(self._device, "cuMemFree_v2", self.address)


class Stream:
    """An ordered queue of work, and the graphs captured on it."""

    def __init__(self, device: Device) -> None:
        self._device, handle = device, c_void_p()
        self.handle = 0
        device.call("cuStreamCreate", byref(handle), 1)  # not blocking: does not wait for the default stream
        self.handle = int(handle.value or 0)

    def to_device(self, target: int, source: int, nbytes: int) -> None:
        self._device.call("cuMemcpyHtoDAsync_v2", target, source, nbytes, self.handle)

    def to_host(self, target: int, source: int, nbytes: int) -> None:
        self._device.call("cuMemcpyDtoHAsync_v2", target, source, nbytes, self.handle)

    def synchronize(self) -> None:
        self._device.call("cuStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        self._device.call("cuStreamBeginCapture_v2", self.handle, _CAPTURE_RELAXED)

    def end_capture(self) -> CudaGraph:
        graph = c_void_p()
        self._device.call("cuStreamEndCapture", self.handle, byref(graph))
        return CudaGraph(self._device, graph)

    def __del__(self) -> None:
        if self.handle:
            _quietly(self._device, "cuStreamDestroy_v2", self.handle)


class CudaGraph:
    """A captured run: launched again at the cost of one call."""

    def __init__(self, device: Device, graph: c_void_p) -> None:
        self._device, self._executable = device, c_void_p()
        try:
            device.call("cuGraphInstantiateWithFlags", byref(self._executable), graph, 0)
        finally:
            device.call("cuGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        self._device.call("cuGraphLaunch", self._executable, stream.handle)

    def __del__(self) -> None:
        if self._executable.value:
            _quietly(self._device, "cuGraphExecDestroy", self._executable)


def _quietly(device: Device, name: str, *arguments: Any) -> None:
    """Give something back; at the interpreter's end there may be no driver left to take it."""
    try:
        device.call(name, *arguments)
    except (CudaError, MemoryError, AttributeError, TypeError):
        return
