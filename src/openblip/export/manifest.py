"""The manifest of an exported folder: its files, and the settings that a program needs to run them.

`manifest.json` is written last, and lists every other file with its size and SHA-256, so an incomplete export is
detected. The keys of a task:

| Key | Content |
|---|---|
| `graphs` | file of each role; see [`graphs`][openblip.export.graphs] for inputs and outputs |
| `tokenizer` | file of the tokenizer, for the `tokenizers` library |
| `special_ids` | ids of [PAD], [UNK], [CLS], [SEP], [DEC] and [ENC] |
| `image` | image size in pixels, and mean and standard deviation of R, G and B on a scale from 0 to 1 |
| `shapes` | sizes of the decoder or text encoder |
| `text` | cleaning rule, first token, and maximum length of a text |
| `generation` | defaults of decoding (`caption`, `vqa`) |
| `prompt`, `prompt_ids` | the model's prompt, and the ids that every generated text starts with (`caption`, `vqa`) |
| `confidence` | calibration of the captions, or `null` (`caption`) |
| `temperature`, `embed_width` | temperature of ITC, and width of the embeddings (`retrieval`) |
| `box` | first id, number of bins minus 1, and how a coordinate is computed (`grounding`) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from openblip._version import __version__
from openblip.checkpoints.read import LoadedModel
from openblip.errors import CheckpointError
from openblip.io.hashing import compute_sha256
from openblip.pipelines import caption, grounding, nlvr, retrieval, vqa
from openblip.pipelines.base import TaskModel
from openblip.preprocess.text import Tokenizer
from openblip.tasks import TaskName

FILE = "manifest.json"
FORMAT = "openblip-export"
FORMAT_VERSION = 1
"""Version of the folder. It increases when programs for the previous version would fail or return wrong results."""

JsonObject = dict[str, Any]


def describe_task(loaded: LoadedModel, task: TaskName, graphs: Mapping[str, str], tokenizer_file: str) -> JsonObject:
    """Return the entry of a task in the manifest.

    Args:
        loaded: The model.
        task: The task.
        graphs: File of each role.
        tokenizer_file: File of the tokenizer.

    Returns:
        The entry.

    Raises:
        CheckpointError: The model has no vocabulary.
    """
    tokenizer, config = loaded.tokenizer, loaded.config
    if tokenizer is None:
        raise CheckpointError(f"{loaded.source} has no vocabulary, which an export needs; pass tokenizer=...")
    text = config.answer_decoder if task == "vqa" else config.grounded_text
    image = loaded.image
    return {
        "graphs": dict(graphs),
        "tokenizer": tokenizer_file,
        "special_ids": {name: getattr(tokenizer, f"{name}_id") for name in ("pad", "unk", "cls", "sep", "dec", "enc")},
        "image": {"size": image.size, "mean": list(image.mean), "std": list(image.std), "resample": "bicubic"},
        "shapes": {
            "layers": text.depth,
            "heads": text.heads,
            "head_width": text.width // text.heads,
            "width": text.width,
            "image_tokens": config.vision.tokens,
            "vocab_size": text.vocab_size,
            "max_positions": text.max_positions,
        },
        **_DETAILS[task](loaded, tokenizer),
    }


def describe_folder(
    folder: Path, tasks: Mapping[str, JsonObject], *, runtime: str, precision: str, opset: int, source: str
) -> JsonObject:
    """Return the manifest of a folder with all its files.

    Args:
        folder: The folder, complete except for the manifest.
        tasks: The entries of its tasks.
        runtime: "onnx" or "openvino".
        precision: How weights are stored.
        opset: Operator set of the ONNX graphs.
        source: Name of the model.

    Returns:
        The manifest.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "openblip_version": __version__,
        "runtime": runtime,
        "precision": precision,
        "opset": opset,
        "source": source,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": compute_sha256(path)}
            for path in sorted(folder.iterdir())
            if path.name != FILE
        },
        "tasks": dict(tasks),
    }


def _text(clean: str, first: str, max_words: int | None, max_tokens: int | None) -> JsonObject:
    return {"text": {"clean": clean, "first_token": first, "max_words": max_words, "max_tokens": max_tokens}}


def _generation(model: TaskModel, options: Any) -> JsonObject:
    names = (
        "num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "repetition_penalty", "no_repeat_ngram_size",
        "score_rule", "early_stopping",
    )  # fmt: skip
    return {"generation": {name: getattr(options, name) for name in names}}


def _describe_caption(loaded: LoadedModel, tokenizer: Tokenizer) -> JsonObject:
    model = _as_task_model(loaded)
    prompt = loaded.prompt or ""
    return {
        **_text("none", "dec", None, None),
        "prompt": prompt,
        "prompt_ids": tokenizer.encode_prompt(prompt),
        **_generation(model, caption.CaptionPipeline(model).decoding),
        "confidence": None if loaded.confidence is None else loaded.confidence.to_dict(),
    }


def _describe_vqa(loaded: LoadedModel, tokenizer: Tokenizer) -> JsonObject:
    model = _as_task_model(loaded)
    return {
        **_text("question", "enc", vqa.MAX_WORDS, vqa.MAX_TOKENS),
        "prompt": "",
        "prompt_ids": tokenizer.encode_prompt(""),
        **_generation(model, vqa.VqaPipeline(model).decoding),
    }


def _describe_retrieval(loaded: LoadedModel, tokenizer: Tokenizer) -> JsonObject:
    return {
        **_text("caption", "cls", retrieval.MAX_WORDS, retrieval.MAX_TOKENS),
        "temperature": float(cast(Any, loaded.model).temperature),
        "embed_width": loaded.config.embed_width,
    }


def _describe_grounding(loaded: LoadedModel, tokenizer: Tokenizer) -> JsonObject:
    config = loaded.config
    return {
        **_text("expression", "cls", None, grounding.MAX_TOKENS),
        "box": {"start_id": config.box_start_id, "bins": config.box_bins, "reading": config.box_reading},
    }


def _describe_nlvr(loaded: LoadedModel, tokenizer: Tokenizer) -> JsonObject:
    return {**_text("caption", "enc", nlvr.MAX_WORDS, None), "classes": loaded.config.classes}


_DETAILS: Mapping[TaskName, Callable[[LoadedModel, Tokenizer], JsonObject]] = {
    "caption": _describe_caption,
    "vqa": _describe_vqa,
    "retrieval": _describe_retrieval,
    "grounding": _describe_grounding,
    "nlvr": _describe_nlvr,
}


def _as_task_model(loaded: LoadedModel) -> TaskModel:
    """Return the model for a pipeline that only returns its defaults."""
    return TaskModel(loaded, cast(Any, None))
