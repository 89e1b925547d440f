"""mmpretrain's entry points: its inputs and result fields, over the facade's results for the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from openblip import ImageError
from openblip.checkpoints import write
from openblip.checkpoints.folder import write_bundle
from openblip.compat import mmpretrain_api as mm
from openblip.compat.mmpretrain_api.base import load_bgr_image
from openblip.engine.protocols import MatchLogits
from openblip.errors import CheckpointError, InputError, UnsupportedTaskError
from openblip.model.comparer import Comparer
from openblip.preprocess.image import ImageSettings
from openblip.tasks import TaskName
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "grounding", "nlvr")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of toy models, a folder of pictures, and a file that is none."""
    folder = tmp_path_factory.mktemp("mm")
    for task in TASKS:
        prompt = "a picture of " if task == "caption" else None
        image = ImageSettings(size=SIZE)
        write.save(toy_model(task), folder / task, tokenizer=toy_tokenizer(), image=image, prompt=prompt)
    write_bundle(folder, {task: folder / task for task in TASKS})
    (folder / "pictures").mkdir()
    for seed in range(4):
        toy_image(seed).save(folder / "pictures" / f"{seed}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> mm.Model:
    return mm.get_model(home)


def paths(home: Path) -> list[str]:
    return [str(home / "pictures" / f"{seed}.png") for seed in range(4)]


def bgr(path: str) -> Any:
    """A picture as mmcv and OpenCV read it."""
    return np.asarray(Image.open(path).convert("RGB"))[..., ::-1]


# --- models -------------------------------------------------------------------------------------------------------


def test_names_are_listed_by_pattern_and_task() -> None:
    assert len(mm.list_models()) == 5
    assert mm.list_models("*vqa") == ["blip-base_3rdparty_vqa"]
    assert mm.list_models("blip", exclude_patterns=["*3rdparty"]) == ["blip-base_8xb16_refcoco"]
    both = [mm.list_models(task=f"{way} Retrieval") for way in ("Text-To-Image", "Image-To-Text")]
    assert both == [["blip-base_3rdparty_retrieval"]] * 2
    assert mm.NLVRInferencer.list_models() == ["blip-base_3rdparty_nlvr"]
    with pytest.raises(InputError, match="task must be one of"):
        mm.list_models(task="Dance")


def test_models_by_name_pretrained_or_untrained(home: Path, model: mm.Model) -> None:
    """Difference `model-object`."""
    captioner = mm.get_model("blip-base_3rdparty_caption", pretrained=home / "caption")
    assert captioner.tasks == ["Image Caption"]
    assert isinstance(captioner.module(), torch.nn.Module)
    assert captioner.eval() is captioner
    assert set(model.tasks) == {inferencer.task for inferencer in INFERENCERS}
    with pytest.raises(InputError, match="task must be one of"):
        model.module()
    with pytest.raises(CheckpointError):
        mm.get_model("blip-base_3rdparty_poems")
    with pytest.raises(UnsupportedTaskError):
        mm.NLVRInferencer(captioner)


def test_unknown_settings_are_errors(home: Path, model: mm.Model) -> None:
    """Difference `config-settings`."""
    with pytest.raises(TypeError, match="head"):
        mm.get_model(home, head={"inference_method": "generate"})
    with pytest.raises(InputError, match="unknown argument colour"):
        mm.ImageCaptionInferencer(model)(paths(home)[0], colour="red")
    with pytest.raises(InputError, match="unknown argument topk"):
        mm.ImageCaptionInferencer(model)(paths(home)[0], topk=2)


class Items(Dataset[Any]):
    """A torch dataset of what is in a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


INFERENCERS: tuple[Any, ...] = (
    mm.ImageCaptionInferencer,
    mm.VisualQuestionAnsweringInferencer,
    mm.VisualGroundingInferencer,
    mm.NLVRInferencer,
    mm.TextToImageRetrievalInferencer,
    mm.ImageToTextRetrievalInferencer,
)


# --- captions, answers, boxes, verdicts ---------------------------------------------------------------------------


def test_captions_of_paths_arrays_lists_and_folders(home: Path, model: mm.Model) -> None:
    inferencer = mm.ImageCaptionInferencer(model)
    expected = [{"pred_caption": result.text} for result in model.blip.caption(paths(home), min_new_tokens=0)]
    assert inferencer(paths(home), batch_size=3) == expected
    assert inferencer(str(home / "pictures")) == expected
    assert inferencer(bgr(paths(home)[2])) == [expected[2]]
    assert mm.inference_model(home / "caption", paths(home)[1]) == expected[1]
    (sample,) = inferencer(paths(home)[0], return_datasamples=True)
    assert (sample.pred_caption, sample.get("nothing"), "pred_caption" in sample) == (
        expected[0]["pred_caption"],
        None,
        True,
    )
    with pytest.raises(ImageError):
        inferencer([paths(home)[0], str(home / "bad.png")])


def test_arrays_are_blue_green_red(home: Path) -> None:
    pixels = np.asarray(Image.open(paths(home)[0]).convert("RGB"))
    grey, opaque = pixels[..., 0], np.full((*pixels.shape[:2], 1), 255, np.uint8)
    np.testing.assert_array_equal(np.asarray(load_bgr_image(pixels[..., ::-1])), pixels)
    np.testing.assert_array_equal(np.asarray(load_bgr_image(np.concatenate([pixels[..., ::-1], opaque], 2))), pixels)
    np.testing.assert_array_equal(np.asarray(load_bgr_image(grey)), np.stack([grey] * 3, -1))
    with pytest.raises(InputError):
        load_bgr_image(pixels[..., :2])


def test_answers_are_ranked_with_an_answer_list(home: Path, model: mm.Model) -> None:
    """Difference `answer-list`."""
    images, questions = paths(home)[:2], ["What is it?", "Is it a cat, or a dog?"]
    clean = ["what is it", "is it a cat or a dog"]
    free = mm.VisualQuestionAnsweringInferencer(model)(images, questions)
    expected = model.blip.ask(images, clean, min_new_tokens=0)
    assert free == [{"question": q, "pred_answer": a.text} for q, a in zip(clean, expected, strict=True)]
    answers = ["yes", "no", "a cat", "two dogs"]
    (home / "answers.json").write_text(json.dumps(answers))
    ranked = model.blip.ask(images, clean, answers=answers, shortlist=4, smoothing=0.1)
    for candidates in (answers, home / "answers.json"):
        results = mm.VisualQuestionAnsweringInferencer(model, answer_list=candidates)(images, questions)
        assert [entry["pred_answer"] for entry in results] == [entry.text for entry in ranked]
    with pytest.raises(InputError, match="cannot read the answer list"):
        mm.VisualQuestionAnsweringInferencer(model, answer_list=home / "bad.png")


def test_long_questions_are_cut(home: Path, model: mm.Model) -> None:
    """Difference `question-length`."""
    inferencer, question = mm.VisualQuestionAnsweringInferencer(model), "is it a cat " * 12
    (result,) = inferencer(paths(home)[0], question)
    assert result["pred_answer"] == inferencer(paths(home)[0], f"{question} or a dog")[0]["pred_answer"]


def test_boxes_are_tensors_in_pixels(home: Path, model: mm.Model) -> None:
    images, texts = paths(home)[:2], ["The dog!", "a man"]
    results = mm.VisualGroundingInferencer(model)(images, texts, batch_size=2)
    for result, box in zip(results, model.blip.ground(images, texts), strict=True):
        torch.testing.assert_close(result["pred_bboxes"], torch.tensor([box.edges]))


def test_statements_start_with_cls_and_are_not_cleaned(home: Path, model: mm.Model) -> None:
    left, right = paths(home)[:2]
    text = "A dog. A cat!"
    (result,) = mm.NLVRInferencer(model)((left, right, text))
    task_model = model.task_model("nlvr")
    ids = task_model.tokenizer.encode([text], "cls").ids
    with torch.no_grad():
        states = task_model.encode_images([task_model.open_image(left), task_model.open_image(right)])
        logits = cast(Comparer, task_model.module).logits(ids, None, (states[:1], states[1:]))[0]
    np.testing.assert_allclose(result["pred_scores"], logits.softmax(-1), atol=1e-5)
    assert result["pred_label"] == int(logits.argmax())
    assert result["pred_score"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    assert len(mm.NLVRInferencer(model)([(left, right, text), (bgr(right), left, "a cat")], batch_size=2)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda model, images: mm.VisualQuestionAnsweringInferencer(model)(images, "what?"),
        lambda model, images: mm.VisualQuestionAnsweringInferencer(model)(images[0], ["what?"] * 2),
        lambda model, images: mm.VisualQuestionAnsweringInferencer(model)(
            images[0], "what?", objects=cast(Any, ["dog"])
        ),
        lambda model, images: mm.VisualGroundingInferencer(model)(images, ["dog"]),
        lambda model, images: mm.NLVRInferencer(model)(images[:2]),
        lambda model, images: mm.NLVRInferencer(model)("a"),
        lambda model, images: mm.TextToImageRetrievalInferencer(model, prototype=[]),
        lambda model, images: mm.TextToImageRetrievalInferencer(model, prototype={"type": "CustomDataset"}),
        lambda model, images: mm.TextToImageRetrievalInferencer(model, prototype={"data_root": ".", "ann_file": "a"}),
        lambda model, images: mm.TextToImageRetrievalInferencer(model, prototype={"type": "COCO", "data_root": "."}),
        lambda model, images: mm.TextToImageRetrievalInferencer(model, prototype=Items([{"img": images[0]}])),
        lambda model, images: mm.TextToImageRetrievalInferencer(model, prototype=7),
        lambda model, images: mm.TextToImageRetrievalInferencer(model, images)("a", show_dir=".", figsize=(16, 0)),
        lambda model, images: mm.ImageToTextRetrievalInferencer(model, prototype=[7]),
        lambda model, images: mm.inference_model(model, images[0]),
    ],
)
def test_invalid_inputs_are_errors(home: Path, model: mm.Model, wrong: Callable[[mm.Model, list[str]], Any]) -> None:
    with pytest.raises(InputError):
        wrong(model, paths(home))


# --- retrieval ----------------------------------------------------------------------------------------------------


def test_images_are_retrieved_by_text(home: Path, model: mm.Model) -> None:
    inferencer = mm.TextToImageRetrievalInferencer(model, prototype=str(home / "pictures"))
    (results,) = inferencer("A cat, on a bed!", topk=4)
    cosines = model.blip.embed_images(paths(home)) @ model.blip.embed_texts("a cat on a bed")
    order = np.argsort(-cosines).tolist()
    assert [match["sample_idx"] for match in results] == order
    assert [match["sample"]["img_path"] for match in results] == [paths(home)[i] for i in order]
    np.testing.assert_allclose([float(match["match_score"]) for match in results], cosines[order], atol=1e-5)
    assert len(inferencer(["a cat", "a dog"])) == 2
    assert len(inferencer("a cat")[0]) == 1


class _Told(Items):
    """As mmengine's datasets: what is known of an item comes without its picture."""

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("the picture was read")

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_path": self.items[index], "sample_idx": index}


class _Flowing(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def test_a_prototype_can_be_a_dataset(home: Path, model: mm.Model) -> None:
    """Difference `prototype-dataset`."""
    images = paths(home)
    (expected,) = mm.TextToImageRetrievalInferencer(model, images)("a cat", topk=4)
    named = [{"img_path": path} for path in images]
    packed = [{"inputs": None, "data_samples": mm.DataSample(img_path=path)} for path in images]
    with_paths: list[Any] = [
        {"type": "CustomDataset", "with_label": False, "data_root": str(home / "pictures")},
        {"data_root": home, "data_prefix": {"img_path": "pictures"}},
        {"data_root": home, "data_prefix": "pictures"},
        *(Items(images), Items(named), Items(packed)),
        *(_Told(images), _Flowing(named), DataLoader(Items(named), batch_size=3)),
    ]
    for prototype in with_paths:
        (results,) = mm.TextToImageRetrievalInferencer(model, prototype, prepare_batch_size=3)("a cat", topk=4)
        assert [match["sample"] for match in results] == [match["sample"] for match in expected]
    opened = [Image.open(path).convert("RGB") for path in images]
    for items in (opened, [(image, 7) for image in opened], [bgr(path) for path in images]):
        (results,) = mm.TextToImageRetrievalInferencer(model, Items(items), fast_match=False)("a cat", topk=4)
        assert {match["sample_idx"] for match in results} == set(range(4))
        (results,) = mm.TextToImageRetrievalInferencer(model, DataLoader(Items(items)))("a cat", topk=4)
        assert [match["sample_idx"] for match in results] == [match["sample_idx"] for match in expected]


def test_texts_are_retrieved_by_image(home: Path, model: mm.Model) -> None:
    """Difference `text-index`."""
    texts = ["cat", "dog", "a yellow bus", "man"]
    (home / "texts.txt").write_text("\n".join(texts) + "\n")
    cosines = model.blip.embed_texts(texts) @ model.blip.embed_images(paths(home)[1])
    for prototype in (texts, str(home / "texts.txt")):
        (results,) = mm.ImageToTextRetrievalInferencer(model, prototype=prototype)(paths(home)[1], topk=2)
        assert [match["text"] for match in results] == [texts[i] for i in np.argsort(-cosines)[:2]]
        assert all(type(match["sample_idx"]) is int for match in results)


def test_without_fast_match_candidates_are_scored_by_itm(
    home: Path, model: mm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["cat", "dog", "a yellow bus", "man"]
    task_model = model.task_model("retrieval")
    cosines = model.blip.embed_texts(texts) @ model.blip.embed_images(paths(home)).T
    monkeypatch.setattr("openblip.compat.mmpretrain_api.retrieval.CANDIDATES", 3)

    def logit(text: int, image: int) -> float:
        ids = task_model.tokenizer.encode([texts[text]], "enc")
        return float(
            task_model.engine.require(MatchLogits).match_logits(
                ids.ids, ids.mask, task_model.encode_images([task_model.open_image(paths(home)[image])])
            )[0, 1]
        )

    to_images = mm.TextToImageRetrievalInferencer(model, prototype=paths(home), fast_match=False)
    (sample,) = to_images("dog", return_datasamples=True)
    to_texts = mm.ImageToTextRetrievalInferencer(model, prototype=texts, fast_match=False)
    (by_image,) = to_texts(paths(home)[2], return_datasamples=True)
    for scores, row, pairs in (
        (sample.pred_score, cosines[1], [(1, i) for i in range(4)]),
        (by_image.pred_score, cosines[:, 2], [(i, 2) for i in range(4)]),
    ):
        best = set(np.argsort(-row)[:3].tolist())
        for i, indices in enumerate(pairs):
            assert float(scores[i]) == pytest.approx(logit(*indices) + row[i] if i in best else -100.0, abs=1e-4)


def test_a_prototype_cache_is_used(home: Path, model: mm.Model, tmp_path: Path) -> None:
    cache = tmp_path / "images.pth"
    (fresh,) = mm.TextToImageRetrievalInferencer(model, str(home / "pictures"), prototype_cache=cache)("a cat")
    features = torch.load(cache, weights_only=True)
    torch.save({"image_feat": features["image_feat"].flip(0)}, cache)
    (cached,) = mm.TextToImageRetrievalInferencer(model, str(home / "pictures"), prototype_cache=cache)("a cat")
    assert cached[0]["sample_idx"] == 3 - fresh[0]["sample_idx"]


def test_a_cache_of_another_prototype_is_refused(home: Path, model: mm.Model, tmp_path: Path) -> None:
    """Difference `prototype-cache`."""
    cache = tmp_path / "texts.pth"
    mm.ImageToTextRetrievalInferencer(model, ["cat", "dog"], prototype_cache=cache)
    with pytest.raises(InputError, match="another prototype"):
        mm.ImageToTextRetrievalInferencer(model, ["cat", "dog", "bird"], prototype_cache=cache)
    with pytest.raises(InputError, match="must contain image_feat"):
        mm.TextToImageRetrievalInferencer(model, paths(home), prototype_cache=cache)


def test_the_first_input_decides_the_direction_of_retrieval(home: Path) -> None:
    """Difference `retrieval-direction`."""
    with pytest.warns(UserWarning, match="using TextToImageRetrievalInferencer"):
        results = mm.inference_model(home / "retrieval", "a cat", prototype=paths(home), topk=2)
    assert [set(match) for match in results] == [{"match_score", "sample_idx", "sample"}] * 2
    with pytest.warns(UserWarning, match="using ImageToTextRetrievalInferencer"):
        results = mm.inference_model(home / "retrieval", paths(home)[0], prototype=["a cat", "a dog"])
    assert [set(match) for match in results] == [{"match_score", "sample_idx", "text"}]


# --- drawings -----------------------------------------------------------------------------------------------------


def test_drawings_are_written(home: Path, model: mm.Model, tmp_path: Path) -> None:
    """Difference `wait-time`."""
    images = paths(home)
    look: dict[str, Any] = {"wait_time": 1, "resize": 60}
    mm.ImageCaptionInferencer(model)(images[:2], show_dir=tmp_path / "c", **look)
    mm.VisualQuestionAnsweringInferencer(model)(images[1], "what?", show_dir=tmp_path / "q", **look)
    mm.VisualGroundingInferencer(model)(
        images[2], "a dog", show_dir=tmp_path / "g", line_width=1, bbox_color=(0, 0, 255), **look
    )
    mm.NLVRInferencer(model)((*images[:2], "a dog"), show_dir=tmp_path / "n", draw_score=False, **look)
    mm.TextToImageRetrievalInferencer(model, images)("a dog", show_dir=tmp_path / "t", figsize=(3, 2.5))
    mm.ImageToTextRetrievalInferencer(model, ["a cat", "a dog"])(images[3], show_dir=tmp_path / "i", resize=50)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert written == ["c/0.png", "c/1.png", "g/2.png", "i/3.png", "n/0.png", "q/1.png", "t/0.png"]
    with Image.open(tmp_path / "g" / "2.png") as drawing:
        assert min(drawing.size) == 60
        assert (0, 0, 255) in {pixel for _, pixel in cast(Any, drawing.convert("RGB").getcolors(1 << 20))}
    with Image.open(tmp_path / "t" / "0.png") as drawing:
        assert drawing.size == (300, 250)


def test_models_from_configuration_scripts_and_features(home: Path) -> None:
    array = bgr(paths(home)[0])
    name = "blip-base_3rdparty_caption"
    captioner = mm.init_model(name, home / "caption", device="cpu")
    assert captioner.tasks == mm.init_model(f"configs/blip/{name}.py", home / "caption").tasks == ["Image Caption"]
    assert mm.ModelHub.has(name)
    assert not mm.ModelHub.has("blip-base_3rdparty_poems")
    assert mm.ModelHub.get(name).task == "caption"
    with pytest.raises(InputError, match="model_name must be one of"):
        mm.ModelHub.get("blip-base_3rdparty_poems")
    (features,) = mm.FeatureExtractor(captioner)(array)
    states = captioner.blip.encode_images(Image.fromarray(np.ascontiguousarray(array[..., ::-1]))).states
    torch.testing.assert_close(features["image_embeds"], next(iter(states.values())).view_as(features["image_embeds"]))
    retriever = mm.FeatureExtractor(mm.get_model("blip-base_3rdparty_retrieval", home / "retrieval"))
    assert [sorted(row) for row in retriever([array, array], batch_size=2)] == [["image_embeds", "image_feat"]] * 2
