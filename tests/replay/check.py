"""What a replay reports: one line per check."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
  """One comparison of our numbers with recorded ones."""

  name: str
  error: float  # the largest error; how it is measured is the check's own choice
  tolerance: float

  @property
  def ok(self) -> bool:
    """Whether the error is within the tolerance; NaN is not."""
    return bool(self.error <= self.tolerance)

  def __str__(self) -> str:
    verdict = "ok" if self.ok else "FAIL"
    return f"{self.name:<44} error {self.error:9.2e}  tolerance {self.tolerance:7.1e}  {verdict}"
