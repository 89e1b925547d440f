"""OpenBLIP: BLIP (Li et al. 2022) in full."""

__version__ = "0.1.0"
