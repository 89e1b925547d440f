"""`BlipTokenizer` and `BlipProcessor`, compared with transformers for equal files, token for token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from openblip.compat.transformers_api.images import BlipImageProcessor
from openblip.compat.transformers_api.processing import BlipProcessor
from openblip.compat.transformers_api.tokens import BlipTokenizer

VOCABULARY = Path(__file__).parents[1] / "golden" / "vocab.txt"
PHOTO = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
TEXTS = ["a cat", "A Dog, sitting on the mat! é xyzzy [SEP] ##s", "", "two  people\tand\na [DEC] 中文 cat's don't ."]
Theirs: Any = transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processor that transformers saved."""
    path = tmp_path_factory.mktemp("theirs")
    tokenizer = Theirs.BertTokenizer(str(VOCABULARY), model_max_length=12)
    Theirs.BlipProcessor(Theirs.BlipImageProcessor(size={"height": 8, "width": 8}), tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as the hub's folders of 2022 have them."""
    path = tmp_path_factory.mktemp("hub")
    (path / "vocab.txt").write_text(VOCABULARY.read_text())
    (path / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "model_max_length": 512, "tokenizer_class": "BertTokenizer", "strip_accents": null}'
    )
    (path / "special_tokens_map.json").write_text('{"cls_token": "[CLS]", "sep_token": "[SEP]"}')
    (path / "preprocessor_config.json").write_text(
        '{"do_resize": true, "image_processor_type": "BlipImageProcessor", "processor_class": "BlipProcessor", '
        '"size": {"height": 8, "width": 8}, "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}'
    )
    (path / "config.json").write_text('{"model_type": "blip"}')
    return path


