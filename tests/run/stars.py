"""Processes of a run, played by threads."""

from concurrent.futures import ThreadPoolExecutor

from mdtrap_jax.run import meeting


def free_port():
  with meeting.listener("127.0.0.1", 0) as door:
    return door.getsockname()[1]


def everywhere(count, work, *, wait=20, counts=None):
  """What `work(star)` returns or raises in each of `count` processes."""
  port = free_port()

  def process(index):
    own = None
    try:
      own, note = meeting.meet(
        "127.0.0.1", port, index, (counts or [count] * count)[index], wait=wait, note=f"of {index}"
      )
      assert note == "of 0"
      return work(own)
    except Exception as error:
      return error
    finally:
      if own:
        own._close()

  with ThreadPoolExecutor(count) as pool:
    return list(pool.map(process, range(count)))
