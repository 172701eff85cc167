"""Names that leave a bundle, links, and bundles that are one file."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.errors import BundleError
from edge_sdk.export.bundle_writer import pack
from edge_sdk.generation import GenerationConfig
from edge_sdk.storage import check_name
from tests import speech_goldens as goldens
from tests.sdk.small_bundle import VOICE, WEIGHT, change, refuses

# -- names and links


BAD_NAMES = [
    "/etc/passwd", "../small.bundle/adder.bin", "voices/../adder.bin", "..", ".", "./adder.bin", "voices//alto.npy",
    "voices/", "voices\\alto.npy", "..\\x", "C:x", "C:\\x", "", "a\0b", "a\nb", "\ud800", "file:x", "~/x/..",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    "use",
    [
        lambda m, name: m["files"].update({name: {"sha256": "0", "size": 1}}),
        lambda m, name: (
            m["graphs"]["adder"].update(file=name) if name else m["files"].update({"": m["files"].popitem()[1]})
        ),
        lambda m, name: m["graphs"]["adder"].update(data=name or "/"),
        lambda m, name: m["vocoder"]["voices"].update(alto=name or "/"),
        lambda m, name: m.update(noise=name or "/"),
        lambda m, name: m.update(selftest=name or "/"),
        lambda m, name: m.update(tokenizer=name or "/"),
    ],
    ids=["files", "graph", "data", "voice", "noise", "selftest", "tokenizer"],
)
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, name: str, use: Any) -> None:
    change(folder, lambda m: use(m, name))
    refuses(folder, "which is not a plain path inside the bundle")


@given(st.text(alphabet="a./\\:~ é\0\ud800", max_size=12))
def test_names_that_pass_stay_inside(name: str) -> None:
    try:
        assert check_name(name, "b") == name
    except BundleError:
        return
    root = Path("/nowhere/root")
    assert Path(os.path.normpath(root / name)).is_relative_to(root)
    assert str(root / name) == f"{root}/{name}"
    os.fsencode(name)


def test_links(folder: Path, tmp_path: Path) -> None:
    """Inside they are files like others; out of the bundle they are refused, for a file and for a directory."""
    outside = tmp_path / "outside"
    shutil.copytree(folder / "voices", outside / "voices")
    shutil.copy(folder / "adder.bin", outside / "adder.bin")

    (folder / "adder.bin").rename(folder / "real.bin")
    (folder / "adder.bin").symlink_to("real.bin")
    Bundle.open(folder).close()

    for target in (outside / "adder.bin", Path("../outside/adder.bin")):
        (folder / "adder.bin").unlink()
        (folder / "adder.bin").symlink_to(target)
        refuses(folder, r"'adder\.bin' is a link that leaves the bundle")
    (folder / "adder.bin").unlink()
    (folder / "adder.bin").symlink_to("adder.bin")  # to itself
    refuses(folder, r"'adder\.bin' is missing")
    (folder / "adder.bin").unlink()
    (folder / "adder.bin").symlink_to("gone")
    refuses(folder, r"'adder\.bin' is missing")
    (folder / "adder.bin").unlink()
    (folder / "real.bin").rename(folder / "adder.bin")
    Bundle.open(folder).close()

    shutil.rmtree(folder / "voices")
    (folder / "voices").symlink_to(outside / "voices", target_is_directory=True)
    refuses(folder, r"'voices/alto\.npy' is a link that leaves the bundle")


def test_the_bundle_itself_may_be_a_link(folder: Path, packed: Path, tmp_path: Path) -> None:
    for n, target in enumerate((folder, packed)):
        (tmp_path / f"link{n}").symlink_to(target)
        with Bundle.open(tmp_path / f"link{n}") as bundle:
            assert np.array_equal(bundle.voice(), VOICE)


# -- one file


def test_a_packed_bundle_is_the_same(folder: Path, packed: Path) -> None:
    with Bundle.open(folder) as a, Bundle.open(packed) as b:
        assert (a.digest, a.manifest) == (b.digest, b.manifest)
        assert all(a.read(name) == b.read(name) for name in a.manifest.files)
        assert np.array_equal(a.voice(), b.voice())
        x = np.ones((32, 32), np.float32)
        for bundle in (a, b):
            call = bundle.runtime(threads=1).engine("adder").call()
            call.set("x", x)
            call.fetch("y")
            assert np.array_equal(call.run()["y"], x + WEIGHT)


def test_the_same_tokens_from_a_folder_and_from_one_file(speech_bundle_path: Path, tmp_path: Path) -> None:
    pack(speech_bundle_path, tmp_path / "one.bundle")
    config = GenerationConfig(max_new_tokens=10, do_sample=False)
    replies = []
    for path in (speech_bundle_path, tmp_path / "one.bundle"):
        with Chat(path, generation=config, context_tokens=128) as chat:
            replies.append(chat.send(str(goldens.recording("syn1p3")), "And?"))
    assert replies[0].text_ids == replies[1].text_ids
    assert replies[0].speech_ids == replies[1].speech_ids
    assert replies[0].speech_ids


def rezip(packed: Path, target: Path, **how: Any) -> None:
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(target, "w", **how) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))


def test_a_zip_made_by_others_will_do_if_it_is_stored(packed: Path, tmp_path: Path) -> None:
    rezip(packed, tmp_path / "small2.zip")
    Bundle.open(tmp_path / "small2.zip").close()
    with zipfile.ZipFile(tmp_path / "small2.zip", "a") as archive:
        archive.writestr("extra/", b"")
        archive.writestr("extra/notes.txt", b"mine")
    Bundle.open(tmp_path / "small2.zip").close()


def test_a_compressed_zip(packed: Path, tmp_path: Path) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        rezip(packed, tmp_path / "small2.zip", compression=method)
        refuses(tmp_path / "small2.zip", "compressed or encrypted; store it plainly")


def test_an_encrypted_zip(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    at = data.rindex(b"PK\x01\x02")  # an entry of the directory; its flags are 8 bytes in
    data[at + 8] |= 1
    packed.write_bytes(data)
    refuses(packed, "compressed or encrypted; store it plainly")


def test_a_zip_with_a_prefix_works(packed: Path) -> None:
    """As self-extracting archives have it: the directory's offsets count from behind the prefix."""
    packed.write_bytes(b"#!/bin/sh\nexit 1\n" + packed.read_bytes())
    with Bundle.open(packed) as bundle:
        assert np.array_equal(bundle.voice(), VOICE)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice(packed: Path) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("adder.bin", WEIGHT.tobytes())
    refuses(packed, r"holds 'adder\.bin' twice")


