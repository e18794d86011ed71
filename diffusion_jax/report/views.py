"""metrics.json as the rows of the report; a missing part gives no rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.metrics import METRICS, PACKAGED, Metric, describe_metric
from diffusion_jax.report.formatting import (
  DASH,
  Fact,
  Number,
  count,
  error_decimals,
  facts,
  finite,
  listed,
  moment,
  number,
  text,
  with_error,
)

Metrics = Mapping[str, Any]

NUM_CARDS = 4
LIKELIHOOD_CARD = 2.0
"""Place of a likelihood's card in a metrics.json of older versions, which does not have it."""


class Figure(NamedTuple):
  """A sample metric as one row.

  Attributes:
    key: name in metrics.json; figures of one name may be compared.
    description: explanation in words, with the unit if there is one.
    value, error: numbers with the digits that the error supports; `error` is None if not known.
    error_is: kind of error: "s.d. of 3 seeds" or "s.e.".
    better: better direction: "lower", "higher" or "".
    num_samples, num_reference: numbers of images.
    where: features and reference.
    seeds: value of each seed, as text; empty for a single seed.
    protocol: protocol in words.
    metric: name of the metric.
    card: place among the cards; 0: no card.
    anchor: the same metric of real images, in words; empty if it was not measured.
  """

  key: str
  description: str
  value: Number
  error: Number | None
  error_is: str
  better: str
  num_samples: Number
  num_reference: Number
  where: str
  seeds: str
  protocol: str
  metric: str
  card: float
  anchor: str = ""


class Term(NamedTuple):
  """A part of a likelihood, bits/dim.

  Attributes:
    name: name of the part.
    value, error: mean and standard error, bits/dim.
    share: fraction of the whole, percent.
    padding: invisible digits after the number, which align the decimal points.
  """

  name: str
  value: Number
  error: Number
  share: str
  padding: str


class Likelihood(NamedTuple):
  """A likelihood estimate as one row; figures in bits/dim, errors as standard errors.

  `card` is its place among the cards; 0: no card.
  """

  key: str
  description: str
  value: Number
  error: Number
  error_images: Number
  error_monte_carlo: Number
  counted: str
  options: str
  terms: list[Term]
  card: float


class Card(NamedTuple):
  """A headline figure."""

  key: str
  description: str
  value: Number
  error: Number | None
  note: str
  anchor: str = ""


class Words(NamedTuple):
  """A metric's declarations for the report; see `metrics.base.Metric`."""

  metric: str = ""
  description: str = ""
  card: float = 0.0


def words_of(key: str, figure: Mapping[str, Any]) -> Words:
  """Return the declarations of a figure's metric, from the figure or else by its name."""
  if "metric" in figure:
    return Words(*(figure.get(name, default) for name, default in Words._field_defaults.items()))
  known: dict[str, Words] = {}
  for metric in (METRICS[name]() for name in PACKAGED):
    known |= {n: Words(metric.name, words, metric.card) for n, words in _names(metric).items()}
  begun = [name for name in known if key == name or key.startswith(f"{name}_")]
  return known[max(begun, key=len)] if begun else Words()


def _names(metric: Metric) -> dict[str, str]:
  """Return name -> description, on domain features and on the published Inception's."""
  pairs = ((metric.domain_name or metric.name, False), (metric.name, True))
  return {name: describe_metric(metric, is_published) for name, is_published in pairs}


def figure_rows(metrics: Metrics) -> list[Figure]:
  """Return the sample metrics in the order of metrics.json."""
  anchors = metrics.get("anchors") or {}
  return [figure_row(key, f, anchors.get(key)) for key, f in metrics.get("figures", {}).items()]


def figure_row(key: str, figure: Mapping[str, Any], anchor: Metrics | None = None) -> Figure:
  """Return one sample metric as a row, with the same metric of real images if there is one."""
  error, error_is = spread(figure)
  value, shown_error = with_error(figure.get("value"), error)
  seeds = figure.get("values") or []
  where = [figure.get("extractor"), figure.get("reference")]
  decimals, words = error_decimals(error), words_of(key, figure)
  return Figure(
    key,
    ", ".join(w for w in (words.description, figure.get("unit")) if w),
    value,
    None if error is None else shown_error,
    error_is,
    figure.get("better") or "",
    count(figure.get("num_samples")),
    count(figure.get("num_reference")),
    ", ".join(text(w) for w in where if w),
    " · ".join(number(v, decimals).text for v in seeds) if len(seeds) > 1 else "",
    figure.get("protocol") or "",
    words.metric,
    words.card,
    anchor_words(anchor, figure) if anchor else "",
  )


def anchor_words(anchor: Mapping[str, Any], figure: Mapping[str, Any]) -> str:
  """Return an anchor in words: "held-out images: 0.983 ± 0.005 (297 images)"."""
  value, error = with_error(anchor.get("value"), anchor.get("standard_error"))
  shown = f"{value.text} ± {error.text}" if error.exact else value.text
  who = str(anchor.get("images") or "real images").partition(" against ")[0]
  num = anchor.get("num_images")
  few = "" if num == figure.get("num_samples") else f" (only {count(num).text} images)"
  return f"{who}: {shown}{few}"


