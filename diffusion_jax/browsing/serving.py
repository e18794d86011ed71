"""A server on 127.0.0.1 for the page; it reads only the runs that it was started with.

It answers only requests for 127.0.0.1 and localhost, so that no foreign name leads to it, and none
that another site's page sends. No request names a file: runs are chosen by their names in the list,
saved pictures by theirs in the run's list.
"""

import contextlib
import errno
import importlib.util
import json
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.browsing.opened_run import OpenedRun
from diffusion_jax.browsing.page_text import page_text
from diffusion_jax.browsing.shown_run import default_settings, previews_of, run_words, shown_facts
from diffusion_jax.browsing.studio import Studio
from diffusion_jax.core.wording import one_line, with_flags
from diffusion_jax.runs.run_facts import RunFacts, find_runs, read_run
from diffusion_jax.types import UserError

HOST = "127.0.0.1"
MAX_BYTES = 1 << 20
"""Largest request."""

KEPT_RUNS = 2
"""Number of runs that stay in memory."""

BEGIN = (
  "give a run's folder or a folder of runs, or begin with diffusion-jax train --config=ddpm_digits"
)
LIBRARIES = ("starlette", "uvicorn")


def check_libraries() -> None:
  """Raise an error if the libraries of the server are missing.

  Raises:
    UserError: they are; the message says what to type.
  """
  missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
  if missing:
    raise UserError(
      f"the gallery needs {' and '.join(missing)}: pip install 'diffusion_jax[gallery]'; a page "
      "without a server needs neither: diffusion-jax gallery --workdir=DIR --static=FILE.html"
    )


def listening_socket(port: int) -> socket.socket:
  """Return a socket that listens on this machine only; port 0 takes a free one.

  Raises:
    UserError: the port is in use, or this user may not use it.
  """
  found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
  found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    found.bind((HOST, port))
    found.listen(128)
  except OSError as error:
    found.close()
    used = error.errno == errno.EADDRINUSE
    why = "is in use, perhaps by another gallery" if used else f"cannot be used ({error.strerror})"
    raise UserError(f"--port={port} {why}; give another, or --port=0 for a free one") from error
  return found


def runs_in(root: Path) -> dict[str, tuple[Path, RunFacts]]:
  """Return the runs in a folder that is one or holds some, by name.

  Raises:
    UserError: there is no such folder, or no run in it.
  """
  where = f"`workdir={root}`"
  try:
    facts = find_runs(root)
  except OSError as error:
    raise UserError(f"{where}: no run there ({error.strerror}); {BEGIN}") from error
  is_one = len(facts) == 1 and facts[0].name == root.name and not (root / facts[0].name).is_dir()
  folder_of = lambda run: root if is_one else root / run.name  # noqa: E731
  usable = [run for run in facts if run.state not in ("foreign", "damaged")]
  if not usable:
    problem = f" ({facts[0].name}: {facts[0].problem})" if facts else ""
    raise UserError(f"{where}: no run there{problem}; {BEGIN}")
  return {run.name: (folder_of(run), run) for run in usable}


