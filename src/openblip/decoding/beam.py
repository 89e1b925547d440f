"""Beam search, with the score rule as a part (see :class:`~openblip.decoding.options.Decoding`).

Shapes: I items still running, B beams, K = 2 * B candidates per step, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.decoding.draws import Draws, precise
from openblip.decoding.logits import Processors, shape
from openblip.decoding.options import Decoding, Hypothesis, ScoreRule
from openblip.decoding.protocol import Session
from openblip.decoding.single import worth_leaving
from openblip.decoding.words import Progress

_DEAD = float("-inf")  # the score of a place that holds no hypothesis


def beam_search(session: Session, prompts: Tensor, options: Decoding, draws: Draws | None) -> list[list[Hypothesis]]:
    """The ``n`` best hypotheses per item that a search with ``beams`` rows finds; with ``draws`` it draws candidates.

    The prompt is read with one row per item, which then becomes ``beams`` rows. Items that can no longer change leave
    the session.
    """
    items, start = prompts.shape
    process = Processors(options)
    rule = _RULES[options.score_rule](options, start)
    search = _Search.begin(prompts, options, rule)
    live = list(range(items))
    results: list[list[Hypothesis]] = [[] for _ in range(items)]
    logits = session.step(prompts)  # (I, V), then (I * B, V)
    for new in range(1, options.max_new_tokens + 1):
        logprobs = F.log_softmax(logits, dim=-1)
        history = search.history(new)
        scores = process(logprobs, history, new - 1)
        required = options.required if draws is None and options.required and options.required.clauses else None
        reached = None if required is None else [required.progress(ids) for ids in history[:, start:].tolist()]
        if reached is not None and required is not None:
            short = [len(required.clauses) > progress.met for progress in reached]
            scores = scores.clone()
            scores[torch.tensor(short, device=scores.device), options.eos_id] = _DEAD
        parents = search.advance(logprobs, scores, new, draws, reached)  # (I, B)
        if new == options.max_new_tokens:
            break
        done, same = search.progress(parents)
        if all(done):
            break
        # Unseeded draws come from one stream over all items, so that an item must not leave it.
        if worth_leaving(done) and (draws is None or draws.seeded):
            for place in (i for i, over in enumerate(done) if over):
                results[live[place]] = search.results(place)
            stay = [i for i, over in enumerate(done) if not over]
            live = [live[i] for i in stay]
            kept = torch.tensor(stay, device=prompts.device)
            session.keep(kept)
            search, parents = search.select(kept), parents[kept]
        if new == 1:
            session.widen(options.beams)
        elif not same:
            session.reorder(_rows(parents))
        logits = session.step(search.running.tokens[:, :, start + new - 1].reshape(-1, 1))
    for place, item in enumerate(live):
        results[item] = search.results(place)
    return results


@dataclass
class _Beams:
    """Hypotheses of every item, (I, places): running ones with summed scores, complete ones with the rule's."""

    tokens: Tensor  # (I, places, P + max_new_tokens), the prompt included
    score: Tensor  # (I, places)
    logprob: Tensor  # (I, places), before penalties
    length: Tensor  # (I, places), new tokens

    def take(self, places: Tensor) -> _Beams:
        """The hypotheses at ``places`` (I, k)."""
        tokens = self.tokens.gather(1, places[..., None].expand(-1, -1, self.tokens.shape[2]))
        return _Beams(
            tokens, self.score.gather(1, places), self.logprob.gather(1, places), self.length.gather(1, places)
        )

    def select(self, items: Tensor) -> _Beams:
        """The hypotheses of the named items."""
        return _Beams(self.tokens[items], self.score[items], self.logprob[items], self.length[items])

    def join(self, other: _Beams, scores: Tensor) -> _Beams:
        """The best of these and of ``other``, whose scores are to be ``scores``: as many as there are here."""
        both = _Beams(
            torch.cat([self.tokens, other.tokens], 1),
            torch.cat([self.score, scores], 1),
            torch.cat([self.logprob, other.logprob], 1),
            torch.cat([self.length, other.length], 1),
        )
        return both.take(_ranked(both.score, self.score.shape[1]))


