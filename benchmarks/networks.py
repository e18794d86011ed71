"""The networks that are measured beside those of other libraries, and how they are."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import harness
from harness import HERE, OURS, Contender, Floor, positive
from machine import Rates


class NetworkToMeasure(NamedTuple):
  """A network, its data and its training.

  Attributes:
    config: of ours.
    shape: what makes the network, as the workers of all contenders read it.
    tiny: the same, small.
    image: height, width and channels of the data.
    classes: 0 for unlabelled images.
    learning_rate, clip_norm: of Adam; no clipping if None.
  """

  config: str
  shape: dict[str, int]
  tiny: dict[str, int]
  image: tuple[int, int, int]
  classes: int
  learning_rate: float
  clip_norm: float | None

  def overrides(self, tiny: bool) -> list[str]:
    """Return what makes our config this network."""
    return [f"--config.model.{name}={value}" for name, value in self.sizes(tiny).items()]

  def sizes(self, tiny: bool) -> dict[str, int]:
    return self.tiny if tiny else self.shape


SMALL_DIT = {"depth": 2, "hidden": 32, "heads": 2}

NETWORKS = {
  "ddpm_cifar": NetworkToMeasure(
    "ddpm_cifar", {"channels": 128}, {"channels": 32}, (32, 32, 3), 0, 2e-4, 1.0
  ),
  "dit_b4": NetworkToMeasure(
    "dit_imagenet64", {"depth": 12, "hidden": 768, "heads": 12, "patch": 4},
    {**SMALL_DIT, "patch": 4}, (64, 64, 3), 1000, 1e-4, None,
  ),
  "dit_xl2": NetworkToMeasure(
    "dit_imagenet64", {"depth": 28, "hidden": 1152, "heads": 16, "patch": 2},
    {**SMALL_DIT, "patch": 2}, (32, 32, 4), 1000, 1e-4, None,
  ),
}  # fmt: skip
"""Name -> network: DDPM's U-Net for CIFAR-10, DiT-B/4 of 64x64 pixels, DiT-XL/2 of latents."""


class Peer(NamedTuple):
  """Another library.

  Attributes:
    program: file in `workers/`.
    modules: what its interpreter must have.
    install: how it comes there.
  """

  program: str
  modules: tuple[str, ...]
  install: str


KERNELS = ("group_norm", "upsampled_conv", "pointwise")
"""Those of ours that have a plain form."""

BENCH = "pip install -e '.[bench]'"
PEERS = {
  "diffusers": Peer("torch_peers.py", ("diffusers", "torch"), BENCH),
  "lucidrains": Peer("torch_peers.py", ("denoising_diffusion_pytorch", "ema_pytorch"), BENCH),
  "dewml": Peer("dewml_peer.py", ("dew",), "pip install dewml, with Python 3.12 or newer"),
}


def network_parser(
  description: str | None, networks: Sequence[str], peers: Sequence[str]
) -> argparse.ArgumentParser:
  """The flags of those that measure a network beside its peers.

  Args:
    description: of the program.
    networks: those it can measure; the first by default.
    peers: those it can measure them beside.
  """
  flags = harness.parser(description, rounds=5, repeats=1)
  flags.add_argument("--network", choices=networks, default=networks[0])
  flags.add_argument("--peers", type=lambda text: listed(text, peers), default=[peers[0]],
                     help=f"of {','.join(peers)}; --peers= for none")  # fmt: skip
  add_interpreters(flags, peers)
  flags.add_argument("--batch_size", type=positive, default=16)
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  flags.add_argument("--channels_last", action="store_true", help="of the peers in torch")
  flags.add_argument("--compile", action="store_true", help="the peers in torch, by torch.compile")
  flags.add_argument("--plain", type=lambda text: listed(text, KERNELS), default=[],
                     help=f"also ours with the plain form of {','.join(KERNELS)}")  # fmt: skip
  flags.add_argument("--remat", action="store_true",
                     help="recompute blocks in the backward pass: DiT only")  # fmt: skip
  flags.add_argument("--one_at_a_time", action="store_true",
                     help="no two at once: for large networks and TPUs")  # fmt: skip
  flags.add_argument("--tiny", action="store_true", help="a small network, to see that it works")
  flags.add_argument("overrides", nargs="*", help="of ours, after --")
  return flags


def add_interpreters(flags: argparse.ArgumentParser, peers: Sequence[str] = tuple(PEERS)) -> None:
  """Adds --peer_python and, for each peer, --python.PEER."""
  flags.add_argument("--peer_python", type=harness.interpreter, default=sys.executable,
                     help="interpreter that has the peers; this one by default")  # fmt: skip
  for peer in peers:
    flags.add_argument(
      f"--python.{peer}", type=harness.interpreter, help=f"the one that has {peer}"
    )


