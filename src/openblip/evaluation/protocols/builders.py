"""Builders of presets: the settings that the benchmarks of a task share."""

from __future__ import annotations

from dataclasses import replace

from openblip.evaluation.protocols.base import (
    CaptionPreset,
    Preset,
    PresetName,
    Published,
    PublishedScore,
    RetrievalPreset,
    Split,
    VqaPreset,
)
from openblip.model.config import CAPTION_PROMPT

PAPER_ONLY = "only the paper has this row"


def caption_presets(
    split: Split,
    published: Published,
    *,
    mmpretrain_split: Split | None = None,
    repetition_penalty: float = 1.0,
    lavis_note: str = "",
) -> dict[PresetName, Preset]:
    """Build the presets of a caption benchmark.

    Args:
        split: The split.
        published: The published scores of each reference.
        mmpretrain_split: The split of mmpretrain, if it is another one.
        repetition_penalty: The repetition penalty of the paper.
        lavis_note: Why LAVIS's published scores are not comparable.

    Returns:
        A preset per reference.
    """
    paper = CaptionPreset(split=split, prompt=CAPTION_PROMPT, repetition_penalty=repetition_penalty)
    return _add_published(
        {
            "paper": paper,
            "lavis": replace(paper, repetition_penalty=1.15, note=lavis_note),
            "mmpretrain": CaptionPreset(
                split=mmpretrain_split or split, prompt=CAPTION_PROMPT, min_length=2, scored_images="listed"
            ),
        },
        published,
    )


def vqa_presets(preset: VqaPreset, published: Published, *, strip_answers: bool = False) -> dict[PresetName, Preset]:
    """Build the presets of a benchmark of questions that all references evaluate with the same settings.

    Args:
        preset: The settings of the paper and of LAVIS. mmpretrain also removes punctuation from questions.
        published: The published scores of each reference.
        strip_answers: Also remove punctuation from people's answers, as mmpretrain does.

    Returns:
        A preset per reference.
    """
    mmpretrain = replace(preset, strip_punctuation=True, strip_answer_punctuation=strip_answers)
    return _add_published({"paper": preset, "lavis": preset, "mmpretrain": mmpretrain}, published)


def retrieval_presets(
    split: Split, shortlist: int, published: Published, *, mmpretrain_split: Split | None = None
) -> dict[PresetName, Preset]:
    """Build the presets of a retrieval benchmark.

    Args:
        split: The split.
        shortlist: The length of the shortlist in the authors' code and LAVIS; mmpretrain always has 256.
        published: The published scores of each reference.
        mmpretrain_split: The split of mmpretrain, if it is another one.

    Returns:
        A preset per reference.
    """
    return _add_published(
        {
            "paper": RetrievalPreset(split=split, shortlist=shortlist, max_words=30),
            "lavis": RetrievalPreset(split=split, shortlist=shortlist, max_words=50),
            "mmpretrain": RetrievalPreset(
                split=mmpretrain_split or split, shortlist=256, max_words=None, strip_punctuation=True
            ),
        },
        published,
    )


def paper_only_presets(preset: Preset, score: PublishedScore) -> dict[PresetName, Preset]:
    """Build the presets of a benchmark that only the paper has: the same settings under every name.

    Args:
        preset: The settings.
        score: The score of the paper.

    Returns:
        A preset per reference; LAVIS's and mmpretrain's have a note instead of a score.
    """
    unpublished = replace(preset, note=PAPER_ONLY)
    return {"paper": replace(preset, published=(score,)), "lavis": unpublished, "mmpretrain": unpublished}


def recall_score(source: str, checkpoint: str, *values: float) -> PublishedScore:
    """Return a published row of six recalls.

    Args:
        source: Where it was published.
        checkpoint: Our name of the checkpoint.
        *values: Recall at 1, 5 and 10 of texts for images, then of images for texts.

    Returns:
        The row.
    """
    names = [f"{side}_r{k}" for side in ("txt", "img") for k in (1, 5, 10)]
    return PublishedScore(source, (checkpoint,), dict(zip(names, values, strict=True)))


def _add_published(presets: dict[PresetName, Preset], published: Published) -> dict[PresetName, Preset]:
    return {name: replace(preset, published=published.get(name, ())) for name, preset in presets.items()}
