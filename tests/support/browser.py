"""Headless Chromium, driven over a pipe by its own protocol, so no library is needed."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
)


class Browser:
    """Chromium reads commands from file 3 and writes answers and events to file 4, each JSON ended by a zero byte."""

    def __init__(self, profile: Path):
        commands, self._send = os.pipe()
        self._receive, answers = os.pipe()
        # A shell moves the two ends to where Chromium looks for them.
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        self._number = 0
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method):
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def value(self, expression):
        """Of a JavaScript expression; the page's own policy forbids scripts only to the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _next(self):
        while b"\0" not in self._buffer:
            chunk = os.read(self._receive, 1 << 16)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def close(self):
        os.close(self._send)
        self._process.terminate()
        self._process.wait()
        os.close(self._receive)

    def open(self, page: Path | str, *, width=1240, height=900):
        """Show a page, of a file or at a URL, and keep the events of its loading."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.wait_for("Page.loadEventFired")

    def resize(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def wait_until(self, expression, *, patience_s=120):
        """Until a JavaScript expression is true of the page; the last value is in the error."""
        end = time.monotonic() + patience_s
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"{expression} is {value!r}"
            time.sleep(0.1)
        return value

    def complaints(self):
        """What the console and the page said while it loaded."""
        bad = ("Runtime.consoleAPICalled", "Log.entryAdded", "Runtime.exceptionThrown")
        return [event for event in self.events if event.get("method") in bad]

    def requests(self):
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def brightness(self, selector, style):
        text = self.value(f"getComputedStyle(document.querySelector('{selector}')).{style}")
        return sum(map(float, text[text.index("(") + 1 : -1].split(",")[:3])) / 3
