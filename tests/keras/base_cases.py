"""Inputs of the comparison at base size. Free of frameworks."""

from __future__ import annotations

import numpy as np

BEAMS = (1, 2, 3, 4)
NEW_TOKENS = 8
SEP = 102

_random = np.random.RandomState(3)
PIXELS = _random.standard_normal((2, 3, 384, 384)).astype(np.float32)
QUESTIONS = _random.randint(1000, 30000, (2, 7)).astype(np.int64)
