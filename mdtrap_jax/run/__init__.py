"""From groups of tasks to finished lines: programs, placement, files, processes."""
