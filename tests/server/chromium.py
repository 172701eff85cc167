"""A headless Chromium with a microphone that plays a WAV file, driven by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str:
    """Its command; installed from Debian where that is allowed, else the test is skipped."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(install, check=False, capture_output=True, env=environment)
        if done.returncode == 0 and (found := shutil.which("chromium")):
            return found
    pytest.skip("no Chromium here, and none may be installed (apt-get install chromium)")


class Tab:
    """One page. `log` holds what it wrote to its console and its uncaught errors."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._calls = socket, 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.log: list[str] = []
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            value = json.loads(message.data)
            if future := self._waiting.pop(value.get("id", -1), None):
                future.set_result(value)
            elif value.get("method") == "Runtime.exceptionThrown":
                self.log.append(value["params"]["exceptionDetails"]["exception"].get("description", "?"))
            elif value.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled"):
                self.log.append(json.dumps(value["params"])[:400])

    async def call(self, method: str, **parameters: Any) -> Any:
        self._calls += 1
        future = self._waiting[self._calls] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        value = await asyncio.wait_for(future, 30)
        assert "error" not in value, value
        return value["result"]

    async def run(self, script: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str, seconds: float = 30) -> Any:
        """Wait until the script gives something that counts as true."""
        for _ in range(int(seconds / 0.1)):
            if value := await self.run(script):
                return value
            await asyncio.sleep(0.1)
        raise AssertionError(f"{script} never came true; console: {self.log}")

    async def screenshot(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        await asyncio.sleep(0.3)
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def tab(url: str, microphone: Path, profile: Path) -> AsyncIterator[Tab]:
    command = [
        find(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", "--autoplay-policy=no-user-gesture-required", "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}%noloop", "about:blank",
    ]  # fmt: skip
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        place = profile / "DevToolsActivePort"
        for _ in range(300):
            if place.exists() and place.read_text().count("\n"):
                break
            assert browser.poll() is None, "Chromium ended at once"
            await asyncio.sleep(0.1)
        port = place.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            pages = await (await session.get(f"http://127.0.0.1:{port}/json")).json()
            address = next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                opened = Tab(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await opened.call(f"{domain}.enable")
                await opened.call("Page.navigate", url=url)
                await opened.until("location.href !== 'about:blank' && document.readyState === 'complete'")
                yield opened
    finally:
        browser.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            browser.wait(10)
        browser.kill()
