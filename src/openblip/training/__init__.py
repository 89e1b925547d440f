"""Training: one loop for all tasks, objectives, distributed strategies, LoRA and run reports."""
