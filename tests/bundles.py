"""The bundle that tests talk to where any one will do: small, of random weights, with a vocoder.

`make random-bundle` makes it (samples/random_bundle.py), and the package's default, of the same bytes so far.
"""

from __future__ import annotations

from pathlib import Path

RANDOM = Path(__file__).parent / "golden" / "random.bundle"
