"""Models that are published in similar ways but are not of our families, known by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_VIT = "Use a CLIP with a vision transformer, such as openai/clip-vit-base-patch16."


class Foreign(NamedTuple):
  """A kind of model, and the arrays that tell it."""

  what: str
  remedy: str
  has: tuple[str, ...]  # regular expressions of whole names, all of which occur
  lacks: str = "(?!)"  # and of one that does not


FOREIGN = (
  Foreign(
    "an encoder beside LoRA adapters that are not merged into it",
    "Merge them first, with `merge_and_unload()` of PEFT, and save the whole model.",
    (r"(.*\.)?lora_(embedding_)?[AB](\..*)?",),
  ),
  Foreign(
    "a CLIP whose image encoder is a ResNet (RN50, RN101 and their kind)",
    _VIT,
    (r"visual\.(attnpool|layer1\.0)\..*",),
  ),
  Foreign(
    "an open_clip model whose text encoder is a BERT or another of Hugging Face's transformers "
    "(BiomedCLIP and its kind)",
    _VIT,
    (r"text\.transformer\.(embeddings|encoder|shared)\..*",),
  ),
  Foreign(
    "a SigLIP in the layout of timm and open_clip",
    "Use the same model from Hugging Face or big_vision, such as google/siglip-base-patch16-224.",
    (r"visual\.trunk\..*", "logit_bias"),
  ),
  Foreign(
    "an open_clip model whose image encoder is another one of timm's (ConvNeXt, EVA, ViT, …)",
    _VIT,
    (r"visual\.trunk\..*",),
    r"visual\.trunk\.attn_pool\..*",
  ),
  Foreign("an EVA-CLIP", _VIT, (r"visual\.blocks\..*",)),
  Foreign("a CoCa, a captioning model", _VIT, (r"(text|multimodal)_decoder\..*",)),
  Foreign(
    "a ResNet without a text encoder",
    "URL's ResNet-18 is read for heads (model.name=resnet18, its file as "
    "features.checkpoint); all else needs a checkpoint with both encoders.",
    (r"(.*\.)?layer1\.0\.conv1\.weight",),
  ),
  Foreign(
    "a single encoder (a ViT, DINO or BERT of timm or Hugging Face)",
    "Give a checkpoint with both encoders, such as openai/clip-vit-base-patch16.",
    (r"(blocks|layers?|encoder\.layers?)\.0\..*",),
    r"(text|txt|visual|vision)(_model)?\..*",
  ),
)


def find_foreign(names: Iterable[str]) -> Foreign | None:
  """What kind of foreign model has these names; `None` if it is none of those known."""
  names = list(names)
  has = lambda pattern: any(map(re.compile(pattern).fullmatch, names))
  return next((f for f in FOREIGN if all(map(has, f.has)) and not has(f.lacks)), None)
