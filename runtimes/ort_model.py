"""A small ONNX file that belongs to no bundle (the package's voice activity model), run on the CPU."""

from __future__ import annotations

from typing import Any

from edge_sdk.errors import RuntimeUnavailableError
from edge_sdk.runtimes import ort


def open_model(data: bytes, *, threads: int) -> Any:
    """A session whose `run(None, {name: array})` returns all outputs. Several threads may run it side by side.

    Raises:
        RuntimeUnavailableError: onnxruntime cannot be used here; says why.
    """
    reason = ort.unavailable()
    if reason:
        raise RuntimeUnavailableError(f"voice activity detection needs onnxruntime: {reason}")
    onnxruntime = ort.library()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = ort.LOG_FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
