"""Learned variances through the wiring, the train step and the programs."""

import shutil

import jax
import numpy as np
import pytest
from steps import begin
from tiny import TINY

from diffusion_jax import train
from diffusion_jax.checkpoints import store
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.generative import Diffusion
from diffusion_jax.likelihood import ContinuousBound, ProbabilityFlow, Spectrum, VariationalBound
from diffusion_jax.losses import FullBound, Hybrid, Simple
from diffusion_jax.models import MLP, UNet
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.processes import ContinuousLinearVP, CosineVP, LinearVP
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment, stored_experiment
from diffusion_jax.samplers import DDIM, Ancestral, Guidance
from diffusion_jax.train_loop.setup import prepare_job, state_shapes
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.step import Training
from diffusion_jax.types import Batch, ImageSpec

pytestmark = pytest.mark.costly

SPEC = ImageSpec(4, 4, 1, 17, 3)
NETWORK = MLP(hidden=8, depth=1, learned_variance=True)


def diffusion(**changes):
  parts = {
    "process": LinearVP(3, 0.1, 0.6),
    "model": NETWORK,
    "loss": FullBound(),
    "sampler": Ancestral(steps=3),
    "guidance": Guidance(),
    "spectrum": Spectrum(2),
    "vlb": VariationalBound(),
    "continuous_vlb": ContinuousBound(),
    "probability_flow": ProbabilityFlow(),
  }
  return Diffusion(conditional=True).create(parts | changes, SPEC)


def images(number, num=16):
  rng = np.random.default_rng(number)
  image = rng.integers(0, 17, (num, 4, 4, 1)).astype(np.uint8)
  index = np.arange(num, dtype=np.uint32) + num * number
  return Batch(image, rng.integers(0, 3, num).astype(np.int32), np.ones(num, np.float32), index)


def six_steps(devices, accumulation_steps=1):
  """Losses and the memory after six steps; from the fourth or so on, times are drawn by it."""
  mesh = create_mesh(MeshShape(), jax.devices()[:devices])
  training = Training(batch_size=16, accumulation_steps=accumulation_steps)
  optimizer, generative = Adam(learning_rate=1e-3), diffusion()
  state, train_step = begin(generative, optimizer, training, mesh=mesh)
  losses = []
  for number in range(6):
    state, scalars = train_step(state, images(number))
    losses.append(float(scalars["loss"]))
  return losses, jax.tree.map(np.asarray, state.aux)


@pytest.fixture(scope="module")
def on_one_device():
  return six_steps(1)


@pytest.mark.parametrize(("devices", "parts"), [(8, 1), (2, 4)])
def test_loss_and_memory_are_the_same_however_a_batch_is_cut(devices, parts, on_one_device):
  """Times too: an example that was drawn at another t would stand in another row."""
  losses, memory = six_steps(devices, parts)
  expected = on_one_device[1]
  np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-4)
  np.testing.assert_array_equal(memory["age"], expected["age"])
  np.testing.assert_allclose(memory["squares"], expected["squares"], rtol=1e-3)
  np.testing.assert_allclose(memory["probability"], expected["probability"], rtol=1e-3)
  assert (memory["age"] > 0).all()
  assert np.ptp(memory["probability"]) > 0.05  # importance, not uniform


def test_auto_samples_and_bounds_with_the_networks_variances():
  """Logits far below -1 are variances far below the small one: nearly no noise, a worse bound."""
  keys = jax.random.split(jax.random.key(1), 4)
  calm, fixed, other = (
    diffusion(**changes)
    for changes in (
      {},
      {"sampler": Ancestral(3, "fixed_large"), "vlb": VariationalBound("fixed_large")},
      {"sampler": DDIM(3)},
    )
  )
  params = jax.jit(calm.init)(jax.random.key(0))[0]
  params["out"]["bias"] = np.tile(np.float32([0.0, -30.0]), 16)  # of a pixel: mean and logit
  sampled = [np.asarray(jax.jit(g.sample)(params, keys).images) for g in (calm, fixed, other)]
  assert np.abs(sampled[0] - sampled[1]).max() > 0.1
  assert np.isfinite(sampled[2]).all()  # one without variances takes the means alone
  bits = [
    jax.jit(g.likelihoods["vlb"])(params, keys, images(0, 4)).bits_per_dim for g in (calm, fixed)
  ]
  assert (np.asarray(bits[0]) > np.asarray(bits[1]) + 1).all()


def test_a_hybrid_loss_trains_both_halves_and_logs_its_parts():
  generative = diffusion(loss=Hybrid())
  params, aux = jax.jit(generative.init)(jax.random.key(0))

  def mean_loss(params):
    losses, metrics, _ = generative.loss(params, aux, jax.random.key(2), images(0), train=True)
    return losses.mean(), metrics

  slope, metrics = jax.jit(jax.grad(mean_loss, has_aux=True))(params)
  kernel = np.abs(slope["out"]["kernel"]).reshape(8, 16, 2).max((0, 1))
  assert (kernel > 0).all()
  assert set(metrics) == {"simple", "vlb_bits_per_dim"}
  assert aux == {}


# ---- The programs -------------------------------------------------------------------------------

FLAGS = [
  *TINY, "--config.logging.tensorboard=false",
  "--config.model.learned_variance=true", "--config.loss.name=vlb",
  "--config.process.num_timesteps=3", "--config.sampler.name=ancestral", "--config.sampler.steps=3",
  "--config.training.num_steps=8", "--config.checkpoint.every_steps=4",
]  # fmt: skip


def final_state(workdir):
  job = prepare_job(stored_experiment(workdir, []), workdir)
  shapes = state_shapes(job)
  target = sharding.as_target(shapes, sharding.state_shardings(job.mesh, shapes))
  restored = store.restore_checkpoint(workdir / "checkpoints", target)
  assert restored.step == 8
  return named_leaves(jax.device_get(restored.state))


