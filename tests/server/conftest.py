"""One server for most tests, on the random bundle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("openai")

from edge_sdk.bundle import Bundle
from tests.bundles import RANDOM
from tests.server.running import Running, serving


@pytest.fixture(scope="session")
def bundle() -> Iterator[Bundle]:
    with Bundle.open(RANDOM) as opened:
        yield opened


@pytest.fixture(scope="session")
def server(bundle: Bundle) -> Iterator[Running]:
    with serving(bundle) as running:
        yield running
