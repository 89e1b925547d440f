"""Training data: where records come from, how pictures are augmented, how batches are made."""
