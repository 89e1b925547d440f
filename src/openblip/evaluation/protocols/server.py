"""Contents of the files that official servers and scripts score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from openblip.evaluation.metrics.ids import ItemId


def build_captions(predictions: Mapping[ItemId, str]) -> list[dict[str, ItemId]]:
    """Build the list that the servers of COCO and NoCaps accept."""
    return [{"image_id": key, "caption": text} for key, text in predictions.items()]


def build_answers(predictions: Mapping[ItemId, str]) -> list[dict[str, ItemId]]:
    """Build the list that the server of VQA accepts."""
    return [{"question_id": key, "answer": text} for key, text in predictions.items()]


def build_direct_answers(predictions: Mapping[ItemId, str]) -> dict[str, dict[str, str]]:
    """Build the object that the leaderboard of A-OKVQA accepts."""
    return {str(key): {"multiple_choice": "", "direct_answer": text} for key, text in predictions.items()}


def build_nlvr_lines(predictions: Mapping[ItemId, bool]) -> str:
    """Build the lines "identifier,True" that the authors' script for NLVR2 accepts."""
    return "".join(f"{key},{label}\n" for key, label in predictions.items())


def build_dialog_ranks(predictions: Mapping[ItemId, Sequence[int]]) -> list[dict[str, object]]:
    """Build the list that the server of VisDial accepts: the ranks of a round's candidates, in their order."""
    entries: list[dict[str, object]] = []
    for key, ranks in predictions.items():
        image_id, round_id = map(int, str(key).split("-"))
        entries.append({"image_id": image_id, "round_id": round_id, "ranks": list(ranks)})
    return entries
