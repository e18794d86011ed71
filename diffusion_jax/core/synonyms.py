"""Names of settings in other frameworks, and the names that they have here.

A meaning is one of three: a field, "section.field" or "section.field=value"; a flag of a program,
"--flag"; or a sentence, for what needs no setting here.
"""

import re
from collections.abc import Collection, Sequence

from diffusion_jax.core.spelling import closest

EPOCHS = "`training.num_steps=...`, which is epochs * images / training.batch_size"
DEVICES = (
  "all devices are used without a flag; CUDA_VISIBLE_DEVICES=0,1 chooses some, "
  "launch/local.py starts several processes"
)
CONTINUES = "the same command continues a run without a flag; --fresh starts again"

MEANINGS: dict[str, tuple[str, ...]] = {
  "lr learning_rate base_lr max_lr peak_lr lrate": ("optimizer.learning_rate",),
  "wd weight_decay adam_weight_decay": ("optimizer.weight_decay",),
  "beta1 adam_beta1 b1": ("optimizer.b1",),
  "beta2 adam_beta2 b2": ("optimizer.b2",),
  "adam_epsilon adam_eps eps": ("optimizer.eps",),
  "warmup warmup_steps lr_warmup_steps num_warmup_steps": ("optimizer.warmup_steps",),
  "lr_schedule lr_scheduler lr_decay lr_anneal_steps": ("optimizer.schedule",),
  "optim optimizer opt": ("optimizer.name",),
  "grad_clip clip_grad clip gradient_clip gradient_clip_val max_grad_norm clip_norm grad_norm": (
    "optimizer.clip_norm",
  ),
  "epoch epochs num_epochs n_epochs max_epochs num_train_epochs total_epochs nb_epochs": (EPOCHS,),
  "num_steps n_steps max_steps train_steps training_steps total_steps num_train_steps iters "
  "max_train_steps num_iters n_iters iterations num_iterations max_iters train_num_steps kimg": (
    "training.num_steps",
  ),
  "steps": ("training.num_steps", "sampler.steps"),
  "batch batch_size bs b train_batch_size batchsize per_device_train_batch_size": (
    "--batch_size",
    "training.batch_size",
  ),
  "eval_batch_size test_batch_size": ("eval.batch_size",),
  "accumulation accumulation_steps gradient_accumulation_steps grad_accum accum microbatch "
  "grad_accumulation gradient_accumulate_every accumulate_grad_batches gradient_accumulation": (
    "training.accumulation_steps",
  ),
  "seed random_seed manual_seed": ("--seed", "training.seed"),
  "bf16 bfloat16 fp16 float16 half mixed_precision amp use_fp16 autocast": (
    "model.dtype=bfloat16",
  ),
  "precision dtype": ("model.dtype",),
  "scale cfg cfg_scale guidance guidance_scale cond_scale guidance_strength w": (
    "guidance.weight",
  ),
  "sampler scheduler sampling_method solver": ("sampler.name",),
  "sampling_steps num_sampling_steps num_inference_steps inference_steps ddim_steps nfe "
  "sample_steps timestep_respacing n_sample_steps": ("sampler.steps",),
  "eta ddim_eta": ("sampler.eta",),
  "num n n_samples num_samples num_images sample_size": (
    "--num",
    "eval.num_samples",
    "logging.num_samples",
  ),
  "label labels classes class class_cond_label class_labels": ("--labels",),
  "class_cond conditional cond": ("generative.conditional",),
  "prediction prediction_type parameterization parametrization objective mean_type pred_type": (
    "generative.prediction",
  ),
  "loss loss_type": ("loss.name",),
  "timesteps diffusion_steps num_timesteps noise_steps n_timestep num_diffusion_timesteps "
  "num_train_timesteps t": ("process.num_timesteps",),
  "noise_schedule beta_schedule schedule process": ("process.name",),
  "beta_start": ("process.beta_start",),
  "beta_end": ("process.beta_end",),
  "sigma_min": ("process.sigma_min",),
  "sigma_max": ("process.sigma_max",),
  "learn_sigma learned_sigma learned_variance": ("model.learned_variance",),
  "dry dryrun dry_run check": ("--dry_run",),
  "gpu gpus gpu_ids device devices num_gpus n_gpu n_gpus ngpus ngpu num_devices nproc_per_node "
  "accelerator cuda": (DEVICES,),
  "cpu": ("JAX_PLATFORMS=cpu in the environment runs on the CPU",),
  "nodes num_nodes num_processes world_size nnodes": ("distributed.num_processes",),
  "workers num_workers n_workers dataloader_num_workers num_cpu": (
    "the number of reading threads follows the machine, without a flag",
  ),
  "fp32 float32": ("model.dtype=float32",),
  "compile torch_compile jit": ("every step is compiled, without a flag",),
  "fsdp zero strategy": ("mesh.fsdp",),
  "tp tensor_parallel": ("mesh.tensor",),
  "slices num_slices dcn_data_parallelism dcn_parallelism": ("mesh.dcn_data",),
  "work_dir workdir out_dir outdir output_dir output logdir log_dir save_dir savedir run_dir "
  "exp_dir results_dir results_folder exp_name experiment run_name name checkpoint_dir ckpt_dir": (
    "--workdir",
    "--out",
  ),
  "out outfile save_path": ("--out", "--workdir"),
  "ckpt checkpoint model_path ckpt_path load pretrained": ("--workdir",),
  "resume resume_from resume_from_checkpoint resume_checkpoint restart continue auto_resume": (
    CONTINUES,
  ),
  "overwrite force clean": ("--fresh",),
  "data dataset dataset_name train_data_dir data_path root images path data_root": (
    "data.path",
    "data.name",
  ),
  "data_dir": ("data.data_dir", "data.path"),
  "image_size img_size resolution res size imsize": ("data.image_size",),
  "flip hflip horizontal_flip random_flip random_horizontal_flip augment_horizontal_flip": (
    "data.flip",
  ),
  "augment augmentation": ("generative.augmentation", "data.flip"),
  "test_split val_split validation_split val_fraction": ("data.test_fraction",),
  "num_classes n_classes": ("data.num_classes",),
  "ema ema_decay ema_rate ema_beta": ("--ema", "ema.decay"),
  "wandb use_wandb log_wandb wandb_project report_to project": ("logging.wandb_project",),
  "tensorboard tb use_tensorboard": ("logging.tensorboard",),
  "log_every log_interval log_freq logging_steps log_steps print_every print_freq log_every_steps "
  "log_every_n_steps": ("logging.every_steps",),
  "save_every save_interval save_steps save_freq checkpointing_steps checkpoint_every ckpt_every "
  "checkpoint_interval save_every_steps save_and_sample_every": ("checkpoint.every_steps",),
  "keep save_total_limit checkpoints_total_limit save_top_k max_to_keep": ("checkpoint.keep_last",),
  "eval_every eval_interval eval_freq eval_steps val_every evaluate_every val_check_interval": (
    "eval.every_steps",
  ),
  "sample_every sample_interval sample_freq vis_every": ("logging.sample_every_steps",),
  "metrics metric fid": ("eval.metrics",),
  "dropout drop p_dropout": ("model.dropout",),
  "p_uncond cfg_dropout class_dropout_prob label_dropout uncond_prob cond_drop_prob": (
    "generative.label_dropout",
  ),
  "arch model network net backbone": ("model.name",),
  "channels ch dim model_channels num_channels base_channels base_dim width features nf ngf": (
    "model.channels",
  ),
  "hidden hidden_size hidden_dim embed_dim": ("model.hidden",),
  "depth num_layers layers n_layers": ("model.depth",),
  "heads num_heads n_heads": ("model.num_heads", "model.heads"),
  "patch patch_size": ("model.patch",),
  "num_res_blocks res_blocks n_res_blocks layers_per_block blocks": ("model.num_blocks",),
  "ch_mult channel_mult channel_mults dim_mults mults multipliers channel_multipliers": (
    "model.multipliers",
  ),
  "attention attn attn_resolutions attention_resolutions attention_levels": (
    "model.attention_resolutions",
  ),
  "remat gradient_checkpointing use_checkpoint grad_checkpoint activation_checkpointing": (
    "model.remat",
  ),
  "latent_dim z_dim latent_size": ("model.latent_dim",),
  "beta kl_weight kl_coeff": ("loss.beta",),
}
"""Words of other frameworks, with spaces between -> meanings here, the likeliest first."""

