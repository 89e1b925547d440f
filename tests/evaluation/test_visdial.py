"""Visual dialog: metrics by hand and brute force, small official files, and ranks computed with the model directly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import openblip
from openblip import Blip
from openblip.data.visdial import dialog_ids, dialog_text
from openblip.errors import ConfigError, EvaluationError
from openblip.evaluation import protocols
from openblip.evaluation.evaluators.visdial import rank_scores
from openblip.evaluation.metrics import dialogs
from openblip.evaluation.metrics.dialogs import DialogReference as Reference
from openblip.evaluation.protocols import server
from openblip.evaluation.protocols.base import DialogItem
from openblip.evaluation.run import run_benchmark
from openblip.model.config import VisionConfig
from openblip.model.matcher import Matcher
from tests.evaluation import evaluation_toys as toys
from tests.toys import toy_config, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    return openblip.load(toys.make_bundle(tmp_path_factory.mktemp("toy")))


def test_metrics_by_hand() -> None:
    ranks = {"a": [1, 2, 3, 4], "b": [4, 3, 2, 1], "c": [2, 1, 4, 3]}
    references = {"a": Reference(0), "b": Reference(0), "c": Reference(3)}  # ranks 1, 4 and 3
    scores = dialogs.score(ranks, references)
    assert scores.items == {"a": 1, "b": 4, "c": 3}
    assert scores.mrr == pytest.approx((1 + 1 / 4 + 1 / 3) / 3)
    assert scores.recall == {1: pytest.approx(1 / 3), 5: 1.0, 10: 1.0}
    assert scores.mean_rank == pytest.approx(8 / 3)
    assert scores.ndcg is None


def test_ndcg_by_hand() -> None:
    # Two of four are relevant, so two ranks count. The best order has 1 and 0.5, this one 0 and 1.
    best_gain, gain = 1 + 0.5 / np.log2(3), 1 / np.log2(3)
    assert dialogs.ndcg([2, 1, 3, 4], [1.0, 0.0, 0.5, 0.0]) == pytest.approx(gain / best_gain)
    assert dialogs.ndcg([1, 4, 2, 3], [1.0, 0.0, 0.5, 0.0]) == pytest.approx(1.0)
    assert dialogs.ndcg([4, 1, 3, 2], [1.0, 0.0, 0.5, 0.0]) == 0.0
    assert dialogs.ndcg([1, 2, 3], [0.0, 0.0, 0.3]) == 0.0  # one rank counts
    scores = dialogs.score({1: [2, 1], 2: [1, 2]}, {1: Reference(0, (1.0, 0.0)), 2: Reference(0)})
    assert scores.ndcg == 0.0  # the mean of the rounds with relevance


def test_metrics_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    ranks, references, gains = {}, {}, []
    for key in range(200):
        order = rng.permutation(100)  # the answers, best first
        relevance = rng.choice([0, 0, 0, 0.2, 0.6, 1.0], 100)
        answer_index = int(rng.integers(100))
        ranks[key] = [int(np.where(order == answer)[0][0]) + 1 for answer in range(100)]
        references[key] = Reference(answer_index, tuple(relevance))
        k = int((relevance != 0).sum())
        discount = 1 / np.log2(np.arange(k) + 2)
        gains.append((relevance[order][:k] * discount).sum() / (np.sort(relevance)[::-1][:k] * discount).sum())
    scores = dialogs.score(ranks, references)
    right_ranks = np.array([ranks[key][references[key].answer_index] for key in ranks])
    assert scores.mrr == pytest.approx(np.mean(1 / right_ranks))
    assert scores.mean_rank == pytest.approx(right_ranks.mean())
    assert scores.recall == {k: pytest.approx(np.mean(right_ranks <= k)) for k in (1, 5, 10)}
    assert scores.ndcg == pytest.approx(np.mean(gains))


def test_ranks_of_scores() -> None:
    assert rank_scores([0.1, 0.9, 0.5]) == (3, 1, 2)
    assert rank_scores([1.0, 2.0, 1.0]) == (2, 1, 3)  # of equal scores, the first candidate is ranked first
    assert rank_scores([]) == ()


@pytest.mark.parametrize(
    ("ranks", "references", "message"),
    [
        ({1: [1, 1]}, {1: Reference(0)}, "ranks of id 1 must be the numbers from 1 to 2"),
        ({1: [1, 2]}, {1: Reference(2)}, "the right answer of id 1 must be below 2, got 2"),
        ({1: [1, 2]}, {1: Reference(0, (1.0,))}, "id 1: ranks and relevance must have the same length, got 2 and 1"),
        ({1: [1, 2]}, {1: Reference(0, (0.0, 0.0))}, "id 1: at least one candidate must be relevant"),
        ({}, {1: Reference(0)}, "no prediction for id 1"),
        ({1: [1], 2: [1]}, {1: Reference(0)}, "no reference for id 2"),
    ],
)
def test_broken_ranks_are_errors(ranks: Any, references: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        dialogs.score(ranks, references)


def read(folder: Path) -> list[DialogItem]:
    return cast("list[DialogItem]", protocols.open_benchmark("visdial", folder).read())


def test_the_official_layout(tmp_path: Path) -> None:
    items = read(toys.make_visdial(tmp_path))
    assert [item.id for item in items] == ["185565-1", "185565-2", "185566-1", "185566-2"]
    item = items[1]
    assert (item.question, item.texts) == ("how many dogs", ("two dogs playing in the park",))
    assert item.history == (("is the photo in color", "yes"),)
    assert item.answers == ("i can not tell", "1 dog", "two", "a man on a horse", "not that i can see")
    assert (item.answer_index, item.relevance) == (2, (0.0, 0.5, 1.0, 0.0, 0.2))
    assert (items[0].history, items[0].relevance) == ((), ())
    assert all(Path(item.image).is_file() for item in items)
    assert server.build_dialog_ranks({"185565-2": (2, 1)}) == [{"image_id": 185565, "round_id": 2, "ranks": [2, 1]}]


def put(value: Any, *path: Any) -> Any:
    """Return a function that puts a value into the dialogs, at a path of keys."""

    def change(content: Any) -> None:
        parent = content["data"]
        for name in path[:-1]:
            parent = parent[name]
        parent[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(7, "dialogs", 1, "dialog", 0, "question"), "dialog 2: the dialog of image_id 185566: .* number 7"),
        (put(0, "dialogs", 0, "dialog", 1, "gt_index"), "round 2: gt_index must be the index of the answer"),
        (put({"image_id": 3}, "dialogs", 0), "dialog 1: the dialog of image_id 3 has a missing or malformed field"),
        (put({"question": 0}, "dialogs", 0, "dialog", 0), "round 1 has no answer to rank, as in the test split"),
        (put(None, "answers"), "'answers' must be a list of texts"),
        (put(None, "dialogs"), "must have the layout of VisDial"),
        (put(185565, "dialogs", 1, "image_id"), "has two dialogs about one image_id"),
        (put([], "dialogs"), "has round 185565-2, which is not in visdial_1.0_val.json"),
    ],
)
def test_a_broken_dialog_is_an_error(tmp_path: Path, change: Any, message: str) -> None:
    file = toys.make_visdial(tmp_path) / "visdial_1.0_val.json"
    content = json.loads(file.read_text())
    change(content)
    toys.write_json(file, content)
    with pytest.raises(EvaluationError, match=message):
        read(tmp_path)


def test_a_dialog_as_one_text() -> None:
    history = [("is it sunny", "yes"), ("how many dogs", "two")]
    assert dialog_text(history, "why") == "q: is it sunny a: yes q: how many dogs a: two q: why a:"
    tokenizer = toy_tokenizer()
    rows = dialog_ids(tokenizer.spell, history, "why", ["no", "a man"], first_id=9, last_id=8, max_tokens=99)
    complete = (
        tokenizer.encode(["q: is it sunny a: yes q: how many dogs a: two q: why a: a man"], "enc").ids[0].tolist()
    )
    assert rows[1] == [9, *complete[1:-1], 8]
    short = dialog_ids(tokenizer.spell, history, "why", ["no", "a man"], first_id=9, last_id=8, max_tokens=10)
    assert [len(row) for row in short] == [9, 10]
    assert short[1] == [9, *complete[1:-1][-8:], 8]  # the start is cut
    assert short[0][1:-2] == short[1][1:-3]  # equally for every answer
    (row,) = dialog_ids(lambda text: [5] * len(text), [], "q", ["abcdefghijkl"], first_id=9, last_id=8, max_tokens=6)
    assert row == [9, 5, 5, 5, 5, 8]


def test_ranks_equal_those_of_the_model(blip: Blip, tmp_path: Path) -> None:
    toys.make_visdial(tmp_path)
    result = run_benchmark(protocols.open_benchmark("visdial", tmp_path), blip, out=tmp_path / "out")
    task_model = blip.pipeline("retrieval").model
    model, tokenizer = toys.network(task_model), task_model.tokenizer
    expected = {}
    for item in read(tmp_path):
        caption = tokenizer.encode([item.texts[0]], "cls")
        scores = []
        with torch.inference_mode():
            image_states = task_model.encode_images([task_model.open_image(item.image)])
            caption_states = model.text.encode(caption.ids, caption.mask)
            context = torch.cat([image_states, caption_states], 1)
            for answer in item.answers:
                dialog = " ".join(f"q: {q} a: {a}" for q, a in (*item.history, (item.question, answer)))
                text = tokenizer.encode([dialog], "enc")
                states = model.text.encode_grounded(text.ids, text.mask, context)
                scores.append(model.itm_head(states[:, 0])[0, 1].item())
        order = np.argsort(-np.array(scores), kind="stable").tolist()
        expected[item.id] = tuple(order.index(index) + 1 for index in range(len(scores)))
    assert result.predictions == expected
    right_ranks = [expected[item.id][item.answer_index] for item in read(tmp_path)]
    assert result.metrics["mrr"] == pytest.approx(np.mean([1 / rank for rank in right_ranks]))
    assert result.metrics["mean_rank"] == pytest.approx(np.mean(right_ranks))
    assert result.metrics["ndcg"] is not None
    assert result.notes[0] == "VisDial v1.0, val, preset paper, 4 items"
    assert any("no published checkpoint" in note for note in result.notes)
    entries = json.loads((tmp_path / "out/visdial_ranks.json").read_text())
    assert entries[0] == {"image_id": 185565, "round_id": 1, "ranks": list(expected["185565-1"])}


def test_a_broken_image_fails_only_its_rounds(blip: Blip, tmp_path: Path) -> None:
    toys.make_visdial(tmp_path)
    (tmp_path / "VisualDialog_val2018/VisualDialog_val2018_000000185565.jpg").write_bytes(b"no image")
    result = run_benchmark(protocols.open_benchmark("visdial", tmp_path), blip)
    assert list(result.failed) == ["185565-1", "185565-2"]
    assert list(result.predictions) == ["185566-1", "185566-2"]


def test_images_and_texts_must_have_one_width() -> None:
    config = dataclasses.replace(
        toy_config("retrieval"), vision=VisionConfig(image_size=32, width=16, depth=1, heads=2, mlp_width=16)
    )
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ConfigError, match=r"the same width, .* got 16 and 32"):
        Matcher(config).project_captioned(torch.zeros(1, 5, 16), ids, torch.ones_like(ids))