@dataclass
class _Search:
    """The state of a search: the beams that run, the best complete hypotheses, and which items are over."""

    options: Decoding
    rule: _Rule
    start: int
    running: _Beams
    kept: _Beams
    done: Tensor  # (I,)

    @staticmethod
    def begin(prompts: Tensor, options: Decoding, rule: _Rule) -> _Search:
        """One running beam per item, and nothing complete."""
        (items, start), device = prompts.shape, prompts.device
        tokens = torch.full((items, options.beams, start + options.max_new_tokens), options.pad_id, device=device)
        tokens[:, :, :start] = prompts[:, None]
        zeros = torch.zeros(items, options.beams, device=device)
        length = torch.zeros_like(zeros, dtype=torch.long)
        running = _Beams(tokens[:, :1], zeros[:, :1], zeros[:, :1], length[:, :1])
        kept = _Beams(tokens, torch.full_like(zeros, _DEAD, dtype=rule.dtype(device)), zeros, length)
        done = torch.zeros(items, dtype=torch.bool, device=device)
        return _Search(options, rule, start, running, kept, done)

    def history(self, new: int) -> Tensor:
        """The tokens of every row before its ``new``-th new one."""
        return self.running.tokens[:, :, : self.start + new - 1].flatten(0, 1)

    def advance(
        self, logprobs: Tensor, scores: Tensor, new: int, draws: Draws | None, reached: list[Progress] | None = None
    ) -> Tensor:
        """Choose every item's ``new``-th tokens by ``scores`` (rows, V); the beams they continue (I, B).

        ``reached`` says how far the rows have come towards the required words, if there are any.
        """
        options, beams = self.options, self.options.beams
        vocab = logprobs.shape[1]
        if draws is None:
            score, flat = self._best(scores)
        else:
            score, flat = self._drawn(shape(scores, options), draws)
        if reached is not None:
            score, flat = self._helped(scores, score, flat, reached)
        parents, chosen = flat // vocab, flat % vocab  # (I, K)
        candidates = self.running.take(parents)
        candidates.tokens[:, :, self.start + new - 1] = chosen
        candidates.score = score
        candidates.logprob = candidates.logprob + logprobs.view(len(flat), -1).gather(1, flat)
        candidates.length = candidates.length + 1

        ends = chosen == options.eos_id
        alive = score.masked_fill(ends, _DEAD)
        order = _ranked(alive, beams) if reached is None else self._shared(alive, candidates, new)
        self.running = candidates.take(order)
        self.running.score = alive.gather(1, order)
        self._collect(candidates, ends, new, None if reached is None else order)
        return parents.gather(1, order)

    def _collect(self, candidates: _Beams, ends: Tensor, new: int, shared: Tensor | None) -> None:
        """Keep the candidates that are complete, and see which items are over.

        ``shared`` are the places of the next beams where required words decide about them: then an end counts from
        whatever place, as those that may end are few, and what is cut off is what would have gone on.
        """
        beams, last = self.options.beams, new == self.options.max_new_tokens
        first = torch.arange(ends.shape[1], device=ends.device) < beams  # only the better half may end a hypothesis
        cut = last and self.rule.cuts_candidates
        complete = first if cut else ends & first
        if shared is not None:
            going_on = torch.zeros_like(ends).scatter(1, shared, True)
            complete = ends | going_on if cut else ends
        complete = complete & ~self.done[:, None]
        scores = self.rule.score(candidates.score, new, ended=ends)
        self.kept = self.kept.join(candidates, scores.masked_fill(~complete, _DEAD))
        over = self.rule.over(self.kept.score, self.running.score, candidates.score, new)
        self.done = self.done | over | (self.running.score[:, 0] == _DEAD)
        if last and not cut:
            scores = self.rule.score(self.running.score, new, ended=torch.zeros_like(ends[:, :beams]))
            self.kept = self.kept.join(self.running, scores.masked_fill(self.done[:, None], _DEAD))

    def _best(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The K best continuations: their sums and their places among (beams * V), each (I, K)."""
        count = 2 * self.options.beams
        items, width = self.running.score.shape
        vocab = scores.shape[1]
        found = scores.topk(min(count, vocab))
        sums = (found.values.view(items, width, -1) + self.running.score[..., None]).flatten(1)
        offsets = vocab * torch.arange(width, device=scores.device)[:, None]
        places = (found.indices.view(items, width, -1) + offsets).flatten(1)
        if (missing := count - sums.shape[1]) > 0:  # a vocabulary smaller than that
            sums, places = F.pad(sums, (0, missing), value=_DEAD), F.pad(places, (0, missing))
        best = sums.topk(count)
        return best.values, places.gather(1, best.indices)

    def _helped(self, scores: Tensor, score: Tensor, flat: Tensor, reached: list[Progress]) -> tuple[Tensor, Tensor]:
        """The candidates, then the tokens that take each beam to a required word or, if it has all, to its end."""
        (items, width), vocab = self.running.score.shape, scores.shape[1]
        known = flat.tolist()
        more = [
            [
                row * vocab + token
                for row in range(width)
                for token in reached[item * width + row].next or (self.options.eos_id,)
                if row * vocab + token not in known[item]
            ]
            for item in range(items)
        ]
        longest = max(map(len, more))
        if not longest:
            return score, flat
        places = torch.tensor([found + [0] * (longest - len(found)) for found in more], device=flat.device)
        sums = (scores.view(items, width, -1) + self.running.score[..., None]).flatten(1).gather(1, places)
        empty = torch.arange(longest, device=flat.device) >= torch.tensor([[len(m)] for m in more], device=flat.device)
        return torch.cat([score, sums.masked_fill(empty, _DEAD)], 1), torch.cat([flat, places], 1)

    def _shared(self, alive: Tensor, candidates: _Beams, new: int) -> Tensor:
        """The places (I, B) of the next beams: those that came equally far towards the required words take turns."""
        required, beams = self.options.required, self.options.beams
        assert required is not None
        texts = candidates.tokens[:, :, self.start : self.start + new].tolist()
        chosen = []
        for order, scores, rows in zip(_ranked(alive, alive.shape[1]).tolist(), alive.tolist(), texts, strict=True):
            banks: dict[tuple[int, int], list[int]] = {}
            for place in order:
                if scores[place] > _DEAD:
                    banks.setdefault(required.progress(rows[place]).bank, []).append(place)
            turns = [banks[bank] for bank in sorted(banks, reverse=True)]
            fair = [bank[turn] for turn in range(beams) for bank in turns if turn < len(bank)][:beams]
            fair.sort(key=lambda place: -scores[place])
            chosen.append(fair + [place for place in order if place not in fair][: beams - len(fair)])
        return torch.tensor(chosen, device=alive.device)

    def _drawn(self, scores: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """As :meth:`_best`, but drawn without replacement, by the softmax over all sums of an item."""
        items, width = self.running.score.shape
        beams = self.options.beams
        sums = (scores.view(items, width, -1) + self.running.score[..., None]).flatten(1)
        # The first step has one row per item; the room of the others keeps the draws those of transformers.
        whole = F.pad(sums, (0, (beams - width) * scores.shape[1]), value=_DEAD)
        places = draws.candidates(whole, 2 * beams)
        score = whole.gather(1, places)
        return score, places.where(places < sums.shape[1], 0)

    def progress(self, parents: Tensor) -> tuple[list[bool], bool]:
        """Which items are over, and whether every beam of the others continues itself: one wait for the device."""
        same = (parents == torch.arange(parents.shape[1], device=parents.device)) | self.done[:, None]
        *done, unchanged = torch.cat([self.done, same.all()[None]]).tolist()
        return done, unchanged

    def select(self, items: Tensor) -> _Search:
        """The search over the named items alone."""
        running, kept = self.running.select(items), self.kept.select(items)
        return _Search(self.options, self.rule, self.start, running, kept, self.done[items])

    def results(self, item: int) -> list[Hypothesis]:
        """The best complete hypotheses of an item."""
        kept = self.kept
        rows = zip(
            kept.tokens[item, :, self.start :].tolist(),
            kept.length[item].tolist(),
            kept.logprob[item].tolist(),
            kept.score[item].tolist(),
            strict=True,
        )
        return [
            Hypothesis(tokens[:length], logprob, score, tokens[length - 1] == self.options.eos_id)
            for tokens, length, logprob, score in list(rows)[: self.options.n]
            if score > _DEAD
        ]


class _Rule(Protocol):
    """How complete hypotheses are scored, and when an item is over."""

    cuts_candidates: bool
    """Whether, at the greatest length, the better half of the candidates count as complete, or the running beams."""

    def dtype(self, device: torch.device) -> torch.dtype:
        """What complete hypotheses are scored in."""
        ...

    def score(self, sums: Tensor, new: int, ended: Tensor) -> Tensor:
        """The scores of hypotheses of ``new`` new tokens, where ``ended`` tells whether [SEP] is the last."""
        ...

    def over(self, kept: Tensor, running: Tensor, candidates: Tensor, new: int) -> Tensor:
        """Which items (I,) cannot gain any more, by the scores (I, places) after a step; each sorted, best first."""
        ...


class _Total:
    """Transformers 4.15: per token of the whole text, in double precision; [SEP] does not count."""

    cuts_candidates = False

    def __init__(self, options: Decoding, start: int) -> None:
        self.options = options
        self.start = start

    def dtype(self, device: torch.device) -> torch.dtype:
        return precise(device)

    def score(self, sums: Tensor, new: int, ended: Tensor) -> Tensor:
        power = self.options.length_penalty
        wide = sums.to(precise(sums.device))
        return torch.where(ended, wide / (self.start + new - 1) ** power, wide / (self.start + new) ** power)

    def over(self, kept: Tensor, running: Tensor, candidates: Tensor, new: int) -> Tensor:
        worst = kept[:, -1]
        full = worst > _DEAD
        if self.options.early_stopping:
            return full
        # The best sum counts even where it belongs to a hypothesis that just ended.
        best = candidates[:, 0].to(worst.dtype) / (self.start + new - 1) ** self.options.length_penalty
        return full & (worst >= best)


class _Generated:
    """Transformers 5: per new token, [SEP] included."""

    cuts_candidates = True

    def __init__(self, options: Decoding, start: int) -> None:
        self.options = options

    def dtype(self, device: torch.device) -> torch.dtype:
        return torch.float32

    def score(self, sums: Tensor, new: int, ended: Tensor) -> Tensor:
        return sums / new**self.options.length_penalty

    def over(self, kept: Tensor, running: Tensor, candidates: Tensor, new: int) -> Tensor:
        options, worst = self.options, kept[:, -1]
        hopeful = options.early_stopping == "never" and options.length_penalty > 0
        length = options.max_new_tokens if hopeful else new
        over = ~(running[:, 0] / length**options.length_penalty > worst)
        return over | (worst > _DEAD) if options.early_stopping is True else over


_RULES: dict[ScoreRule, Callable[[Decoding, int], _Rule]] = {"total": _Total, "generated": _Generated}


def _ranked(scores: Tensor, count: int) -> Tensor:
    """The places (I, count) of the best scores, the earlier first among equals."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _rows(parents: Tensor) -> Tensor:
    """Row numbers (I * B,) of parents (I, B) that are numbered within their item."""
    items, beams = parents.shape
    return (parents + beams * torch.arange(items, device=parents.device)[:, None]).flatten()
