"""Jobs: commands over many images that write their results and can be stopped and resumed.

A job has items, an annotator that computes their records, and a sink that stores them. Nothing here imports torch, so
that a finished job returns without loading a model. See `docs/jobs.md`.
"""