def _equal(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for name in ours:
        actual, expected = ours[name], theirs[name]
        if name == "pixel_values" and isinstance(actual, list):
            assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))
        elif isinstance(actual, list | int):
            assert actual == [list(row) if isinstance(row, tuple) else row for row in expected] or actual == expected
        else:
            assert type(actual) is type(expected)
            assert actual.dtype == expected.dtype
            assert np.array_equal(np.asarray(actual), np.asarray(expected))


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "text": ((TEXTS[1],), {}),
    "texts": ((TEXTS,), {}),
    "empty": (("",), {}),
    "pair": (("a cat", "on a mat"), {}),
    "pairs": ((TEXTS[:2], TEXTS[2:]), {}),
    "list-of-pairs": (([("a", "cat")],), {}),
    "longest": ((TEXTS,), {"padding": True}),
    "longest-by-name": ((TEXTS,), {"padding": "longest", "return_tensors": "pt"}),
    "max": ((TEXTS[:1],), {"padding": "max_length", "max_length": 10}),
    "max-of-the-model": ((TEXTS[:1],), {"padding": "max_length"}),
    "max-too-short": ((TEXTS,), {"padding": "max_length", "max_length": 5}),
    "cut-to-the-model": ((TEXTS,), {"truncation": True}),
    "cut": ((TEXTS,), {"truncation": True, "max_length": 4, "return_tensors": "np", "padding": True}),
    "cut-to-nothing": ((TEXTS,), {"truncation": True, "max_length": 2}),
    "length-alone": ((TEXTS,), {"max_length": 4}),
    "length-and-padding": ((TEXTS,), {"max_length": 4, "padding": True}),
    "length-without-truncation": ((TEXTS,), {"max_length": 4, "truncation": False}),
    "only-first": ((TEXTS,), {"truncation": "only_first", "max_length": 5}),
    "pair-cut": (("a cat on a mat", "the dog on the mat"), {"truncation": True, "max_length": 8}),
    "pair-cut-odd": (("a cat on a mat", "the dog on the mat"), {"truncation": True, "max_length": 9}),
    "pair-cut-uneven": (("a", "the dog on the mat"), {"truncation": True, "max_length": 9}),
    "pair-cut-uneven-2": (("the dog on the mat", "a"), {"truncation": "longest_first", "max_length": 9}),
    "pair-only-first": (("the dog on the mat", "a"), {"truncation": "only_first", "max_length": 9}),
    "pair-only-second": (("a", "the dog on the mat"), {"truncation": "only_second", "max_length": 9}),
    "by-name": ((TEXTS,), {"padding": "do_not_pad", "truncation": "do_not_truncate"}),
    "multiple": ((TEXTS,), {"padding": True, "pad_to_multiple_of": 5}),
    "multiple-max": ((TEXTS[:1],), {"padding": "max_length", "max_length": 7, "pad_to_multiple_of": 5}),
    "left": ((TEXTS,), {"padding": True, "padding_side": "left"}),
    "no-mask": ((TEXTS,), {"return_attention_mask": False, "return_token_type_ids": False}),
    "bare": ((TEXTS,), {"add_special_tokens": False}),
    "bare-cut": ((TEXTS,), {"add_special_tokens": False, "truncation": True, "max_length": 3}),
    "tensor": (("a cat",), {"return_tensors": "pt"}),
    "special": ((TEXTS,), {"return_special_tokens_mask": True, "padding": True}),
    "length": ((TEXTS,), {"return_length": True, "padding": True}),
    "offsets": ((TEXTS,), {"return_offsets_mapping": True, "padding": True}),
    "words": ((["a", "cat"],), {"is_split_into_words": True}),
    "lists-of-words": (([["a", "cat"], ["on"]],), {"is_split_into_words": True}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_tokenizer_call(folder: Path, name: str) -> None:
    args, options = CALLS[name]
    ours, theirs = BlipTokenizer.from_pretrained(folder), Theirs.BertTokenizer.from_pretrained(folder)
    _equal(ours(*args, **options), theirs(*args, **options))
    # A call leaves nothing behind for the next.
    _equal(ours(TEXTS), theirs(TEXTS))


def test_tokenizer_files_of_2022(hub_folder: Path) -> None:
    ours, theirs = BlipProcessor.from_pretrained(hub_folder), Theirs.BlipProcessor.from_pretrained(hub_folder)
    for options in ({}, {"padding": "max_length", "return_tensors": "pt"}, {"truncation": True}):
        _equal(ours(PHOTO, TEXTS, **options), theirs(PHOTO, TEXTS, **options))
    assert ours.tokenizer.model_max_length == 512


def test_decoding(folder: Path) -> None:
    ours, theirs = BlipProcessor.from_pretrained(folder), Theirs.BlipProcessor.from_pretrained(folder)
    ids = [30522, *theirs.tokenizer(TEXTS[3])["input_ids"], 0, 0]
    for row in (ids, ids[:1], [], torch.tensor(ids), np.array(ids)):
        for options in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
            assert ours.decode(row, **options) == theirs.decode(row, **options)
    for rows in ([ids, [5]], torch.tensor([ids, ids])):
        assert ours.batch_decode(rows, skip_special_tokens=True) == theirs.batch_decode(rows, skip_special_tokens=True)
        assert ours.decode(rows) == theirs.decode(rows)
    tokenizer, expected = ours.tokenizer, theirs.tokenizer
    assert tokenizer.decode(5) == expected.decode(5)
    assert tokenizer.convert_ids_to_tokens(ids) == expected.convert_ids_to_tokens(ids)
    assert tokenizer.convert_ids_to_tokens(5) == expected.convert_ids_to_tokens(5)
    assert tokenizer.convert_tokens_to_ids(["a", "zzz"]) == expected.convert_tokens_to_ids(["a", "zzz"])
    assert tokenizer.encode(TEXTS[1]) == expected.encode(TEXTS[1])
    assert tokenizer.tokenize(TEXTS[1]) == expected.tokenize(TEXTS[1])
    assert (len(tokenizer), tokenizer.vocab_size, tokenizer.pad_token_id) == (len(expected), expected.vocab_size, 0)
    assert (tokenizer.sep_token, tokenizer.cls_token_id) == (expected.sep_token, expected.cls_token_id)
    assert tokenizer.bos_token_id is None
    assert set(tokenizer.all_special_tokens) == set(expected.all_special_tokens)
    assert tokenizer.get_vocab() == expected.get_vocab()


IMAGE = Image.fromarray(PHOTO)
PROCESSOR_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "both": ((IMAGE, "a cat"), {}),
    "both-tensors": ((IMAGE, "a cat"), {"return_tensors": "pt"}),
    "arrays": (([IMAGE, IMAGE], TEXTS[:2]), {"return_tensors": "np", "padding": True}),
    "text-alone": ((None, "a cat"), {}),
    "texts-by-name": ((), {"text": TEXTS, "padding": True, "return_tensors": "pt"}),
    "image-alone": ((IMAGE,), {"return_tensors": "pt"}),
    "image-alone-with-text-options": ((IMAGE,), {"padding": True}),
    "image-options": ((IMAGE, TEXTS), {"padding": True, "size": 6, "do_rescale": False}),
    "groups": (
        (IMAGE, TEXTS),
        {
            "text_kwargs": {"padding": True},
            "images_kwargs": {"size": 5},
            "common_kwargs": {"return_tensors": "pt"},
        },
    ),
    "type-ids-are-dropped": ((IMAGE, "a cat"), {"return_token_type_ids": True}),
    "videos-are-ignored": ((IMAGE, "a cat"), {"videos": None}),
    "max-length": ((IMAGE, TEXTS), {"padding": "max_length", "max_length": 35, "truncation": True}),
}


