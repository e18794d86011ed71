"""The report in a real browser: Debian's package chromium, nothing else."""

import shutil

import chromium
import conftest
import pytest

from diffusion_jax.report import html

pytestmark = pytest.mark.system

WIDTHS = (400, 768, 1400)

# Elements that reach beyond the viewport, those inside a box that scrolls by itself aside.
TOO_WIDE = """
[...document.body.querySelectorAll("*")].filter((e) => {
  const box = e.getBoundingClientRect();
  const inside = e.closest(".scroll") && !e.classList.contains("scroll");
  const drawn = e.closest("svg") && e.tagName !== "svg";
  return !inside && !drawn && box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((e) => e.tagName + "." + e.className + " " + e.textContent.slice(0, 40))
"""

# Texts of a drawing that reach beyond its edge.
CUT = """
[...document.querySelectorAll("[role=img] svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map((text) => text.textContent);
})
"""

# Contrast of the text of each element with the page, by WCAG 2: at least 4.5 for reading.
CONTRAST = """
(() => {
  const light = (css) => {
    const [r, g, b] = css.match(/[0-9.]+/g).map(Number).slice(0, 3).map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }
  };
  const found = {};
  for (const e of document.querySelectorAll("main *, nav *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || e.classList.contains("padding")) continue;
    const style = getComputedStyle(e);
    const color = e.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(color), light(behind(e))].sort((x, y) => y - x);
    found[color + " on " + behind(e)] = (a + 0.05) / (b + 0.05);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  binary = shutil.which("chromium")
  if binary is None:
    pytest.skip("no chromium: apt-get install -y chromium")
  with chromium.Chromium(binary, tmp_path_factory.mktemp("profile")) as opened:
    yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory, full):
  path = tmp_path_factory.mktemp("report") / "report.html"
  path.write_text(full, encoding="utf-8")
  return path.as_uri()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_fails_nothing_is_fetched_nothing_overflows(browser, address, width):
  browser.resize(width)
  browser.theme("light")
  browser.open(address)
  assert browser.evaluate("innerWidth") == width
  assert browser.reported("Log.entryAdded", "Runtime.exceptionThrown") == []
  assert browser.reported("Runtime.consoleAPICalled", "Network.loadingFailed") == []
  asked = [e["request"]["url"] for e in browser.reported("Network.requestWillBeSent")]
  assert [url for url in asked if not url.startswith("data:")] == [address]
  assert browser.evaluate("document.documentElement.scrollWidth") == width
  browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
  assert browser.evaluate(TOO_WIDE) == []
  assert browser.evaluate(CUT) == []


def test_every_picture_is_decoded_and_shown(browser, address):
  browser.resize(1400)
  browser.open(address)
  sizes = browser.evaluate(
    "[...document.querySelectorAll('main img')]"
    ".map((i) => [i.naturalWidth, +i.getAttribute('width'), i.clientWidth])"
  )
  assert len(sizes) == 5
  for natural, declared, shown in sizes:
    assert natural == declared > 0
    assert shown % natural == 0  # whole multiples: no pixel is wider than another
  rendering = (
    "[...document.querySelectorAll('main img')].map((i) => getComputedStyle(i).imageRendering)"
  )
  assert set(browser.evaluate(rendering)) == {"pixelated"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read_in_both_themes(browser, address, theme):
  browser.resize(1400)
  browser.theme(theme)
  browser.open(address)
  contrasts = browser.evaluate(CONTRAST)
  assert len(contrasts) >= 4
  assert {k: round(v, 2) for k, v in contrasts.items() if v < 4.5} == {}
  page = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g)[0]")
  assert (int(page) < 60) == (theme == "dark")


def test_the_button_copies_the_command_or_selects_it(browser, address, metrics):
  browser.open(address)
  assert browser.evaluate("document.querySelector('.copy').hidden") is False
  browser.evaluate("document.querySelector('.copy').click()")
  browser.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")
  label = browser.evaluate("document.querySelector('.copy').textContent")
  assert label in ("Copied", "Selected")
  if label == "Selected":
    assert browser.evaluate("getSelection().toString()") == metrics["repeat"]


def test_a_script_in_a_name_does_not_run_and_the_policy_stops_foreign_ones(
  browser, metrics, pictures, tmp_path
):
  attack = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
  metrics["model"]["workdir"] = attack
  page = html.render(metrics, pictures)
  path = tmp_path / "report.html"
  path.write_text(page, encoding="utf-8")
  browser.open(path.as_uri())
  assert browser.evaluate("typeof window.ran") == "undefined"
  assert browser.evaluate("document.querySelector('.eyebrow').textContent").endswith("step 1,000")
  # The second wall: were markup let through, the policy would refuse it.
  path.write_text(page.replace("</main>", f"{attack}</main>"), encoding="utf-8")
  browser.open(path.as_uri())
  assert browser.evaluate("typeof window.ran") == "undefined"
  assert len(browser.reported("Log.entryAdded")) >= 2


def test_the_check_of_overflow_sees_what_is_too_wide(browser, full, tmp_path):
  path = tmp_path / "wide.html"
  wide = "<p style='width:2000px'>wide</p></main>"
  path.write_text(full.replace("</main>", wide), encoding="utf-8")
  browser.resize(400)
  browser.open(path.as_uri())
  assert any("wide" in found for found in browser.evaluate(TOO_WIDE))


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
  metrics = conftest.full_metrics()
  for row in metrics["sweep"]:
    row["figures"] |= {f"further_{i}": {"value": 1.0} for i in range(9)}
  path = tmp_path_factory.mktemp("tiled") / "report.html"
  path.write_text(html.render(metrics, conftest.tiled_pictures()), encoding="utf-8")
  return path.as_uri()


@pytest.mark.parametrize(("width", "small", "large"), [(1400, 96, 75), (400, 64, 50)])
def test_images_of_their_own_have_whole_pixels_at_each_width(browser, tiled, width, small, large):
  browser.resize(width)
  browser.open(tiled)
  assert browser.evaluate("document.documentElement.scrollWidth") == width
  assert browser.evaluate(TOO_WIDE) == []
  sizes = "[...new Set([...document.querySelectorAll('img.%s')].map((i) => i.clientWidth))]"
  assert browser.evaluate(sizes % "pixels") == [small]
  assert browser.evaluate(sizes % "photo") == [large]


def test_a_click_enlarges_an_image_by_a_whole_factor_and_keys_go_on(browser, tiled):
  browser.resize(1400)
  browser.open(tiled)
  browser.evaluate("document.querySelector('#samples button.zoom').click()")
  state = (
    "(() => { const i = large.querySelector('img'); return [large.open, i.clientWidth, i.alt]; })()"
  )
  is_open, width, alt = browser.evaluate(state)
  assert is_open
  assert width % 8 == 0
  assert width > 400
  assert alt == "zero, real, image 1 of 5"
  for kind in ("keyDown", "keyUp"):
    browser.send("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight")
  assert browser.evaluate(state)[2] == "zero, real, image 2 of 5"
  browser.evaluate("large.querySelector('img').click()")
  assert browser.evaluate("large.open") is False
  assert browser.reported("Log.entryAdded", "Runtime.exceptionThrown") == []


def test_the_pointer_over_a_plot_shows_the_value(browser, address):
  browser.resize(1400)
  browser.open(address)
  mark = browser.evaluate("""
    (() => {
      const marks = [...document.querySelectorAll("#quality .marks circle")];
      marks[2].scrollIntoView({block: "center", behavior: "instant"});
      const box = marks[2].getBoundingClientRect();
      const found = [box.left + box.width / 2, box.top + box.height / 2, marks[2].dataset.text];
      return new Promise((resolve) => setTimeout(() => resolve(found), 100));  // the scroll ends
    })()
  """)
  browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=mark[0] + 6, y=mark[1] - 6)
  assert browser.evaluate("[tip.hidden, tip.textContent]") == [False, mark[2]]
  assert "evaluations" in mark[2]
  browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
  assert browser.evaluate("tip.hidden") is True


def test_a_wide_table_says_that_it_scrolls(browser, tiled):
  hints = (
    "[...document.querySelectorAll('#quality .more')].map((p) => p.hidden ? '' : p.textContent)"
  )
  for width in (400, 1400):
    browser.resize(width)
    browser.open(tiled)
    assert browser.evaluate(hints) == ["↔ Scroll the table sideways for more columns."]
  assert (
    browser.evaluate("getComputedStyle(document.querySelector('#quality .scroll')).overflowX")
    == "auto"
  )


def test_every_figure_is_in_view_on_a_telephone(browser, address):
  browser.resize(400)
  browser.open(address)
  outside = """
    [...document.querySelectorAll("#figures data, #likelihood data, #comparison table.stack data")]
      .filter((e) => {
        const box = e.getBoundingClientRect();
        return box.right > innerWidth || !box.width;
      }).map((e) => e.textContent)
  """
  assert browser.evaluate(outside) == []
  small = """
    [...document.querySelectorAll("[role=img] svg text")].map((t) => {
      const scale = Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b);
      return parseFloat(getComputedStyle(t).fontSize) * scale;
    }).filter((size) => size < 10.5)
  """
  assert browser.evaluate(small) == []


def test_it_prints_on_pages_without_the_navigation(browser, address):
  browser.resize(720)  # A4 at 96 pixels an inch, less its margins
  browser.theme("light", media="print")
  browser.open(address)
  assert browser.evaluate("document.documentElement.scrollWidth") == 720
  assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
  assert len(browser.send("Page.printToPDF", printBackground=True)["data"]) > 50_000
  browser.theme("light")
