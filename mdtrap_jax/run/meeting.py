"""How the processes of one run find each other, or learn who is missing."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

from mdtrap_jax.run.star import PeerError, Star, frame, receive

_HELLO = 1 << 10  # bytes of the first message, from somebody not yet known


class Place(NamedTuple):
  """Of a process among those of its run."""

  host: str  # of process 0
  port: int  # there
  count: int
  index: int  # from 0
  local_device_ids: Sequence[int] | None = None  # where a launcher divides a machine's devices


def place(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  detect: bool = False,
) -> Place | None:
  """This process's place, as the command line says it or the machines around it.

  Args:
    coordinator: `host:port` of process 0.
    count: of processes.
    index: of this process, from 0.
    detect: whether to ask the TPU pod, Slurm or Open MPI if none of the three is given.

  Returns:
    `None` if this is the only process.

  Raises:
    ValueError: some are given and others not, one cannot be right, or nothing tells them.
  """
  given = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
  missing = [name for name, value in given.items() if value is None]
  local = None
  if len(missing) == 3 and not detect:
    return None
  if len(missing) == 3:
    coordinator, count, index, local = _detect()
  elif missing:
    raise ValueError(
      f"{' and '.join(missing)} must be given too: --coordinator, --num_processes and "
      "--process_id belong together; leave all three out on a TPU pod or under Slurm."
    )
  host, colon, port = coordinator.rpartition(":")
  if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
    raise ValueError(
      f"--coordinator={coordinator} must be HOST:PORT of process 0, as in 10.0.0.1:12345."
    )
  if count < 1 or not 0 <= index < count:
    raise ValueError(
      f"--process_id={index} with --num_processes={count}: processes are counted from 0 to "
      "--num_processes - 1."
    )
  return None if count == 1 else Place(host.strip("[]"), int(port), count, index, local)


def _detect() -> tuple[str, int, int, Sequence[int] | None]:
  """Asks TPU pods, Slurm and Open MPI as `jax.distributed.initialize` does."""
  from jax._src import clusters  # there is no public way to ask without starting anything

  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, 60
  )
  if None in found[:3]:
    raise ValueError(
      "nothing tells which processes share this run (no TPU pod, no Slurm, no Open MPI): give "
      "--coordinator=HOST:PORT, --num_processes and --process_id."
    )
  return found


def meet(
  host: str, port: int, index: int, count: int, *, wait: float = 60, note: str = ""
) -> tuple[Star, str]:
  """Connects the processes of a run; returns when all are there.

  Args:
    host: of process 0.
    port: there.
    index: of this process, from 0.
    count: of processes, at least 2.
    wait: seconds for the others to come.
    note: what process 0 tells the others.

  Returns:
    The star, and the note of process 0.

  Raises:
    PeerError: not all came in time, or the port is in use.
    ValueError: the processes were started with other counts, or the same index twice.
  """
  end = time.monotonic() + wait
  if index:
    return _join(host, port, index, count, wait, end)
  with _open(host, port) as listener:
    links: dict[int, socket.socket] = {}
    try:
      while len(links) < count - 1 and (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        with contextlib.suppress(TimeoutError):
          _admit(listener.accept()[0], count, links)
      missing = sorted(set(range(1, count)) - links.keys())
      if missing:
        raise PeerError(
          f"{len(missing)} of {count} processes did not come within {wait:g} s (missing: "
          f"{', '.join(map(str, missing))}): start the same command {count} times, with "
          f"--process_id=0 to {count - 1}."
        )
    except (PeerError, ValueError) as error:
      for link in links.values():
        with contextlib.suppress(OSError), link:
          link.sendall(frame(("no", type(error) is ValueError, str(error))))
      raise
    for link in links.values():
      with contextlib.suppress(OSError):  # lost by now: the star will say so
        link.sendall(frame(("go", note)))
    return Star(0, count, links), note


def _open(host: str, port: int) -> socket.socket:
  """Process 0's door: at the address that the others are told, or at any if none is its own."""
  try:
    return listener(host, port)
  except OSError as error:
    if error.errno not in (errno.EADDRINUSE, errno.EACCES):  # an address that is translated
      return listener("", port)
    raise PeerError(
      f"port {port} of {host} cannot be had ({error.strerror}), another program or run may use "
      "it: give --coordinator another port, in all processes."
    ) from error


def listener(host: str, port: int) -> socket.socket:
  """A socket that accepts connections to one of this machine's addresses, or to all of them.

  Raises:
    OSError: the port is in use, or the address is not this machine's.
  """
  failed = None
  for family, *_, address in socket.getaddrinfo(
    host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
  ):
    try:
      return socket.create_server(address[:2], family=family)
    except OSError as error:  # such as ::1 where there is no IPv6
      failed = failed or error
  raise failed


def _admit(link: socket.socket, count: int, links: dict[int, socket.socket]) -> None:
  """Adds a newcomer to the links, or hangs up if it is none of ours."""
  try:
    link.settimeout(5)
    kind, index, its_count = receive(link, _HELLO)
    if kind != "hello" or not isinstance(index, int):
      raise ValueError("no process of a run")
  except (OSError, ValueError, TypeError):
    link.close()
    return
  if its_count != count or not 0 < index < count or index in links:
    links[-1] = link  # so that it is told too
    raise ValueError(
      f"process {index} of {its_count} came to a run of {count}: give all the same "
      "--num_processes, and each its own --process_id from 0."
    )
  link.settimeout(None)
  links[index] = link


def _join(
  host: str, port: int, index: int, count: int, wait: float, end: float
) -> tuple[Star, str]:
  """What `meet` is for the processes after 0."""
  link = connect(host, port, wait)
  try:
    link.sendall(frame(("hello", index, count)))
    link.settimeout(max(end - time.monotonic(), 0) + 15)  # process 0 may have come later
    kind, *content = receive(link, 1 << 16)
    link.settimeout(None)
  except (OSError, ValueError, TypeError) as error:
    link.close()
    raise PeerError(
      f"what answers at {host}:{port} is no process 0 of this run, or it ended ({error}): look "
      "at its output, or give --coordinator another port."
    ) from error
  if kind == "no":
    link.close()
    raise (ValueError if content[0] else PeerError)(content[1])
  return Star(index, count, {0: link}), content[0]


def connect(host: str, port: int, wait: float) -> socket.socket:
  """A connection, tried again until somebody answers.

  Raises:
    PeerError: nobody did for `wait` seconds.
  """
  end = time.monotonic() + wait
  while True:
    try:
      return socket.create_connection((host, port), max(1.0, end - time.monotonic()))
    except OSError as error:
      if time.monotonic() > end:
        raise PeerError(
          f"process 0 did not answer at {host}:{port} within {wait:g} s ({error}): is it "
          "running, and is that its address?"
        ) from error
      time.sleep(0.2)
