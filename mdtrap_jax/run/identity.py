"""What a run was made of, and in words how another one differs.

A `source` in `config.json` is

```
{"weights": digest of the model's weights,
 "domains": {name: {"class_names": [...], "content": {class: [number of images, digest]}}}}
```

where a class's digest covers whatever decides its images and their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mdtrap_jax import config as settings

_LISTED = 5  # changes of a source, in one message


def describe(class_names: Sequence[str], labels: np.ndarray, digest: str) -> dict[str, Any]:
  """A domain that is known by one digest as a whole.

  Args:
    class_names: of the domain.
    labels: `[n]` into them; negative ones are left out.
    digest: of all images or features.
  """
  content = {}
  for label, name in enumerate(class_names):
    index = np.flatnonzero(labels == label).astype(np.int64)
    own = hashlib.sha256(digest.encode() + index.tobytes()).hexdigest()
    content[name] = [len(index), own]
  return {"class_names": list(class_names), "content": content}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
  """Why two `config.json` are of runs that would compute something else, or nothing."""
  plain = lambda config: {name: value for name, value in config.items() if name != "source"}
  changed = source_changes(here.get("source"), there.get("source"))
  if len(changed) > _LISTED:
    changed = [*changed[:_LISTED], f"and {len(changed) - _LISTED} more"]
  return settings.differences(plain(here), plain(there)) + changed


def source_changes(here: Any, there: Any) -> list[str]:
  """How two sources differ, `there` before and `here` now, a clause for each change."""
  if here == there:
    return []
  old, new = _domains(there), _domains(here)
  if old is None or new is None:
    return ["the images or weights are others"]
  changed = []
  if here.get("weights") != there.get("weights"):
    short = lambda source: str(source.get("weights"))[:8]
    changed.append(f"the weights were replaced: {short(there)} there, {short(here)} here")
  for name in dict.fromkeys([*old, *new]):
    if name not in old or name not in new:
      changed.append(f"domain {name}: only {'there' if name in old else 'here'}")
    else:
      changed += (f"{name}: {change}" for change in _class_changes(new[name], old[name]))
  return changed or ["the images or weights are others"]


def data_of(source: Any, domain: str | None = None) -> Any:
  """What two runs must have in common for their indices to mean the same images.

  Args:
    source: of `config.json`.
    domain: one of several, or all.

  Returns:
    Something to compare; `None` where the images are not known by their content.
  """
  domains = _domains(source)
  if not domains or (domain is not None and domain not in domains):
    return None
  return list(domains.values()) if domain is None else [domains[domain]]


def _domains(source: Any) -> dict[str, Any] | None:
  """The domains of a source that is as it should be."""
  try:
    domains = source["domains"]
    for domain in domains.values():
      list(domain["class_names"])
      for count, digest in domain["content"].values():
        str(digest), int(count)
    return domains
  except (TypeError, KeyError, ValueError, AttributeError):
    return None


def _class_changes(here: dict[str, Any], there: dict[str, Any]) -> Iterator[str]:
  new, old = here["content"], there["content"]
  gone = [name for name in old if name not in new]
  added = [name for name in new if name not in old]
  for name in list(gone):
    if renamed := [other for other in added if new[other] == old[name]]:
      yield f"class {name} is called {renamed[0]} here"
      gone.remove(name)
      added.remove(renamed[0])
  yield from (f"class {name}: {old[name][0]} images there, none here" for name in gone)
  yield from (f"class {name}: none there, {new[name][0]} images here" for name in added)
  changed = [name for name in old if name in new and old[name] != new[name]]
  while changed:
    name = changed.pop(0)
    swapped = [o for o in changed if new[o] == old[name] and new[name] == old[o]]
    if swapped:
      changed.remove(swapped[0])
      yield f"classes {name} and {swapped[0]} exchanged their images"
    elif old[name][0] != new[name][0]:
      yield f"class {name}: {old[name][0]} images there, {new[name][0]} here"
    else:
      yield f"class {name}: {old[name][0]} images, but not the same ones"
  if here["class_names"] != there["class_names"] and sorted(new) == sorted(old):
    if sorted(here["class_names"]) == sorted(there["class_names"]):
      yield "the classes are in another order"
    else:
      yield f"class names: {there['class_names']} there, {here['class_names']} here"
