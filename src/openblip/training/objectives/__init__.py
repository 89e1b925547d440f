"""One file per objective; each is a module whose ``forward`` takes a batch and returns named losses."""
