"""A repository of Hugging Face is downloaded by its own package, from a server here."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pipelines
import pytest

pytestmark = pytest.mark.reference
pytest.importorskip("huggingface_hub")

REVISION = "a" * 40


@pytest.fixture
def hub(tmp_path):
  """Address of a server with the repository own/ddpm, and the files that were asked for."""
  folder, asked = pipelines.write_in_root(tmp_path / "repository"), []
  (folder / "picture.png").write_bytes(b"not wanted")
  files = {path.name: path.read_bytes() for path in folder.iterdir()}

  class Hub(http.server.BaseHTTPRequestHandler):
    def answer(self):
      path = self.path.partition("?")[0]
      if path.startswith("/api/models/own/ddpm"):
        siblings = [{"rfilename": name} for name in files]
        tree = [{"type": "file", "path": n, "size": len(f), "oid": "0"} for n, f in files.items()]
        info = {"_id": "1", "id": "own/ddpm", "sha": REVISION, "siblings": siblings}
        return 200, json.dumps(tree if "/tree/" in path else info).encode()
      if path.startswith(f"/own/ddpm/resolve/{REVISION}/"):
        name = path.rpartition("/")[2]
        asked.append(name)
        return 200, files[name]
      return 404, b"{}"

    def do_GET(self):
      code, data = self.answer()
      self.send_response(code)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(data)))
      self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
      self.send_header("X-Repo-Commit", REVISION)
      if code == 404:
        self.send_header("X-Error-Code", "RepoNotFound")
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{server.server_address[1]}", asked, folder
  server.shutdown()
  server.server_close()


def imported(hub, tmp_path, source):
  """What the program prints, in a process of its own: the package reads its settings once."""
  env = {**os.environ, "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "home"), "XLA_FLAGS": ""}
  command = [sys.executable, "-m", "diffusion_jax.import", source, f"--out={tmp_path / 'run'}"]
  return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_a_repository_becomes_a_run(hub, tmp_path):
  done = imported(hub, tmp_path, "hf:own/ddpm")
  assert done.returncode == 0, done.stderr
  assert "imported 44,969 parameters (UNet2DModel)" in done.stdout
  weights = "diffusion_pytorch_model.safetensors"
  assert set(hub[1]) == {weights, "config.json", "model_index.json", "scheduler_config.json"}
  origin = json.loads((tmp_path / "run" / "imported.json").read_text())
  digest = hashlib.sha256((hub[2] / weights).read_bytes()).hexdigest()
  assert (origin["source"], origin["files"][weights]["sha256"]) == ("hf:own/ddpm", digest)


@pytest.mark.parametrize(
  ("source", "said"),
  [
    ("hf:own/other", "hf:own/other: there is no such repository or revision, or it is private"),
    ("hf:own", "hf:own"),
    ("hf:a/b/c", "hf:a/b/c: must be hf:OWNER/NAME"),
  ],
)
def test_a_repository_that_is_not_there_is_one_line(hub, tmp_path, source, said):
  done = imported(hub, tmp_path, source)
  assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
  assert said in done.stderr
  assert not (tmp_path / "run").exists()
