"""Starts a server as a person would, in its own process."""

import os
import signal
import subprocess
import sys
import threading

import httpx
from places import ROOT

START_TIMEOUT_S = 180


class Server:
    """`python -m jobs.serve ...` as a subprocess."""

    def __init__(self, *arguments: str, **environment: str):
        # Metrics leave Ray's processes every second instead of every ten.
        own = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", "RAY_metrics_report_interval_ms": "1000"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.serve", *arguments],
            cwd=ROOT,
            env={**os.environ, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output: list[str] = []
        self.url: str | None = None
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self._ready.wait(START_TIMEOUT_S)
        if self.url is None:
            self.process.kill()
            raise AssertionError(f"no server, exit code {self.process.wait()}:\n" + "".join(self.output))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith("ready: "):
                self.url = line.removeprefix("ready: ").strip()
                self._ready.set()
        self._ready.set()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=90)


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False
