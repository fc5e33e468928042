"""The commands for one's own images: `mdtrap fit`, `predict`, `evaluate` and `export`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from mdtrap_jax import buckets, files
from mdtrap_jax.classifier import evaluation, folds, predictions, saved
from mdtrap_jax.classifier.choices import ZERO_SHOT, has_text
from mdtrap_jax.classifier.estimator import FewShotClassifier
from mdtrap_jax.classifier.forecast import forecast, measured_flops
from mdtrap_jax.classifier.task import Setting
from mdtrap_jax.data import labeled
from mdtrap_jax.data import read_labeled as reading
from mdtrap_jax.data.labeled import Labeled
from mdtrap_jax.data.names import listed, shown
from mdtrap_jax.data.prompts import make_prompts
from mdtrap_jax.report import assessment, classification
from mdtrap_jax.run import devices

_SHOWN = 50  # classes that are listed before the rest is counted
_LONG = 60.0  # seconds that are said beforehand
_SHARE = 0.6  # of what a plain product does, that an encoder's steps do


def fit(options: argparse.Namespace) -> int:
  """`mdtrap fit`: says what it understood, validates if asked, adapts, saves."""
  saved.check_target(options.out, options.force)
  data = _labeled(options.data, options.labels)
  own = FewShotClassifier(
    options.model,
    options.method,
    steps=options.steps,
    class_names=reading.read_names(_home(options.names)) if options.names else None,
    template=reading.read_templates(_home(options.templates)) if options.templates else None,
    seed=options.seed,
    config={"tune": options.tune} if options.tune else None,
  )
  _start()
  setting = own.prepare(data)
  _describe(own, data, setting)
  validation = None
  if options.folds:
    with _bar(f"{options.folds} folds") as report:
      validation = folds.cross_validate(
        own, data, folds=options.folds, repeats=options.repeats, report=report
      )
    print(folds.format_text(validation))
  with _bar("fit") as report:
    own.fit(data, report=report)
  if validation:
    found = validation.methods[own.method]
    own.calibrate(found.temperature, folds.to_csv(validation))
  own.save(options.out, overwrite=options.force)
  if validation:
    _report(own, validation, options.command, options.out)
  first, last = min(own.accuracy_at_), max(own.accuracy_at_)
  print(
    f"accuracy on these very images: {100 * own.accuracy_at_[first]:.1f} % before, "
    f"{100 * own.accuracy_at_[last]:.1f} % after {last} steps"
    + ("" if validation else " (--folds=5 says how good it is on others)")
  )
  print(f"written to {options.out}" + (f"; {_look(options.out)}" if validation else ""))
  return 0


def _report(
  own: FewShotClassifier, validation: folds.CrossValidation, command: str, out: str
) -> None:
  """Writes the report of the folds beside the model that was fitted to all images."""
  found, count = validation.assessment(), sum(own.counts_)
  fitted = {
    step: classification.wilson(round(share * count), count)
    for step, share in own.accuracy_at_.items()
  }
  curves = {**found.curves, "the images of the fit": fitted}
  found = found._replace(command=command, curves=curves)
  assessment.write(found, out, overwrite=True)


def predict(options: argparse.Namespace) -> int:
  """`mdtrap predict`: a line an image; those that cannot be read are listed."""
  _refuse_existing(options.csv, options.force)
  items = predictions.find_images(options.images)
  _start()
  own = FewShotClassifier.load(options.model_folder, model=options.model)
  unreadable: list[str] = []

  def passed_over(item, error):
    if options.strict:
      raise error
    unreadable.append(str(error))

  count = 0
  with (
    predictions.in_one_step(options.csv) as file,
    tqdm(total=len(items), unit=" images", leave=False, disable=None) as bar,
  ):
    write = predictions.make_writer(file, own.classes_.tolist(), options.json, options.top)
    for batch, cosines in own.stream(items, passed_over):
      write(batch, own.probabilities(cosines))
      count += len(batch)
      bar.update(count + len(unreadable) - bar.n)
    if not count:
      raise ValueError(f"none of {len(items)} images can be read: {unreadable[0]}")
  for line in unreadable:
    print(line, file=sys.stderr)
  print(f"{count} images predicted, {len(unreadable)} unreadable; written to {options.csv}")
  return 0


def evaluate(options: argparse.Namespace) -> int:
  """`mdtrap evaluate`: accuracy and the rest on labeled images, as files and a table."""
  assessment.check_target(options.out, options.force)
  data = _labeled(options.data, options.labels, "test")
  _start()
  own = FewShotClassifier.load(options.model_folder, model=options.model)
  own.indices(data)  # before the bar is drawn
  with _bar("evaluate") as report:
    found = evaluation.evaluate(own, data, report=report)
  assessment.write(found._replace(command=options.command), options.out, overwrite=options.force)
  print(classification.format_text(found.own))
  for name, scores in list(found.scores.items())[1:]:
    print(f"{name}: accuracy {classification.span(scores.accuracy)} % of the same images")
  print("\n".join([*found.notes, f"written to {options.out}; {_look(options.out)}"]))
  return 0


def export(options: argparse.Namespace) -> int:
  """`mdtrap export`: an adapter for `peft`, or a model for `transformers`."""
  model = saved.read(options.model_folder, options.model)
  saved.export(options.out, model, options.format)
  print(f"written to {options.out}")
  return 0


def _look(folder: str) -> str:
  return f"open {os.path.join(os.path.expanduser(folder), classification.PAGE)} in a browser"


def _labeled(data: str, table: str | None, part: str = "train") -> Labeled:
  """The images of a folder, or those that a CSV lists, relative to the folder if one is given."""
  if table is None:
    return reading.read_labeled(data, part=part)
  root = _home(data)
  if not root.is_dir():
    raise FileNotFoundError(f"{data}: no such folder, in which --labels has its images.")
  return reading.read_csv(_home(table), root)


def _describe(own: FewShotClassifier, data: Labeled, setting: Setting) -> None:
  """Prints what was understood."""
  import jax

  counts = labeled.counts_of(data.labels)
  names = own.names_of(np.array(list(counts)))
  template = setting.config.data.template if has_text(own.method) else None
  prompts = (
    [None] * len(names)
    if template is None
    else make_prompts(names, template if isinstance(template, str) else template[0])
  )
  method = setting.method(len(data.labels), len(names))
  steps = 0 if own.method == ZERO_SHOT else method.steps
  print(f"{data.name}: {len(data.labels)} images of {len(counts)} classes")
  for (label, count), name, prompt in list(zip(counts.items(), names, prompts, strict=True))[
    :_SHOWN
  ]:
    shown_as = "" if prompt is None else f" → {prompt!r}"
    renamed = "" if str(label) == name else f" → {shown(name)}"
    print(f"  {count:>5}  {shown(label)}{renamed}{shown_as}")
  if len(counts) > _SHOWN:
    print(f"  and {len(counts) - _SHOWN} classes more")
  if template is not None and not isinstance(template, str) and len(template) > 1:
    print(f"  and {len(template) - 1} more templates, averaged")
  same = labeled.find_duplicates(data)
  if same.within:
    print(f"{len(same.within)} images are there more than once: {_groups(same.within)}")
  if same.across:
    print(
      f"WARNING: {len(same.across)} images are in several classes, so a label is wrong: "
      f"{_groups(same.across)}"
    )
  device = jax.local_devices()[0]
  kind = f"CPU, {devices.cpu_cores()} cores" if device.platform == "cpu" else device.device_kind
  print(f"{own.model} on {kind}: {own.method}, {steps} steps, seed {own.seed}")
  if setting.transductive:
    print(f"{own.method} is transductive: what it says of an image depends on those beside it")
  if device.platform == "cpu" and (line := _expectation(setting, len(data.labels))):
    print(line)
  sys.stdout.flush()


def _expectation(setting: Setting, rows: int) -> str | None:
  """How long a CPU will take, where that is worth saying, and what takes less."""
  flops = measured_flops() * _SHARE
  found = forecast(setting, rows, flops)
  if found.adapting < _LONG:
    return None
  line = f"about {_duration(found.adapting)} on this CPU ({flops / 1e9:.0f} GFLOP/s)"
  if found.adapting > 2 * found.encoding:
    line += f"; --method=ncc or copa, on frozen features, about {_duration(found.encoding)}"
  return line


def _duration(seconds: float) -> str:
  for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
    if seconds >= 2 * size:
      return f"{seconds / size:.0f} {unit}"
  return f"{max(seconds, 1):.0f} seconds"


def _groups(groups: Sequence[Sequence[str]]) -> str:
  return listed([" = ".join(group) for group in groups], 3)


def _refuse_existing(target: str, force: bool) -> None:
  path = None if buckets.is_bucket(target) else Path(files.local(target))
  if path and not path.parent.is_dir():
    raise FileNotFoundError(f"{path.parent}: no such folder for {path.name}.")
  if (os.path.lexists(path) if path else files.is_there(target)) and not force:
    raise FileExistsError(f"{path or target} is there already; give another name, or --force.")


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[float], None]]:
  """Progress in percent on standard error."""
  form = "{l_bar}{bar:20}| {elapsed}<{remaining}"
  with tqdm(total=100.0, desc=name, bar_format=form, leave=False, disable=None) as bar:
    yield lambda share: bar.update(100 * share - bar.n)


def _start() -> None:
  """What must come before JAX computes anything."""
  import jax

  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # "" there: not kept
    jax.config.update("jax_compilation_cache_dir", str(files.cache_directory() / "programs"))
  devices.use_cpu_cores()


def _home(path: str) -> Path:
  return Path(files.local(path))
