"""Few-shot heads on frozen features: NCC, URL, CoPA and task-specific adapters."""
