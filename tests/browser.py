"A page in headless Chromium, driven over its DevTools protocol."
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    "A browser that shows one page at a time; `events` holds what it reported: requests, errors, messages."

    def __enter__(self) -> "Browser":
        import websocket

        self.folder, self.sent, self.events = tempfile.mkdtemp(), 0, []
        self.process = subprocess.Popen(
            [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = Path(self.folder, "DevToolsActivePort")
        self.wait(lambda: port.exists() and port.read_text())
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json"))
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self.socket = websocket.create_connection(address, timeout=60)
        for domain in ("Runtime", "Log", "Page", "Network"):
            self(f"{domain}.enable")
        return self

    def __exit__(self, *_) -> None:
        if hasattr(self, "socket"):
            self.socket.close()
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, method: str, **parameters) -> dict:
        "One command of the protocol and its result."
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv())).get("id") != self.sent:
            self.events.append(message)
        assert "error" not in message, message["error"]
        return message["result"]

    def wait(self, done, seconds: float = 60) -> None:
        "Until `done()` is true; TimeoutError."
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.05)

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        "Show a file on a screen of this size, or on a telephone where the width is below 600."
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=path.resolve().as_uri())
        self.wait(lambda: self.js("document.readyState == 'complete' && location.protocol == 'file:'"))

    def js(self, code: str) -> Any:
        "The value of an expression on the page."
        done = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def picture(self) -> bytes:
        "What the screen shows, as PNG."
        return base64.b64decode(self("Page.captureScreenshot")["data"])

    def faults(self) -> list[dict]:
        "Errors of the page."
        return [e["params"] for e in self.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]

    def requests(self) -> set[str]:
        "Schemes of all addresses that the page has asked for."
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return {address.partition(":")[0] for address in asked}
