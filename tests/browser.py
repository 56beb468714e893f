"""A headless browser, spoken to through two pipes (Chrome DevTools Protocol): what a page asks for, says and shows."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
TIMEOUT_S = 60


def browser_or_skip() -> str:
    """The program of a browser; without one the test is skipped."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium")
    return found


@dataclass
class Visit:
    """What happened while a page was open."""

    requests: list[str] = field(default_factory=list)  # addresses, the page's own included
    complaints: list[str] = field(default_factory=list)  # errors and warnings of the console, exceptions
    values: list[Any] = field(default_factory=list)  # of the expressions


class Browser:
    """One process and one page at a time."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        words += [f"--user-data-dir={profile}", "--disable-background-networking", "--no-first-run", "about:blank"]
        # The protocol's pipes are 3 and 4, whatever numbers ours have.
        redirected = ["bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', *words]
        self._process = subprocess.Popen(
            redirected, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number = b"", 0
        self._events: list[dict] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        # Killed, not asked to end: its profile is thrown away, and on a busy machine its own way out takes long.
        self._process.kill()
        self._process.wait(TIMEOUT_S)

    def visit(
        self, address: str, expressions: Sequence[str], screenshot: Path | None = None, width: int = 1040
    ) -> Visit:
        """Open a page, evaluate expressions on it, and draw it whole."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable", session)
        sized = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", session, **sized)
        self._events.clear()
        self._call("Page.navigate", session, url=address)
        self._wait_for("Page.loadEventFired")
        visit = Visit()
        for expression in expressions:
            result = self._call("Runtime.evaluate", session, expression=expression, returnByValue=True)
            visit.values.append(result["result"].get("value"))
        if screenshot is not None:
            drawn = self._call("Page.captureScreenshot", session, captureBeyondViewport=True)
            screenshot.write_bytes(base64.b64decode(drawn["data"]))
        for event in self._events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent":
                visit.requests.append(parameters["request"]["url"])
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                visit.complaints.append(parameters["entry"]["text"])
            elif method == "Runtime.exceptionThrown":
                visit.complaints.append(json.dumps(parameters["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                visit.complaints.append(json.dumps(parameters["args"]))
        self._call("Target.closeTarget", targetId=target)
        return visit

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)

    def _wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict:
        """The next message."""
        until = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            read = os.read(self._read, 1 << 20) if ready else b""
            assert read, "the browser says nothing more"
            self._buffer += read
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)