class Gallery:
  """The runs of a page, opened when they are first shown.

  Args:
    root: a run's folder or a folder of runs.
    open_run: opens the run in a folder.
  """

  def __init__(self, root: Path, open_run: Callable[[Path], OpenedRun]):
    self.root, self._open = root, open_run
    self.runs = runs_in(root)
    self._studios: dict[str, Studio] = {}
    self._lock = threading.Lock()

  def page(self) -> str:
    """Return the page; runs that have begun since are in its list."""
    with contextlib.suppress(UserError):
      self.runs = runs_in(self.root)
    runs = [{"name": name, "words": run_words(facts)} for name, (_, facts) in self.runs.items()]
    opened = [name for name in list(self._studios) if name in self.runs]
    return page_text({"live": True, "runs": runs, "first": [*opened, runs[0]["name"]][0]})

  def folder(self, name: str) -> Path:
    """Return the folder of a run in the list.

    Raises:
      UserError: it is not in the list.
    """
    if name not in self.runs:
      raise UserError(f"{one_line(name)}: no such run here; load the page again")
    return self.runs[name][0]

  def studio(self, name: str) -> Studio:
    """Return the studio of a run, opened by the first caller.

    Raises:
      UserError: the run cannot be opened.
    """
    folder = self.folder(name)
    with self._lock:
      if name not in self._studios:
        opened = Studio(self._open(folder))
        while len(self._studios) >= KEPT_RUNS:
          del self._studios[next(iter(self._studios))]
        self._studios[name] = opened
      return self._studios[name]

  def facts(self, name: str) -> dict[str, Any]:
    """Return what the page offers of a run, with the checkpoints that it has now."""
    run = self.studio(name).run
    run.find_steps()
    return shown_facts(run, name, read_run(run.folder, name))

  def answer(self, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return an answer to the page."""
    return self.studio(str(settings.get("run"))).answer(kind, settings)

  def preview(self, name: str, file: str) -> bytes:
    """Return a picture that training has saved.

    Raises:
      UserError: the run has no such picture.
    """
    folder = self.folder(name)
    if file not in [entry["name"] for entry in previews_of(folder)]:
      raise UserError(f"{one_line(file)}: no such picture of this run")
    return (folder / "samples" / file).read_bytes()

  def warm_up(self, name: str) -> None:
    """Compile what the page asks first, so that its first clicks do not wait."""
    with contextlib.suppress(UserError):
      studio = self.studio(name)
      settings = default_settings(studio.run)
      for kind, more in (("draw", {}), ("pictures", {}), ("noise", {"level": 0}),
                         ("latents", {"picture": 0})):  # fmt: skip
        with contextlib.suppress(UserError):
          studio.answer(kind, {**settings, **more})


def make_app(gallery: Gallery, port: int) -> Any:
  """Return the ASGI application of a gallery.

  Args:
    gallery: the runs.
    port: port of the server, which the browser's Origin must name.
  """
  from starlette.applications import Starlette  # pyright: ignore[reportMissingImports]
  from starlette.concurrency import run_in_threadpool  # pyright: ignore[reportMissingImports]
  from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]
  from starlette.middleware.trustedhost import TrustedHostMiddleware  # pyright: ignore[reportMissingImports]
  from starlette.requests import ClientDisconnect, Request  # pyright: ignore[reportMissingImports]
  from starlette.responses import HTMLResponse, JSONResponse, Response  # pyright: ignore[reportMissingImports]
  from starlette.routing import Route  # pyright: ignore[reportMissingImports]

  origins = {f"http://{host}:{port}" for host in (HOST, "localhost")}
  kept_out = {"error": "this gallery answers only its own page"}

  def is_own(request: Request) -> bool:
    origin, site = (request.headers.get(name) for name in ("origin", "sec-fetch-site"))
    is_page = request.headers.get("sec-fetch-mode") == "navigate" and request.url.path == "/"
    return origin in (None, *origins) and (site in (None, "same-origin", "none") or is_page)

  async def replied(request: Request, make: Callable[[], Response]) -> Response:
    """Return the response of a function that runs in a thread, or its error in one line."""
    if not is_own(request):
      return JSONResponse(kept_out, 403)
    try:
      response = await run_in_threadpool(make)
    except UserError as error:
      response = JSONResponse({"error": with_flags(str(error))}, 400)
    except Exception as error:
      print(f"{request.url.path}: {type(error).__name__}: {error}")
      response = JSONResponse({"error": f"{type(error).__name__}: {str(error)[:300]}"}, 500)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    response.headers["Cache-Control"] = "no-store"
    return response

  async def page(request: Request) -> Response:
    return await replied(request, lambda: HTMLResponse(gallery.page()))

  async def run(request: Request) -> Response:
    name = request.query_params.get("name", "")
    return await replied(request, lambda: JSONResponse(gallery.facts(name)))

  async def preview(request: Request) -> Response:
    name, file = (request.query_params.get(key, "") for key in ("run", "name"))
    make = lambda: Response(gallery.preview(name, file), media_type="image/png")  # noqa: E731
    return await replied(request, make)

  async def answer(request: Request) -> Response:
    body = b""
    try:
      async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
          return JSONResponse({"error": f"more than {MAX_BYTES:,} bytes"}, 413)
    except ClientDisconnect:
      return JSONResponse({"error": "the request ended before its end"}, 400)
    kind = request.path_params["kind"]
    return await replied(request, lambda: JSONResponse(gallery.answer(kind, settings_in(body))))

  return Starlette(
    routes=[
      Route("/", page),
      Route("/api/run", run),
      Route("/api/preview", preview),
      Route("/api/{kind}", answer, methods=["POST"]),
    ],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"],
                           www_redirect=False)],
  )  # fmt: skip


def settings_in(body: bytes) -> dict[str, Any]:
  """Return the settings in the body of a request.

  Raises:
    UserError: it is no JSON object.
  """
  try:
    settings = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise UserError("the request is not JSON") from error
  if not isinstance(settings, dict):
    raise UserError("the request must be a JSON object")
  return settings


def serve_page(root: Path, open_run: Callable[[Path], OpenedRun], listening: socket.socket) -> None:
  """Serve the gallery of a folder until Ctrl-C.

  Args:
    root: a run's folder or a folder of runs.
    open_run: opens the run in a folder.
    listening: socket from `listening_socket`.
  """
  import uvicorn  # pyright: ignore[reportMissingImports]

  gallery, port = Gallery(root, open_run), listening.getsockname()[1]
  names = list(gallery.runs)
  if len(names) == 1:  # what cannot be shown is refused before the server starts
    gallery.studio(names[0])
    threading.Thread(target=gallery.warm_up, args=(names[0],), daemon=True).start()
  print(f"gallery of {described(names)}: http://{HOST}:{port}/ (Ctrl-C ends it)", flush=True)
  config = uvicorn.Config(make_app(gallery, port), log_level="warning", access_log=False,
                          server_header=False, lifespan="off", ws="none")  # fmt: skip
  server = uvicorn.Server(config)
  # Ctrl-C is this package's, see `runs.signals`.
  server.capture_signals = contextlib.nullcontext  # pyright: ignore[reportAttributeAccessIssue]
  server.run(sockets=[listening])


def described(names: Sequence[str]) -> str:
  """Return the name of one run, or the number of several."""
  return names[0] if len(names) == 1 else f"{len(names)} runs"
