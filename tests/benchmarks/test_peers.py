"""Ours beside other libraries: what each is told, and what ends a comparison."""

import argparse
import sys

import pytest


@pytest.fixture
def networks(root, monkeypatch):
  monkeypatch.syspath_prepend(root / "benchmarks")
  import networks

  return networks


@pytest.fixture
def flags(networks):
  return networks.network_parser("", list(networks.NETWORKS), list(networks.PEERS))


def contenders_of(networks, flags, *typed):
  return networks.contend(flags.parse_args(typed), "train", "--config.training.batch_size=16")


def told(contender):
  import json

  python, program, options = contender._command
  return python, program.rpartition("/")[2], json.loads(options)


def test_every_contender_is_told_the_same_network(networks, flags):
  typed = ["--network=dit_xl2", "--peers=diffusers,dewml", "--dtype=bfloat16", "--remat"]
  ours, *theirs = (told(c) for c in contenders_of(networks, flags, *typed))
  same = ("shape", "image", "classes", "batch_size", "dtype", "learning_rate", "clip_norm", "remat")
  for _, _, options in theirs:
    assert {name: options[name] for name in same} == {name: ours[2][name] for name in same}
  assert ours[2]["shape"] == {"depth": 28, "hidden": 1152, "heads": 16, "patch": 2}
  assert "--config.model.depth=28" in ours[2]["overrides"]
  assert "--config.model.remat=dots_with_no_batch_dims_saveable" in ours[2]["overrides"]


def test_each_peer_runs_by_its_own_interpreter(networks, flags):
  typed = ["--peers=diffusers,dewml", f"--peer_python={sys.executable}", "--python.dewml=/bin/true"]
  found = [told(c)[:2] for c in contenders_of(networks, flags, *typed)]
  assert found == [
    (sys.executable, "ours.py"), (sys.executable, "torch_peers.py"), ("/bin/true", "dewml_peer.py"),
  ]  # fmt: skip


def test_plain_forms_are_contenders_too(networks, flags):
  _, plain = contenders_of(networks, flags, "--peers=", "--plain=group_norm")
  assert plain.name == "plain group_norm"
  assert told(plain)[2]["plain"] == "group_norm"


@pytest.mark.parametrize(
  ("typed", "says"),
  [
    (["--peers=flaxdiff"], "'flaxdiff' is none of diffusers,lucidrains,dewml"),
    (["--network=dit_b4", "--peers=lucidrains"], "lucidrains has none; leave it out of --peers"),
    (
      ["--peers=dewml"],
      "has no dewml: pip install dewml, with Python 3.12 or newer, then --python",
    ),
    (["--python.dewml=/nowhere"], "/nowhere is no program"),
    (["--plain=attention"], "'attention' is none of group_norm"),
  ],
)
def test_a_wrong_flag_ends_it_before_anything_starts(
  networks, flags, typed, says, monkeypatch, capsys
):
  monkeypatch.setattr(networks.subprocess, "run", lambda *_: argparse.Namespace(returncode=1))
  monkeypatch.setattr(sys, "argv", ["train_step.py", *typed])
  with pytest.raises(SystemExit) as ended:
    networks.parse_network(flags)
  assert ended.value.code == 2
  assert says in capsys.readouterr().err


class Worker:
  """A contender without a process, which may end at its start or at a round."""

  def __init__(self, name, ends=None, parameters=7):
    self.name, self.ends, self.rounds, self.failure = name, ends, [], None
    self.ready, self.closed = {"parameters": parameters}, False

  def start(self):
    self.failure = "ended" if self.ends == "start" else None

  def run(self, repeats):
    if self.ends == "round" and self.rounds:
      self.failure = "ended"
    return {} if self.failure else {"seconds": 0.5}

  def close(self):
    self.closed = True


@pytest.fixture
def args():
  return argparse.Namespace(rounds=3, warmup=1, repeats=1, one_at_a_time=False)


@pytest.mark.parametrize("alone", [False, True])
def test_a_peer_that_fails_is_left_out_and_the_others_go_on(networks, args, alone):
  args.one_at_a_time = alone
  workers = [Worker("ours"), Worker("a", "start"), Worker("b"), Worker("c", "round")]
  through = networks.harness.measure_contenders(workers, args)
  assert [worker.name for worker in through] == ["ours", "b"]
  assert all(len(worker.rounds) == 3 for worker in through)
  assert all(worker.closed for worker in workers)


def test_nothing_is_compared_without_ours(networks, args):
  workers = [Worker("ours", "start"), Worker("a")]
  with pytest.raises(SystemExit, match="1"):
    networks.harness.measure_contenders(workers, args)
  assert all(worker.closed for worker in workers)


def test_other_parameters_end_the_comparison(networks, args):
  workers = [Worker("ours"), Worker("lucidrains", parameters=5), Worker("a", parameters=8)]
  with pytest.raises(SystemExit, match=r"parameters differ \(ours 7, a 8\)"):
    networks.harness.measure_contenders(workers, args, networks.check_parameters)
  networks.harness.measure_contenders(workers[:2], args, networks.check_parameters)
