"""The page in a real browser, its microphone fed from a WAV: talk, be answered, interrupt, write."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge_sdk.audio import load_audio
from edge_sdk.bundle import Bundle
from tests.server import chromium
from tests.server.running import SPEECH, Running, run, serving

RATE = 48000


def spoken(path: Path, *parts: str | float) -> Path:
    """A WAV of recordings, and seconds of silence between them."""
    sounds = [
        np.zeros(int(part * RATE), np.float32)
        if isinstance(part, float)
        else load_audio(SPEECH / f"{part}.flac", to_rate=RATE)
        for part in parts
    ]
    soundfile.write(path, np.concatenate(sounds), RATE, subtype="PCM_16")
    return path


LOG = "document.getElementById('log')"
STATE = "document.getElementById('state').textContent"


@pytest.mark.slow
def test_talk_interrupt_and_write(bundle: Bundle, tmp_path: Path) -> None:
    """The second question comes while the first is answered: the page stops, and both histories are cut."""
    wav = spoken(tmp_path / "mic.wav", 2.0, "tts_hibari_q_time_london", 4.0, "tts_joe_barge_wait", 60.0)
    shots = tmp_path

    async def check(running: Running) -> None:
        async with chromium.tab(running.url, wav, tmp_path / "profile") as page:
            await page.until("document.getElementById('voice').options.length > 0")
            assert await page.run("document.getElementById('voice').value") == running.service.voices[0]
            await page.run("document.getElementById('talk').click()")
            await page.until(f"{STATE}.startsWith('Speaking')")
            await page.until("document.querySelectorAll('#latency .row').length > 5")
            words = await page.until(f"{LOG}.querySelector('.assistant .words')?.textContent")
            await page.screenshot(shots / "page.png", 1200, 800)
            await page.screenshot(shots / "page-dark.png", 1200, 800, "dark")
            await page.screenshot(shots / "page-phone-dark.png", 390, 844, "dark")
            await page.screenshot(shots / "page-phone.png", 390, 844)
            assert await page.run("document.documentElement.scrollWidth <= innerWidth")
            await page.until(f"{LOG}.querySelectorAll('.user').length == 2")
            await page.until(f"{LOG}.querySelector('.assistant.cut') !== null")
            heard = await page.run(f"{LOG}.querySelector('.assistant .words.heard').textContent")
            assert words.startswith(heard) or heard.startswith(words[:20])
            await page.run("document.getElementById('stop').click()")
            await page.until("document.getElementById('stop').disabled")
            await page.run("document.getElementById('talk').click()")
            await page.run("document.getElementById('text').value = 'And in writing?'")
            await page.run("document.querySelector('#write button').click()")
            await page.until(f"{LOG}.innerText.includes('And in writing?')")
            await page.until(f"{LOG}.querySelectorAll('.assistant').length >= 2")
            assert await page.run("document.getElementById('problem').hidden")
            assert not page.log
        for _ in range(1000):
            if not running.sessions:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the session outlived its page")

    with serving(bundle, steps=200) as running:
        run(check(running), seconds=150)
