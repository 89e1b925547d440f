"""Engines run a model on a device: in PyTorch (the reference), compiled, in 8 bits, or in OpenVINO."""
