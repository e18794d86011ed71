"""The gallery's command and its server: what is refused, and what no request can reach."""

import base64
import hashlib
import importlib.util
import io
import json
import re

import numpy as np
import pytest
from asgi import HOME, PORT, Client
from PIL import Image

from diffusion_jax import gallery
from diffusion_jax.browsing import asked, finished, serving
from diffusion_jax.browsing.page_text import page_text
from diffusion_jax.browsing.sheets import sheet
from diffusion_jax.types import UserError


@pytest.fixture
def run(tmp_path):
  """A folder that looks like a run, with one saved picture and a link out of it."""
  folder = tmp_path / "runs" / "one"
  (folder / "samples").mkdir(parents=True)
  config = {"generative": {"name": "vae"}, "data": {"name": "digits"}, "training": {"num_steps": 9}}
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "samples" / "step_00000009.png").write_bytes(b"picture")
  (folder / "samples" / "notes.txt").write_text("private")
  (tmp_path / "secret").write_text("private")
  (folder / "samples" / "step_00000010.png").symlink_to(tmp_path / "secret")
  return folder


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (["--workdir=nowhere"], "--workdir=nowhere: no run there (No such file or directory); give a"),
    (["--workdir=."], "--workdir=.: no run there"),
    (["--workdir="], "is empty"),
    (["--workdir=.", "--port=70000"], "--port=70000: must be between 0 and 65535"),
    (["--workdir=.", "--num=1"], "--num=1: must be between 2 and 64"),
    (["--workdir=.", "--ema=2"], "--ema=2: must be a relative width"),
    (["--workdir=.", "--static=page.pdf"], "--static=page.pdf: must be a name ending in .html"),
  ],
)  # fmt: skip
def test_a_mistake_is_one_line(call, tmp_path, monkeypatch, flags, expected):
  monkeypatch.chdir(tmp_path)
  code, out, err = call(gallery.main, *flags)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert expected in err


