"""`verify --against`: every narrowed weight of a bundle beside the checkpoint's tensor, one line each.

Tells what rounding took from it, and finds a weight that is not the checkpoint's at all: the rounding is done again
here, and the stored bytes must mean the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ExportError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.graphs.builder import GraphBuilder, Weight
from edge_sdk.export.language import load_language
from edge_sdk.export.quantize import Scheme, chunks, dequantize, quantize_pieces
from edge_sdk.export.recipe import manifest_policy
from edge_sdk.export.vocoder import build_vocoder
from edge_sdk.export.vocoder_checkpoint import read_vocoder

Array = np.ndarray[Any, Any]
# Stored against rounded again: equal, but for the folds, whose float64 sums another machine may add in another order.
SAME = 1e-3


@dataclass(frozen=True)
class WeightError:
    """A line of the table. relative: error of the stored numbers, norm over norm; ok: they are what they should be."""

    graph: str
    name: str
    scheme: str
    relative: float
    ok: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "graph": self.graph, "weight": self.name, "scheme": self.scheme, "relative": self.relative, "ok": self.ok,
        }  # fmt: skip


def compare_language_weights(bundle: Bundle, checkpoint: str | os.PathLike[str]) -> list[WeightError]:
    """Every quantized or float16 weight of the language half."""
    with contextlib.closing(Checkpoint(checkpoint)) as source:
        return list(_compare(bundle, load_language(source, _policy(bundle)).graphs))


def compare_vocoder_weights(bundle: Bundle, folder: str | os.PathLike[str]) -> list[WeightError]:
    """Every quantized or float16 weight of the vocoder."""
    config = bundle.manifest.vocoder
    if config is None:
        raise ExportError(f"bundle '{bundle.path}' has no vocoder to compare with '{folder}'")
    source = read_vocoder(folder, steps=config.flow.steps, noise_frames=config.flow.noise_frames)
    return list(_compare(bundle, build_vocoder(source, _policy(bundle))))


def _policy(bundle: Bundle) -> Any:
    return manifest_policy(bundle.manifest.recipe, f"bundle '{bundle.path}'")


def _compare(bundle: Bundle, graphs: Mapping[str, GraphBuilder]) -> Iterator[WeightError]:
    for key, graph in graphs.items():
        stored = _initializers(bundle, key)
        for source, scheme in graph.narrowed:
            relative, difference = _error(stored, source, scheme)
            yield WeightError(key, source.name, str(scheme), relative, ok=difference <= SAME)


def _error(stored: Mapping[str, Array], source: Weight, scheme: Scheme) -> tuple[float, float]:
    """Of the stored numbers: their error, and their difference from what rounding gives here. Both norm over norm."""
    sums = np.zeros(3)  # squares of error, difference, source
    at, cols = 0, source.shape[-1]
    try:
        for expected, rows in _again(source, scheme):
            count = len(rows)
            if scheme.quantized:
                values = stored[f"{source.name}.quantized"].reshape(-1, scheme.row_bytes(cols))[at : at + count]
                scales = stored[f"{source.name}.scales"].reshape(-1, scheme.blocks(cols))[at : at + count]
                found = dequantize(values, scales, scheme, cols)
            else:
                found = stored[source.name].reshape(-1, cols)[at : at + count].astype(np.float32)
            sums += [np.square(x, dtype=np.float64).sum() for x in (found - rows, found - expected, rows)]
            at += count
    except (KeyError, ValueError):  # not there, or of another size
        return math.inf, math.inf
    return math.sqrt(sums[0] / max(sums[2], 1e-30)), math.sqrt(sums[1] / max(sums[2], 1e-30))


def _again(source: Weight, scheme: Scheme) -> Iterator[tuple[Array, Array]]:
    """(rounded, exact) rows of a weight, some at a time."""
    for exact in chunks(source.pieces()):
        if scheme.quantized:
            for values, scales in quantize_pieces([exact], scheme, source.name):
                yield dequantize(values, scales, scheme, exact.shape[1]), exact
        else:
            yield exact.astype(np.float16).astype(np.float32), exact


def _initializers(bundle: Bundle, key: str) -> dict[str, Array]:
    """A graph's weights by the name of their bytes, those in the data file as views of it."""
    entry = bundle.manifest.graphs[key]
    data = bundle.read(entry.data) if entry.data else memoryview(b"")
    found = {}
    for tensor in onnx.load_from_string(bytes(bundle.read(entry.file))).graph.initializer:
        place = {e.key: e.value for e in tensor.external_data}
        name = tensor.name.removesuffix(".blocks")
        if place:
            begin = int(place["offset"])
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            found[name] = np.frombuffer(data[begin : begin + int(place["length"])], dtype)
        else:
            found[name] = numpy_helper.to_array(tensor)
    return found
