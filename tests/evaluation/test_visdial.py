"""Visual dialog: metrics by hand and brute force, the official files in miniature, ranks against the model itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import openblip
from openblip import Blip
from openblip.data.visdial import dialog_ids, dialog_text
from openblip.errors import ConfigError, EvaluationError
from openblip.evaluation import protocols
from openblip.evaluation import run as evaluation
from openblip.evaluation.metrics import dialogs
from openblip.evaluation.metrics.dialogs import Reference
from openblip.evaluation.protocols import visdial
from openblip.evaluation.tasks.dialogs import ranks
from openblip.model.config import VisionConfig
from openblip.model.matcher import Matcher
from tests.evaluation import evaluation_toys as toys
from tests.toys import toy_config, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    return openblip.load(toys.toy_bundle(tmp_path_factory.mktemp("toy")))


# --- metrics ------------------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    given = {"a": [1, 2, 3, 4], "b": [4, 3, 2, 1], "c": [2, 1, 4, 3]}
    wanted = {"a": Reference(0), "b": Reference(0), "c": Reference(3)}  # ranks 1, 4 and 3
    found = dialogs.score(given, wanted)
    assert found.items == {"a": 1, "b": 4, "c": 3}
    assert found.mrr == pytest.approx((1 + 1 / 4 + 1 / 3) / 3)
    assert found.recall == {1: pytest.approx(1 / 3), 5: 1.0, 10: 1.0}
    assert found.mean_rank == pytest.approx(8 / 3)
    assert found.ndcg is None


def test_ndcg_by_hand() -> None:
    # Two of four are relevant, so two places count. In order: 1 then 0.5; found: 0 then 1.
    best, got = 1 + 0.5 / np.log2(3), 1 / np.log2(3)
    assert dialogs.ndcg("x", [2, 1, 3, 4], [1.0, 0.0, 0.5, 0.0]) == pytest.approx(got / best)
    assert dialogs.ndcg("x", [1, 4, 2, 3], [1.0, 0.0, 0.5, 0.0]) == pytest.approx(1.0)
    assert dialogs.ndcg("x", [4, 1, 3, 2], [1.0, 0.0, 0.5, 0.0]) == 0.0
    assert dialogs.ndcg("x", [1, 2, 3], [0.0, 0.0, 0.3]) == 0.0  # one place alone
    both = dialogs.score({1: [2, 1], 2: [1, 2]}, {1: Reference(0, (1.0, 0.0)), 2: Reference(0)})
    assert both.ndcg == 0.0  # the mean of the rounds that were judged


def test_metrics_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    given, wanted, gains = {}, {}, []
    for key in range(200):
        order = rng.permutation(100)  # the answers, the best first
        relevance = rng.choice([0, 0, 0, 0.2, 0.6, 1.0], 100)
        right = int(rng.integers(100))
        given[key] = [int(np.where(order == answer)[0][0]) + 1 for answer in range(100)]
        wanted[key] = Reference(right, tuple(relevance))
        k = int((relevance != 0).sum())
        discount = 1 / np.log2(np.arange(k) + 2)
        gains.append((relevance[order][:k] * discount).sum() / (np.sort(relevance)[::-1][:k] * discount).sum())
    found = dialogs.score(given, wanted)
    places = np.array([given[key][wanted[key].right] for key in given])
    assert found.mrr == pytest.approx(np.mean(1 / places))
    assert found.mean_rank == pytest.approx(places.mean())
    assert found.recall == {k: pytest.approx(np.mean(places <= k)) for k in (1, 5, 10)}
    assert found.ndcg == pytest.approx(np.mean(gains))


def test_ranks_are_those_of_the_scores() -> None:
    assert ranks([0.1, 0.9, 0.5]) == [3, 1, 2]
    assert ranks([1.0, 2.0, 1.0]) == [2, 1, 3]  # of equal ones the first offered
    assert ranks([]) == []


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ({1: [1, 1]}, {1: Reference(0)}, "ranks of id 1 are not the numbers from 1 to 2"),
        ({1: [1, 2]}, {1: Reference(2)}, "id 1 ranks 2 answers, and the right one is number 2"),
        ({1: [1, 2]}, {1: Reference(0, (1.0,))}, "id 1 ranks 2 answers, of which 1 were judged"),
        ({1: [1, 2]}, {1: Reference(0, (0.0, 0.0))}, "no answer of id 1 is relevant"),
        ({}, {1: Reference(0)}, "no prediction for id 1"),
        ({1: [1], 2: [1]}, {1: Reference(0)}, "a prediction for id 2"),
    ],
)
def test_what_cannot_be_scored_is_named(given: Any, wanted: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        dialogs.score(given, wanted)


# --- files --------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Any:
    protocol = protocols.find("visdial")
    return protocol.read(folder, protocol.preset("paper"))


def test_the_official_layout(tmp_path: Path) -> None:
    items = read(toys.visdial(tmp_path))
    assert [item.id for item in items] == ["185565-1", "185565-2", "185566-1", "185566-2"]
    second = items[1]
    assert (second.question, second.texts) == ("how many dogs", ("two dogs playing in the park",))
    assert second.history == (("is the photo in color", "yes"),)
    assert second.answers == ("i can not tell", "1 dog", "two", "a man on a horse", "not that i can see")
    assert (second.right, second.relevant) == (2, (0.0, 0.5, 1.0, 0.0, 0.2))
    assert items[0].history == items[0].relevant == ()
    assert all(Path(item.image).is_file() for item in items)
    assert visdial.for_server({"185565-2": "[2, 1]"}) == [{"image_id": 185565, "round_id": 2, "ranks": [2, 1]}]


def broken(value: Any, *path: Any) -> Any:
    """A change of the toy's dialogs: a value in a place."""

    def change(content: Any) -> None:
        place = content["data"]
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken(7, "dialogs", 1, "dialog", 0, "question"), "dialog 2: the dialog of image_id 185566: .* number 7"),
        (broken(0, "dialogs", 0, "dialog", 1, "gt_index"), "round 2: gt_index 0 is not the place of its answer"),
        (broken({"image_id": 3}, "dialogs", 0), "dialog 1: the dialog of image_id 3 lacks something"),
        (broken({"question": 0}, "dialogs", 0, "dialog", 0), "round 1 has no answer to rank, as in the test split"),
        (broken(None, "answers"), "'answers' is not a list of texts"),
        (broken(None, "dialogs"), "not the layout of VisDial"),
        (broken(185565, "dialogs", 1, "image_id"), "has two dialogs about one image_id"),
        (broken([], "dialogs"), "judges round 185565-2, which is not in visdial_1.0_val.json"),
    ],
)
def test_a_broken_dialog_is_named(tmp_path: Path, change: Any, message: str) -> None:
    file = toys.visdial(tmp_path) / "visdial_1.0_val.json"
    content = json.loads(file.read_text())
    change(content)
    toys.put(file, content)
    with pytest.raises(EvaluationError, match=message):
        read(tmp_path)


