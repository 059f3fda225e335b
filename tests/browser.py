"""A real browser without a window, driven through the pipe of its DevTools protocol."""

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

# the protocol wants these two numbers
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One tab; `errors` are what its console called so."""

    def __init__(self):
        self.folder, self.number, self.events, self.errors = tempfile.mkdtemp(), 0, [], []
        told, self.write = os.pipe()
        self.read, heard = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--no-first-run", f"--user-data-dir={self.folder}", "--remote-debugging-pipe", "about:blank"]
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (told, heard)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, ends), EXECUTABLE, *flags], pass_fds=ends, stderr=subprocess.DEVNULL
        )
        for end in (told, heard, *ends):
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
        while (answer := self.message()).get("id") != self.number:
            self.note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def message(self) -> dict:
        while b"\0" not in self.buffer:
            block = os.read(self.read, 2**16)
            if not block:
                raise RuntimeError("the browser has ended")
            self.buffer += block
        first, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(first)

    def note(self, event: dict) -> None:
        name, told = event.get("method"), event.get("params", {})
        self.events.append(name)
        if name == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"].get("exception", {}).get("description", str(told)))
        elif name == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif name == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.errors.append(str(told["args"]))

    def open(self, address: str) -> None:
        """Until it is loaded and has fetched what it wants."""
        self.events = []
        self.call("Page.navigate", url=address)
        while "Page.loadEventFired" not in self.events:
            self.note(self.message())

    def value(self, script: str):
        """Of an expression in the page; a promise is waited for."""
        told = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(str(told["exceptionDetails"]))
        return told["result"].get("value")

    def until(self, script: str, seconds: float = 15) -> bool:
        """Whether an expression comes true in time, also in the page that the browser goes on to."""
        wait = "new Promise(done => { const start = performance.now(), look = () => { let found = false;"
        wait += f"try {{ found = !!({script}) }} catch {{}} if (found || performance.now() - start > 1000)"
        wait += "done(found); else setTimeout(look, 30); }; look(); })"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self.value(wait):
                    return True
            except RuntimeError as error:
                if not any(said in str(error) for said in ("navigated", "context", "destroyed")):
                    raise
        return False

    def size(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path, whole: bool = True) -> None:
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(told["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.read), os.close(self.write)
        shutil.rmtree(self.folder, ignore_errors=True)
