"""Comparisons: what is a run, what is paired, and what it looks like."""

import json

import numpy as np
import pytest

from mdtrap_jax.report import comparison
from mdtrap_jax.run import claim

ROW = {
  "status": "ok",
  "accuracy": 0.5,
  "accuracy_at": {},
  "zero_shot_accuracy": 0.25,
  "class_names": ["crow", "gull"],
  "support": [[1], [2]],
  "query": [[3], [4]],
}


def domain(**content):
  return {"class_names": list(content), "content": content}


def write_run(folder, rows, domains=None, seed=0, marked=True):
  """A run's files, with an accuracy or whole fields for each episode."""
  if marked:
    claim.claim(folder)
  folder.mkdir(parents=True, exist_ok=True)
  domains = {"birds": domain(crow=[9, "c"], gull=[9, "g"])} if domains is None else domains
  config = {"seed": seed, "source": {"weights": folder.name, "domains": domains}}
  (folder / "config.json").write_text(json.dumps(config))
  fields = lambda row: row if isinstance(row, dict) else {"accuracy": row}
  (folder / "episodes.jsonl").write_text(
    "".join(json.dumps({"episode": i} | ROW | fields(row)) + "\n" for i, row in enumerate(rows))
  )
  return folder


def report(paths, form="text"):
  return comparison.FORMATS[form](comparison.compare(comparison.find_runs(paths)))


def test_paired_differences_by_hand(tmp_path):
  first = write_run(tmp_path / "a", [0.1, 0.2, {"status": "non-finite", "accuracy": None}, 0.5])
  second = write_run(tmp_path / "b", [0.2, 0.5, 0.3])
  ours, theirs = comparison.compare([first, second])
  assert (ours.name, ours.episodes, ours.failed, ours.difference) == ("a", 4, 1, None)
  assert (theirs.episodes, theirs.failed, theirs.difference.episodes) == (3, 0, 2)
  np.testing.assert_allclose(theirs.difference.mean, 0.2)
  np.testing.assert_allclose(theirs.accuracy.mean, 1 / 3)


@pytest.mark.parametrize(
  "other",
  [
    {"domains": {"birds": domain(crow=[9, "c"], gull=[9, "other"])}},
    {"domains": {"birds": domain(crow=[9, "c"], gull=[8, "g"])}},
    {"domains": {"birds": domain(gull=[9, "g"], crow=[9, "c"])}},
    {"domains": {}},
    {"seed": 1},
    {"rows": [{"support": [[1], [5]]}]},
    {"rows": [{"query": [[3], [5]]}]},
    {"rows": [{"class_names": ["gull", "crow"]}]},
    {"rows": [{"episode": 1}]},
  ],
)
def test_episodes_of_other_data_are_not_paired(tmp_path, other):
  first = write_run(tmp_path / "a", [0.5])
  row = comparison.compare([first, write_run(tmp_path / "b", **{"rows": [0.5]} | other)])[1]
  assert row.difference.episodes == 0
  assert comparison.format_text([row]).splitlines()[1].split()[-2:] == ["–", "0"]


def test_the_name_of_the_data_and_the_weights_make_no_difference(tmp_path):
  first = write_run(tmp_path / "a", [0.5])
  moved = {"/disk/birds": domain(crow=[9, "c"], gull=[9, "g"])}
  rows = comparison.compare([first, write_run(tmp_path / "b", [0.5], moved)])
  assert rows[1].difference.episodes == 1


def test_runs_whose_images_are_unknown_are_not_paired(tmp_path):
  runs = [write_run(tmp_path / name, [0.5], {"birds": {"images": 3}}) for name in "ab"]
  assert comparison.compare(runs)[1].difference.episodes == 0
  for run in runs:
    (run / "config.json").unlink()
  assert comparison.compare(runs)[1].difference.episodes == 0


def test_domains_have_a_row_each(tmp_path):
  domains = {"x": domain(crow=[9, "c"]), "y": domain(gull=[9, "g"])}
  slots = lambda *accuracies: [
    {"domain": d, "seed": s, "task": t, "accuracy": a}
    for (d, s, t), a in zip([("x", 1, 0), ("x", 2, 0), ("y", 1, 0)], accuracies, strict=True)
  ]
  first = write_run(tmp_path / "a", slots(0.1, 0.2, 0.3), domains)
  # Fewer domains: the same tasks have other numbers.
  renumbered = [row | {"episode": 7 - i} for i, row in enumerate(slots(0.2, 0.4, 0.3)[:2])]
  changed = domains | {"y": domain(gull=[9, "other"])}
  second = write_run(tmp_path / "b", [*renumbered, slots(0, 0, 0.9)[2]], changed)
  rows = comparison.compare([first, second])
  assert [(row.name, row.domain, row.episodes) for row in rows] == [
    ("a", "x", 2), ("a", "y", 1), ("b", "y", 1), ("b", "x", 2),
  ]  # fmt: skip
  found = {row.domain: row.difference for row in rows[2:]}
  assert (found["x"].episodes, found["y"].episodes) == (2, 0)
  np.testing.assert_allclose(found["x"].mean, 0.15)
  assert comparison.format_text(rows).splitlines()[0].split()[:3] == ["run", "tested", "on"]


