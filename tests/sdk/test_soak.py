"""A long conversation with accidents; `python -m tests.soak` is the hour."""

from __future__ import annotations

import pytest

from tests.soak import check, soak


@pytest.mark.slow
def test_nothing_grows_stays_or_is_lost() -> None:
    check(soak(minutes=5))
