"""Who writes to a run in a bucket: a lease, which is renewed, and expires where its holder died.

A lease is an object `.lease-N` that is made only if there is none of that name, which is atomic.
The highest N holds. A holder rewrites its own every `RENEWED` seconds; who finds it unchanged for
`EXPIRES` seconds, by their own clock, makes N + 1, and a holder that comes back finds that. So
no clocks are compared, and create-if-absent is all that is asked of a store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from absl import logging

from mdtrap_jax.buckets import Bucket

RENEWED = 15.0  # seconds from one renewal to the next
EXPIRES = 60.0  # seconds without one
_STALE = 20 * EXPIRES  # seconds that not even two clocks differ by
_LOOK = 1.0  # seconds between two looks at another's lease
_NAME = re.compile(r"(process-\d+/)?\.lease-\d{9}")


def is_lease(name: str) -> bool:
  """Whether an object of a run is a lease."""
  return _NAME.fullmatch(name) is not None


class Lease:
  """Held from when it is made until `close`; `lost` says so if another run has taken over."""

  def __init__(self, bucket: Bucket, folder: str = ""):
    """Takes the lease.

    Args:
      bucket: of the run.
      folder: in it, of one process: empty or ending in a slash.

    Raises:
      OSError: another run holds it and lives, or the bucket cannot be written.
    """
    self.lost = ""
    self._bucket, self._prefix = bucket, f"{folder}.lease-"
    self._holder = {**_here(), "key": secrets.token_hex(8)}
    self._renewals = 0
    self._number = self._take()
    self._ends = threading.Event()
    self._thread = threading.Thread(target=self._keep, daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Gives the lease back, if the store can be reached now; else it expires."""
    self._ends.set()
    self._thread.join(timeout=5)
    with contextlib.suppress(OSError, ValueError):
      bucket = Bucket(self._bucket.url, patience=5.0)
      if self._is_mine(bucket):
        bucket.remove([self._name(self._number)])

  def _take(self) -> int:
    watched, since = None, 0.0
    while True:
      leases = self._leases()
      top = max(leases, default=0)
      if top:
        content = self._bucket.read(self._name(top))
        if content is None:
          continue  # given back meanwhile
        holder = _parse(content)
        state = top, content
        if watched is None:
          watched, since = state, time.monotonic()
          if _may_live(holder, leases[top].time):
            logging.warning(
              "%s is held by %s: waiting up to %.0f s to see whether it lives.",
              self._bucket.url, _describe(holder), EXPIRES,
            )  # fmt: skip
        if state != watched:
          raise OSError(
            f"{self._bucket.url} is in use by another run ({_describe(holder)}): wait for it or "
            "give another --workdir."
          )
        if _may_live(holder, leases[top].time) and time.monotonic() - since < EXPIRES:
          time.sleep(_LOOK)
          continue
      if self._bucket.create(self._name(top + 1), self._content()):
        if max(self._leases(), default=0) == top + 1:
          self._bucket.remove(map(self._name, leases))  # expired ones
          return top + 1
        self._bucket.remove([self._name(top + 1)])
      watched = None if watched is None else (0, b"")  # somebody else was quicker, and lives

  def _keep(self) -> None:
    while not self._ends.wait(RENEWED):
      try:
        self._renew()
      except Exception as error:  # said when something is to be written
        self.lost = self.lost or f"{error}"
      if self.lost:
        return

  def _renew(self) -> None:
    leases = self._leases()
    held = max(leases, default=0) == self._number and self._is_mine(self._bucket)
    if not held and not self._ends.is_set():
      other = self._bucket.read(self._name(max(leases))) if leases else None
      self.lost = (
        f"{self._bucket.url} was taken over by another run"
        f"{f' ({_describe(_parse(other))})' if other else ''}, as this one could not be reached: "
        "what was finished is kept there."
      )
      return
    self._renewals += 1
    self._bucket.write(self._name(self._number), self._content())

  def _is_mine(self, bucket: Bucket) -> bool:
    """Numbers come back, once others have taken over and ended: the key says whose one is."""
    held = bucket.read(self._name(self._number))
    return held is not None and _parse(held).get("key") == self._holder["key"]

  def _leases(self) -> dict[int, Any]:
    """Objects by number."""
    found = self._bucket.find(self._prefix)
    return {
      int(name.removeprefix(self._prefix)): entry
      for name, entry in found.items() if is_lease(name)
    }  # fmt: skip

  def _name(self, number: int) -> str:
    return f"{self._prefix}{number:09d}"

  def _content(self) -> bytes:
    return json.dumps({**self._holder, "renewals": self._renewals}, indent=2).encode()


def _here() -> dict[str, Any]:
  """What tells this process from any other."""
  about = {"host": socket.gethostname(), "process": os.getpid()}
  with contextlib.suppress(OSError):
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    about["machine"] = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    about["started"] = _started(os.getpid())
  return about


def _started(process: int) -> int:
  """When a process of this machine began, in ticks."""
  return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])


def _may_live(holder: dict[str, Any], written: float) -> bool:
  """Whether a holder may still run: not if it was this machine's and is gone, or long silent."""
  if time.time() - written > _STALE:
    return False
  here = _here()
  if "machine" not in here or [holder.get(k) for k in ("machine", "host")] != [
    here["machine"], here["host"],
  ]:  # fmt: skip
    return True
  try:
    return _started(int(holder["process"])) == holder["started"]
  except (OSError, ValueError, TypeError, LookupError):
    return False


def _parse(content: bytes) -> dict[str, Any]:
  with contextlib.suppress(ValueError):
    value = json.loads(content)
    if isinstance(value, dict):
      return value
  return {}


def _describe(holder: dict[str, Any]) -> str:
  return f"process {holder.get('process', '?')} on {holder.get('host', 'an unknown host')}"
