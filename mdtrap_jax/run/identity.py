"""What a run was made of, and in words how another one differs.

A `source` in `config.json` is

```
{"weights": digest of the model's weights,
 "domains": {name: {"class_names": [...], "content": {class: [number of images, digest]}}}}
```

where a class's digest covers whatever decides its images and their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdtrap_jax import config as settings
from mdtrap_jax.data.content import describe_changes

_LISTED = 5  # changes of a source, in one message


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
      changes = describe_changes(old[name]["content"], new[name]["content"])
      if not changes and old[name] != new[name]:
        changes = [
          f"class names: {old[name]['class_names']} there, {new[name]['class_names']} here"
        ]
      changed += (f"{name}: {change}" for change in changes)
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
