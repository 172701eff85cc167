"""TensorSpec: the contract of one named tensor at a module's border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.errors import BundleError, Error

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("float32", "float64", "float16", "int64", "int32", "uint8", "int8", "bool")
}


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of a tensor; a string in `shape` is a named dimension of any size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BundleError(f"tensor '{self.name}': dtype '{self.dtype}' is not one of {', '.join(DTYPES)}")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]

    def check(self, array: Any, where: str = "") -> None:
        """Raise Error unless `array` (anything with dtype and shape) fits."""
        same_rank = len(array.shape) == len(self.shape)
        if (
            array.dtype == self.numpy_dtype
            and same_rank
            and all(isinstance(want, str) or want == got for want, got in zip(self.shape, array.shape, strict=True))
        ):
            return
        raise Error(
            f"{where}tensor '{self.name}' wants {self.dtype}{list(self.shape)}, got {array.dtype}{list(array.shape)}"
        )

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Any) -> TensorSpec:
        if not isinstance(value, dict) or set(value) != {"name", "dtype", "shape"}:
            raise BundleError(f"a tensor description must have exactly name, dtype and shape, found {value!r}")
        name, dtype, shape = value["name"], value["dtype"], value["shape"]
        dims_ok = isinstance(shape, list) and all(
            isinstance(d, str) or (isinstance(d, int) and not isinstance(d, bool) and d >= 0) for d in shape
        )
        if not (isinstance(name, str) and isinstance(dtype, str) and dims_ok):
            raise BundleError(f"tensor description {value!r} is malformed")
        return cls(name, dtype, tuple(shape))