def python_of(args: argparse.Namespace, peer: str) -> str:
  return getattr(args, f"python.{peer}") or args.peer_python


def listed(text: str, known: Sequence[str]) -> list[str]:
  """A flag's value."""
  names = [name for name in text.split(",") if name]
  if unknown := [name for name in names if name not in known]:
    raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {','.join(known)}")
  return names


def parse_network(flags: argparse.ArgumentParser) -> argparse.Namespace:
  """The flags' values, once every peer is there and has the network."""
  args = flags.parse_args()
  if "lucidrains" in args.peers and args.network != "ddpm_cifar":
    flags.error(f"--network={args.network}: lucidrains has none; leave it out of --peers")
  for name in args.peers:
    if why := missing(name, python_of(args, name)):
      flags.error(f"--peers={','.join(args.peers)}: {why}")
  return args


def missing(peer: str, python: str) -> str | None:
  """Why a peer cannot be measured, with what to type; None if it is there."""
  looks = (
    "import importlib.util as i, sys; "
    f"sys.exit(not all(i.find_spec(name) for name in {PEERS[peer].modules!r}))"
  )
  if subprocess.run([python, "-c", looks]).returncode == 0:
    return None
  return f"{python} has no {peer}: {PEERS[peer].install}, then --python.{peer}=PYTHON of there"


def contend(args: argparse.Namespace, work: str, override: str, **more: Any) -> list[Contender]:
  """Ours and the peers, to do the same work.

  Args:
    args: of `network_parser`.
    work: "train" or "sample".
    override: of our config, beside those of the flags.
    more: what the peers are told besides.
  """
  network = NETWORKS[args.network]
  kind = {"batch_size": args.batch_size, "dtype": args.dtype, "work": work, "remat": args.remat,
          "shape": network.sizes(args.tiny), "image": network.image, "classes": network.classes,
          "learning_rate": network.learning_rate, "clip_norm": network.clip_norm}  # fmt: skip
  remat = "dots_with_no_batch_dims_saveable" if args.remat else "none"
  overrides = [*network.overrides(args.tiny), f"--config.model.dtype={args.dtype}",
               f"--config.model.remat={remat}", override, *args.overrides]  # fmt: skip
  config = str(HERE.parent / "configs" / f"{network.config}.py")
  theirs = {"channels_last": args.channels_last, "compile": args.compile, **kind, **more}
  ours = {"config": config, "overrides": overrides, **kind}
  return [
    Contender(OURS, "ours.py", ours),
    *(
      Contender(peer, PEERS[peer].program, {"peer": peer, **theirs}, python_of(args, peer))
      for peer in args.peers
    ),
    *(Contender(f"plain {kernel}", "ours.py", {**ours, "plain": kernel}) for kernel in args.plain),
  ]


def check_equal(contenders: Sequence[Contender], what: str, title: str) -> None:
  """Ends the program where something differs that `ready` has of the contenders."""
  found = {c.name: c.ready[what] for c in contenders if c.name != "lucidrains"}
  if len(set(found.values())) > 1:
    numbers = ", ".join(f"{name} {number:,}" for name, number in found.items())
    sys.exit(f"not compared: {title} differ ({numbers})")


def check_parameters(contenders: Sequence[Contender]) -> None:
  """Ends the program where a peer has another network; lucidrains' is known to be another one."""
  check_equal(contenders, "parameters", "the numbers of parameters")


def report(
  args: argparse.Namespace,
  contenders: Sequence[Contender],
  floor: Callable[[Mapping[str, Any], Rates], Floor],
  rates: Rates,
) -> None:
  """Prints and writes what was found of the contenders.

  Args:
    args: of `network_parser`.
    contenders: measured, ours first.
    floor: of one repetition.
    rates: of the machine.
  """
  peer = contenders[min(1, len(contenders) - 1)].name
  rows = harness.summarize(contenders, args.batch_size, peer)
  numbers = ", ".join(f"{row['name']} {row['ready']['parameters']:,}" for row in rows)
  print(f"\nparameters: {numbers}")
  harness.print_table(rows, "images", peer)
  ready, seconds = rows[0]["ready"], args.batch_size / rows[0]["per_sec"]
  gap = harness.print_floor(floor(ready, rates), seconds, ready)
  what = harness.about(device=ready["device"], options=vars(args) | {"out": None})
  what["peers"] = {row["name"]: other_versions(row, what) for row in rows[1:]}
  left_out = [name for name in args.peers if name not in {row["name"] for row in rows}]
  harness.write(args.out, {"about": what, "rows": rows, "floor": gap, "left_out": left_out})


def other_versions(row: Mapping[str, Any], about: Mapping[str, Any]) -> str:
  """What a peer's interpreter has that ours has not, or in another version."""
  versions = row["ready"]["versions"].items()
  return ", ".join(f"{name} {version}" for name, version in versions if about.get(name) != version)