def test_entries_that_overlap(packed: Path) -> None:
    """Two names for one place: what one program checks, another would read."""
    data = bytearray(packed.read_bytes())
    entries = [m for m in range(len(data)) if data[m : m + 4] == b"PK\x01\x02"]
    first, second = entries[-2], entries[-1]
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # the local header's offset
    packed.write_bytes(data)
    refuses(packed, "overlaps the entry before it")


def test_an_entry_that_reaches_into_the_directory(packed: Path) -> None:
    data = bytearray(packed.read_bytes())
    last = data.rindex(b"PK\x01\x02")
    for offset in (20, 24):  # both sizes
        size = int.from_bytes(data[last + offset : last + offset + 4], "little")
        data[last + offset : last + offset + 4] = (size + 40).to_bytes(4, "little")
    packed.write_bytes(data)
    refuses(packed, "reaches past the end of the members")


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a\\b", "C:x"])
def test_an_entry_name_that_leaves(packed: Path, name: str) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("QQQQ"[: len(name)] + "Q" * (len(name) - 4), b"x")
    data = packed.read_bytes()
    placeholder = ("QQQQ"[: len(name)] + "Q" * (len(name) - 4)).encode()
    packed.write_bytes(data.replace(placeholder, name.encode()))
    refuses(packed, "is not a plain path inside the bundle")


def test_an_entry_without_a_name(packed: Path) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"x")
    refuses(packed, "names the file '', which is not a plain path")


def test_a_cut_or_changed_zip_is_an_error(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    with Bundle.open(packed) as bundle:
        expected = {name: bytes(bundle.read(name)) for name in bundle.manifest.files}
    target = tmp_path / "small-damaged.zip"

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 255), st.booleans())
    def run(place: int, mask: int, near_the_end: bool) -> None:
        if near_the_end:  # where the directory is
            place = len(whole) - 1 - place % 1200
        damaged = bytearray(whole)
        damaged[place] ^= mask
        target.write_bytes(damaged if mask else whole[:place])
        try:
            with Bundle.open(target) as opened:  # padding, dates and the like have no meaning
                assert {name: bytes(opened.read(name)) for name in opened.manifest.files} == expected
            assert mask
        except BundleError:
            pass

    run()


def test_a_file_that_may_not_be_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be whole, so nobody is told to copy it again. Said by the system here, since root may read everything."""

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(packed))

    monkeypatch.setattr("edge_sdk.storage.map_file", refuse)
    with pytest.raises(BundleError, match=r"^cannot read the bundle '.*': Permission denied$"):
        Bundle.open(packed)


@pytest.mark.parametrize("data", [b"", b"PK", b"RIFF....WAVE", b"PK\x05\x06" + bytes(18), b"\x1f\x8b" + bytes(100)])
def test_a_file_that_is_no_bundle(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "small").write_bytes(data)
    refuses(tmp_path / "small", r"is not a bundle|neither a directory nor a readable zip")


@pytest.mark.parametrize(
    "end",
    [
        # the end record's offset and size of the directory, each far off
        b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + b"\xff\xff\xff\xff" + bytes(4) + b"\0\0",
        b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + bytes(4) + b"\xff\xff\xff\xff" + b"\0\0",
        # the 64-bit end record with an offset no seek takes
        b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(4) + bytes(8) + (1).to_bytes(8, "little") * 2
        + b"\xff" * 8 + b"\xff" * 8
        + b"PK\x06\x07" + bytes(4) + bytes(8) + b"\1\0\0\0"
        + b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + b"\0\0",
    ],
)  # fmt: skip
def test_a_zip_whose_end_points_nowhere(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "small").write_bytes(bytes(64) + end)
    refuses(tmp_path / "small", "is not a bundle|neither a directory nor a readable zip")