_MEANING_OF = {word: meant for words, meant in MEANINGS.items() for word in words.split()}

SWITCHES = ("--dry_run", "--fresh")

FIELD = re.compile(r"[a-z_]+\.[a-z_0-9]+(=\w+)?")


def meanings(word: str) -> tuple[str, ...]:
  """Return the meanings of a word, in any spelling such as --Batch-Size; () if it has none."""
  plain = word.strip("-").lower().replace("-", "_")
  return _MEANING_OF.get(plain, ()) or _MEANING_OF.get(plain.replace("_", ""), ())


def hint_for_field(section: str, field: str, value: str, allowed: Collection[str]) -> str | None:
  """Return a clause on a field that does not exist, such as "did you mean `a.b=1`?".

  Args:
    section, field: what was typed.
    value: text that it was set to, which is kept.
    allowed: fields of the section; a similar one of these is preferred to other sections.
  """
  found = meanings(field) or meanings(f"{section}_{field}")
  settings = [meant for meant in found if not meant.startswith("--")]
  own = [meant for meant in settings if meant.lstrip("`").startswith(f"{section}.")]
  if not settings or (not own and closest(field, allowed, 0.6)):
    return None
  return _asked((own or settings)[:1], value)


def hint_for_flag(
  word: str, flags: Collection[str], takes_config: bool, value: str = ""
) -> str | None:
  """Return a clause on a flag that a program does not have; None for an unknown word.

  Args:
    word: the flag, with or without its dashes.
    flags: flags of the program.
    takes_config: true if it takes --config.section.field=value.
    value: text that the flag was set to.
  """
  same = [flag for flag in flags if flag.strip("-") == word.strip("-").lower().replace("-", "_")]
  known = [m for m in meanings(word) if m in flags or (takes_config and not m.startswith("--"))]
  if same or (known and known[0].startswith("--")):
    return _asked([*same, *known][:1], value)
  found = [meant for meant in known if not meant.startswith("--")]
  return _asked(found, value) if found else None


def _asked(found: Sequence[str], value: str) -> str:
  if FIELD.fullmatch(found[0]) or found[0].startswith("--"):
    return f"did you mean {' or '.join(_typed(meant, value) for meant in found)}?"
  return f"did you mean {EPOCHS}?" if found[0] == EPOCHS else found[0]


def _typed(meant: str, value: str) -> str:
  """Return a meaning with the value, unless it is a switch or has its own."""
  if not meant.startswith("--"):
    return f"`{meant}`" if "=" in meant else f"`{meant}={value or '...'}`"
  return f"{meant}={value}" if value and meant not in SWITCHES else meant
