"""Task pipelines: images and texts in, results out. One file per task, each with three steps.

`preprocess` turns an input into pixels and token ids, `forward` runs the model on a batch, and `postprocess`
turns the output into results. `run` does all three for many inputs.
"""
