"""Check each process: its log-SNR falls, its inverse is right, host and device agree."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.auditing.rows import Row, audit_entries
from diffusion_jax.core.registry import Registry
from diffusion_jax.models import NOISE_SCHEDULES
from diffusion_jax.processes import PROCESSES, Process

AUDITED = Registry("process", Process, PROCESSES, NOISE_SCHEDULES, base=PROCESSES.base)


def audit_processes(registry: Mapping[str, Any] = AUDITED) -> Iterator[Row]:
  """Yield rows of every registered process with defaults; learned schedules as initialised."""
  yield from audit_entries(registry, Process, "a process", _bound_rows)


def _bound_rows(name: str, config: Any) -> Iterator[Row]:
  process = config()
  yield from _rows(name, process.bind(jax.jit(process.init)(jax.random.key(0))))


def _rows(name: str, process: Process) -> Iterator[Row]:
  t = _times(process)
  alpha, sigma = (np.asarray(c) for c in process.alpha_sigma(t))
  log_snr = np.asarray(process.log_snr(t))
  # a learned schedule computes in float32, whatever its input
  rounding = 1.0 if log_snr.dtype == np.float64 else 1e4
  away = np.abs(log_snr - 2 * np.log(alpha / sigma)).max()
  yield Row(name, "log-SNR = 2 log(alpha / sigma)", 0.0, away, tolerance=1e-8 * rounding)
  rise = float(np.diff(log_snr).max())
  yield Row(name, "log-SNR falls: its largest rise", 0.0, max(rise, 0.0))
  back = np.asarray(process.time_of(log_snr))
  yield Row(name, "time_of(log_snr(t)) = t", 0.0, np.abs(back - t).max(),
            tolerance=1e-9 * rounding)  # fmt: skip
  device = np.asarray(jax.jit(process.log_snr)(np.float32(t)))
  yield Row(name, "float32 against float64 log-SNR", 0.0, np.abs(device - log_snr).max(),
            tolerance=5e-3)  # fmt: skip


def _times(process: Process) -> np.ndarray:
  if process.num_timesteps is not None:
    return np.arange(1, process.num_timesteps + 1) / process.num_timesteps
  return np.linspace(max(process.min_time, 1e-3), 0.999, 101)
