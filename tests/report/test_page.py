"""The report's page: what it says, that no name breaks it, and what a real browser makes of it."""

import base64
import collections
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from mdtrap_jax.report import classification, page
from mdtrap_jax.report.assessment import Assessment
from mdtrap_jax.report.html import escape, tag
from tests import browser

NAMES = ("<script>alert(1)</script>", "\"quote\" & 'co'", "$x$ naïve http://e.org/", "plain\nline")
FILES = [f"{name}/{number}.png" for name in NAMES for number in range(5)]


def assessment(names=NAMES, seed=0, **changed):
  """Twenty images of four classes with two predictions each, of which some are wrong."""
  rng, ways, count = np.random.default_rng(seed), len(names), 5 * len(names)
  labels, rows = np.tile(np.repeat(np.arange(ways), 5), 2), np.tile(np.arange(count), 2)
  probabilities = rng.dirichlet(np.ones(ways), 2 * count)
  scores = classification.score(names, labels, probabilities, count)
  curve = {step: classification.wilson(step, 20) for step in (0, 5, 10)}
  settings = {
    "title": f"How good is it on {names[0]}?", "how": "By two-fold cross-validation.",
    "names": names, "files": [f"{name}/{k}.png" for name in names for k in range(5)],
    "items": list(rng.integers(0, 255, (count, 30, 400, 3)).astype(np.uint8)), "rows": rows,
    "outcomes": classification.outcomes(labels, probabilities), "anchor": "text",
    "closeness": probabilities[np.arange(2 * count), labels], "curves": {names[1]: curve},
    "scores": {"copa": scores, names[0]: scores}, "facts": {"data": names[0]},
    "command": f"mdtrap fit '{names[0]}'", "notes": (names[1],),
  }  # fmt: skip
  return Assessment(**settings | changed)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("report") / "of it"
  assessment().write_report(folder)
  return folder


class Page(html.parser.HTMLParser):
  """Elements with their attributes, whether they are closed in order, and all text."""

  def __init__(self, path):
    super().__init__()
    self.found, self.text, self._open = collections.defaultdict(list), [], []
    self.feed(path.read_text(encoding="utf-8"))
    assert not self._open

  def handle_starttag(self, name, attributes):
    self.found[name].append(dict(attributes))
    if name not in ("meta", "link", "img", "br", "wbr"):
      self._open.append(name)

  def handle_endtag(self, name):
    assert self._open.pop() == name

  def handle_data(self, data):
    self.text.append(data)


def test_what_stands_in_it(written):
  parsed = Page(written / "report.html")
  found, text = parsed.found, "".join(parsed.text)
  assert [element["lang"] for element in found["html"]] == ["en"]
  assert "viewport" in [element.get("name") for element in found["meta"]]
  assert all(element["alt"] for element in found["img"])
  assert all(element["src"].startswith("data:") for element in found["img"])
  ids = [e["id"] for elements in found.values() for e in elements if "id" in e]
  assert len(ids) == len(set(ids))
  assert all(link["href"][1:] in ids for link in found["a"])
  assert {element.get("scope") for element in found["th"]} == {"row", "col"}
  assert len(found["caption"]) == len(found["table"])
  assert all("tabindex" in e for e in found["div"] if e.get("class") == "scroll")
  for name in NAMES:
    assert name.replace("\n", " ") in text
  assert not found["script"]
  assert not any(name.startswith("on") for e in sum(found.values(), []) for name in e)
  raw = (written / "report.html").read_text(encoding="utf-8")
  assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", raw)
  assert "default-src 'none'" in raw
  assert "mdtrap fit" in text


def test_the_images(written):
  sources = [e["src"] for e in Page(written / "report.html").found["img"]]
  small = [s for s in sources if s.startswith("data:image/jpeg")]
  assert small
  for source in small:
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert image.size == (160, 12)
    assert not image.getexif()


def test_errors_come_most_confident_first_and_once():
  said = assessment().outcomes
  shown = str(page._errors(assessment())[1])
  wrong = np.flatnonzero(said.predicted != said.labels)
  rows = set(assessment().rows[wrong])
  assert shown.count("<li>") == len(rows)
  stated = [int(n) for n in re.findall(r"said [^(]*\((\d+) %\)", shown)]
  assert stated == sorted(stated, reverse=True)
  assert stated[0] == round(100 * said.confidence[wrong].max())


