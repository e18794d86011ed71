"""Measure checkpoints, or images of another program.

  python -m diffusion_jax.evaluate --workdir=runs/ddpm_digits

Writes eval/N/metrics.json, report.html and the samples into the run's folder, or into N/ in the
folder given by --out. After an interruption the same command continues. Images of another program
are measured by --samples=DIR|file.npz against --reference=DIR|file.npz|stats.npz or the data of
--config.
"""

import time
from collections.abc import Sequence

from diffusion_jax import parallel
from diffusion_jax.core.config import Override
from diffusion_jax.core.files import bucket_path, path_text, run_folder
from diffusion_jax.data import load_split
from diffusion_jax.evaluation import (
  checkpoint_steps,
  drawing,
  expected_time,
  external_images,
  measure,
  metrics_json,
  report_parts,
  results,
  sample_grids,
  tracking,
)
from diffusion_jax.evaluation import context as contexts
from diffusion_jax.evaluation.context import EvaluationContext, Request
from diffusion_jax.evaluation.drawing import CheckpointUnderTest
from diffusion_jax.evaluation.requests import (
  check_measures,
  check_request,
  vision_flags,
  why_left_out,
)
from diffusion_jax.evaluation.timing import clock, describe_time
from diffusion_jax.inference import restore
from diffusion_jax.runs import command_line, resumable, signals
from diffusion_jax.runs.stored import load_experiment, trained_experiment
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  check_request(args, overrides)
  command_line.enable_compilation_cache()
  if args.samples is not None:
    return measure_files(args, overrides, argv)
  with signals.stops_between_pieces("the same command continues"):
    measure_run(args, overrides, argv)


def parser() -> command_line.Parser:
  flags = command_line.Parser("evaluate", description=__doc__)
  run = flags.add_argument_group("a run's checkpoints")
  run.add_argument("--workdir", type=run_folder, help="the run's folder")
  run.add_argument("--step", default="latest", help="latest, all, or a checkpoint's step")
  run.add_argument("--watch", action="store_true", help="follow a training run: evaluate each "
                   "new checkpoint, up to the last")  # fmt: skip
  run.add_argument("--ema", help=restore.EMA_HELP)
  run.add_argument("--seed", type=int, default=0, help="seed of samples and draws")
  run.add_argument("--sweep", action="append", default=[], metavar="SECTION.FIELD=V1,V2",
                   help="also measure these settings; several axes make a grid")  # fmt: skip
  run.add_argument("--compare", action="append", default=[], type=bucket_path, metavar="DIR",
                   help="another evaluated run, for the report")  # fmt: skip
  run.add_argument("--fresh", action="store_true", help="move an evaluation with other settings "
                   "aside instead of refusing to start")  # fmt: skip
  other = flags.add_argument_group("images of another program")
  other.add_argument("--samples", type=bucket_path, help="images to measure: a folder or an .npz")
  other.add_argument("--reference", type=bucket_path,
                     help="a folder, an .npz of images, or statistics of any program; with "
                     "--workdir statistics of others, for further figures")  # fmt: skip
  other.add_argument("--config", help="config whose data set is the reference instead")
  other.add_argument("--split", choices=["train", "test"], default="train", help="its split")
  flags.add_argument(
    "--features", type=path_text, help="file of the data set's own features, or none"
  )
  flags.add_argument("--inception", type=path_text, help="file of Inception weights, or none")
  flags.add_argument("--inception_sha256", choices=["published", "any"], default="published",
                     help="any: accept other weights; their metric is never named fid")  # fmt: skip
  flags.add_argument(
    "--dinov2", type=path_text, help="file of DINOv2 weights, or none; default: those prepared"
  )
  flags.add_argument(
    "--clip", type=path_text, help="file of CLIP weights, or none; default: those prepared"
  )
  flags.add_argument("--out", type=bucket_path, help="output folder in place of the run's eval/; "
                     "with --samples, the metrics.json to write")  # fmt: skip
  return flags


