"""Two moons: a flow-matching model of points in the plane, with samples and exact density.

Command: python examples/two_moons.py --out=two_moons.png
Time: under a minute on two CPU cores, including compilation.

The points have a closed-form density (noise around two half circles), with which the model's exact
log-likelihood is compared.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import make_moons

import diffusion_jax as dj

NOISE = 0.1
SIDE = 80


def init_network(key, sizes=((14, 192), (192, 192), (192, 192), (192, 2))):
  """Return the weights of a perceptron with sines and cosines of point and time as inputs."""
  keys = jax.random.split(key, len(sizes))
  return [
    {"w": jax.random.normal(k, size) / np.sqrt(size[0]), "b": jnp.zeros(size[1])}
    for k, size in zip(keys, sizes, strict=True)
  ]


def apply_network(params, x, time, condition, dropout_key):
  """Return the network's output [B 2] for noised points x [B 2] and times [B]."""
  del condition, dropout_key
  angle = time[:, None] / 999.0 * jnp.pi * jnp.array([0.5, 1.0, 2.0, 4.0])
  inputs = [x, jnp.sin(3.0 * x), jnp.cos(3.0 * x), jnp.sin(angle), jnp.cos(angle)]
  x = jnp.concatenate(inputs, axis=1)
  for layer in params[:-1]:
    x = jax.nn.silu(x @ layer["w"] + layer["b"])
  return x @ params[-1]["w"] + params[-1]["b"]


def make_denoiser(params):
  """Return the denoiser for these weights, which predicts the velocity of straight paths."""
  return dj.Denoiser(functools.partial(apply_network, params), dj.processes.Flow(), "velocity")


def train(points, num_steps=5000, batch_size=512):
  """Return averaged weights after training on points [N 2]."""
  loss, schedule = dj.losses.FlowMatching(), optax.cosine_decay_schedule(2e-3, num_steps)
  optimizer = optax.adam(schedule)
  params = init_network(jax.random.key(0))

  @jax.jit
  def step(params, average, opt_state, key):
    index_key, loss_key = jax.random.split(key)
    x0 = points[jax.random.randint(index_key, (batch_size,), 0, len(points))]
    keys = jax.random.split(loss_key, batch_size)
    objective = lambda p: loss(make_denoiser(p), dj.Examples(x0), keys).values.mean()  # noqa: E731
    updates, opt_state = optimizer.update(jax.grad(objective)(params), opt_state)
    params = optax.apply_updates(params, updates)
    return params, optax.incremental_update(params, average, 0.002), opt_state

  average, opt_state = params, optimizer.init(params)
  for key in jax.random.split(jax.random.key(1), num_steps):
    params, average, opt_state = step(params, average, opt_state, key)
  return average


def log_density(params, points):
  """Return log p(x) of points [N 2] in nats, by the model's probability-flow ODE."""
  estimator = dj.likelihood.ProbabilityFlow(trace="exact", rtol=1e-4, atol=1e-4)

  @jax.jit
  def bits(points):
    keys = jax.random.split(jax.random.key(0), len(points))
    return estimator.estimate(make_denoiser(params), dj.Examples(points), keys).bits_per_dim

  parts = [bits(part) for part in np.array_split(points, max(1, len(points) // 800))]
  return -np.concatenate(parts) * 2 * np.log(2)  # two dimensions


def true_log_density(points, scale, center, num_angles=2000):
  """Return the true log-density of the moons in nats, for standardised points [N 2]."""
  angle = np.linspace(0, np.pi, num_angles)
  upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  moons = np.concatenate([upper, [1.0, 0.5] - upper])
  away = points[:, None] * scale + center - moons
  density = np.exp(-0.5 * np.sum(away**2, axis=-1) / NOISE**2).mean(1) / (2 * np.pi * NOISE**2)
  return np.log(density) + np.log(np.prod(scale))


def draw(path, points, samples, params):
  """Write a picture of the data, the samples and the model's density."""
  low, high = points.min(0) - 0.4, points.max(0) + 0.4
  x, y = (np.linspace(low[i], high[i], SIDE, dtype=np.float32) for i in range(2))
  grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
  density = np.exp(log_density(params, grid)).reshape(SIDE, SIDE)
  figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), sharex=True, sharey=True, layout="tight")
  for axis, title, dots in zip(axes, ("data", "samples"), (points, samples), strict=False):
    axis.scatter(*dots[:2000].T, s=2)
    axis.set_title(title)
  axes[2].pcolormesh(x, y, density, shading="auto")
  axes[2].set_title("exact density of the model")
  axes[2].set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
  figure.savefig(path, dpi=110)


def main(argv=None):
  flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  flags.add_argument("--out", type=Path, default=Path("two_moons.png"), help="picture to write")
  flags.add_argument("--num_steps", type=int, default=5000, help="training steps (5000)")
  args = flags.parse_args(argv)
  raw, _ = make_moons(12_000, noise=NOISE, random_state=0)
  center, scale = raw[:10_000].mean(0), raw[:10_000].std(0)
  points = ((raw - center) / scale).astype(np.float32)
  params = train(jnp.asarray(points[:10_000]), args.num_steps)
  sampler = dj.samplers.Heun(steps=20)
  samples = sampler.sample(
    make_denoiser(params).denoise, dj.processes.Flow(), jax.random.key(2), shape=(2000, 2)
  ).images
  held_out = points[10_000:10_800]
  ours, true = log_density(params, held_out), true_log_density(held_out, scale, center)
  print(
    f"held-out log-likelihood: {ours.mean():.3f} nats per point; of the true density: "
    f"{true.mean():.3f}; difference {np.mean(true - ours):.3f} +- "
    f"{np.std(true - ours) / np.sqrt(len(ours)):.3f}"
  )
  draw(args.out, points, np.asarray(samples), params)
  print(f"data, samples and density: {args.out}")
  return float(np.mean(true - ours))


if __name__ == "__main__":
  main()
