"""Conversations that are over leave nothing behind: in a process of its own, whose memory is its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.chat import Chat
from edge_sdk.errors import BundleError
from tests import tolerances
from tests.bundles import RANDOM

_TALK = """
import gc, os, pathlib, sys, threading
import numpy as np
import edge_sdk

COUNT = int(sys.argv[1])
sound = np.random.default_rng(1).normal(0, 0.05, 40000).astype(np.float32)
generation = edge_sdk.GenerationConfig(seed=1, max_new_tokens=8)

def talk(bundle):
    with edge_sdk.Chat(bundle, generation=generation) as chat:
        turn = chat.begin_turn(16000)
        for at in range(0, len(sound), 4000):
            turn.feed(sound[at : at + 4000])
        for _ in turn.finish():
            pass

def resident_mb():
    gc.collect()
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

with edge_sdk.Bundle.open(sys.argv[2]) as bundle:
    for _ in range(2):
        for _ in range(COUNT):  # a thread each, as servers have it: every one may draw from another arena
            thread = threading.Thread(target=talk, args=(bundle,))
            thread.start()
            thread.join()
        print(resident_mb(), flush=True)
"""


@pytest.mark.slow
def test_chats_that_are_closed_give_their_memory_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TALK, "60", str(RANDOM)], capture_output=True, text=True, check=True, timeout=600
    )  # fmt: skip
    before, after = map(float, done.stdout.split())
    print(f"{before:.1f} MB after 60 chats, {after:.1f} after 120")
    assert after - before < tolerances.CHATS_GROWTH_MB


def test_what_never_changes_is_read_once_a_bundle() -> None:
    with Bundle.open(RANDOM) as bundle, Chat(bundle) as one, Chat(bundle) as other:
        assert one._tokenizer is other._tokenizer
        assert one._conversation is not other._conversation
        assert one._vocoder is not None
        assert other._vocoder is not None
        assert one._vocoder is not other._vocoder
        assert one._vocoder._flow is other._vocoder._flow
        assert one._vocoder._pool is not other._vocoder._pool


def test_nothing_is_shared_of_a_closed_bundle() -> None:
    bundle = Bundle.open(RANDOM)
    made = []
    assert bundle.shared("answer", lambda: made.append(1) or 42) == 42
    assert bundle.shared("answer", lambda: made.append(1) or 43) == 42
    assert made == [1]
    bundle.close()
    with pytest.raises(BundleError, match="is closed"):
        bundle.shared("answer", lambda: 42)


def test_what_could_not_be_made_is_tried_again() -> None:
    def fail() -> int:
        raise BundleError("not now")

    with Bundle.open(RANDOM) as bundle:
        with pytest.raises(BundleError, match="not now"):
            bundle.shared("answer", fail)
        assert bundle.shared("answer", lambda: 42) == 42
