"""Numbers as text."""

import math

import pytest

from diffusion_jax.report import formatting


@pytest.mark.parametrize(
  ("value", "error", "expected"),
  [
    (12.3456, 0.234, ("12.35", "0.23")),
    (5.04567, 0.01934, ("5.046", "0.019")),
    (1.0, 0.0996, ("1.000", "0.100")),
    (1234.5678, 23.4, ("1,235", "23")),
    (98765.4, 1234.5, ("98,765", "1,234")),
    (-0.8361, 0.05, ("−0.836", "0.050")),
    (0.0004187, 0.000004, ("0.0004187", "0.0000040")),
    (3.24718, None, ("3.247", "—")),
    (3.24718, 0.0, ("3.247", "0")),
    (math.nan, 0.1, ("—", "0.10")),
    (None, math.inf, ("—", "—")),
  ],
)
def test_the_error_decides_the_digits(value, error, expected):
  assert tuple(n.text for n in formatting.with_error(value, error)) == expected


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0, "0"),
    (3, "3"),
    (1500, "1,500"),
    (0.98765, "0.9877"),
    (123.456, "123.5"),
    (12345.6, "12,346"),
    (0.000012345, "1.234×10⁻⁵"),
    (-2.5e10, "−2.5×10¹⁰"),
    (1e-9, "10⁻⁹"),
    (True, "—"),
    ("7", "—"),
  ],
)
def test_a_number_alone_has_four_digits(value, text):
  assert formatting.number(value).text == text


def test_the_exact_value_goes_with_it():
  assert formatting.number(1 / 3).exact == "0.3333333333333333"
  assert formatting.number(math.nan).exact == ""


@pytest.mark.parametrize(
  ("value", "text"),
  [(0.25, "0.25"), (1000, "1,000"), (25000, "25k"), (3e6, "3M"), (2e-4, "2×10⁻⁴"), (-5, "−5")],
)
def test_ticks_are_short(value, text):
  assert formatting.tick(value) == text


def test_a_stamp_is_flattened_in_its_order():
  stamp = {"num": 1500, "sampler": {"name": "ddim", "eta": 0.0}, "list": [1, 2], "none": None}
  stamp |= {"empty": {}, "sha256": "ab", "resolution": [8, 8, 1], "rows": [{"a": True}, 2]}
  assert [tuple(fact) for fact in formatting.facts(stamp)] == [
    ("num", "1,500", False),
    ("sampler.name", "ddim", False),
    ("sampler.eta", "0", False),
    ("list", "1, 2", False),
    ("none", "—", False),
    ("empty", "—", False),
    ("SHA-256", "ab", True),
    ("resolution", "8×8×1", False),
    ("rows.0.a", "yes", False),
    ("rows.1", "2", False),
  ]


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0, "1970-01-01 00:00:00 UTC"),
    ("2026-01-02T03:04:05+00:00", "2026-01-02 03:04:05 UTC"),
    ("2026-01-02T03:04:05", "2026-01-02 03:04:05"),
    ("yesterday", "yesterday"),
    (None, "—"),
  ],
)
def test_times(value, text):
  assert formatting.moment(value) == text
