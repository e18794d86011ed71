"""A learned noise schedule wherever a fixed one goes: samplers, likelihoods, and the programs.

A learned line is `linear_log_snr` with the same ends; what both answer must agree.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from tiny import MODEL

from diffusion_jax import edit, evaluate, sample, train
from diffusion_jax.auditing import oracles
from diffusion_jax.checkpoints import store
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.likelihood import ContinuousBound, ProbabilityFlow, Spectrum
from diffusion_jax.models import LearnedLinear, LearnedMonotone
from diffusion_jax.parallel import sharding
from diffusion_jax.processes import LinearLogSNR
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.runs.stored import load_experiment, stored_experiment
from diffusion_jax.samplers import SAMPLERS
from diffusion_jax.train_loop.setup import prepare_job, state_shapes
from diffusion_jax.types import Condition, Examples, ImageSpec

pytestmark = pytest.mark.costly

ENDS = -6.0, 4.0
FIXED = LinearLogSNR(6.0, -4.0)
ADAPTIVE = {"rtol": 1e-5, "atol": 1e-5}


def line(params):
  return LearnedLinear(*ENDS).bind(params)


@functools.cache
def params_of(kind=LearnedLinear):
  return jax.device_get(jax.jit(kind(*ENDS).init)(jax.random.key(0)))


def both(function):
  """What an exact denoiser -> values gives: its schedule's parameters traced, and the fixed one."""
  answer = lambda process: function(oracles.gaussian_denoiser(process))  # noqa: E731
  return jax.jit(lambda params: (answer(line(params)), answer(FIXED)))(params_of())


SAMPLED = {name: {"steps": 6} for name in SAMPLERS if name != "probability_flow"}
CHURN = {"steps": 6, "s_churn": 2.0, "s_max": 5.0}
"""Not at the start: churn lifts no state beyond the ends of a learned schedule."""

SAMPLED |= {"euler, churn": CHURN, "heun, churn": CHURN}


@pytest.mark.parametrize("name", SAMPLED)
def test_every_sampler_of_fixed_steps_gives_the_images_of_the_fixed_schedule(name):
  sampler = SAMPLERS[name.split(",")[0]](**SAMPLED[name])
  jax.eval_shape(lambda params: sampler.check(line(params)), params_of())

  def images(model):
    shape = (3, *oracles.SHAPE)
    return sampler.sample(model.denoise, model.process, oracles.keys(3), shape).images

  found, expected = both(images)
  np.testing.assert_allclose(found, expected, atol=3e-5)


def test_the_adaptive_sampler_gives_the_images_of_the_fixed_schedule():
  sampler = SAMPLERS["probability_flow"](**ADAPTIVE)
  jax.eval_shape(lambda params: sampler.check(line(params)), params_of())

  def images(model):
    shape = (2, *oracles.SHAPE)
    return sampler.sample(model.denoise, model.process, oracles.keys(2), shape).images

  found, expected = both(images)
  np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize(
  "estimator", [ContinuousBound(8), ProbabilityFlow(**ADAPTIVE)], ids=lambda e: e.figure_name
)
def test_likelihoods_are_those_of_the_fixed_schedule(estimator):
  assert estimator.serves(line(params_of()))
  x0 = oracles.gaussian_images(3)

  def bits(model):
    return estimator.estimate(model, Examples(x0), oracles.keys(3)).bits_per_dim

  found, expected = both(bits)
  np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_spectrum_is_that_of_the_fixed_schedule():
  x0 = oracles.gaussian_images(3)
  found, expected = both(lambda model: Spectrum(5)(model, Examples(x0), oracles.keys(3)))
  np.testing.assert_allclose(found.log_snr, expected.log_snr, atol=1e-5)
  np.testing.assert_allclose(found.eps_mse, expected.eps_mse, rtol=1e-3)


@pytest.mark.parametrize("kind", [LearnedLinear, LearnedMonotone])
def test_times_are_those_of_their_log_snr(kind):
  """To a few units of gamma's last digit, over its slope; beyond the ends, the end's."""
  schedule = kind(*ENDS)

  @jax.jit
  def answers(params, t, beyond):
    process = schedule.bind(params)
    log_snr = process.log_snr(t)
    times = process.time_of(log_snr), process.time_of(beyond), process.network_time(t)
    return log_snr, process.alpha_sigma(t), times

  t = np.linspace(0.0, 1.0, 101, dtype=np.float32)
  found = jax.device_get(answers(params_of(kind), t, np.float32([7.0, -5.0])))
  log_snr, (alpha, sigma), (back, of_beyond, network_time) = found
  np.testing.assert_allclose(back, t, atol=1e-6)
  np.testing.assert_allclose(of_beyond, [0, 1], atol=1e-6)
  np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr, atol=1e-5)
  np.testing.assert_allclose(network_time[[0, 100]], [0, 1000], atol=1e-3)


