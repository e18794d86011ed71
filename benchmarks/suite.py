"""A chip's benchmarks one after the other, in a limited time and in as many calls as it takes.

Each part is a benchmark of this folder with its flags, in processes of its own. What it writes is
kept in OUT/figures.json at once, and the table of all parts in OUT/table.md. A part that is there
is not measured again; one that failed, or that no time was left for, is, and its message is in the
table until then.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
import networks

Figures = dict[str, Any]

LEAST_SEC = 30
"""With less time left, no part is begun."""


class Part(NamedTuple):
  """One benchmark.

  Attributes:
    name: of the part.
    what: in the table.
    limit: seconds that it may take.
    arguments: the program and its flags.
    result: a cell of the table from what it wrote.
    goal: another cell.
  """

  name: str
  what: str
  limit: float
  arguments: list[str]
  result: Callable[[Figures], str]
  goal: str = ""


def suite_parser(description: str | None) -> argparse.ArgumentParser:
  """The flags that the suites of all chips have."""
  flags = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--out", type=Path, required=True, help="folder for the figures")
  flags.add_argument("--minutes", type=float, default=9.0)
  flags.add_argument("--only", help="parts to measure, by name; all by default")
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
  flags.add_argument("--wheels", type=Path, help="folder of wheels to use, without a network")
  networks.add_interpreters(flags)
  flags.add_argument("--tiny", action="store_true", help="small sizes, to see that it works")
  return flags


def run_suite(
  flags: argparse.ArgumentParser,
  make_parts: Callable[[argparse.Namespace, list[str]], list[Part]],
  peers: Sequence[str],
) -> None:
  """Measures what is missing, most important first, and prints the table.

  Args:
    flags: of `suite_parser`.
    make_parts: the parts in the order of their importance, from the flags and the peers that there
      are.
    peers: those that this chip can have.
  """
  args = flags.parse_args()
  deadline = time.monotonic() + 60 * args.minutes
  prepare_imports(flags, args.wheels)
  found = [peer for peer in peers if networks.missing(peer, networks.python_of(args, peer)) is None]
  for peer in peers:
    if peer not in found:
      print(networks.missing(peer, networks.python_of(args, peer)), file=sys.stderr)
  parts = make_parts(args, found)
  wanted = [part.name for part in parts] if args.only is None else args.only.split(",")
  if unknown := set(wanted) - {part.name for part in parts}:
    names = ", ".join(part.name for part in parts)
    flags.error(f"--only={args.only}: '{min(unknown)}' is no part of {names}")
  args.out.mkdir(parents=True, exist_ok=True)
  kept = args.out / "figures.json"
  measured = json.loads(kept.read_text()) if kept.exists() else {}
  with tempfile.TemporaryDirectory() as folder:
    os.environ["BENCHMARK_RATES"] = folder  # measured once, for all parts
    for part in parts:
      if part.name in wanted and "failed" in measured.get(part.name, {"failed": ""}):
        left = deadline - time.monotonic()
        limit = left if args.tiny else part.limit  # of a chip; --tiny may run on a slow CPU
        measured[part.name] = measure_part(part, Path(folder), min(limit, left))
        kept.write_text(json.dumps(measured, indent=1) + "\n")
        (args.out / "table.md").write_text(table(parts, measured, args.tiny))
  print("\n" + table(parts, measured, args.tiny))


def prepare_imports(flags: argparse.ArgumentParser, wheels: Path | None) -> None:
  """Lets all processes that are started find this checkout, and the wheels' packages first."""
  folders = [str(harness.HERE.parent)]
  if wheels is not None:
    files = sorted(str(file) for file in wheels.glob("*.whl"))
    if not files:
      flags.error(f"--wheels={wheels}: there is no *.whl; pip wheel --no-deps -w {wheels} PACKAGE")
    name = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
    site = Path(tempfile.gettempdir()) / f"diffusion_jax_wheels_{name}"
    if not (site / "complete").exists():
      pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade"]
      subprocess.run([*pip, "--target", str(site), *files], check=True)
      (site / "complete").touch()
    folders.insert(0, str(site))
  folders += [folder for folder in [os.environ.get("PYTHONPATH")] if folder]
  os.environ |= {"PYTHONPATH": os.pathsep.join(folders), "PYTHONUNBUFFERED": "1"}


