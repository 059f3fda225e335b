"""Headless Chromium, controlled through the DevTools protocol over a pipe."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), None)

# Chromium reads commands from descriptor 3 and writes to 4
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One tab; `errors` collects console errors."""

    def __init__(self):
        self.folder, self.number, self.events, self.errors = tempfile.mkdtemp(), 0, [], []
        child_read, self.write = os.pipe()
        self.read, child_write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--no-first-run", f"--user-data-dir={self.folder}", "--remote-debugging-pipe", "about:blank"]
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_read, child_write)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, ends), EXECUTABLE, *flags], pass_fds=ends, stderr=subprocess.DEVNULL
        )
        for end in (child_read, child_write, *ends):
            os.close(end)
        self.buffer = b""
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.read_message()).get("id") != self.number:
            self.record_event(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def read_message(self) -> dict:
        while b"\0" not in self.buffer:
            block = os.read(self.read, 2**16)
            if not block:
                raise RuntimeError("the browser has ended")
            self.buffer += block
        first, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(first)

    def record_event(self, event: dict) -> None:
        name, details = event.get("method"), event.get("params", {})
        self.events.append(name)
        if name == "Runtime.exceptionThrown":
            self.errors.append(details["exceptionDetails"].get("exception", {}).get("description", str(details)))
        elif name == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
        elif name == "Runtime.consoleAPICalled" and details["type"] == "error":
            self.errors.append(str(details["args"]))

    def open(self, address: str) -> None:
        """Navigate, and wait for the load event."""
        self.events = []
        self.call("Page.navigate", url=address)
        while "Page.loadEventFired" not in self.events:
            self.record_event(self.read_message())

    def evaluate(self, script: str):
        """Evaluate a JavaScript expression in the page; awaits promises."""
        evaluated = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in evaluated:
            raise RuntimeError(str(evaluated["exceptionDetails"]))
        return evaluated["result"].get("value")

    def wait_for(self, script: str, seconds: float = 15) -> bool:
        """Whether an expression becomes true in time, also after navigation."""
        wait = "new Promise(done => { const start = performance.now(), check = () => { let holds = false;"
        wait += f"try {{ holds = !!({script}) }} catch {{}} if (holds || performance.now() - start > 1000)"
        wait += "done(holds); else setTimeout(check, 30); }; check(); })"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self.evaluate(wait):
                    return True
            except RuntimeError as error:
                if not any(text in str(error) for text in ("navigated", "context", "destroyed")):
                    raise
        return False

    def set_viewport(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def save_screenshot(self, file: Path, full_page: bool = True) -> None:
        screenshot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full_page)
        file.write_bytes(base64.b64decode(screenshot["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.read), os.close(self.write)
        shutil.rmtree(self.folder, ignore_errors=True)
