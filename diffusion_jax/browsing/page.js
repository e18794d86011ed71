"use strict";
// One page for a server (data.live) and for a file, which holds its answers by their settings.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

let run = null; // facts about the run on the page
let tab = "draw";
let settings = {}; // of every answer
let frame = -1; // shown row of the path, -1 for the samples
let shown = null; // the newest answer of the tab
let pair = [0, 1]; // samples to interpolate between
let picture = 0; // image that is edited
let hidden = null; // pixels to fill in
let level = 0, z = null, preview = null;

const TABS = {
  draw: ["Samples", ""],
  between: ["Interpolate", "between"],
  inpaint: ["Inpaint", "inpaint"],
  noise: ["Noise levels", "noise"],
  latents: ["Latent walk", "latents"],
  training: ["Training", "training"],
};

// ---- answers -------------------------------------------------------------------------------

const keyOf = (kind, wanted) => kind + JSON.stringify(Object.entries(wanted).sort());

async function ask(kind, wanted) {
  if (!data.live) {
    const found = run.answers[keyOf(kind, wanted)];
    if (!found) throw new Error("this file does not hold that combination");
    return found;
  }
  return fetched("api/" + kind, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...wanted, run: run.name }),
  });
}

async function fetched(address, options = {}) {
  const ended = () => { throw new Error("the gallery has ended; start it again"); };
  const response = await fetch(address, options).catch(ended);
  const answer = await response.json().catch(ended);
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// True as long as the run and the view are those of now: an answer may come after they changed.
function stays() {
  const [of, at] = [run, tab];
  return () => run === of && tab === at;
}

// Dragging asks faster than the answers come: only the newest question waits.
let asking = false, waiting = null;
async function show(kind, wanted, draw, isShown = stays()) {
  if (asking) {
    waiting = [kind, wanted, draw, isShown];
    return;
  }
  asking = true;
  const began = performance.now(), compiled = run.compiled;
  const ticking = setInterval(() => {
    const seconds = Math.round((performance.now() - began) / 1000);
    if (seconds < 1 || !isShown()) return;
    const first = compiled[kind] ? "" : "; the first time the program is compiled, later answers come at once";
    say(`working, ${seconds} s${first}`, "busy");
  }, 250);
  try {
    const answer = await ask(kind, wanted);
    compiled[kind] = true;
    if (isShown()) {
      say(data.live ? `${((performance.now() - began) / 1000).toFixed(2)} s` : "");
      await draw(answer);
    }
  } catch (error) {
    if (isShown()) say(error.message, "error");
  } finally {
    clearInterval(ticking);
    asking = false;
    const next = waiting;
    waiting = null;
    if (next && next[3]()) show(...next);
  }
}

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

// ---- pictures ------------------------------------------------------------------------------

async function tiles(sheet, row, options = {}) {
  const image = new Image();
  image.src = sheet.uri;
  await image.decode();
  const found = [];
  for (let column = 0; column < sheet.columns; column++) {
    const canvas = make("canvas", { width: sheet.width, height: sheet.height });
    canvas.getContext("2d").drawImage(image, -column * sheet.width, -row * sheet.height);
    const caption = options.captions?.[column] || "";
    const words = options.name ? options.name(column) : `image ${column + 1}${caption && ", class " + caption}`;
    const attributes = { className: "tile", "aria-label": words };
    if (options.click) {
      Object.assign(attributes, { type: "button", onclick: () => options.click(column) });
      if (options.pressed) attributes["aria-pressed"] = String(options.pressed(column));
    } else attributes.role = "img";
    if (options.current) attributes["aria-current"] = String(options.current(column));
    const tile = make(options.click ? "button" : "div", attributes, canvas);
    if (caption && !options.plain) tile.append(caption);
    found.push(tile);
  }
  const box = make("div", { className: "tiles" + (options.fixed ? " fixed" : "") }, ...found);
  if (options.fixed) box.style.setProperty("--columns", sheet.columns);
  return box;
}

// Puts tiles in a part of the page, if its view is still there when they are decoded.
async function put(part, made) {
  const isShown = stays(), elements = await Promise.all(made);
  if (isShown()) $(part).replaceChildren(...elements);
  return isShown();
}

const inRows = async (made) => make("div", { className: "rows" }, ...(await Promise.all(made)));

const levelText = (ratio) => (ratio === null ? "pure noise" : `σ/α = ${ratio.toPrecision(3)}`);

async function drawPath(answer) {
  shown = answer;
  const frames = answer.levels?.length || 0;
  const row = frame < 0 || frame >= frames ? frames : frame;
  const select = data.live && tab === "draw" && !run.refusals.between && run.diffusion;
  const made = tiles(answer.sheet, row, {
    captions: tab === "inpaint" ? [] : answer.captions,
    click: select ? (column) => { pair = [pair[1], column]; drawPath(shown); } : null,
    pressed: (column) => pair.includes(column),
  });
  if (await put("grid", [made])) drawBelow(frames, row, answer);
}

function drawBelow(frames, row, answer) {
  if (!frames) return $("below").replaceChildren();
  const words = (at) => (at === frames ? "samples" : `the model's estimates at ${levelText(answer.levels[at])}`);
  if (document.activeElement?.id === "frame") {
    $("frame-text").textContent = words(row);
    return;
  }
  const slide = (event) => {
    frame = Number(event.target.value);
    drawPath(shown);
  };
  $("below").replaceChildren(
    make("label", { htmlFor: "frame" }, "From noise to samples ",
      make("output", { id: "frame-text" }, words(row))),
    make("input", { id: "frame", type: "range", min: 0, max: frames, value: row, oninput: slide }),
    ...(hint() ? [make("p", {}, hint())] : []),
  );
}

const hint = () => (data.live && tab === "draw" && !run.refusals.between ? "Click two samples, then open Interpolate." : "");

// ---- controls ------------------------------------------------------------------------------

function control(name, words, input, reason = "") {
  if (reason) input.disabled = true;
  input.id = name;
  const label = make("label", { htmlFor: name }, words);
  const box = make("div", {}, label, input);
  if (reason) box.append(make("small", {}, reason));
  return box;
}

function slider(name, words, values, reason, text = String) {
  const output = make("output", {}, text(settings[name]));
  const move = (event) => {
    settings[name] = values[Number(event.target.value)];
    output.textContent = text(settings[name]);
    changed(name);
  };
  const at = Math.max(0, values.indexOf(settings[name]));
  const input = make("input", { type: "range", min: 0, max: values.length - 1, value: at, oninput: move });
  const box = control(name, words + " ", input, reason || (values.length < 2 ? `only ${text(values[0])}` : ""));
  box.querySelector("label").append(output);
  return box;
}

function choice(name, words, pairs, reason = "") {
  const pick = (event) => {
    settings[name] = pairs[event.target.selectedIndex][0];
    changed(name);
  };
  const options = pairs.map(([value, text]) => make("option", { selected: value === settings[name] }, text));
  return control(name, words, make("select", { onchange: pick }, ...options), reason);
}

function number(name, words, low, high, step, reason) {
  const type = (event) => {
    const value = Number(event.target.value);
    if (event.target.value === "" || !(value >= low && value <= high) || (step === 1 && value % 1)) {
      say(`${words}: ${low} to ${high}`, "error");
      return;
    }
    settings[name] = value;
    changed(name);
  };
  const input = make("input", { type: "number", min: low, max: high, step, value: settings[name], onchange: type });
  return control(name, words, input, reason);
}

function drawControls() {
  const can = run.refusals, parts = [];
  if (tab === "training" || (!data.live && ["between", "inpaint", "noise"].includes(tab))) {
    const words = tab === "training" ? "The run itself saved these while it trained." : "This file has this view at the run's own settings.";
    return $("controls").replaceChildren(make("small", {}, words));
  }
  parts.push(slider("step", "Training step", run.steps, "", (v) => v.toLocaleString("en")));
  if (tab !== "latents") {
    const seeds = run.choices.seed;
    const again = make("button", { type: "button", className: "press", id: "again", onclick: () => {
      settings.seed = seeds ? seeds[(seeds.indexOf(settings.seed) + 1) % seeds.length] : settings.seed + 1;
      drawControls();
      changed("seed");
    } }, "Next");
    const seed = seeds ? slider("seed", "Seed", seeds, "") : number("seed", "Seed", 0, 2147483647, 1, "");
    parts.push(make("div", { className: "pair" }, seed, again));
  }
  if (["draw", "between"].includes(tab) && run.classes.length) {
    const classes = [[-1, "all in turn"], ...(data.live ? run.classes : [])];
    parts.push(choice("label", "Class", classes, data.live ? "" : "this file holds all in turn"));
  }
  if (["draw", "between", "inpaint"].includes(tab)) {
    const weights = run.choices.guidance, steps = run.choices.steps;
    parts.push(weights && !can.guidance ? slider("guidance", "Guidance", weights, "")
      : slider("guidance", "Guidance", WEIGHTS(), can.guidance, (v) => (Number(v.toFixed(1)) === v ? v.toFixed(1) : String(v))));
    parts.push(choice("sampler", "Sampler", run.samplers.map((s) => [s, s]), can.sampler || (run.samplers.length < 2 ? "this file holds one" : "")));
    parts.push(slider("steps", "Sampler steps", steps || run.stepChoices, can.sampler));
  }
  $("controls").replaceChildren(...parts);
}

const range = (first, last) => Array.from({ length: last - first + 1 }, (_, i) => first + i);
const WEIGHTS = () => [...new Set([...range(0, 80).map((i) => i / 10), run.defaults.guidance])].sort((a, b) => a - b);

function changed(name) {
  if (!data.live) {
    for (const other of ["step", "guidance", "sampler", "steps", "seed"]) {
      if (run.answers[keyOf("draw", drawn())]) break;
      if (other !== name) settings[other] = run.defaults[other];
    }
    if (document.activeElement?.type !== "range") drawControls();
  }
  refresh(name === "step");
}

// ---- views ---------------------------------------------------------------------------------

const drawn = () => Object.fromEntries(
  ["step", "seed", "label", "sampler", "steps", "guidance"].map((name) => [name, settings[name]]),
);

const VIEWS = {
  draw: () => show("draw", drawn(), drawPath),

  between() {
    const wanted = { ...drawn(), first: pair[0], second: pair[1] };
    const [note, mixed] = run.diffusion ? ["samples", "noise"] : ["held-out images", "latents"];
    $("extra").replaceChildren(make("p", {},
      `From ${note} ${pair[0] + 1} to ${pair[1] + 1}, by mixing their ${mixed} on the sphere.`,
      data.live ? " " : "", ...(data.live ? ends() : [])));
    show("between", wanted, drawPath);
  },

  async inpaint() {
    if (!(await hasPictures())) return;
    const isShown = stays();
    await drawPaint();
    if (!isShown()) return;
    if (hidden.some(Boolean)) fill();
    else say("draw over the part that is to be filled in");
  },

  noise() {
    const move = (event) => {
      level = Number(event.target.value);
      settle();
    };
    const output = make("output", { id: "level-text" });
    $("extra").replaceChildren(make("div", {},
      make("label", { htmlFor: "level" }, "Noise level ", output),
      make("input", { id: "level", type: "range", min: 0, max: run.numLevels, value: level, oninput: move })));
    const gap = run.levelGap || 1;
    const settle = () => show("noise", { step: settings.step, seed: settings.seed, label: -1, level: level * gap }, async (answer) => {
      output.textContent = levelText(answer.ratio);
      const rows = ["noised images", "the model's estimates of them"];
      await put("grid", [inRows(rows.map(async (name, row) =>
        make("div", {}, make("p", { className: "row-name" }, name), await tiles(answer.sheet, row))))]);
    });
    settle();
  },

  async latents() {
    if (!(await hasPictures())) return;
    const pick = (column) => { picture = column; z = null; walk(null); };
    const draw = () => put("extra", [
      make("p", {}, data.live ? "Start from an image; click a cell to go there." : "The directions that change an image most."),
      tiles(run.pictures.sheet, 0, { click: data.live ? pick : null, pressed: (c) => c === picture, plain: true, fixed: true })]);
    const walk = (move) => {
      const wanted = { step: settings.step, ...(z ? { z, move } : { picture }) };
      show("latents", wanted, async (answer) => {
        if (data.live) z = answer.z;
        const middle = (answer.along.length - 1) / 2;
        const rows = range(0, answer.sheet.rows - 1).map((row) => tiles(answer.sheet, row, {
          fixed: true,
          name: (c) => `direction ${row + 1}, ${answer.along[c].toFixed(2)}`,
          click: data.live ? (c) => walk([row, answer.along[c]]) : null,
          current: (c) => c === middle,
        }));
        if (await put("grid", [inRows(rows)])) await draw();
      });
    };
    walk(z ? [0, 0] : null);
  },

  training() {
    const previews = run.previews;
    if (preview === null) preview = previews.length - 1;
    const picture = make("img", { className: "preview", id: "preview", alt: "" });
    const output = make("output", {});
    const place = () => {
      const at = previews[preview];
      output.textContent = `${at.kind}, step ${at.step.toLocaleString("en")}`;
      picture.alt = `${at.kind} at step ${at.step}`;
      picture.src = at.uri || `api/preview?run=${encodeURIComponent(run.name)}&name=${encodeURIComponent(at.name)}`;
    };
    const move = (event) => { preview = Number(event.target.value); place(); };
    $("extra").replaceChildren(make("div", {},
      make("label", { htmlFor: "previews" }, "Pictures saved in training ", output),
      make("input", { id: "previews", type: "range", min: 0, max: previews.length - 1, value: preview, oninput: move, disabled: previews.length < 2 })));
    $("grid").replaceChildren(picture);
    say("");
    place();
  },
};

function ends() {
  const name = (i) => make("select", { "aria-label": i ? "to" : "from", id: i ? "second" : "first", onchange: (event) => {
    pair[i] = event.target.selectedIndex;
    refresh();
  } }, ...range(1, run.num).map((n) => make("option", { selected: n === pair[i] + 1 }, String(n))));
  return [name(0), " to ", name(1)];
}

// The images of a step are samples of it if there are no held-out images.
async function hasPictures() {
  const isShown = stays(), step = settings.step;
  if (!run.pictures) say("reading images", "busy");
  try {
    const answer = run.pictures || (await ask("pictures", { step }));
    if (!isShown() || settings.step !== step) return false;
    run.pictures = answer;
    hidden ||= new Array(run.height * run.width).fill(false);
    return true;
  } catch (error) {
    if (isShown()) say(error.message, "error");
    return false;
  }
}

async function drawPaint() {
  const isShown = stays();
  const { sheet, captions } = run.pictures;
  const image = new Image();
  image.src = sheet.uri;
  await image.decode();
  if (!isShown()) return;
  const canvas = make("canvas", { id: "paint", width: sheet.width, height: sheet.height, tabIndex: 0, "aria-label": "image to draw a mask on" });
  const context = canvas.getContext("2d");
  const brush = Math.max(1, Math.round(sheet.width / 16));
  const paint = () => {
    context.drawImage(image, -picture * sheet.width, 0);
    context.fillStyle = "rgb(224, 90, 40)";
    hidden.forEach((isHidden, i) => isHidden && context.fillRect(i % sheet.width, Math.floor(i / sheet.width), 1, 1));
  };
  let drawing = false;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * sheet.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * sheet.height);
    for (let i = y - brush + 1; i < y + brush; i++) for (let j = x - brush + 1; j < x + brush; j++) {
      if (i >= 0 && j >= 0 && i < sheet.height && j < sheet.width) hidden[i * sheet.width + j] = true;
    }
    paint();
  };
  if (data.live) {
    canvas.addEventListener("pointerdown", (event) => { drawing = true; canvas.setPointerCapture(event.pointerId); at(event); });
    canvas.addEventListener("pointermove", (event) => drawing && at(event));
    canvas.addEventListener("pointerup", () => { drawing = false; fill(); });
  }
  const set = (rule) => () => {
    hidden = hidden.map((_, i) => rule(i % sheet.width, Math.floor(i / sheet.width)));
    paint();
    if (hidden.some(Boolean)) fill();
    else $("grid").replaceChildren();
  };
  const buttons = [["Left half", (x) => x < sheet.width / 2], ["Lower half", (x, y) => y >= sheet.height / 2], ["Clear", () => false]]
    .map(([words, rule]) => make("button", { type: "button", className: "press", onclick: set(rule) }, words));
  const choose = data.live ? (column) => { picture = column; VIEWS.inpaint(); } : null;
  const beside = await tiles(sheet, 0, { click: choose, pressed: (c) => c === picture, captions, plain: true });
  if (!isShown()) return;
  $("extra").replaceChildren(
    make("div", { className: "beside" },
      make("div", { className: "rows" }, canvas, make("div", { className: "press-row" }, ...(data.live ? buttons : []))),
      beside),
    make("p", {}, run.pictures.note || "Orange pixels are filled in, each time from other noise."));
  paint();
}

