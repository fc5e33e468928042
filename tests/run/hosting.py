"""What test_hosts.py runs: `python -m tests.run.hosting PORT INDEX COUNT WHAT`."""

import os
import signal
import sys
import time

from mdtrap_jax.run import hosts, stop


def say(*words):
  print(*words, flush=True)


def killed(victim):
  """One process dies while the others wait; the answer must not take long."""
  hosts.gather("")
  if hosts.index() == victim:
    os.kill(os.getpid(), signal.SIGKILL)
  hosts.gather("mine")


def fine():
  """All that a run does, then one process finishes long before the other."""
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
  path = os.path.join(sys.argv[5], str(hosts.index()))
  process = {jax.process_index()}
  options = ocp.options.MultiprocessingOptions(*process, process, barrier_sync_key_prefix=path)
  with ocp.CheckpointManager(
    path,
    options=ocp.CheckpointManagerOptions(
      create=False, enable_async_checkpointing=False, multiprocessing_options=options
    ),
  ) as manager:
    manager.save(0, args=ocp.args.JsonSave({"a": 1}))
    say(manager.latest_step())
  time.sleep(hosts.index())


def loop():
  """Until all are asked to stop; then it saves."""
  hosts.gather("")
  with stop.preemption(hosts.request_stop, hosts.stop_requested) as asked:
    say("ready")
    while not asked.name:
      time.sleep(0.01)
    say("saved")
    asked.check()


def lost_in_the_loop():
  """One fails while the others compute; they save what they have."""
  hosts.gather("")
  if hosts.index() == 1:
    raise OSError("no space left\non the device")
  loop_until_asked = stop.preemption(hosts.request_stop, hosts.stop_requested)
  with loop_until_asked as asked:
    while not asked.name:
      time.sleep(0.01)
    say("saved")
    asked.check()


def main():
  port, index, count = map(int, sys.argv[1:4])
  with stop.handled():
    try:
      with hosts.joined(hosts.place(f"localhost:{port}", count, index), wait=60):
        what, *arguments = sys.argv[4].split(":")
        globals()[what](*map(int, arguments))
    except (OSError, ValueError) as error:
      sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
