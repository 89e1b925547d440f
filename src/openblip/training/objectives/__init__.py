"""One objective per task: its batch, its losses, and its quick evaluation during training."""