# --- texts --------------------------------------------------------------------------------------------------------


def test_a_dialog_as_one_text() -> None:
    history = [("is it sunny", "yes"), ("how many dogs", "two")]
    assert dialog_text(history, "why") == "q: is it sunny a: yes q: how many dogs a: two q: why a:"
    tokenizer = toy_tokenizer()
    rows = dialog_ids(tokenizer.spell, history, "why", ["no", "a man"], first=9, last=8, most=99)
    whole = tokenizer.encode(["q: is it sunny a: yes q: how many dogs a: two q: why a: a man"], "enc").ids[0].tolist()
    assert rows[1] == [9, *whole[1:-1], 8]
    short = dialog_ids(tokenizer.spell, history, "why", ["no", "a man"], first=9, last=8, most=10)
    assert [len(row) for row in short] == [9, 10]
    assert short[1] == [9, *whole[1:-1][-8:], 8]  # the beginning goes
    assert short[0][1:-2] == short[1][1:-3]  # and the same of it for every answer
    (only,) = dialog_ids(lambda text: [5] * len(text), [], "q", ["abcdefghijkl"], first=9, last=8, most=6)
    assert only == [9, 5, 5, 5, 5, 8]


# --- end to end ---------------------------------------------------------------------------------------------------


def test_answers_are_ranked_by_the_model_itself(blip: Blip, tmp_path: Path) -> None:
    toys.visdial(tmp_path)
    found = evaluation.run(protocols.find("visdial"), blip, tmp_path, out=tmp_path / "out")
    part = blip.pipeline("retrieval").model
    model, tokenizer = part.module, part.tokenizer
    given = {}
    for item in read(tmp_path):
        caption = tokenizer.encode([item.texts[0]], "cls")
        scores = []
        with torch.inference_mode():
            seen = part.encode_images([part.open_image(item.image)])
            beside = torch.cat([seen, model.text.encode(caption.ids, caption.mask)], 1)  # one after the other
            for answer in item.answers:
                said = " ".join(f"q: {q} a: {a}" for q, a in (*item.history, (item.question, answer)))
                text = tokenizer.encode([said], "enc")
                states = model.text.encode_grounded(text.ids, text.mask, beside)
                scores.append(model.itm_head(states[:, 0])[0, 1].item())
        order = np.argsort(-np.array(scores), kind="stable").tolist()
        given[item.id] = [order.index(place) + 1 for place in range(len(scores))]
    assert {key: json.loads(text) for key, text in found.predictions.items()} == given
    places = [given[item.id][item.right] for item in read(tmp_path)]
    assert found.metrics["mrr"] == pytest.approx(np.mean([1 / place for place in places]))
    assert found.metrics["mean_rank"] == pytest.approx(np.mean(places))
    assert found.metrics["ndcg"] is not None
    assert found.notes[0] == "VisDial v1.0, val, preset paper, 4 items"
    assert any("no published checkpoint" in note for note in found.notes)
    server = json.loads((tmp_path / "out/visdial_ranks.json").read_text())
    assert server[0] == {"image_id": 185565, "round_id": 1, "ranks": given["185565-1"]}


def test_a_picture_that_cannot_be_read_fails_its_rounds_alone(blip: Blip, tmp_path: Path) -> None:
    toys.visdial(tmp_path)
    (tmp_path / "VisualDialog_val2018/VisualDialog_val2018_000000185565.jpg").write_bytes(b"no picture")
    found = evaluation.run(protocols.find("visdial"), blip, tmp_path)
    assert list(found.failed) == ["185565-1", "185565-2"]
    assert list(found.predictions) == ["185566-1", "185566-2"]


def test_pictures_and_texts_have_to_be_of_one_width() -> None:
    config = dataclasses.replace(
        toy_config("retrieval"), vision=VisionConfig(image_size=32, width=16, depth=1, heads=2, mlp_width=16)
    )
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ConfigError, match="one width, not 16 and 32"):
        Matcher(config).read_captioned(torch.zeros(1, 5, 16), ids, torch.ones_like(ids))
