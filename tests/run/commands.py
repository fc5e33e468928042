"""The command line in processes of its own, which stop themselves where a test wants it.

They are forked from a server that has imported everything: what an import costs, it costs once.
"""

import functools
import math
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from mdtrap_jax import __main__, experiments
from mdtrap_jax.run import loop
from mdtrap_jax.run.progress import Progress
from tests.flags import flags_of_commands

STARTED = set(sys.modules)  # of the server, before it imports what tests need
NEEDLESS = {
  "boto3", "google.cloud.storage", "matplotlib", "scipy.ndimage", "tensorflow_datasets", "torch",
}  # fmt: skip
EVERY = loop.Pace(segment=0.0, snapshot=0.0, share=math.inf)  # a snapshot after every step
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "sklearn.datasets"])


class Signal(NamedTuple):
  """What a process sends itself."""

  number: int
  after: int  # segments
  delay: float = 0.0  # seconds that it goes on meanwhile
  wait: tuple[Path, ...] = ()  # for these to exist, at that segment


class Ended(NamedTuple):
  """How a command ended."""

  code: int
  out: str
  error: str  # the last line
  starts: list[int]  # the step at which each batch began


class Command(NamedTuple):
  """A command under way."""

  process: multiprocessing.Process
  log: str

  def end(self) -> Ended:
    """Waits for it; no error is a stack of calls."""
    self.process.join(240)
    assert self.process.exitcode is not None, "hangs"
    out, error = (Path(f"{self.log}.{name}").read_text() for name in ("out", "err"))
    assert "Traceback" not in error, error
    assert "\r" not in error
    starts = [int(line.split()[-1]) for line in error.splitlines() if line.startswith("start ")]
    return Ended(self.process.exitcode, out, (error.splitlines() or [""])[-1], starts)


def start(arguments, log, send=None, environment=()) -> Command:
  """`main.py` with these arguments on one device; `log` begins the names of its outputs."""
  process = CONTEXT.Process(target=_main, args=(list(arguments), log, send, dict(environment)))
  process.start()
  return Command(process, log)


def there(log) -> Path:
  """What exists once a process has done the segments after which it sends itself a signal."""
  return Path(f"{log}.there")


def _main(arguments, log, send, environment):
  for name, descriptor in (("out", 1), ("err", 2)):
    os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
  assert not STARTED & NEEDLESS, "a run starts without them"
  os.environ |= {"XLA_FLAGS": flags_of_commands(devices=1), **environment}
  experiments.run_loop = functools.partial(loop.run, pace=EVERY)
  _report_starts()
  if send:
    _send(send, there(log))
  sys.exit(__main__.main(["run", *arguments]))


def _report_starts():
  adapt_batch = loop.adapt_batch

  def reporting(*arguments, start, **options):
    print(f"\nstart {start}", file=sys.stderr, flush=True)
    return adapt_batch(*arguments, start=start, **options)

  loop.adapt_batch = reporting


def _send(send, there):
  """Sends this process a signal, once it has done its segments."""
  stepped, done = Progress.stepped, []

  def stepping(self, *arguments):
    stepped(self, *arguments)
    done.append(0)
    if len(done) == send.after:
      there.touch()
      while not all(path.exists() for path in send.wait):
        time.sleep(0.01)
      if send.delay:
        threading.Timer(send.delay, os.kill, (os.getpid(), send.number)).start()
      else:
        os.kill(os.getpid(), send.number)

  Progress.stepped = stepping