def test_guidance_counts_its_evaluations_inside_an_interval():
  """Of the whole model, its parameters traced."""
  sections = {
    "generative": {"name": "diffusion", "conditional": True},
    "model": {"name": "mlp", "hidden": 8, "depth": 1},
    "sampler": {"name": "ddim", "steps": 6}, "data": {"name": "digits"},
    "guidance": {"weight": 2.0, "interval_low": 0.2, "interval_high": 3.0},
    "optimizer": {"name": "adam"},
  }  # fmt: skip
  own = {"process": {"name": "learned_linear", "gamma_min": -6.0, "gamma_max": 4.0}}
  fixed = {"process": {"name": "linear_log_snr", "log_snr_max": 6.0, "log_snr_min": -4.0}}
  spec, keys = ImageSpec(4, 4, 1, 17, 3), oracles.keys(2)
  learned, other = (
    build_experiment({**sections, **s, "loss": {"name": "vdm"}}) for s in (own, fixed)
  )

  @jax.jit
  def samples(labels):
    made = learned.create(spec)
    params, _ = made.init(jax.random.key(0))
    found = made.sample(params, keys, Condition(labels))
    return found, other.create(spec).sample(params["network"], keys, Condition(labels))

  found, expected = samples(np.asarray([0, 2]))
  assert int(found.num_evaluations) == int(expected.num_evaluations)
  assert 6 < int(found.num_evaluations) < 12
  assert np.isfinite(found.images).all()


# ---- The programs -------------------------------------------------------------------------------

TINY = [
  *MODEL, "--config.training.num_steps=4", "--config.training.batch_size=8",
  "--config.checkpoint.every_steps=2", "--config.logging.every_steps=1",
  "--config.logging.tensorboard=false", "--config.logging.sample_every_steps=none",
  "--config.logging.num_samples=10", "--config.eval.training_likelihoods=",
]  # fmt: skip
CHEAP = [
  "--inception=none", "--features=none", "--config.sampler.steps=3", "--config.eval.num_samples=20",
  "--config.eval.num_seeds=1", "--config.eval.likelihood_repeats=1",
  "--config.continuous_vlb.times=2", "--config.eval.likelihoods=continuous_vlb",
  "--config.eval.spectrum_images=8", "--config.spectrum.num_points=3",
]  # fmt: skip


@pytest.fixture
def trained(call, tmp_path, monkeypatch, root):
  """A run of 4 steps whose last checkpoint was lost and made again; as it was, and is."""
  monkeypatch.chdir(root)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  straight, resumed = tmp_path / "straight", tmp_path / "resumed"
  flags = ["--config=configs/vdm_digits.py", *TINY]
  code, _, err = call(train.main, *flags, f"--workdir={straight}")
  assert code == 0, err
  shutil.copytree(straight, resumed)
  shutil.rmtree(resumed / "checkpoints" / "4")
  code, out, err = call(train.main, *flags, f"--workdir={resumed}")
  assert code == 0, err
  assert "resuming at step 2 of 4" in out
  return straight, resumed


def schedule_of(workdir):
  """The trained schedule and its average, of the last step."""
  job = prepare_job(stored_experiment(workdir, []), workdir)
  shapes = state_shapes(job)
  target = sharding.as_target(shapes, sharding.state_shardings(job.mesh, shapes))
  state = jax.device_get(store.restore_checkpoint(workdir / "checkpoints", target).state)
  return {**state.params["process"], **{f"ema {n}": v for n, v in state.ema["process"].items()}}


def test_a_run_resumes_samples_edits_and_is_measured(trained, call, tmp_path):
  ours, theirs = map(schedule_of, trained)
  assert ours == theirs
  assert ours["b"] != -8.0
  assert ours["ema b"] not in (-8.0, ours["b"])
  workdir = f"--workdir={trained[1]}"
  for main, flags in (
    (sample.main, ["--num=10", f"--out={tmp_path}/a.npz", "--config.sampler.steps=3"]),
    (edit.main, ["--inpaint=left", "--num=2", f"--out={tmp_path}/a.png"]),
    (evaluate.main, CHEAP),
  ):
    code, _, err = call(main, workdir, *flags)
    assert code == 0, err
  images = np.load(tmp_path / "a.npz")["images"]
  assert images.shape == (10, 8, 8, 1)
  assert images.std() > 0
  metrics = json.loads((trained[1] / "eval/4/metrics.json").read_text())
  text = json.dumps(metrics)
  assert "continuous_vlb" in text
  assert "NaN" not in text


# ---- The configs --------------------------------------------------------------------------------


def test_the_cifar_recipe(root):
  """30.6 million parameters; weight decay reaches all but biases, and so the schedule too."""
  experiment = load_experiment(str(root / "configs" / "vdm_cifar.py"), [])
  spec = ImageSpec(32, 32, 3, 256, 10)
  params, _ = jax.eval_shape(lambda key: experiment.create(spec).init(key), jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(params["network"])) == 30_577_667
  assert "30,577,667" in (root / "configs" / "vdm_cifar.py").read_text()
  decayed = named_leaves(experiment.optimizer.decayed(params))
  assert {n for n, acts in decayed.items() if not acts} == {n for n in decayed if "bias" in n}
  assert decayed["process/b"]
  assert decayed["process/w"]
  process, optimizer = experiment.sections["process"], experiment.optimizer
  assert (process.gamma_min, process.gamma_max) == (-13.3, 5.0)
  assert (optimizer.learning_rate, optimizer.b1, optimizer.b2) == (2e-4, 0.9, 0.99)
  assert (optimizer.weight_decay, optimizer.warmup_steps, optimizer.clip_norm) == (0.01, 100, None)
  assert (experiment.ema.decay, experiment.training.batch_size) == (0.9999, 128)


def test_the_digits_twin_differs_from_ddpm_in_its_schedule_and_loss(root):
  ours, theirs = (
    load_experiment(str(root / "configs" / f"{n}_digits.py"), []).to_dict() for n in ("vdm", "ddpm")
  )
  different = {n for n in theirs if theirs[n] != ours[n]}
  assert different == {"process", "loss", "probability_flow", "eval"}