def measure_run(args, overrides: Sequence[Override], argv: list[str]) -> None:
  """Evaluate the selected checkpoints."""
  started = time.perf_counter()
  average = restore.parse_average(args.ema)
  compared = report_parts.find_compared(args.compare)
  if args.watch:
    checkpoint_steps.wait_for_checkpoint(args.workdir)
  command_line.join_job(trained_experiment(args.workdir, overrides))
  request = Request(
    args.workdir, overrides, args.seed, args.sweep, args.features, args.inception,
    args.inception_sha256 == "any", args.out, vision_flags(args), args.reference,
  )  # fmt: skip
  with results.own_folder(request):
    context = check_measures(contexts.prepare_evaluation(request), request)
    results.check_steps(context, "all" if args.watch else args.step, average, args.fresh)
    measured, left_out = 0, []
    for step in checkpoint_steps.choose_steps(context, args):
      begun = time.perf_counter() if context.is_equipped or args.watch else started
      try:
        checkpoint = drawing.restore_average(context, step, average)
        signals.stop_here()
        if not context.is_equipped:
          with clock(checkpoint.seconds, "features and references"):
            context = contexts.equip(context, request)
        evaluate(context, checkpoint, compared, argv, args.fresh, begun)
        if args.out is None:
          tracking.send_from_process_0(args.workdir, context.experiment)
        measured += 1
      except UserError as error:
        why = why_left_out(context, step, error) if args.watch or args.step == "all" else None
        if why is None:
          raise
        left_out.append(f"step {step:,}: {why}")
        drawing.say(left_out[-1])
  if left_out and not measured:
    raise UserError(f"{args.workdir}: no checkpoint could be measured ({'; '.join(left_out)})")
  if left_out:  # repeated at the end, where it is noticed
    drawing.say(f"measured {measured} of {measured + len(left_out)}; " + "; ".join(left_out))


def evaluate(
  context: EvaluationContext,
  checkpoint: CheckpointUnderTest,
  compared: list,
  argv: list[str],
  fresh: bool,
  begun: float,
) -> None:
  """Measure one checkpoint, unless its folder already holds the result."""
  metrics_file = checkpoint.folder / "metrics.json"
  done = parallel.broadcast_object(results.is_done(context, checkpoint))
  if done and not compared:
    print(f"step {checkpoint.step:,}: evaluated already: {checkpoint.folder / 'report.html'}")
    return
  parallel.on_process_0(lambda: results.keep([checkpoint.folder], context, fresh, checkpoint))
  if done:
    drawing.say(f"step {checkpoint.step:,}: evaluated already; its report is written again")
    metrics = results.read_metrics(metrics_file)
  else:
    drawing.say(
      f"step {checkpoint.step:,}: {context.num_samples:,} samples, "
      f"{len(context.estimates)} likelihoods, {len(context.sweep)} settings swept"
    )
    with clock(checkpoint.seconds, "first batches"):
      expected_time.tell_expected_time(context, checkpoint)
    measured = measure.evaluate_checkpoint(context, checkpoint)
    metrics = metrics_json.compose(
      context, checkpoint, measured, metrics_json.command(argv, checkpoint.step)
    )
  assert metrics is not None
  with clock(checkpoint.seconds, "pictures"):
    pictures = sample_grids.make_pictures(context, checkpoint)
  with clock(checkpoint.seconds, "report"):
    report_parts.write_evaluation(checkpoint.folder, context.workdir, metrics, pictures, compared)
  resumable.remove(checkpoint.work)
  page = checkpoint.folder / "report.html"
  drawing.say(
    "\n".join(f"step {checkpoint.step:,}: {line}" for line in metrics_json.lines(metrics, page))
  )
  took = describe_time(checkpoint.seconds, time.perf_counter() - begun)
  outcome = f"{metrics_file}, {page}"
  drawing.say(f"step {checkpoint.step:,}: {outcome}, {took}")


def measure_files(args, overrides: Sequence[Override], argv: list[str]) -> None:
  """Measure images of another program."""
  against = external_images.Against(args.reference)
  if args.config is not None:
    experiment = load_experiment(args.config, overrides)
    source = load_split(experiment.data, args.split)
    against = external_images.Against(None, source, args.split, experiment.eval.metrics)
  external_images.measure_external(args, against, metrics_json.command(argv, None))


if __name__ == "__main__":
  command_line.run_main(main)
