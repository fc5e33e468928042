"""What adapts a task: fine-tuning and heads; pure functions of one task."""
