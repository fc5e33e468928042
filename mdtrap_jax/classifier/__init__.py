"""A classifier of one's own images: the episodes' methods on one task."""
