"""The gallery in a real browser, with the mouse and the keyboard: Debian's package chromium.

The seconds of each click are printed (pytest -s), not judged: they depend on who else computes.
GALLERY_RUNS=DIR clicks through runs of your own, such as runs of ddpm_digits and vae_digits alone.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import chromium
import pytest
import tiny
import xla_flags

pytestmark = pytest.mark.system

COMPILED_SEC = 120
"""Longest wait for an answer that compiles, or for the server to begin."""

ANSWER_SEC = 30
"""Longest wait for another answer."""

SHOWN = "[...document.querySelectorAll('#grid canvas')].map((c) => c.toDataURL()).join(' ')"
STATUS = "document.getElementById('status').textContent"
IDLE = "!asking && !waiting"
OWN_RUNS = os.environ.get("GALLERY_RUNS", "")
TRAIN = [
  "--config.training.num_steps=60", "--config.checkpoint.every_steps=30",
  "--config.optimizer.learning_rate=0.005", "--config.logging.sample_every_steps=30",
  "--config.logging.num_samples=10", "--config.logging.tensorboard=false",
]  # fmt: skip
VAE = [
  "--config=configs/vae_digits.py", "--config.model.channels=8", "--config.eval.num_seeds=1",
  "--config.eval.likelihood_repeats=1", "--config.iwae.num_draws=4", "--config.iwae.chunk=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def binary():
  pytest.importorskip("uvicorn", reason="pip install -e '.[gallery]'")
  return shutil.which("chromium") or pytest.skip("no chromium: apt-get install -y chromium")


@pytest.fixture(scope="module")
def runs(binary, request, tmp_path_factory):
  """A folder with a diffusion run and a VAE's."""
  if OWN_RUNS:
    return Path(OWN_RUNS).absolute()
  from diffusion_jax import train

  folder = tmp_path_factory.mktemp("runs")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(request.config.rootpath)
    train.main([*tiny.TINY, *TRAIN, f"--workdir={folder / 'diffusion'}"])
    train.main([*VAE, *TRAIN, f"--workdir={folder / 'vae'}"])
  return folder


@pytest.fixture(scope="module")
def address(runs, request, tmp_path_factory):
  """The gallery's address, while it runs."""
  path = [str(request.config.rootpath), os.environ.get("PYTHONPATH", "")]
  flags = "" if OWN_RUNS else xla_flags.FAST
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "XLA_FLAGS": flags}
  log = tmp_path_factory.mktemp("log") / "gallery.txt"
  command = [sys.executable, "-m", "diffusion_jax.gallery", f"--workdir={runs}", "--port=0"]
  with log.open("w") as file:
    process = subprocess.Popen(
      command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
    )
  try:
    end = time.monotonic() + COMPILED_SEC
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
      assert process.poll() is None, log.read_text()
      assert time.monotonic() < end, log.read_text()
      time.sleep(0.1)
    yield found[0]
    assert process.poll() is None, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
  finally:
    process.kill()
    process.wait(10)


@pytest.fixture(scope="module")
def browser(binary, tmp_path_factory):
  with chromium.Chromium(binary, tmp_path_factory.mktemp("profile")) as opened:
    opened.resize(1280)
    yield opened


def element(selector):
  return f"document.querySelector('{selector}')"


def wait(browser, expression, seconds=ANSWER_SEC):
  """Waits until a JavaScript expression is true."""
  end = time.monotonic() + seconds
  while not browser.evaluate(f"Boolean({expression})"):
    assert time.monotonic() < end, f"{expression}: {browser.evaluate(STATUS)}"
    time.sleep(0.02)


def wait_for_pictures(browser, seconds=ANSWER_SEC):
  wait(browser, f"{IDLE} && document.querySelector('#grid canvas')", seconds)


def new_pictures(browser, name, act, seconds=ANSWER_SEC):
  """Acts, prints the seconds until the grid shows other pictures, and waits for the last ones."""
  before, begun = browser.evaluate(SHOWN), time.perf_counter()
  act()
  while (now := browser.evaluate(SHOWN)) == before or not now:
    assert time.perf_counter() - begun < seconds, f"{name}: {browser.evaluate(STATUS)}"
    time.sleep(0.02)
  print(f"{name}: {time.perf_counter() - begun:.2f} s")
  wait(browser, IDLE, seconds)


def open_tab(browser, name):
  browser.click(element(f"[data-tab={name}]"))


def pick_next(browser, selector):
  """Takes the next entry of a list with the keyboard."""
  browser.evaluate(f"{element(selector)}.focus()")
  browser.press("ArrowDown")


@pytest.fixture
def page(browser, address):
  """The page with the samples of the diffusion run."""
  browser.open(address)
  wait_for_pictures(browser, COMPILED_SEC)
  return browser


def test_each_click_gives_new_samples(page):
  slide = lambda name, where: lambda: page.drag(element(name), (where, 0.5))  # noqa: E731
  new_pictures(page, "seed", lambda: page.click(element("#again")))
  new_pictures(page, "guidance", slide("#guidance", 0.8))
  new_pictures(page, "class", lambda: pick_next(page, "#label"))
  new_pictures(page, "sampler", lambda: pick_next(page, "#sampler"))
  new_pictures(page, "fewer steps", slide("#steps", 0.5))
  new_pictures(page, "most steps", slide("#steps", 0.99))
  assert page.evaluate("settings.steps") == page.evaluate("Math.max(...run.stepChoices)")
  new_pictures(page, "seed with most steps", lambda: page.click(element("#again")))
  steps = page.evaluate("run.steps")
  assert page.evaluate("settings.step") == steps[-1] > steps[0]
  new_pictures(page, "training step", slide("#step", 0.01))
  assert page.evaluate("settings.step") == steps[0]
  assert page.evaluate("document.querySelectorAll('#grid canvas').length") == 16


