"""Training: objectives, momentum features and what feeds them."""
