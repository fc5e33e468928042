import pytest

from tests.data.folders import write_tree


@pytest.fixture
def folder(tmp_path):
  """Three classes with 3, 2 and 1 images."""
  counts = {"cat": 3, "bird": 2, "ant_hill": 1}
  return write_tree(
    tmp_path, *(f"{n}/{i}.png" for n, count in counts.items() for i in range(count))
  )
