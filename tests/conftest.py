"""What several test rooms share: bundles exported once a session."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.runtime import no_telemetry
from tests import speech_goldens

no_telemetry()  # some tests import onnxruntime themselves
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background Ctrl-C is ignored, by children as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Bundles opened by tests leave no stamps in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def speech_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, exported: encoder, backbone, speech head; no vocoder."""
    target = tmp_path_factory.mktemp("bundles") / "drsr-tiny.bundle"
    return export_bundle(speech_goldens.CHECKPOINT, None, target, ExportOptions())


@pytest.fixture
def speech_bundle(speech_bundle_path: Path) -> Iterator[Bundle]:
    with Bundle.open(speech_bundle_path) as bundle:
        yield bundle
