"""The drawings: where their marks lie is where the numbers say."""

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import page
import pytest

from diffusion_jax.report import html, plots, svg, sweep, sweep_plots

NAME = "{http://www.w3.org/2000/svg}"


def tree(plot):
  return ET.fromstring(str(plot.svg))


def lines(plot, least=3):
  """Corners of each line of a drawing that has at least so many, in SVG units."""
  found = []
  for group in tree(plot).iter(f"{NAME}g"):
    if "-line2d_" in group.get("id", "") or "-LineCollection_" in group.get("id", ""):
      for path in group.findall(f"{NAME}path"):
        corners = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.get("d"))
        if len(corners) >= least:
          found.append(np.array(corners, float))
  return found


def assert_placed(corners, xs, ys):
  """The corners are the points under one affine map per axis; y grows upwards."""
  for place, value, sign in ((corners[:, 0], xs, 1), (corners[:, 1], ys, -1)):
    slope, start = np.polyfit(value, place, 1)
    np.testing.assert_allclose(slope * np.asarray(value) + start, place, atol=2e-3)
    assert np.sign(slope) == sign


def test_the_check_of_places_sees_a_moved_point():
  corners = np.array([[0.0, 9.0], [1.0, 8.0], [2.0, 7.5]])
  with pytest.raises(AssertionError):
    assert_placed(corners, [0, 1, 2], [0, 1, 2])


def test_quality_against_evaluations_is_drawn_on_logarithmic_axes(metrics):
  quality, precision = sweep_plots.quality(metrics)
  assert [k.label for k in quality.keys] == ["sampler ddim", "sampler ancestral"]
  for plot, name, scale in (
    (quality, "fd_digits", np.log),
    (precision, "precision_digits", np.array),
  ):
    for i, corners in enumerate(lines(plot)):
      rows = metrics["sweep"][5 * i : 5 * i + 5]
      ys = [r["figures"][name]["value"] for r in rows]
      assert_placed(corners, np.log([r["num_evaluations"] for r in rows]), scale(ys))
    assert i == 1


def test_guidance_gets_a_plot_of_its_own_when_it_varies(metrics):
  row = metrics["sweep"][3]
  weights = (1.0, 1.5, 2.0, 3.0)
  metrics["sweep"] = [
    {
      **row,
      "overrides": {"guidance.weight": w},
      "figures": {"fd_digits": {"value": (w - 1.6) ** 2 + 3}},
    }
    for w in weights
  ]
  (plot,) = sweep_plots.quality(metrics)
  assert "guidance" in plot.title
  (corners,) = lines(plot)
  assert_placed(corners, weights, [(w - 1.6) ** 2 + 3 for w in weights])


def test_a_sweep_is_split_by_all_that_varies_but_x():
  rows = [
    {
      "overrides": {"sampler.steps": s, "guidance.weight": w, "eta": 0},
      "num_evaluations": s * (1 + (w != 1)),
      "figures": {"fd": {"value": s + w}},
    }
    for s in (20, 10)
    for w in (1, 2)
  ]
  found = sweep.series(rows, "fd", "num_evaluations", (sweep.STEPS,))
  assert found == {
    "guidance 1": [(10, 11, 0), (20, 21, 0)],
    "guidance 2": [(20, 12, 0), (40, 22, 0)],
  }


def test_the_limit_lies_at_one_over_n_zero(metrics):
  (plot,) = sweep_plots.infinity(metrics)
  figure = metrics["figures"]["fd_infinity_digits"]
  nums, values = np.array(figure["points"]).T
  uses = [
    (float(u.get("x")), float(u.get("y")))
    for u in tree(plot).iter(f"{NAME}use")
    if "var(--c" in u.get("style", "")
  ]
  dots, limit = np.array(uses[: len(nums)]), np.array(uses[-1])
  assert_placed(dots, 1 / nums, values)
  slope, start = np.polyfit(1 / nums, dots[:, 0], 1)
  assert limit[0] == pytest.approx(start, abs=1e-2)
  slope, start = np.polyfit(values, dots[:, 1], 1)
  assert limit[1] == pytest.approx(slope * figure["value"] + start, abs=1e-2)
  assert "∞" in [t.text for t in tree(plot).iter(f"{NAME}text")]


def test_the_spectrum_and_the_gap(metrics):
  curve, gap = plots.spectrum(metrics)
  spectrum = metrics["spectrum"]
  train, test = (np.array(spectrum[s]["eps_mse"]) for s in ("train", "test"))
  for corners, values in zip(lines(curve), (train, test), strict=True):
    assert_placed(corners, spectrum["log_snr"], np.log(values))
  assert "11.0%" in gap.alt  # what the fixture put there at high signal
  assert [k.label for k in curve.keys] == ["train, 1,500 images", "test, 297 images"]