def test_the_ends_by_hand():
  found = assessment(closeness=np.tile(np.arange(20) / 100, 2))
  first = str(page._ends(found)[1])
  assert re.findall(r"cosine ([\d.]+)", first) == ["0.040", "0.030", "0.000", "0.010"]


def test_it_stays_small():
  many = [f"class {k}" for k in range(60)]
  found = assessment(many)
  text = page.make(found, dict.fromkeys(classification.FILES, b"")).decode()
  assert text.count("data:image/jpeg") <= page.MOST_ERRORS + 2 * page._ENDS * page.MOST_CLASSES
  assert "most frequent confusions" in text
  assert len(text) < 3e6


def test_files_that_give_no_image():
  figures = dict.fromkeys(classification.FILES, b"")
  assert b"no small copy" in page.make(assessment(items=["nowhere.png"] * 20), figures)
  assert b"closest to" not in page.make(assessment(items=()), figures)


def test_markup_is_escaped_unless_it_is_markup():
  assert tag("b", "<i>", tag("i", "&"), title='"') == '<b title="&quot;">&lt;i&gt;<i>&amp;</i></b>'
  assert escape("a\u202eb\x00\udcff") == "a�b��"
  assert escape("می\u200cخواهم") == "می\u200cخواهم"  # a joiner is a part of the word


def test_nothing_is_overwritten_unasked(written):
  assert {file.name for file in written.iterdir()} == classification.FILES
  with pytest.raises(FileExistsError, match="is not empty"):
    assessment().write_report(written)


@pytest.fixture(scope="module")
def chromium():
  if not browser.PROGRAM:
    pytest.skip(f"NO BROWSER: the report was not opened in one (none of {browser.NAMES} here)")
  with browser.Browser() as opened:
    yield opened


@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(written, chromium, size, dark):
  path = written / "report.html"
  chromium.open(path, size, dark)
  assert chromium.requested() == [path.as_uri()]
  assert chromium.complaints() == []
  assert chromium.evaluate("document.documentElement.scrollWidth") <= size[0]
  loaded = "[...document.images].filter(i => i.complete && i.naturalWidth).length"
  assert chromium.evaluate(loaded) == chromium.evaluate("document.images.length") > 10
  assert chromium.evaluate("[...document.scripts].length") == 0


def test_by_keyboard_and_screen_reader(written, chromium):
  chromium.open(written / "report.html", browser.PHONE)
  told = collections.defaultdict(list)
  for role, name in chromium.accessible():
    told[role].append(name)
  assert all(told["image"])
  assert all(told["table"] + told["region"] + told["link"])
  assert "What is taken for what" in told["heading"]
  assert {"main", "banner", "contentinfo"} <= told.keys()
  assert told["columnheader"]
  assert told["rowheader"]
  stops, wide = (
    [],
    "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility()).length",
  )
  for _ in range(chromium.evaluate(wide) + len(told["link"]) + 10):
    chromium.press("Tab")
    stops.append(chromium.evaluate("document.activeElement.className"))
  assert stops.count("scroll") >= chromium.evaluate(wide)
  box = "document.querySelector('.confusion').parentElement"
  chromium.evaluate(f"{box}.focus()")
  for _ in range(3):
    chromium.press("ArrowRight")
  moved = f"new Promise(r => setTimeout(() => r({box}.scrollLeft), 500))"
  found = chromium.call("Runtime.evaluate", expression=moved, awaitPromise=True, returnByValue=True)
  assert found["result"]["value"] > 0


def test_contrast(written, chromium):
  """WCAG's 4.5 : 1 of every text against its own or the page's background."""
  for dark in (False, True):
    chromium.open(written / "report.html", browser.DESKTOP, dark)
    assert chromium.evaluate(CONTRAST) == []


CONTRAST = """
(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = new Set();
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(back(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.add(e.tagName + "." + e.className);
  }
  return [...poor];
})()
"""
