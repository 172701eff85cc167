"""Bundle: an opened, checked bundle. It owns the mapped files and the engines that several Chats share."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Hashable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edge_sdk.checks import check_path, check_text, check_whole
from edge_sdk.errors import BundleError
from edge_sdk.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edge_sdk.onnx_scan import scan
from edge_sdk.storage import Storage, open_storage

if TYPE_CHECKING:
    from edge_sdk.runtime import Runtime

_T = TypeVar("_T")

_HASH_BLOCK = 1 << 22
_MAX_MANIFEST_BYTES = 64 << 20
# File systems tell times apart that are a tick of the kernel's clock apart. A file written to less than this before it
# was looked at may be written to again without a trace: it is not taken as known.
_SETTLED_NS = 100_000_000
_THREADS = "None or an integer from 1 up"  # how many are possible the runtime says
_MAX_NPY_HEADER = 1 << 16  # of format version 1.0, which is what np.save writes


class Bundle:
    """A bundle on disk. `Bundle.open` checks it; `verify` checks every byte of it again.

    Thread-safe. Weights are mapped and shared by everything that uses this object; `close` lets them go.
    """

    def __init__(self, storage: Storage, manifest: Manifest, digest: str) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._making = threading.RLock()
        self._shared: dict[Hashable, Any] = {}
        self._runtimes: dict[tuple[str, int, int | None], Runtime] = {}
        self._closed = False
        self.manifest = manifest
        self.digest = digest

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Bundle:
        """Open a bundle directory or zip file; None opens the one that ships with the package.

        Checks the format version, that every file is there with its size, that graphs use only the ops and files the
        manifest names, and the hashes: the first time here, and again whenever a file was touched since.

        Raises:
            BundleError: what is wrong, in which file, and what to do.
        """
        storage = open_storage(default_bundle_path() if path is None else check_path("a bundle", path, BundleError))
        where = str(storage.path)
        size = storage.size(MANIFEST_NAME)
        if size is None:
            raise BundleError(f"'{where}' is not a bundle: it has no {MANIFEST_NAME}")
        if size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"bundle '{where}': {MANIFEST_NAME} has {size} bytes, more than any bundle needs")
        data = bytes(storage.map(MANIFEST_NAME))
        bundle = cls(storage, parse_manifest(data, where), hashlib.sha256(data).hexdigest())
        bundle._check_sizes()
        bundle._check_graphs()
        if not bundle._stamp_is_fresh():
            bundle.check_hashes()
        return bundle

    @property
    def path(self) -> Path:
        return self._storage.path

    @property
    def name(self) -> str:
        return self.manifest.name

    # -- files

    def read(self, name: str) -> memoryview:
        """The bytes of a file that the manifest lists, mapped."""
        if self._closed:
            raise BundleError(f"bundle '{self.path}' is closed")
        if name not in self.manifest.files:
            raise BundleError(f"bundle '{self.path}' lists no file '{name}'")
        return self._storage.map(name)

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(bytes(self.read(name)))
        except (ValueError, RecursionError) as e:
            raise BundleError(f"bundle '{self.path}': '{name}' is not JSON: {e}") from e

    def read_text(self, name: str) -> str:
        try:
            return bytes(self.read(name)).decode()
        except UnicodeDecodeError as e:
            raise BundleError(f"bundle '{self.path}': '{name}' is not UTF-8: {e}") from e

    def read_array(self, name: str) -> np.ndarray[Any, Any]:
        """A .npy file of numbers; object arrays (pickles) are refused."""
        data = self.read(name)
        try:
            return _parse_npy(data)
        except Exception as e:  # NumPy parses the header as Python source, which can fail in many ways
            raise BundleError(f"bundle '{self.path}': '{name}' is not a plain .npy array: {e}") from e

    def voice(self, name: str | None = None) -> np.ndarray[Any, Any]:
        """A voice's speaker embedding, float32 [speaker_dim]; None is the bundle's default voice."""
        vocoder = self.manifest.vocoder
        if vocoder is None:
            raise BundleError(f"bundle '{self.path}' has no vocoder: it makes text and speech tokens only")
        chosen = vocoder.default_voice if name is None else name
        if chosen not in vocoder.voices:
            raise BundleError(
                f"bundle '{self.path}' has no voice '{chosen}'; it has {', '.join(sorted(vocoder.voices))}"
            )
        array = self.read_array(vocoder.voices[chosen])
        if array.shape != (vocoder.flow.speaker_dim,) or array.dtype != np.float32:
            raise BundleError(
                f"voice '{chosen}' must be float32 [{vocoder.flow.speaker_dim}], found {array.dtype}{list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise BundleError(f"bundle '{self.path}': voice '{chosen}' holds NaN or infinity")
        return array

    # -- checks

    def _check_sizes(self) -> None:
        problems = []
        for name, entry in self.manifest.files.items():
            size = self._storage.size(name)
            if size is None:
                problems.append(f"'{name}' is missing")
            elif size != entry.size:
                problems.append(f"'{name}' has {size} bytes, expected {entry.size}")
        if problems:
            raise BundleError(f"bundle '{self.path}' is incomplete: {'; '.join(problems)}. Copy or export it again")

    def _check_graphs(self) -> None:
        for key, graph in self.manifest.graphs.items():
            found = scan(self.read(graph.file), graph.file)
            # Also ops that the file defines as functions: a runtime that has a kernel of that name runs the kernel.
            strange = found.ops - set(graph.ops)
            if strange:
                raise BundleError(
                    f"bundle '{self.path}': graph '{key}' uses ops its manifest does not name: {_shown(strange)}"
                )
            files = found.external_files - ({graph.data} if graph.data else set())
            if files:
                raise BundleError(
                    f"bundle '{self.path}': graph '{key}' reads files its manifest does not name: {_shown(files)}"
                )

    def check_hashes(self) -> None:
        """Hash every file and compare with the manifest; remembers success for later openings."""
        stamp = self._stamp_value()  # before reading: what is replaced while it is read is read again next time
        settled = time.time_ns() - max(numbers[-1] for numbers in stamp.values()) > _SETTLED_NS
        for name, entry in self.manifest.files.items():
            digest = hashlib.sha256()
            data = self.read(name)
            for at in range(0, len(data), _HASH_BLOCK):
                digest.update(data[at : at + _HASH_BLOCK])
            if digest.hexdigest() != entry.sha256:
                raise BundleError(
                    f"bundle '{self.path}': '{name}' is damaged (its hash differs). Copy or export it again"
                )
        if settled:
            self._write_stamp(stamp)

    def verify(self) -> dict[str, Any]:
        """Hashes, then the self-test recorded in the bundle, run on this machine.

        Returns the self-test's report. Raises BundleError if a byte or a result differs.
        """
        from edge_sdk.selftest import run_selftest

        self.check_hashes()
        return run_selftest(self)

    def _stamp_file(self) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not cache.is_absolute():  # the specification: then it is as if it were not set
            cache = Path.home() / ".cache"
        place = hashlib.sha256(os.fsencode(self.path.resolve()))  # two copies of a bundle do not displace each other
        return cache / "edge_sdk" / "verified" / f"{self.digest[:24]}-{place.hexdigest()[:8]}.json"

    def _stamp_value(self) -> dict[str, list[int]]:
        try:
            return {name: self._storage.stamp(name) for name in (*self.manifest.files, MANIFEST_NAME)}
        except OSError as e:
            raise BundleError(f"bundle '{self.path}' went away while it was opened: {e}") from e

    def _stamp_is_fresh(self) -> bool:
        try:
            return bool(json.loads(self._stamp_file().read_bytes()) == self._stamp_value())
        except (OSError, ValueError, RuntimeError):
            return False

    def _write_stamp(self, stamp: dict[str, list[int]]) -> None:
        # A cache that cannot be written costs a hash at the next opening, nothing else.
        try:
            file = self._stamp_file()
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{secrets.token_hex(8)}")  # several threads and processes may be here
            temporary.write_text(json.dumps(stamp))
            temporary.replace(file)
        except (OSError, RuntimeError):
            pass

    # -- engines

    def runtime(self, name: str = "auto", *, device_id: int = 0, threads: int | None = None) -> Runtime:
        """The runtime of that name on this bundle; asked for again, the same object with the same weights.

        Raises:
            RuntimeUnavailableError: it cannot run here, and why.
        """
        from edge_sdk.runtime import no_telemetry
        from edge_sdk.runtimes import create, resolve

        no_telemetry()
        name = check_text("runtime", name)
        device_id = check_whole("device_id", device_id, 0)
        threads = None if threads is None else check_whole("threads", threads, 1, want=_THREADS)
        chosen = resolve(name, self, device_id)
        with self._lock:
            if self._closed:
                raise BundleError(f"bundle '{self.path}' is closed")
            key = (chosen, device_id, threads)
            if key not in self._runtimes:
                self._runtimes[key] = create(chosen, self, device_id=device_id, threads=threads)
            return self._runtimes[key]

    def shared(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What `make` returned for this key the first time: for what is read from the bundle, takes time or memory, and
        never changes, so that every conversation after the first opens fast and small."""
        with self._making:
            if self._closed:
                raise BundleError(f"bundle '{self.path}' is closed")
            if key not in self._shared:
                self._shared[key] = make()
            found: _T = self._shared[key]
            return found

    def close(self) -> None:
        """Let go of engines and mappings. Chats that still use them keep them alive until they are closed."""
        with self._lock:
            self._closed = True
            self._runtimes.clear()
            self._shared.clear()
            self._storage.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bundle '{self.name}' at '{self.path}'>"


def _shown(names: Collection[str]) -> str:
    """A hostile file may hold any number of names, of any length."""
    some = [name if len(name) <= 80 else f"{name[:77]}..." for name in sorted(names)[:5]]
    return f"{some}" + (f" and {len(names) - len(some)} more" if len(names) > len(some) else "")


def _parse_npy(data: memoryview) -> np.ndarray[Any, Any]:
    """The array of a .npy file, copied. Raises whatever NumPy raises."""
    header = io.BytesIO(data[:_MAX_NPY_HEADER])
    version = np.lib.format.read_magic(header)
    if version != (1, 0):
        raise ValueError(f"format version {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype.kind not in "fiub":
        raise ValueError(f"dtype {dtype}, expected numbers")
    body = data[header.tell() :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(body)} bytes for {dtype}{list(shape)}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran_order else "C").copy()


def default_bundle_path() -> Path:
    """The bundle inside the installed package."""
    found = Path(str(resources.files("edge_sdk") / "data" / "default.bundle"))
    if not found.exists():
        raise BundleError("this installation carries no default bundle: pass the path of one")
    return found
