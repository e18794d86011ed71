"""What the page shows is what the library draws, with one program for all samplers."""

import base64
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from asgi import PORT, Client
from PIL import Image

import diffusion_jax as dj
from diffusion_jax import gallery
from diffusion_jax.browsing import finished
from diffusion_jax.browsing.opened_run import OpenedRun
from diffusion_jax.browsing.serving import Gallery, make_app
from diffusion_jax.browsing.shown_run import default_settings, shown_facts
from diffusion_jax.browsing.studio import Studio
from diffusion_jax.core.config import Override
from diffusion_jax.runs.run_facts import read_run
from diffusion_jax.types import UserError

pytestmark = pytest.mark.costly

NUM = 4


@pytest.fixture(scope="module")
def studio(smoke_run):
  return Studio(OpenedRun(smoke_run, [], None, NUM))


@pytest.fixture(scope="module")
def defaults(studio):
  return default_settings(studio.run)


def images(answer, row=-1):
  """The images [N H W] in a row of an answer's sheet."""
  made = answer["sheet"]
  with Image.open(io.BytesIO(base64.b64decode(made["uri"].partition(",")[2]))) as picture:
    pixels = np.asarray(picture).astype(int)
  tiles = pixels.reshape(made["rows"], made["height"], made["columns"], made["width"])
  return tiles.transpose(0, 2, 1, 3)[row]


def test_every_sampler_draws_what_the_library_draws_by_one_program(studio, defaults, smoke_run):
  run = dj.load_run(smoke_run)
  for name, weight in {"ddim": 1.0, "ancestral": 2.0, "heun": 2.0, "unipc": 3.0}.items():
    settings = {**defaults, "sampler": name, "steps": 6, "guidance": weight, "seed": 3}
    answer = studio.answer("draw", settings)
    sampler, guidance = studio.run.sampler_of(name, 6), dj.samplers.Guidance(weight=weight)
    expected = run.sample(NUM, sampler=sampler, guidance=guidance, seed=3)[..., 0]
    assert np.abs(images(answer) - expected).max() <= 1, name  # one level of rounding
    assert answer["sheet"]["rows"] == len(answer["levels"]) + 1
  programs = [key for key in studio._programs if key[0] == "path"]
  assert len(programs) == 1
  assert len({*studio.run.samplers}) >= 8


def test_a_setting_changes_the_samples_and_the_step_the_weights(studio, defaults):
  shown = images(studio.answer("draw", defaults))
  for change in ({"seed": 1}, {"guidance": 4.0}, {"label": 1}, {"step": studio.run.steps[0]}):
    assert (images(studio.answer("draw", {**defaults, **change})) != shown).any(), change
  assert (images(studio.answer("draw", defaults)) == shown).all()


def test_what_is_known_stays_and_the_rest_is_filled_in(studio, defaults):
  given = images(studio.answer("pictures", {"step": defaults["step"]}))
  mask = finished.left_half(studio.run)
  hidden = np.array(list(mask)).reshape(given.shape[1:]) == "1"
  filled = images(studio.answer("inpaint", {**defaults, "picture": 2, "mask": mask}))
  assert (filled[:, ~hidden] == given[2][~hidden]).all()
  assert (filled[0][hidden] != filled[1][hidden]).any()  # each from other noise
  for mask in ("0" * hidden.size, "1", "2" * hidden.size, None):
    with pytest.raises(UserError, match="mask"):
      studio.answer("inpaint", {**defaults, "picture": 2, "mask": mask})


def test_an_interpolation_begins_and_ends_with_the_samples(studio, defaults):
  settings = {**defaults, "sampler": "ddim"}
  samples = images(studio.answer("draw", settings))
  way = images(studio.answer("between", {**settings, "first": 1, "second": 3}))
  assert np.abs(way[0] - samples[1]).max() <= 1
  assert np.abs(way[-1] - samples[3]).max() <= 1


def test_noised_images_keep_the_images_at_the_lowest_level(studio, defaults):
  wanted = {"step": defaults["step"], "seed": 0, "label": -1}
  given = images(studio.answer("pictures", {"step": defaults["step"]}))
  low, high = (studio.answer("noise", {**wanted, "level": level}) for level in (0, 40))
  assert np.abs(images(low, 0) - given).mean() < 3
  assert np.abs(images(high, 0) - given).mean() > 20
  assert low["ratio"] < high["ratio"]


@pytest.mark.parametrize(
  ("kind", "change", "expected"),
  [
    ("draw", {"step": 7}, "step=7: must be one of 30, 60"),
    ("draw", {"seed": -1}, "seed=-1: must be a whole number from 0"),
    ("draw", {"steps": 0}, "steps=0"),
    ("draw", {"steps": 500}, "steps"),
    ("draw", {"sampler": "adaptive"}, "must be one of ddim"),
    ("draw", {"label": 99}, "label=99"),
    ("draw", {"guidance": 1e9}, "guidance"),
    ("between", {"first": 99, "second": 0}, "first=99"),
    ("latents", {"picture": 0}, "only models with an encoder"),
    ("eval", {}, "must be one of draw"),
  ],
)
def test_what_cannot_be_done_is_one_line(studio, defaults, kind, change, expected):
  with pytest.raises(UserError) as caught:
    studio.answer(kind, {**defaults, **change})
  assert expected in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.fixture
