"""Saves a classifier over another and is killed before each thing that this does to the disk.

Prints how often it was killed for each way of replacing a folder; ends with an error if what is
left is neither the old classifier nor the new one.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

import numpy as np

from mdtrap_jax import models
from mdtrap_jax.classifier import saved, task
from mdtrap_jax.classifier.choices import make_config

CONFIG = make_config("clip-tiny", "ncc", [1, 1], fields={"model.random_weights": True})
SETTING = task.Setting(CONFIG, "ncc", models.build("clip-tiny"), None, None, 10.0)
ABOUT = {"classes": ["a", "b"], "class_names": ["a", "b"], "counts": [1, 1], "losses": {},
         "accuracy_at": {}, "parameters": {}}  # fmt: skip
TOUCHING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.chmod")


def save(path, number):
  """A classifier all of whose files hold the number."""
  fitted = task.Fitted({}, np.full((2, 4), number, np.float32))
  about = ABOUT | {"temperature": number}
  saved.write(path, SETTING, fitted, about, crossval=str(number), overwrite=True)


def read(path):
  """The number that the files there agree on."""
  found = saved.read(path)
  numbers = {found.about["temperature"], float(saved.read_crossval(path))}
  (number,) = numbers | set(found.fitted.anchors.ravel().tolist())
  return number


def killed_before(count, path, number):
  """Saves in a process of its own that ends before touching the disk for the `count`-th time."""
  if child := os.fork():
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
  left = [count]

  def hook(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
    if event in TOUCHING or writes:
      left[0] -= 1
      if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
  save(path, number)
  os._exit(0)


def main(root):
  """Replaces classifier 1 by 2, 2 by 3, … until nobody is killed any more."""
  saved.own_images.load_setting = lambda config, method, names: SETTING  # needs no weights
  for name in ("exchanged", "renamed"):
    path, count, states = root / name, 0, []
    if name == "renamed":
      ctypes.CDLL = lambda name: None  # a file system that cannot exchange two folders
    save(path, 1)
    old, killed = 1, True
    while killed:
      count += 1
      killed = killed_before(count, path, old + 1)
      new = read(path)
      assert new in (old, old + 1), (name, count, old, new)
      states.append(new != old)
      old = int(new)
    assert states == sorted(states), states
    assert (states[0], states[-1]) == (False, True), states
    print(name, count - 1, sum(states))


main(Path(sys.argv[1]))