def test_one_split_has_no_gap(metrics):
  del metrics["spectrum"]["test"]
  assert len(plots.spectrum(metrics)) == 1


def test_the_steps_of_the_bound(metrics):
  (plot,) = plots.timesteps(metrics)
  curve = metrics["likelihoods"]["vlb"]["curves"]["denoising"]
  (corners,) = lines(plot)
  # Straight stretches are drawn with fewer corners; the ends are kept.
  ends = np.log([curve["bits_per_dim"][0], curve["bits_per_dim"][-1]])
  middle = np.interp(corners[:, 0], corners[[0, -1], 0], [curve["t"][0], curve["t"][-1]])
  exact = np.log(np.interp(middle, curve["t"], curve["bits_per_dim"]))
  shown = np.interp(-corners[:, 1], -corners[[-1, 0], 1], ends[::-1])
  np.testing.assert_allclose(shown, exact, atol=5e-3)


def test_bars_are_as_long_as_the_terms(metrics):
  terms = metrics["likelihoods"]["vlb"]["terms"]
  terms.update(prior={"mean": 1.0}, denoising={"mean": 3.0}, reconstruction={"mean": 0.5})
  plot = plots.bits(metrics)
  bars = []
  for path in tree(plot).iter(f"{NAME}path"):
    if "fill: var(--c" in path.get("style", ""):
      xs = [float(x) for x, _ in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.get("d"))]
      bars.append((min(xs), max(xs)))
  widths = [b - a for a, b in bars]
  np.testing.assert_allclose(np.array(widths) / widths[0], [1, 3, 0.5], rtol=1e-4)
  assert bars[0][1] == pytest.approx(bars[1][0], abs=1e-4)
  assert bars[1][1] == pytest.approx(bars[2][0], abs=1e-4)


def test_a_negative_term_gives_no_bars(metrics):
  metrics["likelihoods"]["vlb"]["terms"]["reconstruction"]["mean"] = -0.1
  assert plots.bits(metrics) is None


def test_the_loss_is_drawn_at_its_steps(training):
  loss = plots.training(training)[0]
  rows = [r for r in training if "train/loss" in r]
  assert_placed(
    lines(loss, 20)[0], [r["step"] for r in rows], np.log([r["train/loss"] for r in rows])
  )
  assert [k.label for k in loss.keys] == ["training", "held out"]


def test_held_out_bits_have_a_plot_without_their_errors():
  rows = [
    {
      "step": s,
      "held_out/elbo/bits_per_dim": 3 - s,
      "held_out/elbo/bits_per_dim_standard_error": 0.1,
    }
    for s in (0, 1)
  ]
  (plot,) = plots.training(rows)
  assert plot.title == "Held-out likelihood"
  assert "elbo 2;" not in plot.alt
  assert "elbo 2." in plot.alt


def test_long_curves_are_thinned_and_end_where_they_end():
  points = [svg.Point(float(i), 1.0) for i in range(25_001)]
  short = plots.thinned(points)
  assert len(short) <= plots.MAX_POINTS
  assert short[-1] == points[-1]
  assert len({b[0] - a[0] for a, b in itertools.pairwise(short)}) == 1


def test_common_plot_needs_two_sweeps_with_a_common_figure(metrics, other):
  plot = sweep_plots.common({"a": metrics, "b": other})
  assert len(plot.keys) == len(lines(plot)) == 4
  assert sweep_plots.common({"a": metrics, "b": {}}) is None
  for row in other["sweep"]:
    row["figures"] = {"else": {"value": 1.0}}
  assert sweep_plots.common({"a": metrics, "b": other}) is None


def test_drawings_take_their_colours_and_style_from_the_page(metrics, training):
  found = html.render(metrics, {}, page.beside(training))
  drawings = [e for e in page.read(found).all("svg") if "viewbox" in e.attributes]
  styles = [p.attributes.get("style", "") for d in drawings for p in d.all()]
  used = set(re.findall(r"#[0-9a-fA-F]{3,6}\b", " ".join(styles)))
  assert not used
  assert not [s for d in drawings for s in d.all("style")]
  assert not [m for d in drawings for m in d.all("metadata")]
  sheet = (html.HERE / "style.css").read_text()
  for name in {v for s in styles for v in re.findall(r"var\((--\w+)\)", s)}:
    assert len(re.findall(rf"{name}:", sheet)) >= 3, name  # light, dark, print


@pytest.mark.parametrize(
  ("low", "high"), [(2.1, 6.8), (0.9, 1100), (3.1, 3.3), (1e-9, 1e3), (0.02, 0.9)]
)
def test_logarithmic_axes_have_a_handful_of_ticks(low, high):
  ticks = svg.spaced(svg.round_numbers(low, high), low, high)
  assert 3 <= len(ticks) <= 12
  assert all(low <= t <= high for t in ticks)
  assert ticks == sorted(ticks)
