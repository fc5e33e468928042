"""The page that shows how good a classifier is: from an assessment to one file of HTML.

It needs no network and no script, and a browser, a screen reader and a printer can read it.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mdtrap_jax import __version__
from mdtrap_jax.report import classification
from mdtrap_jax.report.classification import Interval, Scores
from mdtrap_jax.report.html import Markup, breakable, data_uri, join, page, section, table, tag
from mdtrap_jax.report.thumbnails import thumbnail

Assessment = Any  # of `report.assessment`, which imports this

MOST_ERRORS = 40  # images shown
MOST_CLASSES = 12  # whose closest and farthest images are shown
_ENDS = 3  # of them each
_CELLS = 20  # classes, at most, in a table of all pairs
_PAIRS = 30  # pairs of classes, where there are more
_BAR = tag("th", "0 to 100 %", scope="col", class_="bar")

_WORDS = {
  "accuracy": "The share of images whose likeliest class is the true one. The interval in brackets "
  "is Wilson's, at 95 %: with as many other images of the same kind, the share would mostly lie in "
  "it. The same kind means the same camera, place and patients.",
  "balanced accuracy": "The mean of the classes' recalls: each class counts alike, however many "
  "images it has.",
  "recall and precision": "Of the images that are of a class, the share that is found; of those "
  "said to be of it, the share that is.",
  "log loss": "How little probability the true classes got, in nats an image; 0 is perfect, "
  "guessing among C classes gives log C.",
  "calibration error": "How far stated probabilities are from the share that is right, on average; "
  "0 is perfect.",
}


def make(found: Assessment, figures: Mapping[str, bytes]) -> bytes:
  """The page.

  Args:
    found: what it shows.
    figures: of `assessment.draw`.
  """
  sections = [
    ("numbers", "In numbers", _numbers(found)),
    ("classes", "Class by class", _classes(found.own)),
    ("confusion", "What is taken for what", _confusion(found.own, figures)),
    ("probabilities", "Can the probabilities be trusted?", _reliability(found, figures)),
    ("steps", "Accuracy along the steps", _steps(found, figures)),
    ("errors", "Misclassified images", _errors(found)),
    ("ends", _ends_title(found), _ends(found)),
    ("done", "What was done", _done(found)),
  ]
  sections = [(name, title, parts) for name, title, parts in sections if parts]
  links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections]
  made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  body = join([
    tag("header", tag("h1", found.title), *_lead(found)),
    tag("nav", tag("ul", *links), aria_label="On this page"),
    tag("main", *(section(name, title, *parts) for name, title, parts in sections)),
    tag(
      "footer",
      tag("p", f"Made by mdtrap_jax {__version__} on {made}. This file holds small copies of "
          "images and their file names; mind who may see them. It is no medical device."),
    ),
  ])  # fmt: skip
  return page(found.title, body)


def _lead(found: Assessment) -> list[Markup]:
  own, counts = found.own, found.own.confusion.sum(1)
  value, low, high = found.own.accuracy
  most = f"always the largest class: {100 * counts.max() / counts.sum():.1f} % right"
  guess = f"guessing one of {_plural(len(counts), 'class')} gives {100 / len(counts):.1f} %"
  if found.guess is not None:  # classes of an episode
    guess = f"guessing gives {100 * found.guess:.1f} %"
    most = f"{own.predictions:,} predictions of {_plural(len(counts), 'class')}"
  big = [
    ("accuracy", f"{100 * value:.1f} %", f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"),
    ("balanced accuracy", f"{100 * own.balanced_accuracy:.1f} %",
     guess),
    ("images", f"{own.images:,}", most),
    ("calibration error", f"{own.ece:.3f}", f"log loss {own.log_loss:.3f}"),
  ]  # fmt: skip
  cards = [
    tag("div", tag("dt", name), tag("dd", number, tag("small", more))) for name, number, more in big
  ]
  lead = [tag("p", found.how), tag("dl", *cards, class_="numbers")]
  if found.notes:
    lead.append(tag("ul", *(tag("li", note) for note in found.notes), class_="notes"))
  return lead


def _numbers(found: Assessment) -> list[Markup]:
  rows = [
    [name, whisker(s.accuracy), classification.span(s.accuracy), f"{100 * s.balanced_accuracy:.1f}",
     f"{s.log_loss:.3f}", f"{s.ece:.3f}"]
    for name, s in found.scores.items()
  ]  # fmt: skip
  header = ["method", _BAR, "accuracy (%)", "balanced (%)", "log loss", "calibration error"]
  words = [[tag("dt", name), tag("dd", text)] for name, text in _WORDS.items()]
  what = "Methods on the same images" if len(rows) > 1 else "On these images"
  return [
    table(f"{what}; n = {found.own.images}, 95 % intervals", header, rows),
    tag("details", tag("summary", "What the numbers mean"), tag("dl", *sum(words, []))),
  ]


def _classes(own: Scores) -> list[Markup]:
  rows = [
    [breakable(row.name), row.images, whisker(row.recall), classification.span(row.recall),
     whisker(row.precision), classification.span(row.precision)]
    for row in own.classes
  ]  # fmt: skip
  header = ["class", classification.counted(own), _BAR, "recall (%)", _BAR, "precision (%)"]
  return [
    tag("p", "Recall: of the images of a class, the share that was found. Precision: of those said "
        "to be of it, the share that was right. Lines are 95 % intervals."),
    table(f"Recall and precision; n = {own.images}", header, rows),
  ]  # fmt: skip


def whisker(share: Interval | None) -> Markup:
  """A share and its interval as a mark on a line from 0 to 100 %; the numbers stand beside it."""
  if share is None:
    return tag("td", class_="bar")
  value, low, high = (round(2 + 96 * number, 1) for number in share)
  line = lambda x1, x2, **how: tag(
    "line", x1=x1, x2=x2, y1="8", y2="8", stroke="currentColor", **how
  )
  drawing = tag(
    "svg", line(2, 98, stroke_opacity="0.25"), line(low, high, stroke_width="3"),
    tag("circle", cx=value, cy="8", r="4.5", fill="currentColor"),
    class_="whisker", viewBox="0 0 100 16", aria_hidden="true", focusable="false",
  )  # fmt: skip
  return tag("td", drawing, class_="bar")


def _confusion(own: Scores, figures) -> list[Markup]:
  matrix, names = own.confusion, [row.name for row in own.classes]
  count = classification.counted(own)
  if len(names) <= _CELLS:
    shares = matrix / np.maximum(matrix.sum(1), 1)[:, None]
    cell = lambda i, j: tag(
      "td", int(matrix[i, j]),
      class_=f"s{min(int(10 * shares[i, j]), 9)}" + (" hit" if i == j else ""),
    )  # fmt: skip
    rows = [
      [breakable(f"{name} ({matrix[i].sum()})"), *(cell(i, j) for j in range(len(names)))]
      for i, name in enumerate(names)
    ]
    caption = f"Number of {count}: true class by row, predicted class by column"
    return [
      tag("p", "Darker cells hold a larger share of the true class; outlined ones are right."),
      table(caption, ["true \\ predicted", *map(breakable, names)], rows, class_="confusion"),
    ]
  off = matrix * (1 - np.eye(len(names), dtype=int))
  order = np.argsort(-off, axis=None, kind="stable")[:_PAIRS]
  pairs = [(i, j) for i, j in zip(*np.unravel_index(order, off.shape), strict=True) if off[i, j]]
  rows = [
    [breakable(names[i]), breakable(names[j]), int(off[i, j]), int(matrix[i].sum())]
    for i, j in pairs
  ]
  alt = f"Confusion matrix of {len(names)} classes; the most frequent confusions are in the table."
  return [
    chart(figures["confusion.png"], "image/png", alt, "Shaded by the share of the true class."),
    table(f"The {len(pairs)} most frequent confusions", ["true", "predicted", count, "of"], rows),
  ]  # fmt: skip


def chart(content: bytes, kind: str, alt: str, caption: str) -> Markup:
  """A figure inside the page."""
  image = tag("img", src=data_uri(content, kind), alt=alt)
  return tag("figure", image, tag("figcaption", caption), class_="chart")


def _reliability(found: Assessment, figures) -> list[Markup]:
  bins = classification.reliability(found.outcomes, found.own.images)
  mean, right = found.outcomes.confidence.mean(), found.own.accuracy.value
  tilt = "about as sure as it is right"
  if abs(mean - right) > 0.03:
    tilt = "surer than it is right" if mean > right else "less sure than it is right"
  sentence = f"Its likeliest class gets {100 * mean:.1f} % on average, and is the true one in "
  sentence += f"{100 * right:.1f} %: it is {tilt}."
  rows = [
    [f"{100 * bin.confidence:.1f} %", bin.predictions, classification.span(bin.accuracy)]
    for bin in bins
  ]
  header = ["mean confidence", "predictions", "right (%)"]
  return [
    tag("p", sentence),
    chart(
      figures["reliability.svg"], "image/svg+xml",
      "Reliability diagram: the share right against confidence. " + sentence,
      "On the dotted line, probabilities are what they say.",
    ),
    tag("details", tag("summary", "As a table"), table("Reliability by confidence", header, rows)),
  ]  # fmt: skip


def _steps(found: Assessment, figures) -> list[Markup]:
  if "steps.svg" not in figures:
    return []
  marks = sorted(set().union(*found.curves.values()))
  rows = [
    [mark, *(classification.span(curve.get(mark)) for curve in found.curves.values())]
    for mark in marks
  ]
  said = [
    f"{name}: {100 * curve[min(curve)].value:.1f} % before, {100 * curve[max(curve)].value:.1f} % "
    "after the last step"
    for name, curve in found.curves.items()
  ]
  return [
    chart(figures["steps.svg"], "image/svg+xml", f"Accuracy by step. {'; '.join(said)}.",
          "Step 0 is the model before it is adapted."),
    tag("details", tag("summary", "As a table"),
        table("Accuracy (%) by step", ["step", *found.curves], rows)),
  ]  # fmt: skip


def _errors(found: Assessment) -> list[Markup]:
  said = found.outcomes
  wrong = np.flatnonzero(said.predicted != said.labels)
  order = wrong[np.argsort(-said.confidence[wrong], kind="stable")]
  rows, first = np.unique(found.rows[order], return_index=True)
  worst = order[np.sort(first)]  # of each image, its most confident wrong prediction
  if not len(worst):
    return [tag("p", f"None of {found.own.images} images.")]
  times = dict(zip(*np.unique(found.rows, return_counts=True), strict=True))
  errors = dict(zip(*np.unique(found.rows[wrong], return_counts=True), strict=True))
  cards = []
  for m in worst[:MOST_ERRORS]:
    row, true, predicted = (
      found.rows[m],
      found.names[said.labels[m]],
      found.names[said.predicted[m]],
    )
    often = f"wrong in {errors[row]} of {times[row]} predictions" if times[row] > 1 else ""
    text = [
      tag("span", "said ", breakable(predicted), f" ({100 * said.confidence[m]:.0f} %)",
          class_="said"),
      Markup("<br>"), "is ", breakable(true), f" ({100 * said.likelihood[m]:.0f} %)",
      *([Markup("<br>"), often] if often else []),
    ]  # fmt: skip
    if found.items:
      cards.append(_card(found, row, f"said {predicted}, is {true}", text))
    else:
      name = breakable(found.files[row])
      cards.append([name, tag("td", *text[:1]), tag("td", *text[2:])])
  count = f"{_plural(len(rows), 'image')} of {found.own.images} misclassified"
  if len(times) < len(found.rows):
    count += " at least once"
  if len(worst) > MOST_ERRORS:
    count += f"; the {MOST_ERRORS} most confident are shown"
  hint = "A label may be wrong, too: look at the most confident ones first."
  first = tag("p", f"{count}, most confident first. {hint}")
  if not found.items:
    return [first, table("Misclassified images", ["image", "prediction", "truth"], cards)]
  return [first, tag("ul", *cards, class_="gallery")]


def _ends_title(found: Assessment) -> str:
  what = f"class's {found.anchor}" if found.anchor else "class"
  return f"Closest to and farthest from each {what}"


def _ends(found: Assessment) -> list[Markup]:
  """Of each class, the images of it that are most and least like what the method takes it for."""
  if not found.items:
    return []
  labels, parts = found.outcomes.labels, []
  measure = "cosine" if found.anchor else "logit"
  shown = [c for c in range(len(found.names)) if (labels == c).sum() > 1]
  for c in shown[:MOST_CLASSES]:
    own = labels == c
    rows, inverse = np.unique(found.rows[own], return_inverse=True)
    mean = np.bincount(inverse, found.closeness[own]) / np.bincount(inverse)
    order, name = np.argsort(-mean, kind="stable"), found.names[c]
    few = min(_ENDS, len(rows) // 2)
    strips = []
    for what, chosen in (("closest", order[:few]), ("farthest", order[::-1][:few])):
      cards = [
        _card(found, rows[i], f"{what} to {name}" if what == "closest" else f"{what} from {name}",
              [f"{measure} {mean[i]:.3f}"])
        for i in chosen
      ]  # fmt: skip
      strips.append(tag("div", tag("p", what, class_="soft"), tag("ul", *cards, class_="gallery")))
    parts.append(join([tag("h3", name), tag("div", *strips, class_="ends")]))
  if not parts:
    return []
  by = f"their cosine to its {found.anchor}" if found.anchor else "the logit that it gets"
  first = f"Images of each class, by {by}: the closest are what the method "
  first += "takes the class for; the farthest are odd ones, or wrong labels."
  if len(shown) > MOST_CLASSES:
    first += f" The first {MOST_CLASSES} of {len(shown)} classes are shown."
  return [tag("p", first), *parts]


def _card(found: Assessment, row: int, what: str, text: Sequence) -> Markup:
  name = found.files[row]
  source = thumbnail(found.items[row]) if found.items else None
  image = tag("img", src=source, alt=f"{name}: {what}") if source else None
  label = tag("span", breakable(os.path.basename(name) or name), class_="file", title=name)
  box = image or tag("div", "no small copy", class_="none")
  return tag("li", tag("figure", box, tag("figcaption", *text, label)))


def _done(found: Assessment) -> list[Markup]:
  facts = [tag("dt", name) + tag("dd", value) for name, value in found.facts.items()]
  return [
    tag("dl", *map(Markup, facts), class_="facts"),
    tag("h3", "To repeat it"),
    tag("pre", tag("code", found.command), tabindex="0", aria_label="Command"),
  ]


def _plural(count: int, noun: str) -> str:
  if count == 1:
    return f"1 {noun}"
  return f"{count} {noun}{'es' if noun.endswith('s') else 's'}"