def client(smoke_run, studio):
  pytest.importorskip("starlette", reason="pip install -e '.[gallery]'")
  opened = Gallery(smoke_run, lambda folder: studio.run)
  opened._studios["smoke"] = studio
  return Client(make_app(opened, PORT))


def test_a_wrong_request_is_one_line_and_the_next_one_is_answered(client, defaults):
  settings = {**defaults, "run": "smoke"}
  edit = {"picture": 0, "mask": "1" * 64}
  wrong = [
    ("draw", {"sampler": "a\nb" * 1000}),
    ("draw", {"sampler": None}),
    ("draw", {"steps": 0}),
    ("draw", {"steps": 10**9}),
    ("draw", {"steps": 2.5}),
    ("draw", {"guidance": float("nan")}),
    ("draw", {"guidance": float("-inf")}),
    ("draw", {"label": 10}),
    ("draw", {"label": "0"}),
    ("draw", {"step": 61}),
    ("draw", {"step": []}),
    ("draw", {"seed": 2**31}),
    ("draw", {"run": "other"}),
    ("between", {"first": 0, "second": NUM}),
    ("inpaint", {**edit, "mask": "1" * 63}),
    ("inpaint", {**edit, "mask": "0" * 64}),
    ("inpaint", {**edit, "picture": -1}),
    ("noise", {"level": 41}),
    ("noise", {}),
    ("what", {}),
  ]
  for kind, change in wrong:
    reply = client.post(f"/api/{kind}", json={**settings, **change})
    assert reply.status_code == 400, (kind, change)
    [(key, line)] = reply.json().items()
    assert (key, "\n" in line, len(line) < 400) == ("error", False, True), line
  assert client.post("/api/draw", json=settings).status_code == 200


def test_two_clients_at_once_get_what_each_gets_alone(client, defaults):
  settings = [{**defaults, "run": "smoke", "seed": seed} for seed in (5, 6)]

  def draw(wanted):
    return client.post("/api/draw", json=wanted).json()["sheet"]

  alone = [draw(wanted) for wanted in settings]
  with ThreadPoolExecutor(4) as threads:
    together = list(threads.map(draw, settings * 4))
  assert together == alone * 4
  assert alone[0] != alone[1]


def test_a_checkpoint_that_a_run_deletes_or_adds_is_told(smoke_run, tmp_path):
  folder = shutil.copytree(smoke_run, tmp_path / "run")
  steps = [folder / "checkpoints" / step for step in ("30", "60")]
  aside = steps[1].rename(tmp_path / "60")
  studio = Studio(OpenedRun(folder, [], None, NUM))
  assert studio.run.steps == [30]
  aside.rename(steps[1])
  shutil.rmtree(steps[0])
  with pytest.raises(UserError, match=r"step=30`: no such checkpoint in .*; there are 60"):
    studio.answer("draw", default_settings(studio.run))
  studio.run.find_steps()
  assert studio.run.steps == [60]
  shutil.rmtree(steps[1])
  with pytest.raises(UserError, match="no checkpoint yet"):
    studio.run.find_steps()
  assert studio.run.steps == [60]  # for those who ask meanwhile


def test_a_runs_own_number_of_steps_is_offered_and_a_reason_names_its_flag(smoke_run):
  own = Override("sampler", "steps", "100")
  run = OpenedRun(smoke_run, [own], None, NUM)
  run.refusals["inpaint"] = "cannot; set `sampler.name=ddim`"
  facts = shown_facts(run, "smoke", read_run(smoke_run, "smoke"))
  assert facts["stepChoices"][-2:] == [75, 100]
  assert facts["defaults"]["steps"] == 75
  assert facts["refusals"]["inpaint"] == "cannot; set --config.sampler.name=ddim"


def test_the_file_has_every_answer_that_its_page_asks_first(smoke_run, call, tmp_path):
  path = tmp_path / "page.html"
  code, out, err = call(gallery.main, f"--workdir={smoke_run}", f"--static={path}", "--num=4")
  assert (code, err) == (0, "")
  assert f"in {path}" in out
  found = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
  run = json.loads(found[1])["run"]
  for name in ("step", "seed"):
    for value in run["steps"] if name == "step" else run["choices"][name]:
      key = finished.answer_key("draw", {**run["defaults"], name: value})
      assert run["answers"][key]["sheet"]["uri"].startswith("data:image/png")
  assert run["steps"] == [30, 60]
  assert (
    finished.answer_key("between", {**run["defaults"], "first": 0, "second": 1}) in run["answers"]
  )


def test_an_average_that_was_not_tracked_is_refused(smoke_run, call, tmp_path):
  flags = [f"--static={tmp_path}/page.html", "--ema=0.1"]
  code, _, err = call(gallery.main, f"--workdir={smoke_run}", *flags)
  assert (code, err.count("\n")) == (2, 1)
  assert "--ema=profile:0.1: this run tracked no power-function averages" in err