def test_dragging_from_noise_to_samples_asks_for_nothing(page):
  page.events.clear()
  places = [(0.99, 0.5), (0.5, 0.5), (0.2, 0.5)]
  new_pictures(page, "path", lambda: page.drag(element("#frame"), *places))
  words = page.evaluate("document.getElementById('frame-text').textContent")
  assert "estimates at σ/α = " in words
  asked = [e["request"]["url"] for e in page.reported("Network.requestWillBeSent")]
  assert [url for url in asked if "/api/" in url] == []


def test_two_clicked_samples_are_interpolated(page):
  pressed = "[...document.querySelectorAll('#grid .tile')].map((t) => t.ariaPressed === 'true')"
  for i in (2, 7):
    page.click(f"document.querySelectorAll('#grid .tile')[{i}]")
    wait(page, f"({pressed})[{i}]")
  assert [i for i, is_on in enumerate(page.evaluate(pressed)) if is_on] == [2, 7]
  ends = page.evaluate(f"({SHOWN}).split(' ')")
  open_tab(page, "between")
  wait_for_pictures(page)
  way = page.evaluate(f"({SHOWN}).split(' ')")
  assert (way[0], way[-1]) == (ends[2], ends[7])
  assert len(set(way)) > 8


def test_a_drawn_mask_is_filled_in(page):
  open_tab(page, "inpaint")
  wait(page, element("#paint"))
  stroke = [(0.1 + 0.1 * i, 0.3) for i in range(5)]
  new_pictures(page, "inpainting", lambda: page.drag(element("#paint"), *stroke))
  pixel = lambda x, y: (  # noqa: E731
    f"[...document.querySelectorAll('#grid canvas')].map((c) => "
    f"String(c.getContext('2d').getImageData({x}, {y}, 1, 1).data))"
  )
  assert len(set(page.evaluate(pixel(2, 2)))) > 1  # below the stroke
  assert len(set(page.evaluate(pixel(4, 6)))) == 1  # known
  other = "document.querySelectorAll('.beside .tile')[4]"
  new_pictures(page, "inpainting of another image", lambda: page.click(other))


def test_the_noise_level_is_dragged(page):
  open_tab(page, "noise")
  wait_for_pictures(page, COMPILED_SEC)
  text = "document.getElementById('level-text').textContent"
  before, places = page.evaluate(text), [(0.5, 0.5), (0.3, 0.5), (0.1, 0.5)]
  new_pictures(page, "noise level", lambda: page.drag(element("#level"), *places))
  assert page.evaluate(text) != before


def test_training_pictures_are_dragged(page):
  open_tab(page, "training")
  wait(page, "document.querySelector('#preview')?.naturalWidth > 0")
  source = page.evaluate("document.querySelector('#preview').src")
  page.drag(element("#previews"), (0.01, 0.5))
  wait(page, f"document.querySelector('#preview').src !== '{source}'")
  wait(page, "document.querySelector('#preview').naturalWidth > 0")


def test_a_walk_through_a_vaes_latents_and_what_it_has_not(page):
  pick_next(page, "#runs")
  wait(page, "document.getElementById('facts').textContent.startsWith('vae')", COMPILED_SEC)
  wait_for_pictures(page, COMPILED_SEC)
  open_tab(page, "latents")
  wait_for_pictures(page, COMPILED_SEC)
  cell = "document.querySelectorAll('#grid .tile')[8]"
  new_pictures(page, "latent walk", lambda: page.click(cell))
  open_tab(page, "inpaint")
  wait(page, f"{STATUS}.includes('cannot edit images')")
  open_tab(page, "between")
  wait_for_pictures(page, COMPILED_SEC)


def test_what_is_left_before_its_answer_comes_is_not_shown(page):
  for name in ("inpaint", "noise", "between", "training"):  # faster than the answers
    open_tab(page, name)
  wait(page, f"{IDLE} && document.querySelector('#preview')", COMPILED_SEC)
  assert not page.evaluate(element("#paint"))
  assert not page.evaluate(element("#grid canvas"))


def test_nothing_fails_and_nothing_is_asked_elsewhere(page, address):
  for name in ("between", "inpaint", "noise", "training", "draw"):
    open_tab(page, name)
    wait(page, IDLE, COMPILED_SEC)
  assert page.reported("Log.entryAdded", "Runtime.exceptionThrown") == []
  asked = [e["request"]["url"] for e in page.reported("Network.requestWillBeSent")]
  assert [url for url in asked if not url.startswith(("data:", address))] == []


def test_the_file_of_a_run_works_without_a_server(browser, runs, tmp_path):
  from diffusion_jax import gallery

  path = tmp_path / "page.html"
  folder = next(folder for folder in sorted(runs.iterdir()) if folder.is_dir())
  gallery.main([f"--workdir={folder}", f"--static={path}"])
  browser.open(path.as_uri())
  wait_for_pictures(browser)
  new_pictures(browser, "file: seed", lambda: browser.click(element("#again")))
  new_pictures(browser, "file: guidance", lambda: browser.drag(element("#guidance"), (0.99, 0.5)))
  new_pictures(browser, "file: path", lambda: browser.drag(element("#frame"), (0.1, 0.5)))
  for name in ("between", "inpaint", "noise"):
    open_tab(browser, name)
    wait_for_pictures(browser)
  new_pictures(browser, "file: noise level", lambda: browser.drag(element("#level"), (0.9, 0.5)))
  open_tab(browser, "training")
  wait(browser, "document.querySelector('#preview')?.naturalWidth > 0")
  asked = [e["request"]["url"] for e in browser.reported("Network.requestWillBeSent")]
  assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
  assert browser.reported("Log.entryAdded", "Runtime.exceptionThrown") == []
