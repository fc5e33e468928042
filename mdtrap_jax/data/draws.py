"""Random draws from numpy's raw bits, which are the same in every version of it.

numpy promises that for the bits, but not for what `Generator` makes of them, and results must
stay repeatable for years.
"""

import numpy as np


def uniform(bits: np.random.BitGenerator, count: int | None = None) -> np.ndarray | float:
  """`count` doubles in [0, 1), or one."""
  return (bits.random_raw(count) >> 11) * 2.0**-53


def shuffle(bits: np.random.BitGenerator, items: np.ndarray) -> np.ndarray:
  """The items in random order."""
  return items[np.argsort(bits.random_raw(len(items)), kind="stable")]