def spread(figure: Mapping[str, Any]) -> tuple[float | None, str]:
  """Return the error of a figure and its kind: over seeds if available, else standard."""
  over_seeds = finite(figure.get("standard_deviation"))
  num_seeds = len(figure.get("values") or [])
  if over_seeds is not None and num_seeds > 1:
    return over_seeds, f"s.d. of {num_seeds} seeds"
  if (error := finite(figure.get("standard_error"))) is not None:
    return error, "s.e."
  return over_seeds, "s.d." if over_seeds is not None else ""


def shared_protocol(rows: Sequence[Figure]) -> str:
  """Return the protocol in words if all figures share it; else an empty text."""
  words = {row.protocol for row in rows}
  return words.pop() if len(words) == 1 and len(rows) > 1 else ""


def likelihood_rows(metrics: Metrics) -> list[Likelihood]:
  """Return the likelihood estimates in the order of metrics.json."""
  return [likelihood_row(key, x) for key, x in metrics.get("likelihoods", {}).items()]


def likelihood_row(key: str, estimate: Mapping[str, Any]) -> Likelihood:
  """Return one likelihood estimate as a row."""
  value, error = with_error(estimate.get("bits_per_dim"), estimate.get("standard_error"))
  decimals = error_decimals(estimate.get("standard_error"))
  return Likelihood(
    key,
    estimate.get("description") or "",
    value,
    error,
    number(estimate.get("standard_error_images"), decimals),
    number(estimate.get("standard_error_monte_carlo"), decimals),
    "; ".join(counted(estimate)),
    ", ".join(f"{fact.name} {fact.text}" for fact in facts(estimate.get("options") or {})),
    terms(estimate),
    estimate.get("card", LIKELIHOOD_CARD),
  )


def counted(estimate: Mapping[str, Any]) -> Iterator[str]:
  """Describe the data and draws of a likelihood estimate, in phrases."""
  if "num_images" in estimate:
    num_images, split = count(estimate["num_images"]).text, text(estimate.get("split"))
    yield f"{num_images} {split} images" if split != DASH else f"{num_images} images"
  if "num_levels" in estimate:
    levels = estimate["num_levels"]
    yield f"{levels} grey levels" if levels else "a density"
  if estimate.get("conditional"):
    yield "given the class"
  if (repeats := estimate.get("repeats")) is not None:
    yield f"{repeats} noise draw{'' if repeats == 1 else 's'} per image"


def terms(estimate: Mapping[str, Any]) -> list[Term]:
  """Return the parts of a likelihood, each with the digits that its error supports."""
  whole, rows = finite(estimate.get("bits_per_dim")), []
  for name, part in (estimate.get("terms") or {}).items():
    mean = finite(part.get("mean"))
    fraction = f"{mean / whole:.1%}" if whole and mean is not None else DASH
    value, error = with_error(mean, part.get("standard_error"))
    rows.append(Term(str(name), value, error, fraction.replace("-", "−"), ""))
  tails = [_tail(row.value.text) for row in rows]
  longest = max(tails, key=len, default="")
  return [row._replace(padding=longest[len(tail) :]) for row, tail in zip(rows, tails, strict=True)]


def _tail(number_text: str) -> str:
  """Return the decimal point and the decimals of a number, each digit as 0."""
  point = number_text.find(".")
  return "" if point < 0 or "×" in number_text else "." + "0" * (len(number_text) - point - 1)


def cards(figures: Sequence[Figure], likelihoods: Sequence[Likelihood]) -> list[Card]:
  """Return the headline figures: one for each metric that declares a card, and a likelihood."""
  ranked = [(row.card, _likelihood_card(row)) for row in likelihoods if row.card][:1]
  shown: set[str] = set()
  for figure in figures:
    if figure.card and figure.value.exact and figure.metric not in shown:
      shown.add(figure.metric)
      ranked.append((figure.card, _figure_card(figure)))
  return [card for _, card in sorted(ranked, key=lambda pair: pair[0])][:NUM_CARDS]


def _figure_card(figure: Figure) -> Card:
  notes = [f"{figure.better} is better"] if figure.better else []
  if figure.num_samples.exact:
    notes.append(f"{figure.num_samples.text} samples")
  if figure.error_is:
    notes.append(f"± {figure.error_is}".replace(" ", "\N{NO-BREAK SPACE}"))
  return Card(figure.key, figure.description, figure.value, figure.error, ", ".join(notes),
              figure.anchor)  # fmt: skip


def _likelihood_card(row: Likelihood) -> Card:
  error = row.error if row.error.exact else None
  notes = ["lower is better", *row.counted.split("; ")[:1]]
  if error:
    notes.append("±\N{NO-BREAK SPACE}s.e.")
  words = ", ".join(w for w in ("bits/dim", row.description) if w)
  return Card(row.key, words, row.value, error, ", ".join(notes))


