"""What a user would write otherwise: PyTorch, transformers' CLIP, LoRA by peft, one episode.

The same work as the library's step: all views, a clean pass with masks of its own while RA is
on, cross-entropy + SVL + RA, AdamW. Views are random numbers, made once, as the library's are.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

SIZES = {
  "clip-vit-b16": {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "projection_dim": 512,
  },
  "clip-tiny": {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "projection_dim": 32,
  },
}
WAYS, VIEWS, QUERIES, SCALE = 5, 5, 15, 100.0


def make_model(name: str, device: str) -> torch.nn.Module:
  """CLIP's image tower with frozen random weights and adapters on q, k and v."""
  base = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES[name], attn_implementation="sdpa"))
  adapters = LoraConfig(
    r=16,
    lora_alpha=8,
    use_rslora=True,
    lora_dropout=0.25,
    target_modules=["q_proj", "k_proj", "v_proj"],
  )
  return get_peft_model(base, adapters).to(device)


def objective(image, clean, text, labels, clean_labels, relation, share):
  """Cross-entropy + SVL + RA; returns the loss and the relation to remember."""
  z = torch.nn.functional.normalize(image, dim=-1)
  cross_entropy = torch.nn.functional.cross_entropy
  loss = cross_entropy(SCALE * z @ text.T, labels)
  if clean is None:
    return loss, None
  drawn = torch.randint(len(image), (WAYS,), device=image.device)
  loss = loss + 0.1 * cross_entropy(SCALE * z @ z[drawn].T, labels)
  now = z @ torch.nn.functional.normalize(clean, dim=-1).T
  textual = (text @ text.T)[labels][:, clean_labels]
  target = share * relation + (1 - share) * textual if relation is not None else textual
  loss = loss + 3.0 * (target.exp() * (target - now)).mean()
  return loss, now.detach()


def measure(arguments: argparse.Namespace) -> dict:
  """Times steps with and without the clean pass, and the classification of the queries."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  model = make_model(arguments.model, device)
  size = SIZES[arguments.model]["image_size"]
  support = WAYS * arguments.shots
  images = torch.randn(VIEWS * support, 3, size, size, device=device)
  queries = torch.randn(WAYS * QUERIES, 3, size, size, device=device)
  clean_labels = torch.arange(WAYS, device=device).repeat_interleave(arguments.shots)
  labels = clean_labels.repeat(VIEWS)
  width = SIZES[arguments.model]["projection_dim"]
  text = torch.nn.functional.normalize(torch.randn(WAYS, width, device=device), dim=-1)
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=1e-2)
  encode = lambda pixels: model(pixel_values=pixels).image_embeds
  if arguments.side == "compiled":
    encode = torch.compile(encode)
  autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

  def step(clean: bool, relation):
    with autocast:
      image = encode(images)
      again = encode(images[:support]) if clean else None
    again = again.float() if clean else None
    loss, relation = objective(image.float(), again, text, labels, clean_labels, relation, 0.5)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return relation

  @torch.no_grad()
  def evaluate():
    with autocast:
      return (encode(queries).float() @ text.T).argmax(-1)

  def timed(call) -> float:
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started

  model.train()
  first = timed(lambda: step(True, step(False, None)))
  median = lambda clean: sorted(timed(lambda: step(clean, None)) for _ in range(arguments.steps))[
    arguments.steps // 2
  ]
  seconds = {"clean step": median(True), "step": median(False)}
  model.eval()
  timed(evaluate)
  seconds["evaluate"] = timed(evaluate)
  steps = 250 * arguments.shots
  peak = (
    torch.cuda.max_memory_allocated()
    if device == "cuda"
    else (1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
  )
  return {
    "side": arguments.side,
    "seconds": seconds,
    "schedule_seconds": steps * (0.6 * seconds["clean step"] + 0.4 * seconds["step"])
    + 6 * seconds["evaluate"],
    "first_seconds": first,
    "peak_memory_bytes": peak,
    "device": device,
    "threads": torch.get_num_threads(),
    "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
  }


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--side", default="eager", choices=("eager", "compiled"))
  parser.add_argument("--model", default="clip-vit-b16", choices=sorted(SIZES))
  parser.add_argument("--shots", type=int, default=1)
  parser.add_argument("--steps", type=int, default=3)
  print(json.dumps(measure(parser.parse_args()), indent=2))