@pytest.mark.slow
def test_the_memory_resumes_bit_for_bit(call, tmp_path, monkeypatch, root):
  monkeypatch.chdir(root)
  straight, resumed = tmp_path / "straight", tmp_path / "resumed"
  code, _, err = call(train.main, *FLAGS, f"--workdir={straight}")
  assert code == 0, err
  shutil.copytree(straight, resumed)
  shutil.rmtree(resumed / "checkpoints" / "8")
  code, out, err = call(train.main, *FLAGS, f"--workdir={resumed}")
  assert code == 0, err
  assert "resuming at step 4 of 8" in out
  ours, theirs = final_state(straight), final_state(resumed)
  assert {n for n in ours if n.startswith("aux/")} == {
    "aux/age", "aux/probability", "aux/squares", "aux/stamp",
  }  # fmt: skip
  assert (np.asarray(ours["aux/age"]) > 0).all()
  assert np.ptp(np.asarray(ours["aux/probability"])) > 0
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name], err_msg=name)


LEARNED = "--config.model.learned_variance=true"
REFUSED = {
  "no variances": (
    ["--config.loss.name=hybrid"],
    "this loss learns the variances of the steps, and model.learned_variance is false; set "
    "--config.model.learned_variance=true",
  ),
  "no variances for the bound": (["--config.loss.name=vlb"], "model.learned_variance is false"),
  "nobody learns them": ([LEARNED], "set --config.loss.name=hybrid or --config.model.learned_var"),
  "a sampler": (
    ["--config.sampler.name=ancestral", "--config.sampler.variance=learned"],
    "sampler.variance=learned needs a network that gives variances, and model.learned_variance is "
    "false; set --config.sampler.variance=auto",
  ),
  "an estimator": (
    ["--config.vlb.variance=learned"], "set --config.vlb.variance=auto, or train with --config.mod"
  ),
  "no steps": (
    [LEARNED, "--config.loss.name=hybrid", "--config.process.name=vp"],
    "the process has none; use --config.process.name=cosine_vp or linear_vp",
  ),
  "no weight": (
    [LEARNED, "--config.loss.name=hybrid", "--config.loss.weight=0"], "weight=0.0 must be positive"
  ),
  "no such sampling": (
    [LEARNED, "--config.loss.name=vlb", "--config.loss.sampling=uniformly"],
    "'uniformly' is not one of importance, uniform",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_one_line_and_exit_code_2(name, call, tmp_path, monkeypatch, root):
  monkeypatch.chdir(root)
  flags, words = REFUSED[name]
  code, out, err = call(train.main, "--config=configs/smoke.py", f"--workdir={tmp_path}/a", *flags)
  assert (code, out) == (2, "")
  assert words in err
  assert err.count("\n") == 1
  assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"loss": Simple()}, "does not learn variances"),
    ({"process": ContinuousLinearVP()}, "the process has none"),
    ({"model": UNet(channels=8), "loss": Hybrid()}, "model.learned_variance is false"),
  ],
)
def test_parts_that_do_not_fit_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    diffusion(**changes)


# ---- The configs --------------------------------------------------------------------------------


def load(root, name):
  return load_experiment(str(root / "configs" / name), [])


def test_the_cifar_recipe(root):
  """52.5 million parameters; the network sees 4,000 steps as if they were 1,000."""
  experiment = load(root, "iddpm_cifar.py")
  generative = experiment.create(ImageSpec(32, 32, 3, 256, 10))
  params = jax.eval_shape(generative.init, jax.random.key(0))[0]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 52_546_438
  process = experiment.sections["process"]
  assert process.num_timesteps == 4000
  np.testing.assert_allclose(process.network_time(np.asarray([1.0, 1 / 4000])), [999.75, 0])
  sections = experiment.to_dict()
  assert sections["loss"] == {"name": "hybrid", "weight": 0.001}
  assert not sections["data"]["flip"]
  assert sections["optimizer"]["clip_norm"] is None
  assert (sections["optimizer"]["learning_rate"], sections["ema"]["decay"]) == (1e-4, 0.9999)
  assert sections["training"]["num_steps"] == 500_000


def test_the_overrides_of_the_full_bound_that_the_docstring_names(root):
  flags = ["--config.loss.name=vlb", "--config.loss.sampling=importance",
           "--config.sampler.steps=100"]  # fmt: skip
  assert all(flag in (root / "configs" / "iddpm_cifar.py").read_text() for flag in flags)
  overrides = [command_line.parse_override(flag) for flag in flags]
  experiment = load_experiment(str(root / "configs" / "iddpm_cifar.py"), overrides)
  assert experiment.sections["loss"] == FullBound("importance")
  generative = experiment.create(ImageSpec(32, 32, 3, 256, 10))
  _, aux = jax.eval_shape(generative.init, jax.random.key(0))
  assert aux["squares"].shape == (4000, 10)


def test_the_digits_twin_differs_from_ddpm_in_what_it_learns(root):
  ours, theirs = (load(root, name).to_dict() for name in ("iddpm_digits.py", "ddpm_digits.py"))
  different = {
    f"{section}.{field}"
    for section in ours
    for field in {*ours[section], *theirs[section]}
    if ours[section].get(field) != theirs[section].get(field)
  }
  assert {d for d in different if d.split(".")[0] not in ("sampler", "loss")} == {
    "model.learned_variance"
  }
  assert ours["loss"] == {"name": "hybrid", "weight": 0.001}


def test_network_steps_must_be_positive():
  with pytest.raises(ValueError, match="network_steps=0 must be at least 1, or none for T"):
    CosineVP(network_steps=0)
