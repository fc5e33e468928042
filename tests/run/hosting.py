"""What test_hosts.py runs: `python -m tests.run.hosting PORT INDEX COUNT WHAT`."""

import os
import signal
import sys
import time

from mdtrap_jax.run import hosts, stop


def say(*words):
  print(*words, flush=True)


def first_dies():
  """While the others wait for it."""
  hosts.gather("")
  if hosts.index() == 0:
    os.kill(os.getpid(), signal.SIGKILL)
  hosts.gather("mine")


def second_fails():
  """While the first computes, which saves what it has."""
  hosts.gather("")
  if hosts.index() == 1:
    raise OSError("no space left\non the device")
  loop()


def run(path):
  """All that a run does, until one of them is asked to stop."""
  import jax
  import jax.numpy as jnp
  import orbax.checkpoint as ocp

  say(jax.process_index(), jax.process_count(), len(jax.local_devices()), len(jax.devices()))
  hosts.agree("config", {"steps": "3"})
  try:
    hosts.agree("config", {"optimizer.learning_rate": f"0.{hosts.index()}"})
  except ValueError as error:
    say(error)
  say(hosts.share(range(5)), float(jnp.ones(3).sum()))
  texts = hosts.gather(str(hosts.index()) * 5_000_000)
  say([(text[0], len(text)) for text in texts])
  say(sorted(hosts.exchange({0: "a", 1 + hosts.index(): "b"}).items()))
  path = os.path.join(path, str(hosts.index()))
  own = {jax.process_index()}
  options = ocp.CheckpointManagerOptions(
    create=False,
    enable_async_checkpointing=False,
    multiprocessing_options=ocp.options.MultiprocessingOptions(*own, own, "snapshots"),
  )
  with ocp.CheckpointManager(path, options=options) as manager:
    manager.save(0, args=ocp.args.JsonSave({"a": 1}))
    say(manager.latest_step())
  loop()


def loop():
  """Computes until all are asked to stop, then saves."""
  with stop.preemption(hosts.request_stop, hosts.stop_requested) as asked:
    say("ready")
    while not asked.name:
      time.sleep(0.01)
    say("saved")
    asked.check()


def main():
  port, index, count = map(int, sys.argv[1:4])
  with stop.handled():
    try:
      with hosts.joined(hosts.place(f"localhost:{port}", count, index)):
        globals()[sys.argv[4]](*sys.argv[5:])
    except (OSError, ValueError) as error:
      sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
