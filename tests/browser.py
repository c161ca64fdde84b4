"""A headless Chromium, driven over a pipe by the DevTools protocol; standard library alone."""

import base64
import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find():
    """Path of a browser on PATH, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of a browser; keeps what the browser reports."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from = to_browser, from_browser
        self._selector = selectors.DefaultSelector()
        self._selector.register(from_browser, selectors.EVENT_READ)
        self._number, self._rest, self._session = 0, b"", None
        self.events = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """The browser's answer to a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda m: m.get("id") == self._number, method)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, url, *, width, height=900):
        """Loads a page into a window of so many pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self.send("Page.navigate", url=url)
        self._wait(lambda m: m.get("method") == "Page.loadEventFired", url)
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def run(self, script):
        """Value of an expression on the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        found = self.send("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, *, whole=False):
        """PNG of the window, or of the whole page."""
        options = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            options = {"captureBeyondViewport": True, "clip": size | {"scale": 1}}
        return base64.b64decode(self.send("Page.captureScreenshot", **options)["data"])

    def complaints(self):
        """Texts of errors and warnings of the console, and of exceptions."""
        found = []
        for event in self.events:
            name, params = event.get("method"), event.get("params", {})
            if name == "Runtime.exceptionThrown":
                found.append(str(params))
            if name == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(str(params["args"]))
            if name == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found

    def requests(self):
        """What the page asked for, embedded data left out."""
        asked = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in asked]
        return [url for url in urls if not url.startswith("data:")]

    def _wait(self, wanted, what, seconds=60):
        for event in self.events:
            if "id" not in event and wanted(event):
                return event
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self._selector.select(end - time.monotonic()):
                break
            chunk = os.read(self._from, 1 << 20)
            assert chunk, f"the browser ended at {what}"
            *whole, self._rest = (self._rest + chunk).split(b"\0")
            messages = [json.loads(message) for message in whole]
            self.events += [message for message in messages if "id" not in message]
            for message in messages:
                if wanted(message):
                    return message
        raise TimeoutError(f"the browser did not answer within {seconds} s: {what}")


@contextlib.contextmanager
def browse(folder):
    """A page of a fresh browser, whose profile is in a folder."""
    to_child, to_browser = os.pipe()
    from_browser, from_child = os.pipe()
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
    flags += " --disable-extensions --hide-scrollbars --remote-debugging-pipe"
    # the browser reads commands from its file 3, and writes answers to its file 4
    script = "import os, sys; a = sys.argv; os.dup2(int(a[1]), 3); os.dup2(int(a[2]), 4)"
    script += "; os.execv(a[3], a[3:])"
    pipes = [str(to_child), str(from_child)]
    command = [find(), *flags.split(), f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *pipes, *command],
        pass_fds=(to_child, from_child),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
