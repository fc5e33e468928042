"""A real Chromium without a window, spoken to over a pipe: what it shows, asks for and says."""

import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
_FLAGS = (
  "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
DESKTOP, PHONE = (1280, 900), (390, 844)


class Browser:
  """One page at a time. Speaks the DevTools protocol: commands and events as JSON, ended by NUL."""

  def __init__(self):
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    self._out, self._in = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb")
    self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    pipes = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4), null]
    command = [PROGRAM, *_FLAGS, f"--user-data-dir={self._profile.name}"]
    self._process = os.posix_spawn(PROGRAM, command, os.environ, file_actions=pipes)
    os.close(theirs_in)
    os.close(theirs_out)
    self._numbers, self._session, self.events = itertools.count(1), None, []

  def __enter__(self):
    try:
      target = self.call("Target.createTarget", url="about:blank")["targetId"]
      self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
      for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
        self.call(f"{domain}.enable")
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *exception):
    self._out.close()
    self._in.close()
    os.kill(self._process, signal.SIGKILL)
    os.waitpid(self._process, 0)
    self._profile.cleanup()

  def call(self, method, **params):
    """The result of a command; events that come before it are kept."""
    number = next(self._numbers)
    message = {"id": number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    self._out.write(json.dumps(message).encode() + b"\0")
    while True:
      answer = self._read()
      if answer.get("id") == number:
        assert "error" not in answer, answer
        return answer["result"]

  def _read(self):
    raw = bytearray()
    while (byte := self._in.read(1)) != b"\0":
      assert byte, "Chromium has ended"
      raw += byte
    answer = json.loads(raw)
    if "method" in answer:
      self.events.append(answer)
    return answer

  def open(self, path, size=DESKTOP, dark=False):
    """Shows a file; returns once it is loaded."""
    self.events.clear()
    width, height = size
    self.call(
      "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
      mobile=size == PHONE,
    )  # fmt: skip
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.call("Emulation.setEmulatedMedia", features=[scheme])
    self.call("Page.navigate", url=Path(path).absolute().as_uri())
    while not any(event["method"] == "Page.loadEventFired" for event in self.events):
      self._read()

  def evaluate(self, expression):
    """The value of JavaScript."""
    found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    return found["result"].get("value")

  def press(self, key):
    """A key on the keyboard."""
    for kind in ("keyDown", "keyUp"):
      self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode={"Tab": 9, "ArrowRight": 39}[key])  # fmt: skip

  def requested(self):
    """All addresses asked for, without data inside the page."""
    sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
    urls = [params["request"]["url"] for params in sent]
    return [url for url in urls if not url.startswith("data:")]

  def complaints(self):
    """What the console says."""
    said = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event["params"] for event in self.events if event["method"] in said]

  def accessible(self):
    """(role, name) of all that assistive technology is told of."""
    nodes = self.call("Accessibility.getFullAXTree")["nodes"]
    text = lambda node, field: node.get(field, {}).get("value", "")
    return [(text(n, "role"), text(n, "name")) for n in nodes if not n.get("ignored")]

  def screenshot(self, path):
    """The whole page as a PNG."""
    shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
    Path(path).write_bytes(base64.b64decode(shot["data"]))
