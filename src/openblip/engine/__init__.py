"""How a model runs. ``torch`` is the reference; every engine offers what ``eager.EagerEngine`` does."""
