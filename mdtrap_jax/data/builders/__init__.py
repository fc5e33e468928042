"""TFDS builders of the target domains that TFDS itself does not have."""
