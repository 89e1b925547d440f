"""The monitor of `generate`: processors, criteria and streamers take part in each step, and outputs are recorded.

Shapes: R rows, L tokens so far, V vocabulary, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openblip.compat.transformers_api.processors import Criterion, Processor

States = tuple[Tensor, ...]


@dataclass
class Steps:
    """Outputs of each step.

    Attributes:
        scores: Scores (R, V) that tokens were chosen by.
        logits: Logits (R, V) of the model.
        hidden_states: Hidden states of each layer, each (R, t, D).
        attentions: Self-attention of each layer, each (R, H, t, L).
    """

    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    hidden_states: list[States] = field(default_factory=list)
    attentions: list[States] = field(default_factory=list)


class StepMonitor:
    """Applies processors and criteria, feeds a streamer, and records steps; see `openblip.decoding.protocol.Monitor`.

    Args:
        processors: Processors of scores, in order.
        criteria: Conditions under which texts end.
        streamer: Receives new tokens.
        session: The decoding session, whose `output` has the hidden states of the last step.
        records: Names of the fields of `Steps` to record.
        rows: Number of rows once each prompt has all of its rows.
    """

    def __init__(
        self,
        processors: Sequence[Processor],
        criteria: Sequence[Criterion],
        streamer: Any,
        session: Any,
        records: frozenset[str],
        rows: int,
    ) -> None:
        self.processors, self.criteria, self.streamer = processors, criteria, streamer
        self.session, self.records, self.rows = session, records, rows
        self.steps = Steps()

    def process(self, logits: Tensor, scores: Tensor, history: Tensor) -> Tensor:
        """Return the scores (R, V) to choose tokens by, and record the step."""
        raw = scores
        for processor in self.processors:
            scores = processor(history, scores)
        if "logits" in self.records:
            self.steps.logits.append(logits.clone())
        if "scores" in self.records:
            self.steps.scores.append(scores.clone() if scores is raw else scores)
        for name in ("hidden_states", "attentions"):
            if name in self.records:
                states = getattr(self.session.output, name)
                # In the first step, the rows of a prompt share one state.
                repeated = (state.repeat_interleave(self.rows // len(state), 0) for state in states)
                getattr(self.steps, name).append(tuple(repeated))
        return scores

    def find_ends(self, sequences: Tensor) -> Tensor:
        """Return which texts (R, L) end with their last token, and feed the streamer."""
        if self.streamer is not None:
            self.streamer.put(sequences[:, -1].cpu())
        ends = torch.zeros(len(sequences), dtype=torch.bool, device=sequences.device)
        scores = tuple(self.steps.scores) if "scores" in self.records else None
        for criterion in self.criteria:
            result = criterion(sequences, scores)
            ends = ends | (result.to(ends) if isinstance(result, Tensor) else torch.tensor(bool(result)).to(ends))
        return ends
