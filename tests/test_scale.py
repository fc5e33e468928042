"""The table of machines, by hand from the compiler's cycles and a card's seconds."""

from pathlib import Path

import pytest

from benchmarks import scale


def test_an_episode_takes_the_cycles_that_the_compiler_estimates():
  v5e = scale.machines(scale.CLIP)["v5e-1"]
  cycles = 150 * 29.0e6 + 100 * 29.0e6 * 25 / 30 + 6 * 29.0e6
  assert scale.episode_seconds(v5e, 1, 250) == pytest.approx(cycles / 1.5e9, rel=1e-6)
  five = 750 * 5 * 29.0e6 + 500 * 5 * 29.0e6 * 25 / 30 + 6 * 29.0e6
  assert scale.episode_seconds(v5e, 5, 1250) == pytest.approx(five / 1.5e9, rel=1e-6)
  short = 75 * 29.0e6 + 50 * 29.0e6 * 25 / 30 + 6 * 29.0e6  # ChestX
  hours = 800 * (3 * cycles + short) / 1.5e9 / 3600
  assert scale.estimate(v5e, 1).hours == pytest.approx(hours, rel=1e-6)


def test_chips_share_the_episodes_and_a_rest_costs_a_whole_turn():
  machines = scale.machines(scale.CLIP)
  alone, many = scale.estimate(machines["v5e-1"], 1), scale.estimate(machines["v5e-256"], 1)
  assert many.episodes_per_second == pytest.approx(256 * alone.episodes_per_second)
  assert many.hours == pytest.approx(alone.hours * 4 / 800)  # 800 / 256 is more than 3
  assert many.chip_hours == pytest.approx(256 * many.hours)
  assert alone.images_per_second == pytest.approx(80 * alone.episodes_per_second)


def test_memory_bounds_the_episodes_at_once():
  v5e = scale.machines(scale.CLIP)["v5e-1"]
  assert scale.estimate(v5e, 1).at_once == 11  # (14.4e9 - 0.16 GiB) / 1.19 GiB = 11.1
  assert scale.estimate(v5e, 5).at_once == 2


@pytest.mark.parametrize(("number", "evaluate"), [(1, 31.2e6), (2, 30.8e6)])
def test_each_backbone_takes_its_own_cycles(number, evaluate):
  machines = scale.machines(scale.BACKBONES[number])
  cycles = 150 * 31.4e6 + 100 * 31.4e6 * 25 / 30 + 6 * evaluate
  assert scale.episode_seconds(machines["v5e-1"], 1, 250) == pytest.approx(cycles / 1.5e9, rel=1e-6)
  assert not {"H100", "H200"} & set(machines)  # never measured


@pytest.mark.parametrize("card", ["H100", "H200"])
def test_an_episode_takes_the_seconds_measured_on_a_card(card):
  seconds = 150 * 8.42e-3 + 100 * 8.42e-3 * 25 / 30 + 6 * 6.56e-3
  found = scale.episode_seconds(scale.machines(scale.CLIP)[card], 1, 250)
  assert found == pytest.approx(seconds, rel=1e-6)


def test_the_docs_have_this_table():
  page = Path(__file__).parents[1] / "docs" / "devices.md"
  assert scale.table() in page.read_text(encoding="utf-8")
