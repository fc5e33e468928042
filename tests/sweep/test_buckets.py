"""A sweep in a bucket: the same states, claims by leases, tables as objects."""

import pytest

from mdtrap_jax.buckets import Bucket
from mdtrap_jax.run import lease
from mdtrap_jax.sweep import cells as cell_lists
from mdtrap_jax.sweep import launch, state, table
from mdtrap_jax.sweep import place as places
from tests.stores import upload
from tests.sweep.fabricated import fabricate, heads_sweep


@pytest.mark.usefixtures("quick")
def test_a_sweep_in_a_bucket(google, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(lease, "RENEWED", 0.1)
  monkeypatch.setattr(lease, "_LOOK", 0.05)
  cells = cell_lists.load(str(heads_sweep(tmp_path)), [("episodes", "2")])
  url = google.url("sweep")
  with pytest.raises(FileNotFoundError, match="holds no sweep"):
    places.found(url)
  place = places.claimed(url)
  assert places.claimed(f"{url}/") == places.found(url) == place
  ran, failing = [], [cells[1].name]

  def run(cell, workdir, held, asked, say):
    assert (workdir, held) == (f"{url}/{cell.name}", ())
    ran.append(cell.name)
    if cell.name in failing:
      return "out of memory"
    fabricate(tmp_path / "made", cell, [40, 60])
    upload(workdir, tmp_path / "made" / cell.name)
    return ""

  states = lambda: [state.state_of(place, cell).name for cell in cells]
  assert states() == ["open", "open"]
  with place.taken(cells[0]):
    assert states() == ["running", "open"]
    assert launch.run(cells, place, run) == failing
  assert "runs elsewhere" in capsys.readouterr().err
  assert states() == ["open", "failed"]
  failing.clear()
  assert launch.run(cells, place, run) == []
  assert ran == [cells[1].name, *(cell.name for cell in cells)]
  assert states() == ["done", "done"]
  assert state.table(place, cells).endswith("2 done of 2")
  found = table.entries(place.runs(), cells)
  assert [entry.accuracy.mean for entry in found] == [0.5, 0.5]
  assert table.write(place, found) == f"{url}/tables"
  assert Bucket(url).read("tables/table.csv").count(b"\n") == 3
  theirs = google.url("theirs")
  Bucket(theirs).write("thesis.tex", b"mine")
  with pytest.raises(ValueError, match="not empty and no sweep"):
    places.claimed(theirs)
  assert list(Bucket(theirs).find()) == ["thesis.tex"]
