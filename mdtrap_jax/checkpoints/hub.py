"""Weights of the Hugging Face hub: from the network, or from what an earlier download left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

PATIENCE = 3.0  # seconds for the hub's first answer


def fetch(name: str, choose: Callable[[Sequence[str]], list[str]]) -> Path:
  """The folder of a repository's files, downloaded as far as they are not in the local cache.

  Where the hub cannot be reached, what an earlier download left is used at once.

  Args:
    name: of the repository.
    choose: from the names of all its files to patterns of those to download; empty if it has
      no weights.

  Raises:
    FileNotFoundError: no such repository, or no network and nothing in the cache.
  """
  import huggingface_hub  # slow to import
  from huggingface_hub import errors

  try:
    # One question without retries: a machine without a network waits for nothing.
    info = huggingface_hub.HfApi().model_info(name, timeout=PATIENCE)
    patterns = choose([file.rfilename for file in info.siblings or []])
    if not patterns:
      raise FileNotFoundError(f"{name} on the hub has no weights file of a known format.")
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
  except errors.GatedRepoError as error:
    raise FileNotFoundError(
      f"{name} is given only to those who accept its license: do so on its page on "
      "huggingface.co, then run `hf auth login`."
    ) from error
  except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
    raise FileNotFoundError(
      f"{name}: neither a local file or folder nor a repository on the Hugging Face hub."
    ) from error
  except FileNotFoundError:
    raise
  except Exception as error:  # of requests, httpx or httpx2, as huggingface_hub's version has it
    folder = cached(name)
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if folder is None:
      raise FileNotFoundError(
        f"{name} is not in the local cache and the Hugging Face hub cannot be reached "
        f"({reason}). Connect to a network once, or download the repository elsewhere and give "
        "its folder instead of its name."
      ) from error
    logging.warning(
      "The Hugging Face hub cannot be reached (%s): the copy of %s in %s is used.",
      reason,
      name,
      folder,
    )
    return folder


def cached(name: str) -> Path | None:
  """The folder of an earlier download; asks no network."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
  except (errors.LocalEntryNotFoundError, errors.HFValidationError):
    return None
