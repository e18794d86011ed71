"""Answers to a page: samples, fillings, interpolations, noise levels and latents."""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.browsing import asked
from diffusion_jax.browsing.opened_run import OpenedRun, Pictures
from diffusion_jax.browsing.sheets import captions_of, sheet
from diffusion_jax.browsing.tabled import Setting, Steered, Tabled, make_setting
from diffusion_jax.core import rng
from diffusion_jax.core.wording import one_line
from diffusion_jax.inference.draw import cycle_labels
from diffusion_jax.samplers import LinearSampler, initial_states
from diffusion_jax.samplers.editing import interpolate
from diffusion_jax.types import Batch, Condition, Params, UserError

Settings = Mapping[str, Any]
Answer = dict[str, Any]

NUM_TIMES = 40
"""Number of noise levels on the page."""

NUM_AXES, NUM_ALONG = 8, 9
"""Directions of the walk through latents, and the images along each."""

REACH = 3.0
"""Largest distance of a step in the walk, in standard deviations of the prior."""

MAX_LATENTS = 4096


class Program:
  """A compiled function that says if it is ready; its first caller compiles it.

  Attributes:
    seconds: time of the compilation; None: not yet compiled.
  """

  def __init__(self, function: Callable[..., Any]):
    self._function, self._lock = jax.jit(function), threading.Lock()
    self.seconds: float | None = None

  def __call__(self, *args: Any) -> Any:
    if self.seconds is None:
      with self._lock:
        begun = time.perf_counter()
        found = jax.block_until_ready(self._function(*args))
        self.seconds = self.seconds or time.perf_counter() - begun
        return found
    return self._function(*args)