def measure_part(part: Part, folder: Path, seconds: float) -> Figures:
  """What a part wrote in so many seconds, or {"failed": why there is nothing}."""
  if seconds < LEAST_SEC:
    return {"failed": "no time was left"}
  print(f"\n== {part.name}: {seconds:.0f} s at most", flush=True)
  out = folder / f"{part.name}.json"
  program, *rest = part.arguments
  command = [sys.executable, str(harness.HERE / program), f"--out={out}", *rest]
  code, lines = run_and_show(command, seconds)
  if code == 0 and out.exists():
    return json.loads(out.read_text())
  said = [line for line in lines if line.strip()]
  last = next((line for line in reversed(said) if "rror" in line), said[-1] if said else "")
  why = (
    f"longer than {seconds:.0f} s" if code is None else f"exit code {code}: {last.strip()[:300]}"
  )
  return {"failed": why}


def run_and_show(command: Sequence[str], seconds: float) -> tuple[int | None, list[str]]:
  """Runs a program and all that it starts, shows what they print; returns its exit code and that.

  The code is None where the time was over: all of it has been ended then.
  """
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
  )
  over = threading.Event()

  def end() -> None:
    over.set()
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)

  timer = threading.Timer(seconds, end)
  timer.start()
  try:
    lines = []
    for line in process.stdout:
      print(line, end="", flush=True)
      lines.append(line)
    code = process.wait()
  finally:
    timer.cancel()
  return (None if over.is_set() else code), lines


def table(parts: Sequence[Part], measured: dict[str, Figures], tiny: bool) -> str:
  """Markdown: the machine and the versions, then a row for each part."""
  rows = ["| what | measured | goal | device |", "|---|---|---|---|"]
  for part in parts:
    figures = measured.get(part.name, {"failed": "not asked for yet"})
    device = figures.get("about", {}).get("device", "")
    cell = f"not measured: {figures['failed']}" if "failed" in figures else part.result(figures)
    rows.append(f"| {part.what} | {cell.replace('|', '/')} | {part.goal} | {device} |")
  abouts = [f["about"] for f in measured.values() if "about" in f]
  head = [*(["Small sizes: no figure means anything."] if tiny else []),
          *(setting(about) for about in abouts[:1]), ""]  # fmt: skip
  return "\n".join([*head, *rows, ""])


def setting(about: Figures) -> str:
  """The machine and the versions of one part, in a line."""
  versions = ", ".join(f"{n} {about[n]}" for n in harness.protocol.PACKAGES if n in about)
  peers = "".join(f"; {name}: {text}" for name, text in about.get("peers", {}).items() if text)
  return (
    f"{about['cores']} cores of {about['processor']}, Python {about['python']}, {versions}{peers}; "
    f"{about['date']}"
  )


def step_part(
  name: str, network: str, batch_size: int, args: argparse.Namespace, peers: Sequence[str],
  more: Sequence[str], limit: float, goal: str = "", plain: Sequence[str] = (),
) -> Part:  # fmt: skip
  """A training step: ours beside the peers, and beside itself with kernels' plain forms."""
  size = 4 if args.tiny else batch_size
  flags = [f"--network={network}", f"--batch_size={size}", f"--peers={','.join(peers)}",
           f"--plain={','.join(plain)}", *shared(args), *more]  # fmt: skip
  others = [*peers, *(f"plain {kernel}" for kernel in plain)]
  beside = f" beside {', '.join(others)}" if others else ""
  what = f"training step of {network}, batch {size}{beside}"
  return Part(name, what, limit, ["train_step.py", *flags], step_cell, goal)


def sampling_part(
  args: argparse.Namespace, peers: Sequence[str], more: Sequence[str], limit: float, goal: str = ""
) -> Part:
  """Ours beside the peers."""
  images, evaluations = (4, 2) if args.tiny else (128, 50)
  flags = [f"--batch_size={images}", f"--steps={evaluations}", f"--peers={','.join(peers)}",
           *shared(args, ["diffusers"]), *more]  # fmt: skip
  what = f"sampling of ddpm_cifar, {images} images of {evaluations} evaluations"
  return Part("sampling", what, limit, ["sampling.py", *flags], step_cell, goal)


