"""The tests' random bundle is what its script makes, and says what it is."""

from __future__ import annotations

import runpy
from pathlib import Path

from edge_sdk.bundle import Bundle
from tests.bundles import RANDOM

SCRIPT = Path(__file__).parents[2] / "samples" / "random_bundle.py"


def test_it_is_small_and_says_that_it_is_random() -> None:
    assert RANDOM.stat().st_size < 5_000_000
    with Bundle.open(RANDOM) as bundle:
        assert "andom weights" in bundle.manifest.notes[0]
        assert bundle.manifest.vocoder
        assert bundle.verify()["text_ids_equal"]


def test_the_package_has_it_too_or_a_trained_one() -> None:
    with Bundle.open() as packaged, Bundle.open(RANDOM) as own:
        if packaged.name == own.name:
            assert Path(packaged.path).read_bytes() == RANDOM.read_bytes()


def test_the_script_makes_it_again(tmp_path: Path) -> None:
    made = runpy.run_path(str(SCRIPT))["make"](tmp_path / "random.bundle")
    with Bundle.open(made) as new, Bundle.open(RANDOM) as shipped:
        weights = [name for name in shipped.manifest.files if name.endswith((".bin", ".npy", ".json", ".jinja"))]
        weights.remove(shipped.manifest.selftest)
        assert {n: shipped.manifest.files[n].sha256 for n in weights} == {
            n: new.manifest.files[n].sha256 for n in weights
        }
        assert (new.manifest.model, new.manifest.vocoder) == (shipped.manifest.model, shipped.manifest.vocoder)
        assert {k: g.ops for k, g in new.manifest.graphs.items()} == {
            k: g.ops for k, g in shipped.manifest.graphs.items()
        }
