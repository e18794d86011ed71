"""A headless Chromium driven over its debugging pipe, with the standard library alone."""

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path

FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--hide-scrollbars",
  "--remote-debugging-pipe",
]


class Chromium:
  """One page of a browser; `events` holds everything that the page reported."""

  def __init__(self, binary: str, profile: Path):
    to_browser, self._write = os.pipe()
    self._read, from_browser = os.pipe()
    # The browser reads commands from descriptor 3 and answers on 4; both end with a zero byte.
    command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    self._process = subprocess.Popen(
      ["bash", "-c", command, "bash", binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
      pass_fds=(to_browser, from_browser),
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    self._pending, self._number, self._session = b"", 0, None
    self.events: list[dict] = []
    target = self.send("Target.createTarget", url="about:blank")["targetId"]
    attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.send(f"{domain}.enable")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    os.close(self._write)
    os.close(self._read)
    self._process.terminate()
    try:
      self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def send(self, method: str, **params):
    """Sends a command and waits for its answer."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    if self._session is not None:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while (answer := self._receive(60)).get("id") != self._number:
      self.events.append(answer)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']}")
    return answer["result"]

  def _receive(self, seconds: float):
    end = time.monotonic() + seconds
    while b"\0" not in self._pending:
      ready, _, _ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
      chunk = os.read(self._read, 1 << 20) if ready else b""
      if not chunk:
        raise RuntimeError(f"the browser said nothing for {seconds} s, or ended")
      self._pending += chunk
    message, self._pending = self._pending.split(b"\0", 1)
    return json.loads(message)

  def open(self, url: str):
    """Opens a page and waits until it is loaded and its images are decoded."""
    self.events.clear()
    self.send("Page.navigate", url=url)
    while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
      self.events.append(self._receive(60))
    self.evaluate("Promise.all([...document.images].map((i) => i.decode().catch(() => 0)))")

  def evaluate(self, expression: str):
    """The value of a JavaScript expression in the page."""
    answer = self.send(
      "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
    )
    if "exceptionDetails" in answer:
      raise RuntimeError(answer["exceptionDetails"])
    return answer["result"].get("value")

  def move(self, kind: str, x: float, y: float):
    """A mouse event at a place in the viewport: Pressed, Moved or Released."""
    held = {"button": "left", "buttons": int(kind != "Released"), "clickCount": 1}
    self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **held)

  def place(self, element: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
    """A place in an element, which a JavaScript expression gives, scrolled into view."""
    box = f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}});"
    box += " const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    x, y, width, height = self.evaluate(box)
    return x + across * width, y + down * height

  def drag(self, element: str, *places: tuple[float, float]):
    """Presses the mouse at the first place in an element, moves it over the others, lets go."""
    places = [self.place(element, *place) for place in places]
    self.move("Pressed", *places[0])
    for place in places[1:]:
      self.move("Moved", *place)
    self.move("Released", *places[-1])

  def click(self, element: str):
    """Clicks the middle of an element with the mouse."""
    self.drag(element, (0.5, 0.5))

  def press(self, key: str):
    """Presses a key such as ArrowDown in the element that has the focus."""
    code = {"ArrowDown": 40, "ArrowUp": 38, "Enter": 13}[key]
    for kind in ("rawKeyDown", "keyUp"):
      self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

  def resize(self, width: int, height: int = 900):
    """Sets the viewport in CSS pixels, narrower than a window may be."""
    self.send(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )

  def theme(self, name: str, media: str = ""):
    """Prefers "light" or "dark"; media "print" shows the page as it is printed."""
    feature = {"name": "prefers-color-scheme", "value": name}
    self.send("Emulation.setEmulatedMedia", media=media, features=[feature])

  def screenshot(self, path: Path):
    """The whole page as a PNG."""
    answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(answer["data"]))

  def reported(self, *methods: str) -> list[dict]:
    """Parameters of the events of these kinds."""
    return [e["params"] for e in self.events if e.get("method") in methods]