function fill() {
  if (!hidden.some(Boolean)) return;
  const mask = hidden.map((isHidden) => (isHidden ? "1" : "0")).join("");
  show("inpaint", { ...drawn(), picture, mask }, drawPath);
}

function refresh(isNewStep = false) {
  if (isNewStep && data.live) run.pictures = null;
  if (isNewStep) z = null;
  VIEWS[tab]();
}

function open(name) {
  tab = name;
  for (const button of $("tabs").children) button.setAttribute("aria-selected", String(button.dataset.tab === name));
  for (const part of ["extra", "grid", "below"]) $(part).replaceChildren();
  say("");
  if (!data.live && name !== "draw") settings = { ...run.defaults };
  drawControls();
  const reason = run.refusals[TABS[name][1]];
  if (reason) {
    $("controls").replaceChildren();
    return say(reason, "error");
  }
  VIEWS[name]();
}

function drawTabs() {
  $("tabs").replaceChildren(...Object.entries(TABS).map(([name, [words, needs]]) => make("button", {
    type: "button", role: "tab", "data-tab": name, "aria-selected": "false", title: run.refusals[needs] || "",
    "aria-disabled": String(Boolean(run.refusals[needs])), onclick: () => open(name),
  }, words)));
}

function enter(facts) {
  run = { compiled: {}, choices: {}, ...facts };
  settings = { ...run.defaults };
  [frame, pair, picture, hidden, z, preview] = [-1, [0, 1], 0, null, null, null];
  level = Math.round(run.numLevels / 2);
  if (run.hidden) hidden = [...run.hidden].map((c) => c === "1");
  run.pictures = run.answers?.[keyOf("pictures", { step: settings.step })] || null;
  $("facts").textContent = run.line;
  drawTabs();
  open("draw");
}

async function choose(name) {
  for (const part of ["facts", "tabs", "controls", "extra", "grid", "below"]) $(part).replaceChildren();
  say(`opening ${name}`, "busy");
  try {
    const facts = await fetched("api/run?name=" + encodeURIComponent(name));
    if ($("runs").value === name) enter(facts);
  } catch (error) {
    if ($("runs").value === name) say(error.message, "error");
  }
}

if (data.live) {
  const options = data.runs.map((r) => make("option", { value: r.name }, `${r.name} (${r.words})`));
  $("runs").replaceChildren(...options);
  $("runs").addEventListener("change", (event) => choose(event.target.value));
  $("runs").value = data.first;
  choose(data.first);
} else {
  $("runs-label").hidden = true;
  document.title = `Gallery of ${data.run.name}`;
  enter(data.run);
}