@pytest.mark.parametrize("name", PROCESSOR_CALLS)
def test_processor_call(folder: Path, name: str) -> None:
    args, options = PROCESSOR_CALLS[name]
    ours, theirs = BlipProcessor.from_pretrained(folder), Theirs.BlipProcessor.from_pretrained(folder)
    actual, expected = ours(*args, **options), theirs(*args, **options)
    assert list(actual) == list(expected)
    _equal(actual, expected)
    assert ours.model_input_names == theirs.model_input_names


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p(),
        lambda p: p(IMAGE, ["a", 5]),
        lambda p: p(IMAGE, ("a", "b")),
        lambda p: p("a cat", IMAGE),
        lambda p: p(IMAGE, TEXTS, return_tensors="pt"),
        lambda p: p(IMAGE, "a", padding="foo"),
        lambda p: p(IMAGE, "a", truncation="foo"),
        lambda p: p.tokenizer(TEXTS, "a"),
        lambda p: p.tokenizer(5),
        lambda p: p.tokenizer(None),
        lambda p: p.tokenizer("a", "b", truncation="only_second", max_length=4),
    ],
)
def test_both_libraries_refuse(folder: Path, call: Callable[[Any], object]) -> None:
    theirs = Theirs.BlipProcessor.from_pretrained(folder)
    for processor, errors in ((BlipProcessor.from_pretrained(folder), (ValueError, TypeError)), (theirs, Exception)):
        with pytest.raises(errors):
            call(processor)


def test_unknown_options_are_errors(folder: Path) -> None:
    """Difference `unknown-argument`: 5.23 warns and goes on."""
    processor = BlipProcessor.from_pretrained(folder)
    with pytest.raises(TypeError, match="paddding"):
        processor(IMAGE, "a", paddding=True)
    with pytest.raises(TypeError, match="paddding"):
        processor.tokenizer("a", paddding=True)


def test_texts_are_not_split_into_windows(folder: Path) -> None:
    """Difference `tokenizer-windows`: 5.23 can return what was cut off as further rows."""
    tokenizer = BlipTokenizer.from_pretrained(folder)
    for options in ({"stride": 2}, {"return_overflowing_tokens": True}):
        with pytest.raises(ValueError, match="stride"):
            tokenizer("a cat on a mat", truncation=True, max_length=4, **options)


def test_each_library_reads_the_files_of_the_other(folder: Path, tmp_path: Path) -> None:
    processor = BlipProcessor.from_pretrained(folder, size=6, model_max_length=9)
    processor.save_pretrained(tmp_path)
    assert {"tokenizer.json", "vocab.txt", "processor_config.json", "preprocessor_config.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    for reader in (BlipProcessor, Theirs.BlipProcessor):
        reloaded = reader.from_pretrained(tmp_path)
        _equal(reloaded(IMAGE, TEXTS, truncation=True), processor(IMAGE, TEXTS, truncation=True))
        assert reloaded.tokenizer.model_max_length == 9


def test_added_tokens_and_casing_come_from_the_files(folder: Path, tmp_path: Path) -> None:
    """Difference `vocabulary-size`: 5.23 leaves added tokens out of ``vocab_size`` (and counts them in ``len``)."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"do_lower_case": False, "bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = BlipTokenizer.from_pretrained(tmp_path), Theirs.BertTokenizer.from_pretrained(tmp_path)
    _equal(ours("A cat [DEC] [ENC]"), theirs("A cat [DEC] [ENC]"))
    pieces = len(VOCABULARY.read_text().splitlines())
    assert ours.bos_token_id == theirs.bos_token_id == theirs.vocab_size == pieces
    assert ours.vocab_size == len(ours) == len(theirs) == pieces + 2


def test_processor_arguments_are_checked() -> None:
    images, tokenizer = BlipImageProcessor(), BlipTokenizer(VOCABULARY)
    assert BlipProcessor(images, tokenizer)(text="a cat")["input_ids"] == [2, 5, 92, 3]
    with pytest.raises(TypeError, match="BlipImageProcessor"):
        BlipProcessor(tokenizer, images)