def test_without_the_extra_it_says_what_to_type(call, run, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  code, _, err = call(gallery.main, f"--workdir={run}")
  assert (code, err.count("\n")) == (2, 1)
  assert "pip install 'diffusion_jax[gallery]'" in err
  assert "--static=FILE.html" in err


def test_a_port_in_use_is_named_and_only_this_machine_is_bound(call, run, monkeypatch):
  monkeypatch.setattr(serving, "LIBRARIES", ())
  with serving.listening_socket(0) as taken:
    host, port = taken.getsockname()
    assert host == "127.0.0.1"
    code, _, err = call(gallery.main, f"--workdir={run}", f"--port={port}")
  assert (code, err.count("\n")) == (2, 1)
  assert f"--port={port} is in use" in err
  assert "--port=0" in err


def test_a_run_without_a_checkpoint_is_refused_before_the_server_starts(call, run, monkeypatch):
  monkeypatch.setattr(serving, "LIBRARIES", ())
  for flags in ([], ["--static=page.html"]):
    monkeypatch.chdir(run.parent)
    code, out, err = call(gallery.main, f"--workdir={run}", "--port=0", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
  assert not (run.parent / "page.html").exists()


def test_a_file_shows_one_run(call, run):
  other = run.with_name("two")
  other.mkdir()
  (other / "config.json").write_text((run / "config.json").read_text())
  code, _, err = call(gallery.main, f"--workdir={run.parent}", f"--static={run}/page.html")
  assert (code, err.count("\n")) == (2, 1)
  assert f"give one, such as --workdir={run}" in err


def test_runs_are_found_in_a_folder_or_given_alone(run):
  assert {n: folder for n, (folder, _) in serving.runs_in(run.parent).items()} == {"one": run}
  assert {n: folder for n, (folder, _) in serving.runs_in(run).items()} == {"one": run}


@pytest.fixture
def client(run):
  pytest.importorskip("starlette", reason="pip install -e '.[gallery]'")

  def refuse(folder):
    raise UserError(f"cannot open {folder.name}; set `sampler.steps=5`")

  app = serving.make_app(serving.Gallery(run.parent, refuse), PORT)
  return Client(app)


def test_the_page_lists_the_runs_and_a_refused_run_is_one_line(client):
  answer = client.get("/")
  assert answer.status_code == 200
  assert '"name": "one"' in answer.text
  assert answer.headers["x-frame-options"] == "DENY"
  for reply in (client.get("/api/run?name=one"), client.post("/api/draw", json={"run": "one"})):
    assert reply.status_code == 400
    assert reply.json() == {"error": "cannot open one; set --config.sampler.steps=5"}
  assert client.get("/api/run?name=../one").status_code == 400
  for body in (b"[]", b"{", b'"x"', b"[" * 100_000, b"\xff"):
    assert client.post("/api/draw", content=body).status_code == 400
  assert client.post("/api/draw", content=b"x" * (serving.MAX_BYTES + 1)).status_code == 413
  assert client.post("/api/draw", content=b"{", is_whole=False).status_code == 400


def test_what_a_request_asks_for_is_repeated_in_one_short_line(client):
  long = "a\nb" * 100_000
  replies = [
    client.get("/api/run", params={"name": long}),
    client.get("/api/preview", params={"run": "one", "name": long}),
    client.post("/api/draw", json={"run": long}),
  ]
  for reply in replies:
    assert reply.status_code == 400
    assert "a\\nb" in reply.json()["error"]
    assert len(reply.json()["error"]) < 200
    assert "\n" not in reply.json()["error"]


def test_no_file_but_the_pictures_of_a_run_can_be_read(client):
  ask = lambda name: client.get("/api/preview", params={"run": "one", "name": name})  # noqa: E731
  assert ask("step_00000009.png").content == b"picture"
  for name in ("notes.txt", "../config.json", "/etc/passwd", "step_00000010.png", "", "."):
    assert ask(name).status_code == 400, name
  for path in ("/../../etc/passwd", "/samples/step_00000009.png", "/%2e%2e/secret"):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
  "headers",
  [
    {"host": "evil.example"},
    {"host": f"127.0.0.1.evil.example:{PORT}"},
    {"origin": "http://evil.example"},
    {"origin": f"http://127.0.0.1:{PORT + 1}"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
  ],
)
def test_another_sites_page_gets_nothing(client, headers):
  for reply in (
    client.get("/api/run?name=one", headers=headers),
    client.get("/api/preview?run=one&name=step_00000009.png", headers=headers),
    client.post("/api/draw", json={"run": "one"}, headers=headers),
  ):
    assert reply.status_code in (400, 403)
    assert "cannot open" not in reply.text
    assert reply.content != b"picture"


def test_its_own_page_and_a_typed_address_are_answered(client):
  own = {"origin": HOME, "sec-fetch-site": "same-origin"}
  assert "cannot open" in client.post("/api/draw", json={"run": "one"}, headers=own).text
  typed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}  # or a link in a mail
  assert client.get("/", headers=typed).status_code == 200


def test_a_name_cannot_end_the_script_and_only_the_pages_script_runs():
  name = "</script><script>alert(1)</script>"
  page = page_text({"live": True, "runs": [{"name": name, "words": ""}], "first": name})
  assert name not in page
  assert page.count("<script") == 2
  found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
  assert json.loads(found[1])["first"] == name
  script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in page
  assert re.search(r"@[A-Z]+@", page) is None
  assert "http:" not in page.replace("http://www.w3.org", "")
  assert "https:" not in page


@pytest.mark.parametrize(
  ("check", "value"),
  [
    (lambda s: asked.whole_number(s, "x", 0, 9), True),
    (lambda s: asked.whole_number(s, "x", 0, 9), 1.0),
    (lambda s: asked.whole_number(s, "x", 0, 9), 10),
    (lambda s: asked.real_number(s, "x", 0.0, 9.0), "1"),
    (lambda s: asked.real_number(s, "x", 0.0, 9.0), float("nan")),
    (lambda s: asked.real_number(s, "x", 0.0, 9.0), float("inf")),
    (lambda s: asked.one_of(s, "x", [0, 1]), True),
    (lambda s: asked.one_of(s, "x", [0, 1]), [0]),
    (lambda s: asked.numbers(s, "x", 2), [1.0]),
    (lambda s: asked.numbers(s, "x", 2), [1.0, None]),
    (lambda s: asked.numbers(s, "x", 2), "ab"),
  ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(check, value):
  with pytest.raises(UserError, match="x"):
    check({"x": value})
  with pytest.raises(UserError, match="x"):
    check({})


def test_a_sheet_has_each_image_in_its_row_and_column():
  images = np.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5, 1)
  made = sheet(images)
  with Image.open(io.BytesIO(base64.b64decode(made["uri"].partition(",")[2]))) as picture:
    pixels = np.asarray(picture)
  assert pixels.shape == (8, 15)
  expected = np.clip(np.floor(127.5 * images[1, 2, :, :, 0] + 128), 0, 255)
  np.testing.assert_array_equal(pixels[4:, 10:], expected)
  for channels, shown in ((2, 1), (5, 3)):
    assert sheet(np.zeros((1, 2, 4, 5, channels)))["columns"] == 2, shown


def test_a_files_answers_are_found_by_the_pages_keys():
  """JSON.stringify(Object.entries({steps: 5, step: 1, guidance: 2, sampler: "ddim"}).sort())."""
  settings = {"steps": 5, "step": 1, "guidance": 2, "sampler": "ddim"}
  expected = 'draw[["guidance",2],["sampler","ddim"],["step",1],["steps",5]]'
  assert finished.answer_key("draw", settings) == expected
