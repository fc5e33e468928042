"""What test_stop.py sends signals to: `python -m tests.run.stopping WHAT`."""

import hashlib
import os
import signal
import sys
import threading
import time

from mdtrap_jax.run import stop


def wait(seconds=20):
  print("ready", flush=True)
  time.sleep(seconds)


def outside():
  try:
    wait()
  except Exception:
    print("swallowed")


def compiled():
  threading.Timer(0.1, print, ["ready"], {"flush": True}).start()
  hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 28)  # minutes, and Python cannot interrupt it


def compiling():
  """In a loop that has nothing to save yet."""
  with stop.preemption():
    compiled()


def hangup():
  os.kill(os.getpid(), signal.SIGHUP)
  wait()


def loop(saving=0.0):
  with stop.preemption() as asked:
    asked.saves = True
    print("ready", flush=True)
    while not asked.name:
      time.sleep(0.01)
    print(f"saving for {asked.name}", flush=True)
    time.sleep(saving)
    asked.check()


def saving():
  loop(20)


def study():
  """The signal comes when the first of two loops has just ended its work."""
  with stop.preemption() as asked:
    asked.saves = True
    print("ready", flush=True)
    while not asked.name:
      time.sleep(0.01)
  with stop.preemption() as asked:
    asked.check()
  print("not stopped")


if __name__ == "__main__":
  with stop.handled(grace=0.3):
    globals()[sys.argv[1]]()
  print("done")
