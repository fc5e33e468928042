"""One's own images: `--config.data.path=DIR`, with one subfolder of images per class."""

from . import default


def get_config(method="svl_ra"):
  config = default.get_config(method)
  config.data.name = "folder"
  return config
