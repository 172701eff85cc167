"""Maps the repository's rooms to one installed package, `edge_sdk`, and builds its native core where a compiler is.

The source tree keeps the device SDK, the exporter and the runtimes apart; an installation has a single top name.
The native core is optional: without CMake or a C++ compiler the package installs all the same, and runs plain graphs.
EDGE_SDK_BUILD_NATIVE=0 leaves it out, =1 makes its failure an error. EDGE_SDK_CMAKE_OPTIONS are given to CMake, as
"-DCUDA=ON -DTRT=ON" for the TensorRT plugins (docs/plugins.md).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
ROOMS = {"edge_sdk": "edge_sdk", "edge_sdk.export": "export", "edge_sdk.runtimes": "runtimes"}
NATIVE = "edge_sdk._native"
HEADERS = ROOT / "build" / "onnxruntime"


class BuildNative(build_ext):
    """Runs CMake on csrc/ and puts the libraries, with the C header, into edge_sdk/_native."""

    def run(self):
        wanted = os.environ.get("EDGE_SDK_BUILD_NATIVE", "")
        if wanted == "0":
            return
        try:
            self.build()
        except (OSError, subprocess.CalledProcessError) as e:
            if wanted == "1":
                raise
            print(f"edge_sdk: the native core is left out ({e})", file=sys.stderr)

    def build(self):
        for tool in ("cmake", os.environ.get("CXX", "c++")):
            if not shutil.which(tool):
                raise OSError(f"{tool} was not found")
        into = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib)) / "edge_sdk" / "_native"
        work = Path(self.build_temp).resolve() / "csrc"
        ort = self.ort_include()
        options = [f"-DORT={'ON' if ort else 'OFF'}", *([f"-DEDGE_SDK_ORT_INCLUDE={ort}"] if ort else [])]
        options += os.environ.get("EDGE_SDK_CMAKE_OPTIONS", "").split()
        subprocess.run(["cmake", "-S", ROOT / "csrc", "-B", work, "-DCMAKE_BUILD_TYPE=Release", *options], check=True)
        subprocess.run(["cmake", "--build", work, "--parallel", str(os.cpu_count() or 1)], check=True)
        into.mkdir(parents=True, exist_ok=True)
        for library in (
            work / "libedge_sdk.so",
            work / "ort" / "libedge_sdk_ort.so",
            work / "trt" / "libedge_sdk_trt.so",
        ):
            if library.exists():
                # Replaced, not written over: a program that has the old one open keeps it.
                shutil.copy2(library, into / f"{library.name}.new")
                (into / f"{library.name}.new").replace(into / library.name)
        shutil.copy2(ROOT / "csrc" / "include" / "edge_sdk.h", into)

    def ort_include(self):
        """Folder of onnxruntime's headers, "" if they cannot be had: then its custom ops are left out."""
        given = os.environ.get("EDGE_SDK_ORT_INCLUDE", "")
        if given:
            return given
        found = subprocess.run([ROOT / ".ci" / "onnxruntime_headers", HEADERS], check=False)
        return str(HEADERS) if found.returncode == 0 else ""

    def get_outputs(self):
        return []

    def get_source_files(self):
        """For a source distribution: the core, and the script that finds headers, without which none is built."""
        own = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
        return [str(p.relative_to(ROOT)) for p in (*own, ROOT / ".ci" / "onnxruntime_headers")]


setup(
    packages=[p for name, room in ROOMS.items() for p in (name, *(f"{name}.{sub}" for sub in find_packages(room)))],
    package_dir=ROOMS,
    ext_modules=[Extension(NATIVE, [])],
    cmdclass={"build_ext": BuildNative},
)
