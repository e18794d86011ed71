// The copy button: shown only where a script runs; selects the text where the clipboard is refused.
for (const button of document.querySelectorAll("button.copy")) {
  const code = document.getElementById(button.dataset.copies);
  const select = () => getSelection().selectAllChildren(code);
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      select();
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

// A click enlarges an image by the largest whole factor that fits; the arrow keys go on.
const large = document.getElementById("large");
const [copy, words, close] = ["img", "p", "button"].map((tag) => large.appendChild(document.createElement(tag)));
close.textContent = "Close";
let shown = null;
function enlarge(button) {
  const image = button.querySelector("img");
  const room = Math.min(0.9 * innerWidth / image.naturalWidth, 0.78 * innerHeight / image.naturalHeight);
  const factor = room >= 1 ? Math.floor(room) : room;
  copy.src = image.src;
  copy.alt = image.alt;
  copy.style.width = `${factor * image.naturalWidth}px`;
  copy.style.imageRendering = room >= 1 ? "pixelated" : "auto";
  words.textContent =
    `${image.alt} (${image.naturalWidth} × ${image.naturalHeight} pixels, shown at ${+factor.toFixed(2)}×)`;
  shown = button;
  if (!large.open) large.showModal();
}
function beside(button, by) {
  const all = [...button.closest("figure").querySelectorAll("button.zoom")];
  return all[(all.indexOf(button) + by + all.length) % all.length];
}
for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => enlarge(button));
  button.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); beside(button, by).focus(); }
  });
}
large.addEventListener("click", () => large.close());
large.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by && shown) enlarge(beside(shown, by));
});

// The value of the nearest mark of a plot, under the pointer or the finger.
const tip = document.getElementById("tip");
for (const plot of document.querySelectorAll("[role=img] svg")) {
  const marks = [...plot.querySelectorAll(".marks circle")];
  for (const mark of marks) {
    const title = mark.querySelector("title");
    mark.dataset.text = title.textContent;
    title.remove();  // the browser would show it as well
  }
  const leave = () => {
    tip.hidden = true;
    for (const mark of marks) mark.classList.remove("near");
  };
  const point = (event) => {
    let best = null, least = 40 * 40;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const x = box.left + box.width / 2 - event.clientX, y = box.top + box.height / 2 - event.clientY;
      if (x * x + y * y < least) { least = x * x + y * y; best = mark; }
    }
    leave();
    if (!best) return;
    best.classList.add("near");
    tip.textContent = best.dataset.text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 4))}px`;
    tip.style.top = `${Math.max(4, event.clientY - box.height - 12)}px`;
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", leave);
}
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// What lies outside a table's box is said under it.
function tell() {
  for (const box of document.querySelectorAll(".scroll:not(.whole)")) {
    const words = box.nextElementSibling, rows = box.querySelectorAll("tbody tr").length;
    box.classList.toggle("tall", rows > 20);
    const wide = box.scrollWidth > box.clientWidth + 1, tall = box.scrollHeight > box.clientHeight + 1;
    words.hidden = !wide && !tall;
    words.textContent = wide && tall ? "↔ ↕ Scroll the table for more columns and rows."
      : wide ? "↔ Scroll the table sideways for more columns."
      : `↕ Scroll the table for all ${rows} rows.`;
  }
}
tell();
addEventListener("resize", tell);
for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", tell);
