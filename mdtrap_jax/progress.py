"""What the person at the terminal sees, and the same as TensorBoard events."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from mdtrap_jax import results


class Progress:
  """A bar over episodes that moves with every segment, and scalars in `events/`."""

  def __init__(self, directory: results.WorkDirectory, episodes: int, steps: int):
    """Starts the bar.

    Args:
      directory: of the run; what it has finished counts in the running accuracy.
      episodes: still to do.
      steps: `T`, per episode.
    """
    fine = [line for line in directory.finished.values() if line["status"] == "ok"]
    self._accuracies = [line["accuracy"] for line in fine]
    self._failed = len(directory.finished) - len(fine)
    self._done = len(directory.finished)
    self._steps, self._todo, self._progress = steps, episodes, 0.0
    self._writer = SummaryWriter(str(directory.path / "events"))
    total = self._done + episodes
    self._bar = tqdm(
        total=total, initial=self._done, unit="episode", dynamic_ncols=True, smoothing=0.05,
        bar_format="{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]")
    self._started = time.monotonic()
    self._describe()

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *exception) -> None:
    self._bar.close()
    self._writer.close()

  def stepped(self, episodes: int, steps: int) -> None:
    """Moves the bar: so many episodes have done so many further steps."""
    share = episodes * steps / self._steps
    self._progress += share
    self._bar.update(share)
    self._describe()

  def finished(self, lines: list[dict[str, Any]]) -> None:
    """Takes finished episodes into the running accuracy."""
    self._done += len(lines)
    self._accuracies += [line["accuracy"] for line in lines if line["status"] == "ok"]
    self._failed += sum(line["status"] != "ok" for line in lines)
    self._bar.n = self._done  # the shares of the steps add up to this but for rounding
    accuracy = results.mean_and_ci(self._accuracies)
    self._scalars({"accuracy/mean": accuracy.mean, "accuracy/ci95": accuracy.ci95,
                   "episodes_per_second": self._rate(), "failed": self._failed})
    self._describe()

  def terms(self, terms: dict[str, tuple[np.ndarray, ...]], rows: int) -> None:
    """Logs each term's value, cotangent norm and cosine, averaged over a batch."""
    self._scalars({
        f"{name}/{kind}": float(np.mean(values[:rows]))
        for name, kinds in terms.items()
        for kind, values in zip(("loss", "norm", "cosine"), kinds, strict=True)})

  def _scalars(self, values: dict[str, float]) -> None:
    for name, value in values.items():
      if np.isfinite(value):
        self._writer.add_scalar(name, value, self._done)

  def _rate(self) -> float:
    return self._progress / max(time.monotonic() - self._started, 1e-9)

  def _describe(self) -> None:
    accuracy = results.mean_and_ci(self._accuracies)
    text = f"{self._done}/{self._bar.total} episodes" + (f", accuracy {accuracy}" if accuracy.episodes else "")
    if self._progress:
      text += f", {self._rate():.3g} episodes/s"
    if self._failed:
      text += f", {self._failed} failed"
    self._bar.set_description_str(text)
