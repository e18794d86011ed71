"""Weights from elsewhere: a download that goes on where it stopped, and what of a repository."""

import contextlib
import hashlib
import http.server
import sys
import threading
import types
from typing import ClassVar

import pytest

from diffusion_jax.porting import downloads
from diffusion_jax.porting.downloads import check_sha256, fetch_source, wanted_files
from diffusion_jax.types import UserError

CONTENT = bytes(range(256)) * 40


class Server(http.server.BaseHTTPRequestHandler):
  """Serves one file with ranges; `cut` bytes are sent before the connection ends."""

  content, tag, cut = CONTENT, '"one"', None
  asked: ClassVar[list] = []

  def do_GET(self):
    span, known = self.headers.get("Range"), self.headers.get("If-Range")
    type(self).asked.append((span, known))
    if self.path == "/missing.pt":
      return self.send_error(404)
    begin = int(span[6:-1]) if span and known == self.tag else 0
    rest = self.content[begin:]
    if begin and not rest:
      self.send_response(416)
      self.send_header("Content-Range", f"bytes */{len(self.content)}")
      return self.end_headers()
    self.send_response(206 if begin else 200)
    self.send_header("Content-Length", str(len(rest)))
    self.send_header("ETag", self.tag)
    self.end_headers()
    self.wfile.write(rest if self.cut is None else rest[: self.cut])

  def log_message(self, *args):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  handler = type("Own", (Server,), {"asked": []})
  web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=web.serve_forever, daemon=True).start()
  yield handler, f"http://127.0.0.1:{web.server_address[1]}"
  web.shutdown()
  web.server_close()


def test_a_download_goes_on_where_the_connection_ended(server):
  handler, address = server
  handler.cut = 3000
  with pytest.raises(UserError, match=r"ended after 3,000 of 10,240 bytes\); 3,000 bytes are kept"):
    fetch_source(f"{address}/a/model%20one.pt?x=1")
  handler.cut = None
  path = fetch_source(f"{address}/a/model%20one.pt?x=1")
  assert (path.name, path.read_bytes()) == ("model one.pt", CONTENT)
  assert handler.asked == [(None, None), ("bytes=3000-", '"one"')]
  assert fetch_source(f"{address}/a/model%20one.pt?x=1") == path
  assert len(handler.asked) == 2  # the second time it is in the cache


def test_a_file_that_changed_in_between_is_downloaded_from_its_beginning(server):
  handler, address = server
  handler.cut = 3000
  with contextlib.suppress(UserError):
    fetch_source(f"{address}/m.pt")
  handler.cut, handler.tag, handler.content = None, '"two"', CONTENT[::-1]
  assert fetch_source(f"{address}/m.pt").read_bytes() == CONTENT[::-1]


def test_a_whole_partial_file_is_not_asked_for_again(server):
  _, address = server
  fetched = fetch_source(f"{address}/m.pt")
  fetched.rename(fetched.with_name("m.pt.part"))
  assert fetch_source(f"{address}/m.pt").read_bytes() == CONTENT


def test_addresses_that_give_nothing_are_one_line(server):
  _, address = server
  with pytest.raises(UserError, match=r"cannot download .*missing.pt \(Not Found\); try again"):
    fetch_source(f"{address}/missing.pt")
  with pytest.raises(UserError, match="cannot download"):
    fetch_source("http://127.0.0.1:9/m.pt")


def test_a_checksum_is_compared(tmp_path):
  file = tmp_path / "m.pt"
  file.write_bytes(CONTENT)
  check_sha256(file, None)
  check_sha256(file, hashlib.sha256(CONTENT).hexdigest().upper())
  with pytest.raises(UserError, match=r"has SHA-256 .*, not 00: it is another file, or damaged"):
    check_sha256(file, "00")
  with pytest.raises(UserError, match="is no file; its checksum cannot be compared"):
    check_sha256(tmp_path, "00")


@pytest.mark.parametrize(
  ("files", "wanted"),
  [
    (
      ["README.md", "config.json", "diffusion_pytorch_model.bin", "model_index.json",
       "diffusion_pytorch_model.safetensors", "scheduler_config.json", "images/a.png"],
      ["config.json", "diffusion_pytorch_model.safetensors", "model_index.json",
       "scheduler_config.json"],
    ),
    (
      ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin",
       "unet/diffusion_pytorch_model.fp16.bin", "scheduler/scheduler_config.json"],
      ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
       "unet/diffusion_pytorch_model.bin"],
    ),
    (
      ["config.json", "diffusion_pytorch_model.safetensors.index.json",
       "diffusion_pytorch_model-00001-of-00002.safetensors",
       "diffusion_pytorch_model-00002-of-00002.safetensors"],
      ["config.json", "diffusion_pytorch_model-00001-of-00002.safetensors",
       "diffusion_pytorch_model-00002-of-00002.safetensors",
       "diffusion_pytorch_model.safetensors.index.json"],
    ),
    (["README.md"], []),
  ],
)  # fmt: skip
def test_of_a_repository_only_configs_and_one_set_of_weights_are_downloaded(files, wanted):
  assert sorted(wanted_files(files)) == wanted


def test_without_the_hubs_package_its_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"hf:a/b needs .*pip install 'diffusion_jax\[hub\]'"):
    downloads.fetch_source("hf:a/b")


class Hub(types.ModuleType):
  """The part of huggingface_hub that an upload uses; its own is tried in tests/reference."""

  def __init__(self, fails):
    super().__init__("huggingface_hub")
    self.fails, self.calls = fails, []
    self.errors = types.ModuleType("huggingface_hub.errors")

  def HfApi(self):
    return self

  def whoami(self):
    if "whoami" in self.fails:
      raise OSError("Token is required,\nbut no token found")

  def create_repo(self, name, exist_ok):
    self.calls.append((name, exist_ok))
    return f"https://huggingface.co/{name}"

  def upload_folder(self, repo_id, folder_path, commit_message):
    if "upload" in self.fails:
      raise OSError("403 Forbidden")
    self.calls.append((repo_id, folder_path))


@pytest.fixture
def hub(monkeypatch, request):
  made = Hub(getattr(request, "param", ()))
  monkeypatch.setitem(sys.modules, "huggingface_hub", made)
  monkeypatch.setitem(sys.modules, "huggingface_hub.errors", made.errors)
  return made


def test_a_folder_is_uploaded(hub, tmp_path):
  downloads.check_upload("me/model")
  assert downloads.upload_folder(tmp_path, "me/model") == "https://huggingface.co/me/model"
  assert hub.calls == [("me/model", True), ("me/model", tmp_path)]
  for name in ("model", "a/b/c", "/model"):
    with pytest.raises(UserError, match=f"--push={name}: must be OWNER/NAME"):
      downloads.check_upload(name)


@pytest.mark.parametrize("hub", [("whoami", "upload")], indirect=True)
def test_uploads_that_cannot_be_are_one_line(hub, tmp_path):
  with pytest.raises(UserError, match="Token is required, but no token found; log in by `hf auth"):
    downloads.check_upload("me/model")
  with pytest.raises(UserError, match=rf"403 Forbidden\); {tmp_path} is complete, upload it by"):
    downloads.upload_folder(tmp_path, "me/model")