def form_part(kernel: str, args: argparse.Namespace, limit: float = 60) -> Part:
  """The forms of one kernel."""
  flags = [f"--dtype={args.dtype}", *(["--tiny", *FEW] if args.tiny else ["--warmup=0"])]
  return Part(kernel, f"{kernel}, value and gradient", limit, ["forms.py", kernel, *flags],
              forms_cell)  # fmt: skip


def stall_part(args: argparse.Namespace, limit: float = 60) -> Part:
  narrow = ["--", "--config.model.channels=32"] if args.tiny else []
  flags = ["checkpoint_stall.py", f"--rounds={1 if args.tiny else 3}", *narrow]
  return Part("stall", "a save every five minutes holds training up for", limit, flags, stall_cell,
              "below 2% of the wall time")  # fmt: skip


def start_part(args: argparse.Namespace, limit: float = 120) -> Part:
  flags = ["startup.py", f"--rounds={1 if args.tiny else 3}"]
  if args.tiny:
    flags += ["--config", str(harness.HERE.parent / "configs" / "smoke.py")]
  return Part("start", "import; first digits step from a filled cache", limit, flags, start_cell,
              "below 2 s; below 10 s")  # fmt: skip


FORMS = ("group_norm", "upsampled_conv")
"""Kernels whose forms are compared in a whole step too."""

FEW = ["--rounds=1", "--repeats=1", "--warmup=1"]


def shared(args: argparse.Namespace, peers: Sequence[str] = tuple(networks.PEERS)) -> list[str]:
  """The flags of all that measure networks, with the interpreters of these peers."""
  flags = [f"--dtype={args.dtype}", f"--peer_python={args.peer_python}"]
  for peer in peers:
    if python := getattr(args, f"python.{peer}"):
      flags.append(f"--python.{peer}={python}")
  return [*flags, "--tiny", *FEW] if args.tiny else [*flags, "--rounds=5", "--warmup=1"]


def step_cell(figures: Figures) -> str:
  floor = figures["floor"]
  use = "MFU unknown"
  if floor["mfu"] is not None:
    use = f"MFU {floor['mfu']:.1%}, HFU {floor['hfu']:.1%}"
  return f"{rate_cell(figures)}; {use}"


def rate_cell(figures: Figures) -> str:
  """Our rate, and how many times that of the others it is."""
  ours, *others = figures["rows"]
  cells = [f"{ours['per_sec']:,.4g} images/s"]
  for i, row in enumerate(others):
    times = f"{ours['per_sec'] / row['per_sec']:.2f} times {row['name']}"
    low, high = ours["ratio_range"]
    cells.append(f"{times} ({low:.2f} to {high:.2f})" if i == 0 else times)
  return ", ".join([*cells, *(f"{name} failed" for name in figures["left_out"])])


def forms_cell(figures: Figures) -> str:
  cells = []
  firsts: dict[str, str] = {}
  for row in figures["rows"]:
    if "failed" in row:
      cells.append(f"{row['case']}: {row['form']} {row['failed']}")
    elif row["case"] not in firsts:
      firsts[row["case"]] = row["form"]
    else:
      s = row["speedup"]
      first = firsts[row["case"]]
      cells.append(
        f"{row['case']}: {row['form']} {s['median']:.2f} times {first} "
        f"({s['min']:.2f} to {s['max']:.2f})"
      )
  return "; ".join(cells) or "one form only"


def stall_cell(figures: Figures) -> str:
  share = figures["share"]
  return f"{share['median']:.3%} ({share['min']:.3%} to {share['max']:.3%})"


def start_cell(figures: Figures) -> str:
  rows = figures["rows"]
  return f"{rows['import']['wall']['median']:.2f} s; {rows['warm']['wall']['median']:.2f} s"


def vae_cell(figures: Figures) -> str:
  return f"{figures['rows'][0]['per_sec']:,.4g} images/s"
