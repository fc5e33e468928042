"""The options of `mdtrap fit`, `predict`, `evaluate` and `export`; quick to import."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add(command_of: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds the commands.

  Args:
    command_of: makes one from a name, what does it, and a purpose.
  """
  data = "a folder with one subfolder of images per class, or a CSV with the columns file,label"
  labels = "a CSV with the columns file,label; its files are in the folder DATA"
  command = command_of("fit", _command("fit"), "adapt a model to one's own labeled images")
  command.add_argument("data", metavar="DATA", help=data)
  command.add_argument("--out", required=True, metavar="MODEL", help="folder of the result")
  command.add_argument(
    "--model", default="openai/clip-vit-base-patch16", metavar="NAME",
    help="hub name, named size (`mdtrap models`), folder or file, also of a LoRA adapter of peft; "
    "%(default)s if not given",
  )  # fmt: skip
  command.add_argument(
    "--method", default="svl_ra", metavar="NAME",
    help="zero_shot; on frozen features ncc, url, copa, knn, ridge, logistic, mahalanobis, "
    "tip_adapter, tip_adapter_f, clip_adapter, taskres, lp_plus_plus, clap, prolip, tim, tim_gd, "
    "laplacian_shot; vlm, svl, ra, svl_ra by fine-tuning; %(default)s if not given",
  )  # fmt: skip
  command.add_argument(
    "--tune", metavar="NAME", help="what fine-tuning trains: lora (if not given), coop, …"
  )
  command.add_argument("--steps", type=int, metavar="N", help="the papers' if not given")
  command.add_argument("--labels", metavar="CSV", help=labels)
  command.add_argument("--names", metavar="CSV", help="columns folder,name: names in prompts")
  command.add_argument("--templates", metavar="TXT", help="prompts, one a line, {} the class")
  command.add_argument(
    "--folds", type=int, metavar="K", help="first say how good it is, by K-fold cross-validation"
  )
  command.add_argument(
    "--repeats", type=int, default=1, metavar="N", help="of the folds, images dealt out otherwise"
  )
  command.add_argument("--seed", type=int, default=0, metavar="N", help="0 if not given")
  command.add_argument("--force", action="store_true", help="replace a model that was saved there")

  elsewhere = "where the base model lies, if not where it was"
  command = command_of(
    "predict", _command("predict"), "classify images with a model of `mdtrap fit`"
  )
  command.add_argument("model_folder", metavar="MODEL", help="folder of `mdtrap fit --out`")
  command.add_argument(
    "images", nargs="+", metavar="IMAGES", help="files, folders, patterns, or a .txt of files"
  )
  command.add_argument("--csv", required=True, metavar="FILE", help="where predictions go")
  command.add_argument("--json", action="store_true", help="a JSON object a line instead of CSV")
  command.add_argument("--top", type=int, metavar="K", help="only the K likeliest classes")
  command.add_argument("--strict", action="store_true", help="end at an image that cannot be read")
  command.add_argument("--model", metavar="NAME", help=elsewhere)
  command.add_argument("--force", action="store_true", help="replace FILE")

  command = command_of(
    "evaluate", _command("evaluate"), "say how good a model is on labeled images"
  )
  command.add_argument("model_folder", metavar="MODEL", help="folder of `mdtrap fit --out`")
  command.add_argument("data", metavar="DATA", help=data)
  command.add_argument("--out", required=True, metavar="DIR", help="where tables and figures go")
  command.add_argument("--labels", metavar="CSV", help=labels)
  command.add_argument("--model", metavar="NAME", help=elsewhere)
  command.add_argument("--force", action="store_true", help="write into a folder that is not empty")

  command = command_of(
    "export", _command("export"), "write a model of `mdtrap fit` for other libraries"
  )
  command.add_argument("model_folder", metavar="MODEL", help="folder of `mdtrap fit --out`")
  command.add_argument(
    "--format", required=True, choices=("peft", "hf"),
    help="peft: the adapter; hf: a whole model for transformers, the adapter merged in",
  )  # fmt: skip
  command.add_argument("--out", required=True, metavar="DIR", help="a new folder")
  command.add_argument("--model", metavar="NAME", help=elsewhere)


def _command(name: str) -> Callable[[argparse.Namespace], int]:
  """A command for one's own images, imported when it is called."""

  def action(options: argparse.Namespace) -> int:
    from mdtrap_jax.classifier import commands

    return getattr(commands, name)(options)

  return action
