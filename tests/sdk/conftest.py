"""The small bundle as a folder and as one file, for the tests of opening."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.export.bundle_writer import pack
from tests.sdk.small_bundle import write_small


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small") / "small.bundle")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "small.bundle"))


@pytest.fixture
def packed(original: Path, tmp_path: Path) -> Path:
    pack(original, tmp_path / "small.zip")
    return tmp_path / "small.zip"


@pytest.fixture
def hashings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths of bundles whose files were hashed."""
    seen: list[Path] = []
    plain = Bundle.check_hashes
    monkeypatch.setattr(Bundle, "check_hashes", lambda self: (seen.append(self.path), plain(self)))
    return seen
