"""Preprocessing: images, text and videos to the inputs of the model."""