class Studio:
  """Makes the pictures that a page asks for, with programs that are compiled once.

  Args:
    run: the run.
  """

  def __init__(self, run: OpenedRun):
    self.run = run
    self._programs: dict[Any, Program] = {}
    self._lock = threading.Lock()
    self.kinds: dict[str, Callable[[Settings], Answer]] = {
      "draw": self.draw,
      "between": self.between,
      "pictures": self.pictures,
      "inpaint": self.inpaint,
      "noise": self.noise,
      "latents": self.latents,
    }

  def answer(self, kind: str, settings: Settings) -> Answer:
    """Return an answer to a page.

    Raises:
      UserError: the run cannot do this, or a setting is out of range.
    """
    if kind not in self.kinds:
      raise UserError(f"{one_line(kind)}: must be one of {', '.join(self.kinds)}")
    if reason := self.run.refusals.get(kind):
      raise UserError(reason)
    begun = time.perf_counter()
    found = self.kinds[kind](settings)
    return {**found, "seconds": round(time.perf_counter() - begun, 3)}

  def program(self, key: Any, function: Callable[..., Any]) -> Program:
    """Return the compiled function of a key, made by the first caller."""
    with self._lock:
      return self._programs.setdefault(key, Program(function))

  def _labels(self, settings: Settings) -> np.ndarray | None:
    """Return the classes of the samples: one for all, or the trained ones in turn."""
    if not self.run.null:
      return None
    trained = self.run.trained_classes
    chosen = asked.one_of(settings, "label", [-1, *trained])
    return cycle_labels(trained if chosen < 0 else [chosen], self.run.num)

  def _drawing(self, settings: Settings) -> tuple[Params, np.uint32, Condition]:
    step = asked.one_of(settings, "step", self.run.steps)
    seed = asked.whole_number(settings, "seed", 0, asked.MAX_SEED)
    condition = Condition(self._labels(settings), fields=self.run.drawn_fields)
    return self.run.params(step), np.uint32(seed), condition

  def _sampling(self, settings: Settings, params: Params) -> tuple[Any, float, Any]:
    """Return the sampler, the guidance weight and the process of the settings."""
    run = self.run
    assert run.diffusion is not None
    name = asked.one_of(settings, "sampler", list(run.samplers))
    steps = asked.whole_number(settings, "steps", 1, asked.MAX_STEPS)
    weight = asked.real_number(settings, "guidance", 0.0, asked.MAX_WEIGHT)
    process = run.diffusion.bind(run.inner_params(params)).denoiser.process
    return run.sampler_of(name, steps), weight, process

  def draw(self, settings: Settings) -> Answer:
    """Draw samples, with the x0 estimates along their path if the sampler keeps them."""
    params, seed, condition = self._drawing(settings)
    if self.run.diffusion is None:
      images = self._simple(params, seed, condition)
      return self._answered(images, condition, [])
    sampler, weight, process = self._sampling(settings, params)
    if not isinstance(sampler, LinearSampler):
      images = self._whole(sampler)(params, seed, condition, np.float32(weight))
      return self._answered(images, condition, [])
    start = self._starts(params, seed)
    return self._path(params, seed, condition, sampler, process, weight, start)

  def between(self, settings: Settings) -> Answer:
    """Draw samples from noise between those of two samples of a seed, or decode latents."""
    first = asked.whole_number(settings, "first", 0, self.run.num - 1)
    second = asked.whole_number(settings, "second", 0, self.run.num - 1)
    share = np.linspace(0.0, 1.0, self.run.num, dtype=np.float32)
    if self.run.diffusion is None:
      step = asked.one_of(settings, "step", self.run.steps)
      z = self._encoded(step)
      mixed = self._mixed(z, first, second, share)
      return {"sheet": sheet(np.asarray(self._decode(self.run.params(step), mixed))[None])}
    params, seed, condition = self._drawing(settings)
    sampler, weight, process = self._sampling(settings, params)
    if not isinstance(sampler, LinearSampler):
      raise UserError(_own_loop(settings["sampler"], "interpolate"))
    noise = self._starts(params, seed)
    start = self._mixed(noise, first, second, share)
    nearer = np.where(share < 0.5, first, second)
    condition = jax.tree.map(lambda rows: rows[nearer], condition)
    return self._path(params, seed, condition, sampler, process, weight, start, alike=first)

  def pictures(self, settings: Settings) -> Answer:
    """Return the images that can be edited: held-out images, or samples if there are none."""
    given, note = self._given(settings)
    captions = captions_of(given.labels, self.run.class_names, self.run.null)
    return {"sheet": sheet(given.images[None]), "captions": captions, "note": note}

  def inpaint(self, settings: Settings) -> Answer:
    """Fill in the hidden part of one image in several ways."""
    params, seed, _ = self._drawing(settings)
    sampler, weight, process = self._sampling(settings, params)
    if not isinstance(sampler, LinearSampler):
      raise UserError(_own_loop(settings["sampler"], "fill in a part"))
    given, _ = self._given(settings)
    which = asked.whole_number(settings, "picture", 0, self.run.num - 1)
    hidden = self._mask(settings)
    rows = np.full(self.run.num, which)
    condition = Condition(
      None if given.labels is None else given.labels[rows],
      fields={name: array[rows] for name, array in given.fields.items()},
    )
    x0 = given.images[rows].astype(np.float32)
    known = np.broadcast_to(~hidden[None, :, :, None], x0.shape)
    start = self._starts(params, seed)
    return self._path(params, seed, condition, sampler, process, weight, start, edited=(x0, known))

  def noise(self, settings: Settings) -> Answer:
    """Noise images to one level, and return them with the model's estimates of the originals."""
    params, seed, _ = self._drawing(settings)
    assert self.run.diffusion is not None
    level = asked.whole_number(settings, "level", 0, NUM_TIMES)
    given, _ = self._given(settings)
    condition = Condition(given.labels, fields=given.fields)
    time_ = np.float32(level / NUM_TIMES)

    def look(params, seed, x0, t, condition):
      model = self.run.diffusion
      assert model is not None
      keys = rng.sample_keys(seed, np.arange(len(x0), dtype=np.uint32))
      process = model.bind(params).denoiser.process
      times = jnp.full(len(x0), jnp.maximum(t, process.min_time))
      alpha, sigma = process.alpha_sigma(times[:1])
      z = rng.normal(rng.stream(keys, rng.Stream.NOISE), x0.shape[1:])
      xt = alpha[0] * x0 + sigma[0] * z
      shown = xt / jnp.sqrt(alpha[0] ** 2 + sigma[0] ** 2)
      return jnp.stack([shown, model.denoise(params, xt, times, condition)]), sigma[0] / alpha[0]

    x0 = given.images.astype(np.float32)
    images, ratio = self.program("noise", look)(params, seed, x0, time_, condition)
    ratio = float(ratio)
    return {"sheet": sheet(np.asarray(images)), "ratio": ratio if np.isfinite(ratio) else None}

  def latents(self, settings: Settings) -> Answer:
    """Decode latents around a point, along the directions that change the image most.

    The point is that of a picture ("picture"), or a given one ("z"), moved by "move": [axis,
    distance] in standard deviations.
    """
    step = asked.one_of(settings, "step", self.run.steps)
    params, encoded, axes = self.run.params(step), self._encoded(step), self._axes(step)
    if settings.get("z") is None:
      z = encoded[asked.whole_number(settings, "picture", 0, self.run.num - 1)]
    else:
      given = asked.numbers(settings, "z", encoded[0].size)
      z = np.asarray(given, np.float32).reshape(encoded[0].shape)
    if settings.get("move") is not None:
      axis, distance = asked.numbers(settings, "move", 2)
      if not (axis == int(axis) and 0 <= axis < len(axes)) or abs(distance) > REACH:
        raise UserError(
          f"move={[axis, distance]}: must be a direction and a distance up to {REACH}"
        )
      z = z + np.float32(distance) * axes[int(axis)]
    along = np.linspace(-REACH, REACH, NUM_ALONG, dtype=np.float32)
    points = z + along.reshape(-1, *[1] * z.ndim) * axes[:, None]
    images = np.asarray(self._decode(params, points.reshape(-1, *z.shape)))
    images = images.reshape(len(axes), NUM_ALONG, *images.shape[1:])
    return {"sheet": sheet(images), "z": z.ravel().tolist(), "along": along.tolist()}

  def _given(self, settings: Settings) -> tuple[Pictures, str]:
    try:
      return self.run.pictures, ""
    except UserError as error:
      step = asked.one_of(settings, "step", self.run.steps)
      return self._drawn_pictures(step), f"samples in the place of held-out images: {error}"

  @functools.lru_cache(2)  # noqa: B019  # a studio lives as long as its page
  def _drawn_pictures(self, step: int) -> Pictures:
    labels = self._labels({"label": -1})
    fields = self.run.drawn_fields
    condition = Condition(labels, fields=fields)
    images = self._simple(self.run.params(step), np.uint32(0), condition)[0]
    return Pictures(np.asarray(images), labels, fields)

  def _simple(self, params: Params, seed: np.uint32, condition: Condition) -> Any:
    """Return samples [1 N H W C] of the model as it is."""

    def sample(params, seed, condition):
      keys = rng.sample_keys(seed, np.arange(self.run.num, dtype=np.uint32))
      return self.run.model.sample(params, keys, condition).images[None]

    return self.program("sample", sample)(params, seed, condition)

  def _whole(self, sampler: Any) -> Program:
    """Return the program of a sampler with a loop of its own: params, seed, condition, weight."""

    def sample(params, seed, condition, weight):
      assert self.run.diffusion is not None
      guidance = Steered(weight=weight)
      inner = dataclasses.replace(self.run.diffusion, sampler=sampler, guidance=guidance)
      keys = rng.sample_keys(seed, np.arange(self.run.num, dtype=np.uint32))
      return self.run.with_diffusion(inner).sample(params, keys, condition).images[None]

    return self.program(("whole", sampler), sample)

  def _steered(self, setting: Setting, final: Any, variance: bool, start: Any, edited: Any) -> Any:
    """Return the model with the sampler and the guidance of a traced setting."""
    assert self.run.diffusion is not None
    sampler = Tabled(
      1, final=final, setting=setting, start=start, known=edited[0], is_known=edited[1],
      gives_variance=variance,
    )  # fmt: skip
    guidance = Steered(weight=setting.weight, end=setting.table.end, bound=setting.bound)
    inner = dataclasses.replace(self.run.diffusion, sampler=sampler, guidance=guidance)
    return self.run.with_diffusion(inner)

  def _path(
    self, params: Params, seed: np.uint32, condition: Condition, sampler: LinearSampler,
    process: Any, weight: float, start: Any, alike: int | None = None, edited: Any = None,
  ) -> Answer:  # fmt: skip
    """Run a sampler from given noise.

    Args:
      params, seed, condition, sampler, process, weight: the settings.
      start: states at t = 1.
      alike: number of the sample whose later noise all of them draw; None: each its own.
      edited: images and the pixels of them that are known; None: nothing is known.
    """
    setting, variance = make_setting(sampler, process, weight), sampler.needs_variance
    nothing = np.zeros_like(start), np.zeros(np.shape(start), bool)

    def sample(params, seed, condition, setting, start, index, edited):
      model = self._steered(setting, sampler.final, variance, start, edited)
      return model.trajectory(params, rng.sample_keys(seed, index), condition)

    index = np.arange(self.run.num, dtype=np.uint32)
    index = index if alike is None else np.full_like(index, alike)
    program = self.program(("path", sampler.final, variance, _shape(setting)), sample)
    given = nothing if edited is None else edited
    images = program(params, seed, condition, setting, np.asarray(start), index, given)
    alpha, sigma = process.alpha_sigma(np.asarray(setting.table.t, np.float64)[setting.frames])
    with np.errstate(divide="ignore"):
      ratios = np.asarray(sigma, np.float64) / np.asarray(alpha, np.float64)
    levels = [float(r) if np.isfinite(r) else None for r in ratios]
    return self._answered(images, condition, levels)

  def _answered(self, images: Any, condition: Condition, levels: list[float | None]) -> Answer:
    """Return the answer to samples [F N H W C], whose last row are the samples themselves."""
    labels = None if condition.label is None else np.asarray(condition.label)
    captions = captions_of(labels, self.run.class_names, self.run.null)
    return {"sheet": sheet(np.asarray(images)), "levels": levels, "captions": captions}

  def _mixed(self, noise: np.ndarray, first: int, second: int, share: np.ndarray) -> np.ndarray:
    """Return noise between that of two rows, on the sphere [K ...]."""

    def mix(noise, first, second, share):
      return interpolate(noise[first][None], noise[second][None], share)[:, 0]

    return np.asarray(self.program("mix", mix)(noise, np.int32(first), np.int32(second), share))

  def _starts(self, params: Params, seed: np.uint32) -> np.ndarray:
    """Return the noise at t = 1 that samples start from."""

    def noise(params, seed):
      model = self.run.diffusion
      assert model is not None
      keys = rng.sample_keys(seed, np.arange(self.run.num, dtype=np.uint32))
      process = model.bind(self.run.inner_params(params)).denoiser.process
      return initial_states(process, keys, model.spec.shape)

    return np.asarray(self.program("starts", noise)(params, seed))

  def _mask(self, settings: Settings) -> np.ndarray:
    """Return the hidden pixels [H W] of a text of 0 and 1."""
    spec, text = self.run.spec, settings.get("mask")
    size = spec.height * spec.width
    if not isinstance(text, str) or len(text) != size or set(text) - set("01"):
      raise UserError(f"mask: must be a text of {size} characters 0 and 1")
    hidden = np.array([c == "1" for c in text]).reshape(spec.height, spec.width)
    if not hidden.any():
      raise UserError("mask: draw over the part that is to be filled in")
    return hidden

  @functools.lru_cache(4)  # noqa: B019
  def _encoded(self, step: int) -> np.ndarray:
    """Return the latents of the pictures, one posterior sample each."""
    given, _ = self._given({"step": step})
    levels = given.images
    if self.run.spec.num_levels is not None:  # the encoder takes pixel levels
      levels = np.rint((levels + 1.0) * 0.5 * (self.run.spec.num_levels - 1)).astype(np.uint8)
    num = self.run.num
    label = np.zeros(num, np.int32) if given.labels is None else given.labels
    batch = Batch(image=levels, label=label, mask=np.ones(num, np.float32), index=np.arange(num),
                  fields=given.fields)  # fmt: skip

    def encode(params, batch):
      return self.run.model.encode(params, jax.random.key(0), batch)

    return np.asarray(self.program("encode", encode)(self.run.params(step), batch))

  def _decode(self, params: Params, z: Any) -> Any:
    return self.program(("decode", np.shape(z)), self.run.model.decode)(params, np.asarray(z))

  @functools.lru_cache(4)  # noqa: B019
  def _axes(self, step: int) -> np.ndarray:
    """Return up to NUM_AXES directions [A ...] of one standard deviation each.

    Up to 64 dimensions the directions are those of the latents themselves, the ones that change the
    image most first; beyond, the principal directions of the pictures' latents.
    """
    z, params = self._encoded(step), self.run.params(step)
    size = z[0].size
    if size > MAX_LATENTS:
      raise UserError(f"latents of {size:,} numbers are too many for this page ({MAX_LATENTS:,})")
    if size > 64:
      flat = z.reshape(len(z), -1)
      _, spread, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
      scaled = directions * (spread / np.sqrt(max(1, len(z) - 1)))[:, None]
      return scaled[:NUM_AXES].reshape(-1, *z.shape[1:])
    units = np.eye(size, dtype=np.float32).reshape(size, *z.shape[1:])
    ends = np.asarray(self._decode(params, z.mean(0) + 2.0 * np.concatenate([units, -units])))
    change = np.abs(ends[:size] - ends[size:]).reshape(size, -1).sum(1)
    return units[np.argsort(-change)[:NUM_AXES]]


def _own_loop(name: str, act: str) -> str:
  return f"sampler {name} has a loop of its own and cannot {act} here; choose another, such as ddim"


def _shape(setting: Setting) -> tuple[Any, ...]:
  return tuple(np.shape(leaf) for leaf in jax.tree.leaves(setting))
