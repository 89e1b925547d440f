"""Evaluators: how the items of each task are predicted, scored and shown. One file per task."""
