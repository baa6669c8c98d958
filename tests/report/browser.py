"""A real browser for tests, driven through its debugging protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 60.0  # seconds; only a browser that hangs takes them


class Page:
    """One page that was opened.

    Attributes:
        errors: what its scripts threw.
        requests: addresses that it asked for.
    """

    def __init__(self, port: int, address: str) -> None:
        self._port, self._address = port, address
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loop.run_until_complete(self._open())

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"{script} never came true; errors: {self.errors}")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def click(self, x: float, y: float) -> None:
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width: int, height: int) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                   deviceScaleFactor=1, mobile=False)  # fmt: skip

    def go(self, address: str) -> None:
        """Open another page in its place."""
        self._call("Page.navigate", url=address)

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession()
        pages = await (await self._session.get(f"http://127.0.0.1:{self._port}/json")).json()
        (page,) = [p for p in pages if p["type"] == "page"]
        self._socket = await self._session.ws_connect(
            page["webSocketDebuggerUrl"], max_msg_size=2**28
        )
        for method in ("Runtime.enable", "Network.enable", "Page.enable"):
            await self._send(method, {})
        await self._send("Page.navigate", {"url": self._address})

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(self._send(method, arguments))

    async def _send(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": arguments})
        while True:
            message = json.loads((await self._socket.receive(_PATIENCE)).data)
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                return message.get("result", message)


@contextmanager
def opened(address: str) -> Iterator[Page]:
    """Open a page in a browser of its own; skips where no browser is installed."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(_NAMES)} is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900",
             "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            page = Page(_port(Path(profile)), address)
            try:
                yield page
            finally:
                page.close()
        finally:
            browser.terminate()
            with suppress(subprocess.TimeoutExpired):
                browser.wait(10)
            browser.kill()


def _port(profile: Path) -> int:
    """The port that the browser chose, once it has said so."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with suppress(OSError, ValueError, IndexError):
            return int((profile / "DevToolsActivePort").read_text().splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("the browser did not start")
