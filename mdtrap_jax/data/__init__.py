"""Sources of labeled images, episodes drawn from them, and their views on the device."""