def test_examinations_have_a_row_each(tmp_path):
  """What a run on all classes is tested on; of one thing alone its lines are as any others."""
  several = lambda *each: [
    {"accuracy": base, "tests": {name: {"accuracy": accuracy, "zero_shot_accuracy": 0.1 * base}
                                 for name, accuracy in (("base", base), ("new", new))}}
    for base, new in each
  ]  # fmt: skip
  first = write_run(tmp_path / "a", several((0.5, 0.3), (0.7, 0.2)))
  second = write_run(tmp_path / "b", [*several((0.6, 0.2), (0.8, 0.4)), {"status": "non-finite"}])
  other = write_run(tmp_path / "c", [{"accuracy": 0.9, "tests": {"test": {"accuracy": 0.9}}}])
  rows = comparison.compare([first, second, other])
  assert [(row.name, row.domain, row.episodes, row.failed) for row in rows] == [
    ("a", "base", 2, 0), ("a", "new", 2, 0), ("b", "base", 3, 1), ("b", "new", 3, 1),
    ("c", None, 1, 0),
  ]  # fmt: skip
  means = [row.accuracy.mean for row in rows]
  np.testing.assert_allclose(means, [0.6, 0.25, 0.7, 0.3, 0.9])
  np.testing.assert_allclose(rows[1].zero_shot.mean, 0.06)
  np.testing.assert_allclose([row.difference.mean for row in rows[2:4]], [0.1, 0.05])
  assert rows[4].difference.episodes == 0


def test_processes_and_snapshots_are_no_runs_of_their_own(tmp_path):
  run = write_run(tmp_path / "runs" / "one", [0.5])
  old = write_run(tmp_path / "runs" / "old", [0.5], marked=False)
  write_run(old / "process-1", [0.5], marked=False)
  for inside in ("process-1", "process-1/vlm", "snapshots/a", "events", "figures/a"):
    write_run(run / inside, [0.5], marked=False)
  variant = write_run(tmp_path / "runs" / "two" / "vlm", [0.5])
  other = write_run(tmp_path / "process-2", [0.5])  # not in a run: the user's own name
  assert comparison.find_runs([tmp_path]) == [other, old, run, variant]
  assert comparison.find_runs([variant, tmp_path / "runs"]) == [variant, old, run]
  with pytest.raises(FileNotFoundError, match="holds no episodes.jsonl"):
    comparison.find_runs([tmp_path / "c"])


def test_a_repeated_line_counts_once(tmp_path):
  run = write_run(tmp_path / "a", [0.5, {"episode": 0}])
  (row,) = comparison.compare([run])
  assert (row.episodes, row.failed) == (1, 0)
  assert row.accuracy.points() == "50.00 ± –"


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
def test_damaged_files_are_one_line(tmp_path, text):
  run = write_run(tmp_path / "a", [0.5])
  (run / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"config\.json is damaged") as caught:
    report([tmp_path])
  assert "\n" not in str(caught.value)
  write_run(tmp_path / "a", [0.5])
  (run / "episodes.jsonl").write_text("5\n")
  with pytest.raises(ValueError, match=r"episodes\.jsonl, line 1, is no episode"):
    report([tmp_path])


def test_names_of_any_kind_keep_the_table(tmp_path):
  name = "=cmd|'<b>'"
  write_run(tmp_path / "a", [0.1, 0.3])
  write_run(tmp_path / name, [0.2, 0.3])
  markdown = report([tmp_path / "a", tmp_path], "markdown")
  assert markdown.splitlines()[3].startswith(r"| =cmd\|'&lt;b&gt;' |")
  header, first, second = report([tmp_path / "a", tmp_path], "csv").splitlines()
  assert header.startswith("run,episodes,failed,zero_shot_mean,zero_shot_ci95,accuracy_mean")
  assert first.startswith("a,2,0,0.25,0.0,0.2,")
  assert first.endswith(",,,,")
  assert second.startswith("'=cmd|'<b>',2,0,0.25,")
  assert second.split(",")[7].startswith("0.05")


def test_nearest_class_means_have_a_column_where_runs_were_diagnosed(tmp_path):
  write_run(tmp_path / "a", [{"ncc_accuracy_before": 0.25}, {"ncc_accuracy_before": 0.75}])
  write_run(tmp_path / "b", [0.5, 0.5])
  header, first, second = report([tmp_path]).splitlines()
  assert header.index("zero-shot (%)") < header.index("NCC (%)") < header.index("adapted (%)")
  # 25 and 75 %: ± 1.96 · 25 / √2.
  assert first.split()[6:9] == ["50.00", "±", "34.65"]
  assert second.split()[6] == "–"
  assert "NCC" not in report([tmp_path / "b"])
