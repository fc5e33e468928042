"""The domains of a run of heads: entries of `config.domains` as images or stored features.

An entry is `NAME`, a source or a set in the file of features; `NAME=FOLDER`, images in one
subfolder per class; `world/LOOK`, generated images; or `meta/NAME`, records of Meta-Dataset.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from mdtrap_jax.data.class_selection import keep_classes
from mdtrap_jax.data.feature_files import read_features
from mdtrap_jax.data.feature_set import FeatureSet
from mdtrap_jax.data.meta_dataset import RecordSource
from mdtrap_jax.data.source import Source
from mdtrap_jax.data.sources import make_source
from mdtrap_jax.files import check_name

WORLD, META = "world/", "meta/"


def domain_name(entry: str) -> str:
  """What an entry is called in tables and files; `meta/mnist` is the published `mnist`.

  Raises:
    ValueError: the name would lead out of the folders of which it becomes a part.
  """
  name, given, _ = entry.partition("=")
  for prefix in (WORLD, META):
    if name.startswith(prefix):
      if given:
        raise ValueError(
          f"config.domains: {entry!r} gives a folder to a name that begins with {prefix!r}; "
          "write NAME=FOLDER with a plain name."
        )
      check_name(name.removeprefix(prefix), f"config.domains, {entry!r}")
      return name.removeprefix(META)
  return check_name(name, f"config.domains, {entry!r}")


def open_domain(config: Any, entry: str) -> FeatureSet | Source:
  """The labels of a domain, with its features or with the images to make them of.

  Args:
    config: of `configs/copa.py`.
    entry: one of its `domains`.

  Raises:
    ValueError, FileNotFoundError: there is no such domain, or it is not as it should be; or its
      name cannot be one.
  """
  domain_name(entry)  # checked before anything is opened
  if config.data.features:
    return read_features(config.data.features, domain_name(entry))
  if entry.startswith(META):
    source = RecordSource(config.data.records, domain_name(entry), config.data.records_split)
    kept = keep_classes(source, tuple(config.data.classes))
    kept.align_corners = True  # also of a subset; which has no hierarchy: its labels are others
    return kept
  name, _, folder = entry.partition("=")
  data = ml_collections.ConfigDict(config.data.to_dict())
  data.name, data.path, data.domain = ("folder", folder, "") if "=" in entry else (name, "", "")
  if name.startswith(WORLD):
    data.name, data.domain = "world", name.removeprefix(WORLD)
    data.severity = 0.0 if data.domain == "source" else data.severity  # it has no other
  elif name == "world":
    raise ValueError(
      "config.domains: of the generated world, name a look, as in 'world/satellite'."
    )
  elif name == "fsl":
    raise ValueError(
      "config.domains: 'fsl' is for fine-tuning, configs/fsl.py; give a folder, as NAME=FOLDER."
    )
  return make_source(data)
