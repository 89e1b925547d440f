"""Beam search with one of two published score rules, see [`Decoding`][openblip.decoding.options.Decoding].

Shapes: I running items, B beams, K candidates per step (2 * B, more with required words), P prompt tokens,
V vocabulary. In the first step each item has one row, afterwards B adjacent rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.decoding.draws import Draws, widest_float
from openblip.decoding.logits import Processors, filter_for_sampling
from openblip.decoding.options import Decoding, Hypothesis, ScoreRule
from openblip.decoding.protocol import Monitor, Session
from openblip.decoding.single import should_drop
from openblip.decoding.words import RequirementProgress
from openblip.io import limits

_EMPTY = float("-inf")  # the score of a slot without a hypothesis


def beam_search(
    session: Session, prompts: Tensor, options: Decoding, draws: Draws | None, monitor: Monitor | None = None
) -> list[list[Hypothesis]]:
    """Search for the best hypotheses of each item.

    Args:
        session: A session with one row per item.
        prompts: Prompts (I, P).
        options: Options; `options.num_beams` is at least 2.
        draws: Random draws of the candidates; `None` takes the best candidates.
        monitor: Takes part in each step; it replaces penalties, bans and filters of the options.

    Returns:
        Up to `options.n` hypotheses per item, the best first.
    """
    items, prompt_length = prompts.shape
    process = Processors(options)
    rule = _RULES[options.score_rule](options, prompt_length)
    search = _Search.start(prompts, options, rule, monitor)
    live = list(range(items))  # the items in the session
    results: list[list[Hypothesis]] = [[] for _ in range(items)]
    required = options.required_words if draws is None else None
    if required is not None and not required.clauses:
        required = None
    logits = session.step(prompts)  # (I, V), in later steps (I * B, V)
    for step in range(1, options.max_new_tokens + 1):
        limits.check()
        # Score all continuations of all rows.
        logprobs = F.log_softmax(logits, dim=-1)
        history = search.history(step)
        if monitor is None:
            scores = process(logprobs, history, step - 1)
        else:  # as in transformers, each item has all of its rows from the first step
            copies = options.num_beams if step == 1 else 1
            rows = (tensor.repeat_interleave(copies, 0) for tensor in (logits, logprobs, history))
            scores = monitor.process(*rows)[::copies]
        progress = None
        if required is not None:
            # No text ends before it has all required words.
            progress = [required.progress(ids) for ids in history[:, prompt_length:].tolist()]
            incomplete = [row.clauses_met < len(required.clauses) for row in progress]
            scores = scores.clone()
            scores[torch.tensor(incomplete, device=scores.device), options.eos_id] = _EMPTY

        # Choose the next beams, and collect the hypotheses that are complete.
        parents = search.advance(logprobs, scores, step, draws, progress)  # (I, B)
        if step == options.max_new_tokens:
            break
        done, in_place = search.status(parents)
        if all(done):
            break

        # Store the results of finished items, and drop their rows once that is worth copying the others.
        # Unseeded draws come from one stream for all items, so dropping an item would change all later draws.
        if monitor is None and should_drop(done) and (draws is None or draws.seeded):
            running = []
            for index, item_done in enumerate(done):
                if item_done:
                    results[live[index]] = search.results(index)
                else:
                    running.append(index)
            live = [live[index] for index in running]
            selection = torch.tensor(running, device=prompts.device)
            session.keep(selection)
            search, parents = search.select(selection), parents[selection]

        # Bring the rows of the session into the order of the beams, and feed the new tokens.
        if step == 1:
            session.widen(options.num_beams)
        elif not in_place or monitor is not None:  # rows of finished items are recorded, too
            offsets = options.num_beams * torch.arange(len(parents), device=parents.device)[:, None]
            session.reorder((parents + offsets).flatten())
        logits = session.step(search.running.tokens[:, :, prompt_length + step - 1].reshape(-1, 1))
    for index, item in enumerate(live):
        results[item] = search.results(index)
    return results


@dataclass
class _Beams:
    """A fixed number of slots with hypotheses per item: running beams, candidates, or complete hypotheses."""

    tokens: Tensor  # (I, slots, P + max_new_tokens), prompt included
    score: Tensor  # (I, slots): summed log-probabilities with penalties or, if complete, the score of the rule
    logprob: Tensor  # (I, slots): summed log-probabilities without penalties
    length: Tensor  # (I, slots): number of new tokens
    origin: Tensor | None = None  # (I, slots, max_new_tokens): row that each new token continued, if monitored

    def gather(self, slots: Tensor) -> _Beams:
        """Return the hypotheses in these slots (I, k)."""
        tokens = self.tokens.gather(1, slots[..., None].expand(-1, -1, self.tokens.shape[2]))
        origin = self.origin
        if origin is not None:
            origin = origin.gather(1, slots[..., None].expand(-1, -1, origin.shape[2]))
        score, logprob, length = (tensor.gather(1, slots) for tensor in (self.score, self.logprob, self.length))
        return _Beams(tokens, score, logprob, length, origin)

    def select(self, items: Tensor) -> _Beams:
        """Return the hypotheses of these items."""
        return _Beams(self.tokens[items], self.score[items], self.logprob[items], self.length[items])

    def merge(self, new: _Beams, scores: Tensor) -> _Beams:
        """Return the best of these hypotheses and of new ones with these scores, in the same number of slots."""
        union = _Beams(
            torch.cat([self.tokens, new.tokens], 1),
            torch.cat([self.score, scores], 1),
            torch.cat([self.logprob, new.logprob], 1),
            torch.cat([self.length, new.length], 1),
            None if self.origin is None or new.origin is None else torch.cat([self.origin, new.origin], 1),
        )
        return union.gather(_rank(union.score, self.score.shape[1]))


@dataclass
class _Search:
    """The state of a search."""

    options: Decoding
    rule: _Rule
    prompt_length: int
    running: _Beams
    complete: _Beams  # the best complete hypotheses so far
    done: Tensor  # (I,)
    monitor: Monitor | None = None

    @staticmethod
    def start(prompts: Tensor, options: Decoding, rule: _Rule, monitor: Monitor | None) -> _Search:
        """Return the state with one running beam per item, and no complete hypothesis."""
        (items, prompt_length), device = prompts.shape, prompts.device
        shape = (items, options.num_beams, prompt_length + options.max_new_tokens)
        tokens = torch.full(shape, options.pad_id, device=device)
        tokens[:, :, :prompt_length] = prompts[:, None]
        zeros = torch.zeros(items, options.num_beams, device=device)
        length = torch.zeros_like(zeros, dtype=torch.long)
        origin = None if monitor is None else torch.full((*zeros.shape, options.max_new_tokens), -1, device=device)
        first_origin = None if origin is None else origin[:, :1]
        running = _Beams(tokens[:, :1], zeros[:, :1], zeros[:, :1], length[:, :1], first_origin)
        complete = _Beams(tokens, torch.full_like(zeros, _EMPTY, dtype=rule.dtype(device)), zeros, length, origin)
        done = torch.zeros(items, dtype=torch.bool, device=device)
        return _Search(options, rule, prompt_length, running, complete, done, monitor)

    def history(self, step: int) -> Tensor:
        """Return the tokens of each row before its new token number `step`, counted from 1."""
        return self.running.tokens[:, :, : self.prompt_length + step - 1].flatten(0, 1)

    def advance(
        self,
        logprobs: Tensor,
        scores: Tensor,
        step: int,
        draws: Draws | None,
        progress: list[RequirementProgress] | None = None,
    ) -> Tensor:
        """Choose the next beams, and collect complete hypotheses.

        Args:
            logprobs: Log-probabilities of all continuations (rows, V).
            scores: The same with penalties and bans (rows, V).
            step: Number of the new token, counted from 1.
            draws: Random draws of the candidates.
            progress: Progress of each row towards the required words, if there are any.

        Returns:
            The beams that the new beams continue (I, B).
        """
        # Candidates: the best (or drawn) continuations of each item. `flat` indexes (beam, token) pairs.
        vocab_size = logprobs.shape[1]
        if draws is None:
            score, flat = self._best_candidates(scores)
        else:
            filtered = scores if self.monitor is not None else filter_for_sampling(scores, self.options)
            score, flat = self._drawn_candidates(filtered, draws)
        if progress is not None:
            score, flat = self._add_required_tokens(scores, score, flat, progress)
        parents, chosen = flat // vocab_size, flat % vocab_size  # (I, K)
        candidates = self.running.gather(parents)
        candidates.tokens[:, :, self.prompt_length + step - 1] = chosen
        candidates.score = score
        candidates.logprob = candidates.logprob + logprobs.view(len(flat), -1).gather(1, flat)
        candidates.length = candidates.length + 1

        # The best candidates that do not end are the next beams; those that end may be complete hypotheses.
        ends = chosen == self.options.eos_id
        if self.monitor is not None and candidates.origin is not None:
            items = torch.arange(len(parents), device=parents.device)[:, None]
            candidates.origin[:, :, step - 1] = parents + items * self.options.num_beams
            texts = candidates.tokens[:, :, : self.prompt_length + step].flatten(0, 1)
            ends = ends | self.monitor.find_ends(texts).view_as(ends)
        open_score = score.masked_fill(ends, _EMPTY)
        if progress is None:
            slots = _rank(open_score, self.options.num_beams)
        else:
            slots = self._choose_by_progress(open_score, candidates, step)
        self.running = candidates.gather(slots)
        self.running.score = open_score.gather(1, slots)
        self._collect(candidates, ends, step, None if progress is None else slots)
        return parents.gather(1, slots)

    def _collect(self, candidates: _Beams, ends: Tensor, step: int, required_slots: Tensor | None) -> None:
        """Collect the complete candidates, and update which items are done.

        Args:
            candidates: All candidates.
            ends: Whether each candidate ends with [SEP] (I, K).
            step: Number of the new token, counted from 1.
            required_slots: Slots of the next beams (I, B), if required words chose them. An end then counts at any
                rank, because few candidates are allowed to end, and the next beams are the texts that are cut off.
        """
        beams, is_last = self.options.num_beams, step == self.options.max_new_tokens
        cut = is_last and self.rule.cuts_candidates
        if required_slots is None:
            better_half = torch.arange(ends.shape[1], device=ends.device) < beams
            is_complete = better_half if cut else ends & better_half
        else:
            is_next = torch.zeros_like(ends).scatter(1, required_slots, True)
            is_complete = ends | is_next if cut else ends
        is_complete = is_complete & ~self.done[:, None]
        scores = self.rule.score(candidates.score, step, ended=ends)
        self.complete = self.complete.merge(candidates, scores.masked_fill(~is_complete, _EMPTY))

        # An item is done if no running beam can improve it, or if no beam is left.
        settled = self.rule.is_settled(self.complete.score, self.running.score, candidates.score, step)
        self.done = self.done | settled | (self.running.score[:, 0] == _EMPTY)
        if is_last and not cut:
            scores = self.rule.score(self.running.score, step, ended=torch.zeros_like(ends[:, :beams]))
            self.complete = self.complete.merge(self.running, scores.masked_fill(self.done[:, None], _EMPTY))

    def _best_candidates(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the K best continuations of each item.

        Args:
            scores: Scores of the next token (rows, V).

        Returns:
            Summed scores (I, K), and flat indices (I, K) into the (beam, token) pairs of the item.
        """
        count = 2 * self.options.num_beams
        items, width = self.running.score.shape
        vocab_size = scores.shape[1]
        # First the best K of each row, then the best K of the item: cheaper than one topk over B * V.
        best_per_row = scores.topk(min(count, vocab_size))
        sums = (best_per_row.values.view(items, width, -1) + self.running.score[..., None]).flatten(1)
        offsets = vocab_size * torch.arange(width, device=scores.device)[:, None]
        flat = (best_per_row.indices.view(items, width, -1) + offsets).flatten(1)
        missing = count - sums.shape[1]
        if missing > 0:  # a vocabulary smaller than K
            sums, flat = F.pad(sums, (0, missing), value=_EMPTY), F.pad(flat, (0, missing))
        best = sums.topk(count)
        return best.values, flat.gather(1, best.indices)

    def _drawn_candidates(self, scores: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw K continuations of each item without replacement; returns the same as `_best_candidates`."""
        items, width = self.running.score.shape
        beams = self.options.num_beams
        sums = (scores.view(items, width, -1) + self.running.score[..., None]).flatten(1)
        # In the first step an item has one row. With padding to B rows, transformers makes the same draws.
        padded = F.pad(sums, (0, (beams - width) * scores.shape[1]), value=_EMPTY)
        flat = draws.sample_candidates(padded, 2 * beams)
        score = padded.gather(1, flat)
        return score, flat.where(flat < sums.shape[1], 0)

    def _add_required_tokens(
        self, scores: Tensor, score: Tensor, flat: Tensor, progress: list[RequirementProgress]
    ) -> tuple[Tensor, Tensor]:
        """Append candidates that bring each beam closer to a required word or, if it has all words, to its end."""
        (items, width), vocab_size = self.running.score.shape, scores.shape[1]
        additions: list[list[int]] = []
        for item, existing in enumerate(flat.tolist()):
            additions.append([])
            for row in range(width):
                for token in progress[item * width + row].next_ids or (self.options.eos_id,):
                    index = row * vocab_size + token
                    if index not in existing:
                        additions[item].append(index)
        longest = max(map(len, additions))
        if not longest:
            return score, flat
        padded = [indices + [0] * (longest - len(indices)) for indices in additions]
        new_flat = torch.tensor(padded, device=flat.device)
        lengths = torch.tensor([[len(indices)] for indices in additions], device=flat.device)
        is_padding = torch.arange(longest, device=flat.device) >= lengths
        sums = (scores.view(items, width, -1) + self.running.score[..., None]).flatten(1).gather(1, new_flat)
        return torch.cat([score, sums.masked_fill(is_padding, _EMPTY)], 1), torch.cat([flat, new_flat], 1)

    def _choose_by_progress(self, open_score: Tensor, candidates: _Beams, step: int) -> Tensor:
        """Choose the next beams among candidates of different progress towards the required words.

        Candidates with equal progress form a bank. The banks take turns, the most advanced bank first, so that beams
        with and without the required words both survive (dynamic beam allocation; Post and Vilar, 2018).

        Returns:
            Slots of the next beams (I, B), by descending score.
        """
        required, beams = self.options.required_words, self.options.num_beams
        assert required is not None
        texts = candidates.tokens[:, :, self.prompt_length : self.prompt_length + step].tolist()
        orders = _rank(open_score, open_score.shape[1]).tolist()
        chosen = []
        for order, scores, item_texts in zip(orders, open_score.tolist(), texts, strict=True):
            banks: dict[tuple[int, int], list[int]] = {}
            for slot in order:
                if scores[slot] > _EMPTY:
                    banks.setdefault(required.progress(item_texts[slot]).bank, []).append(slot)
            ranked_banks = [banks[key] for key in sorted(banks, reverse=True)]
            slots = [bank[turn] for turn in range(beams) for bank in ranked_banks if turn < len(bank)][:beams]
            slots.sort(key=lambda slot: -scores[slot])
            fill = [slot for slot in order if slot not in slots]  # slots without a hypothesis
            chosen.append(slots + fill[: beams - len(slots)])
        return torch.tensor(chosen, device=open_score.device)

    def status(self, parents: Tensor) -> tuple[list[bool], bool]:
        """Return which items are done, and whether each beam of the others continues itself.

        Both come from one transfer, because each transfer waits for the device.
        """
        in_place = (parents == torch.arange(parents.shape[1], device=parents.device)) | self.done[:, None]
        *done, all_in_place = torch.cat([self.done, in_place.all()[None]]).tolist()
        return done, all_in_place

    def select(self, items: Tensor) -> _Search:
        """Return the state of these items."""
        running, complete = self.running.select(items), self.complete.select(items)
        return _Search(self.options, self.rule, self.prompt_length, running, complete, self.done[items], self.monitor)

    def results(self, item: int) -> list[Hypothesis]:
        """Return the best complete hypotheses of an item."""
        rows = zip(
            self.complete.tokens[item, :, self.prompt_length :].tolist(),
            self.complete.length[item].tolist(),
            self.complete.logprob[item].tolist(),
            self.complete.score[item].tolist(),
            strict=True,
        )
        hypotheses = []
        origin = None if self.complete.origin is None else self.complete.origin[item].tolist()
        for slot, (tokens, length, logprob, score) in enumerate(list(rows)[: self.options.n]):
            if score > _EMPTY:
                finished = tokens[length - 1] == self.options.eos_id
                rows_before = None if origin is None else tuple(origin[slot][:length])
                hypotheses.append(Hypothesis(tokens[:length], logprob, score, finished, rows_before))
        return hypotheses


class _Rule(Protocol):
    """Scores of complete hypotheses, and the condition for stopping.

    Attributes:
        cuts_candidates: Whether the texts cut off at the maximum length are the better half of the candidates, or the
            running beams.
    """

    cuts_candidates: bool

    def dtype(self, device: torch.device) -> torch.dtype:
        """Return the type of the scores of complete hypotheses."""
        ...

    def score(self, sums: Tensor, step: int, ended: Tensor) -> Tensor:
        """Return the scores of hypotheses with `step` new tokens; `ended` marks those that end with [SEP]."""
        ...

    def is_settled(self, complete: Tensor, running: Tensor, candidates: Tensor, step: int) -> Tensor:
        """Return which items (I,) cannot improve, given scores (I, slots) after a step, each sorted, best first."""
        ...


class _TotalLengthRule:
    """The rule of transformers 4.15: score per token of the whole text without [SEP], in double precision."""

    cuts_candidates = False

    def __init__(self, options: Decoding, prompt_length: int) -> None:
        self.options = options
        self.prompt_length = prompt_length

    def dtype(self, device: torch.device) -> torch.dtype:
        return widest_float(device)

    def score(self, sums: Tensor, step: int, ended: Tensor) -> Tensor:
        length, power = self.prompt_length + step, self.options.length_penalty
        sums = sums.to(widest_float(sums.device))
        return torch.where(ended, sums / (length - 1) ** power, sums / length**power)

    def is_settled(self, complete: Tensor, running: Tensor, candidates: Tensor, step: int) -> Tensor:
        worst = complete[:, -1]
        full = worst > _EMPTY
        if self.options.early_stopping:
            return full
        # The best sum counts even if it belongs to a hypothesis that has just ended.
        best = candidates[:, 0].to(worst.dtype) / (self.prompt_length + step - 1) ** self.options.length_penalty
        return full & (worst >= best)


class _NewTokensRule:
    """The rule of transformers 5: score per new token, [SEP] included."""

    cuts_candidates = True

    def __init__(self, options: Decoding, prompt_length: int) -> None:
        self.options = options

    def dtype(self, device: torch.device) -> torch.dtype:
        return torch.float32

    def score(self, sums: Tensor, step: int, ended: Tensor) -> Tensor:
        return sums / step**self.options.length_penalty

    def is_settled(self, complete: Tensor, running: Tensor, candidates: Tensor, step: int) -> Tensor:
        options, worst = self.options, complete[:, -1]
        favorable = options.early_stopping == "never" and options.length_penalty > 0
        length = options.max_new_tokens if favorable else step
        settled = ~(running[:, 0] / length**options.length_penalty > worst)
        return settled | (worst > _EMPTY) if options.early_stopping is True else settled


_RULES: dict[ScoreRule, Callable[[Decoding, int], _Rule]] = {"total": _TotalLengthRule, "generated": _NewTokensRule}


def _rank(scores: Tensor, count: int) -> Tensor:
    """Return the slots (I, count) of the best scores, the first slot first among equal scores."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
