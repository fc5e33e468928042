"""Recordings of the reference implementations, replayed in float64."""

import jax
import numpy as np
import pytest
import torch

from benchmarks import heads_torch
from tests.paths import GOLDEN
from tests.replay.heads import FEATURES, known_of, replay


@pytest.mark.parametrize("name", ["copa_linear", "copa_linear_mnist", "copa_transformer", "url_pa"])
def test_recordings_replay(name):
  with jax.enable_x64(True):
    checks = replay(GOLDEN / f"{name}.npz")
  assert checks
  assert [str(check) for check in checks if not check.ok] == []


@pytest.mark.parametrize("domain", ["isic", "cropdisease"])
def test_real_features_replay(domain):
  if not any(GOLDEN.glob(FEATURES)):
    pytest.skip(f"tests/golden/{FEATURES}, real features of 2 MB, is not part of the repository")
  with jax.enable_x64(True):
    checks = replay(GOLDEN / f"copa_real_{domain}_5shot.npz")
  assert [str(check) for check in checks if not check.ok] == []


def test_a_wrong_number_fails(tmp_path):
  with np.load(GOLDEN / "url_pa.npz") as file:
    arrays = dict(file)
  arrays["head_final"] = arrays["head_final"] + 1e-6
  np.savez(tmp_path / "off.npz", **arrays)
  with jax.enable_x64(True):
    failed = [check.name for check in replay(tmp_path / "off.npz") if not check.ok]
  assert failed == ["head_final"]


def record(path, dataset, rate, l2, *, ways=3, width=8, steps=4):
  """A recording of other sizes, by a plain PyTorch loop in float64."""
  rng = np.random.default_rng(5)
  draw = lambda count: (rng.standard_normal((count, width)), np.arange(count) % ways)
  arrays = dict(
    zip(
      ("support", "support_labels", "query", "query_labels"),
      (*draw(2 * ways + 1), *draw(4 * ways)),
      strict=True,
    )
  )
  support, labels, query, query_labels = map(torch.as_tensor, arrays.values())
  means = heads_torch.class_means(support, labels)
  heads = [torch.eye(width, dtype=torch.float64).requires_grad_(True) for _ in range(2)]
  optimizer = torch.optim.Adam(heads, lr=rate, weight_decay=l2)
  loss = lambda rows, own: heads_torch.symmetric_loss(rows @ heads[0].T, means @ heads[1].T, own)
  train, validation = [], [loss(query, query_labels).item()]
  for _ in range(steps):
    optimizer.zero_grad()
    value = loss(support, labels)
    value.backward()
    optimizer.step()
    train.append(value.item())
    validation.append(loss(query, query_labels).item())
  final = {
    f"head_{part}_final": head.detach().numpy()
    for part, head in zip(("image", "proto"), heads, strict=True)
  }
  np.savez(path, **arrays, **final, train_losses=train, val_losses=validation, dataset=dataset)


@pytest.mark.parametrize(
  ("dataset", "rate", "l2"), [("traffic_sign", 5e-3, 0.0), ("aircraft", 1e-3, 0.1)]
)
def test_recordings_of_other_sizes_and_data_sets_replay(dataset, rate, l2, tmp_path):
  record(tmp_path / "other.npz", dataset, rate, l2)
  with jax.enable_x64(True):
    checks = replay(tmp_path / "other.npz")
  assert {check.name for check in checks} == {
    "train_losses",
    "val_losses",
    "head_image_final",
    "head_proto_final",
  }
  assert [str(check) for check in checks if not check.ok] == []


@pytest.mark.parametrize(
  ("name", "labels", "arrays", "known"),
  [
    ("url", [0, 1, 1], {}, {"seen": True}),
    ("url", [0, 1, 1], {"dataset": "omniglot"}, {"domain": "omniglot", "seen": True}),
    (
      "url",
      [0, 1, 1],
      {"dataset": "isic", "lr_head": 0.3},
      {"domain": "isic", "learning_rate": 0.3},
    ),
    (
      "url_tsa",
      [0, 1, 1],
      {"dataset": "isic", "lr_adapters": 0.2},
      {"domain": "isic", "adapter_ratio": 0.2},
    ),
    (
      "url_tsa",
      [0, 1, 1],
      {"lr_head": 0.5, "lr_adapters": 0.1},
      {"seen": True, "learning_rate": 0.5, "adapter_ratio": 0.2},
    ),
    (
      "copa_tsa",
      [0, 1, 2, 3, 4],
      {"dataset": "mnist"},
      {"domain": "mnist", "ways": 5, "one_shot": True},
    ),
    ("copa_tsa", [0, 0, 1, 2, 3, 4], {"dataset": "mnist"}, {"domain": "mnist", "ways": 5}),
  ],
)
def test_rates_follow_from_what_a_recording_names(name, labels, arrays, known):
  recorded = {key: np.array(value) for key, value in arrays.items()}
  found = known_of(recorded | {"support_labels": np.array(labels)}, name)
  assert found == {"ways": 2, "domain": "", "seen": False, "one_shot": False} | known