def memorization_rows(metrics: Metrics) -> list[tuple[str, Number, str]]:
  """Return the figures of the memorisation check: name, value, meaning."""
  check = metrics.get("memorization")
  if not check:
    return []
  samples, held_out = check.get("samples_to_train") or {}, check.get("test_to_train") or {}
  rows = [
    ("samples to nearest training image, median", samples.get("median"), "distance of features"),
    ("held-out images to nearest training image, median", held_out.get("median"), "the same"),
    ("samples to nearest training image, mean", samples.get("mean"), "distance of features"),
    ("held-out images to nearest training image, mean", held_out.get("mean"), "the same"),
    (
      "samples closer than the median held-out image",
      check.get("closer_than_test"),
      "fraction; about 0.5 if samples are no closer than held-out images",
    ),
    ("C_T", check.get("c_t"), "z-score; far below 0: copying"),
  ]
  return [(name, number(value), note) for name, value, note in rows if value is not None]


def title(metrics: Metrics) -> str:
  """Return the page's title: the last part of the run's folder, or the samples' source."""
  source = (metrics.get("model") or {}).get("workdir")
  source = source or (metrics.get("samples") or {}).get("source") or "samples"
  return str(source).rstrip("/").rsplit("/", 1)[-1] or str(source)


def run_name(metrics: Metrics) -> str:
  """Return a run's folder and step, which identify it."""
  model = metrics.get("model") or {}
  if "workdir" not in model:
    return str((metrics.get("samples") or {}).get("source") or "samples")
  step = model.get("step")
  return f"{model['workdir']}" + ("" if step is None else f", step {text(step, 'step')}")


def subtitle(metrics: Metrics) -> list[str]:
  """Return the phrases under the title: step, kind, size, data."""
  model = metrics.get("model") or {}
  data = model.get("data") or {}
  phrases = [
    f"step {text(model['step'], 'step')}" if "step" in model else "",
    str(model.get("kind_description") or model.get("kind", "")),
    f"{text(model['parameters'], 'num')} parameters" if "parameters" in model else "",
    f"trained on {data['name']}" if "name" in data else "",
    f"{text(model['weights']).replace('ema', 'EMA')} weights" if "weights" in model else "",
  ]
  return [phrase for phrase in phrases if phrase]


def strip(metrics: Metrics) -> list[Fact]:
  """Return the protocol in one line: the facts needed to interpret the figures."""
  samples = metrics.get("samples") or {}
  sampler = dict(samples.get("sampler") or {})
  name, steps = sampler.get("name"), sampler.get("steps")
  shown = [
    ("samples", count(samples["num"]).text if "num" in samples else ""),
    ("seeds", listed(samples.get("seeds") or [])),
    ("sampler", f"{name}, {steps} steps" if steps is not None else text(name)),
    ("network evaluations per image", text(samples.get("num_evaluations"))),
    ("guidance", text((samples.get("guidance") or {}).get("weight"))),
    ("reference", ", ".join(_reference(r) for r in (metrics.get("references") or {}).values())),
  ]
  return [Fact(n, value, False) for n, value in shown if value not in ("", DASH)]


def _reference(stamp: Mapping[str, Any]) -> str:
  words = [text(stamp[key]) for key in ("data", "split") if stamp.get(key)]
  return " ".join([*words, *([f"({text(stamp['num'], 'num')})"] if "num" in stamp else [])])


class Block(NamedTuple):
  """A titled part of the protocol stamp."""

  title: str
  facts: list[Fact]


def protocol(metrics: Metrics) -> list[Block]:
  """Return everything needed to repeat the figures: every leaf of the stamps."""
  model = {k: v for k, v in (metrics.get("model") or {}).items() if k != "config"}
  blocks = [Block("Weights", facts(model)), Block("Samples", facts(metrics.get("samples") or {}))]
  for name, stamp in (metrics.get("extractors") or {}).items():
    blocks.append(Block(f"Extractor {name}", facts(stamp)))
  for name, stamp in (metrics.get("references") or {}).items():
    blocks.append(Block(f"Reference {name}", facts(stamp)))
  blocks.append(Block("Code", facts(metrics.get("code") or {})))
  return [block for block in blocks if block.facts]


def config_blocks(metrics: Metrics) -> list[Block]:
  """Return the run's whole config, section by section."""
  config = (metrics.get("model") or {}).get("config") or {}
  return [
    Block(str(name), facts(section if isinstance(section, Mapping) else {"value": section}))
    for name, section in config.items()
  ]


class Run(NamedTuple):
  """The machine and duration of a run.

  Seconds of each part with their fraction, and the facts of the machine.
  """

  facts: list[Fact]
  seconds: list[tuple[str, str, float]]
  packages: list[Fact]


def describe_run(metrics: Metrics) -> Run | None:
  """Return the run that made the figures."""
  stamp = dict(metrics.get("run") or {})
  if not stamp:
    return None
  seconds, packages = stamp.pop("seconds", None) or {}, stamp.pop("packages", None) or {}
  if "time" in stamp:
    stamp["time"] = moment(stamp["time"])
  known = {name: x for name, s in seconds.items() if (x := finite(s)) is not None}
  total = sum(known.values()) or 1.0
  rows = [(name.replace("_", " "), f"{s:,.1f}", s / total) for name, s in known.items()]
  return Run(facts(stamp), rows, facts(packages))
