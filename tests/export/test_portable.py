"""`openblip-portable` without a model: texts, pixels and results are openblip's, and no torch is imported."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import openblip_portable
from openblip import results
from openblip.decoding import Decoding, logits, words
from openblip.preprocess.image import load_resized, to_tensor
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer, clean_caption, clean_expression, clean_question
from openblip_portable import images, text
from openblip_portable import results as portable_results
from openblip_portable import words as portable_words
from openblip_portable.decoding import Options, Session, generate
from openblip_portable.sampling import draw_uniform, filter_for_sampling
from tests.toys import VOCABULARY, toy_image

PHOTOS = sorted((Path(__file__).parent.parent.parent / "examples" / "photos").glob("*.jpg"))
SOURCE = Path(openblip_portable.__file__).parent


def test_nothing_imports_torch_or_openblip() -> None:
    program = (
        "import sys, openblip_portable, openblip_portable.cli; "
        "print(sorted({'torch', 'openblip', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=SOURCE.parent, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["Answer", "Caption", "Classification", "Comparison", "Label", "Match"])
def test_results_have_the_fields_of_openblip(name: str) -> None:
    ours, theirs = getattr(portable_results, name), getattr(results, name)
    assert [(f.name, f.type, f.default) for f in dataclasses.fields(ours)] == [
        (f.name, f.type, f.default) for f in dataclasses.fields(theirs)
    ]


def test_results_are_written_like_those_of_openblip() -> None:
    for module in (results, portable_results):
        caption = module.Caption("a", -1.0, -0.5, alternatives=(module.Caption("b", -2.0, -1.0),))
        assert caption.to_dict() == results.Caption(
            "a", -1.0, -0.5, alternatives=(results.Caption("b", -2.0, -1.0),)
        ).to_dict()  # fmt: skip
        box = module.Box(1.0, 2.0, 3.0, 4.0, 0.5)
        assert box.to_dict() == results.Box(1.0, 2.0, 3.0, 4.0, 0.5).to_dict()
        assert box.edges == (1.0, 2.0, 3.0, 4.0)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60), st.integers(1, 12))
def test_texts_are_cleaned_as_by_openblip(raw: str, words: int) -> None:
    assert text.clean_caption(raw, words) == clean_caption(raw, words)
    assert text.clean_question(raw, words) == clean_question(raw, words)
    assert text.clean_expression(raw) == clean_expression(raw)


def test_tokens_are_those_of_openblip(tmp_path: Path) -> None:
    reference = Tokenizer.from_vocab(VOCABULARY)
    reference.save(tmp_path)
    ids = {name: getattr(reference, f"{name}_id") for name in ("pad", "unk", "cls", "sep", "dec", "enc")}
    tokenizer = text.Tokenizer(tmp_path / "tokenizer.json", ids)
    entry = {"clean": "question", "first_token": "enc", "max_words": 50, "max_tokens": 8}
    for raw in ("Is it raining, or not at all?", "dogs", "", "a \ud800 b"):
        cleaned = clean_question(raw, 50)
        assert tokenizer.encode(raw, entry) == reference.encode([cleaned], "enc", max_length=8).ids[0].tolist()
    for row in ([598, 20, 30, 3, 0, 0], [599, 700, 40], [], list(range(4, 500, 7))):
        assert tokenizer.decode(row) == reference.decode(row)
        assert tokenizer.decode_after("a photo of ", row) == reference.decode_after("a photo of ", row)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(toy_image(1, 90, 60), "JPEG", exif=exif)


def gray16() -> bytes:
    values = np.random.default_rng(0).integers(0, 65536, (40, 30)).astype(np.uint16)
    return encoded(Image.fromarray(values), "PNG")


def transparent(mode: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    return encoded(Image.fromarray(values, "RGBA").convert(mode), "PNG")


SOURCES: dict[str, Callable[[], Any]] = {
    "large jpeg": lambda: encoded(toy_image(2, 1500, 900), "JPEG"),
    "cmyk": lambda: encoded(toy_image(2).convert("CMYK"), "JPEG"),
    "palette": lambda: encoded(toy_image(2).convert("P"), "GIF"),
    "gray": lambda: encoded(toy_image(2).convert("L"), "PNG"),
    "rgba": lambda: transparent("RGBA"),
    "la": lambda: transparent("LA"),
    "16 bits": gray16,
    "float": lambda: encoded(Image.fromarray(np.linspace(0, 1, 300, dtype=np.float32).reshape(15, 20)), "TIFF"),
    "array": lambda: np.asarray(toy_image(3)),
    "pil": lambda: toy_image(4),
    **{f"orientation {i}": lambda i=i: rotated(i) for i in range(1, 9)},  # type: ignore[misc]
    **{path.stem: lambda path=path: path for path in PHOTOS},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", SOURCES)
def test_pixels_are_those_of_openblip(name: str) -> None:
    for size, exact in ((64, False), (224, True)):
        expected, full_size = load_resized(SOURCES[name](), size, target_size=None if exact else size)
        pixels, image_size = images.open_image(SOURCES[name](), size, exact_decode=exact)
        assert (pixels == expected).all()
        assert image_size == full_size
        entry = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
        reference = to_tensor(expected[None], ImageSettings(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))).numpy()
        assert (images.normalize([pixels], entry) == reference).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jpg", "cannot read missing.jpg: No such file"),
        (b"nothing", "it is no image"),
        (encoded(toy_image(1), "JPEG")[:200], "cannot read a bytes"),
    ],
)
def test_unreadable_images_are_named(source: Any, message: str) -> None:
    with pytest.raises(openblip_portable.ImageError, match=message):
        images.open_image(source, 32)


@pytest.mark.parametrize("options", [{"num_beams": 0}, {"num_beams": 2, "n": 3}, {"min_new_tokens": 9}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(openblip_portable.InputError, match="must be"):
        Options(**{"num_beams": 1, "max_new_tokens": 5, "min_new_tokens": 1, "eos_id": 1, "pad_id": 0, **options})


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31, 2**32 + 3, 2**63, -1, -(2**40)])
def test_seeded_numbers_are_those_of_torch(seed: int) -> None:
    for shape in ((1, 16), (5, 40), (3, 7)):
        expected = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert (draw_uniform(seed, shape) == expected.numpy()).all()


def test_sampling_keeps_the_tokens_that_openblip_keeps() -> None:
    scores = (3 * np.random.default_rng(0).standard_normal((6, 500))).astype(np.float32)
    scores[0, 3] = scores[0].max() + 20  # one token alone has nearly all probability
    scores[1] = 0  # ties
    for changes in ({"top_p": 0.9}, {"top_p": 1.0, "top_k": 7}, {"top_p": 0.4, "top_k": 600, "temperature": 0.7}):
        shared: dict[str, Any] = {
            "do_sample": True,
            "num_beams": 1,
            "max_new_tokens": 5,
            "min_new_tokens": 1,
            **changes,
        }
        ours = filter_for_sampling(scores, Options(eos_id=1, pad_id=0, **shared))
        theirs = logits.filter_for_sampling(torch.from_numpy(scores), Decoding(eos_id=1, pad_id=0, **shared))
        assert np.allclose(ours, theirs.numpy(), rtol=1e-6)


def test_word_constraints_are_openblips() -> None:
    """The module needs nothing of openblip, so the package has a copy of it."""
    assert Path(portable_words.__file__).read_bytes() == Path(words.__file__).read_bytes()


def test_a_decoder_without_an_end_stops_at_the_limit() -> None:
    """A decoder step as a function: the next token is always the same."""

    def step(inputs: Any) -> list[Any]:
        ids, keys = inputs[0], inputs[1]
        logits = np.tile(np.arange(6, dtype=np.float32), (*ids.shape[:2], 1))
        grown = np.concatenate([keys, np.zeros((*keys.shape[:4], ids.shape[2], keys.shape[5]), np.float32)], 4)
        return [logits, grown, grown]

    shapes = {"layers": 1, "heads": 1, "head_width": 2}
    for num_beams in (1, 2):
        session = Session(step, shapes, [np.zeros((2, 1, 3, 2), np.float32)] * 2, None)
        options = Options(num_beams=num_beams, max_new_tokens=4, min_new_tokens=0, eos_id=0, pad_id=0)
        found = generate(session, np.full((2, 1), 3, np.int64), options)
        assert [hypotheses[0].ids for hypotheses in found] == [[5, 5, 5, 5]] * 2
        assert not found[0][0].finished
