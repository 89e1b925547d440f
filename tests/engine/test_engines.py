"""Every engine against the reference: the same tokens and scores in fp32, a stated tolerance in 8 and 16 bits."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import openblip
from openblip.checkpoints import write
from openblip.checkpoints.containers import weights_digest
from openblip.checkpoints.folder import write_bundle
from openblip.decoding import Decoding, Hypothesis, generate_grouped
from openblip.engine import int8
from openblip.engine.compiled import CompiledEngine
from openblip.engine.create import choose_engine
from openblip.engine.eager import EagerEngine
from openblip.engine.openvino import OpenVinoEngine, convert
from openblip.engine.openvino.compiled import has_bf16
from openblip.engine.parts import flatten_memory
from openblip.engine.protocols import (
    Answers,
    Captions,
    Comparisons,
    Dialogs,
    Embeddings,
    Engine,
    Explanations,
    Grounding,
    ImageMemory,
    Matches,
    MatchLogits,
    TorchModel,
)
from openblip.errors import ConfigError, InputError
from openblip.model import packing
from openblip.preprocess.image import ImageSettings
from openblip.tasks import TaskName
from tests.toys import SIZE, toy_config, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "pretrain")
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
ITEMS = 7
PROMPTS = [[598, 20, 30], [598, 20], [598, 40, 50], [598, 60], [598, 61], [598, 62], [598, 63, 64]]
TestedEngine = EagerEngine | OpenVinoEngine
Make = Callable[[TaskName], TestedEngine]


def toy(task: TaskName) -> torch.nn.Module:
    """Captions and answers of different lengths: [SEP] is likely, but not at once."""
    torch.manual_seed(4)
    model = toy_model(task, seed=4)
    for name, parameter in model.named_parameters():
        if name == "lm_head.bias":
            with torch.no_grad():
                parameter[3] += 6.0 if task == "pretrain" else 3.0
    return model


def reference(task: TaskName) -> EagerEngine:
    return EagerEngine(toy(task), CPU, torch.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


def vino(cache: Path, task: TaskName, precision: str = "fp32", **more: Any) -> OpenVinoEngine:
    return OpenVinoEngine(toy(task), toy_config(task), precision, cache=cache, key=task, **more)


@pytest.fixture(params=["openvino", "compiled"])
def make(request: pytest.FixtureRequest, cache: Path) -> Make:
    if request.param == "openvino":
        return lambda task: vino(cache, task)
    # What is compiled is the same whatever compiles it; one test below goes through the real compiler.
    return lambda task: CompiledEngine(toy(task), CPU, torch.float32, backend="eager")


def pixels(seed: int = 0, count: int = ITEMS) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def texts(count: int, length: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 590, (count, length), generator=generator)
    lengths = torch.randint(2, length + 1, (count, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    return ids * mask, mask


def decoding(beams: int) -> Decoding:
    return Decoding(num_beams=beams, max_new_tokens=8, eos_id=3, pad_id=0)


def captions(engine: TestedEngine, beams: int, states: Tensor) -> list[list[Hypothesis]]:
    return generate_grouped(engine.prepare_captions(states, 12), PROMPTS, decoding(beams))


def same(actual: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[h.ids for h in hs] for hs in actual] == [[h.ids for h in hs] for hs in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_packed_weights_give_the_same_captions(monkeypatch: pytest.MonkeyPatch, beams: int) -> None:
    monkeypatch.setattr(packing, "_smallest", lambda dtype: 1)
    monkeypatch.setattr(packing, "_fewest_rows", lambda: 1)
    packed, plain = reference("caption"), reference("caption")
    actual = captions(packed, beams, packed.encode_images(pixels()))
    assert len(packed.packing) > 10
    monkeypatch.setattr(packing, "_is_useful", lambda weight: False)
    same(actual, captions(plain, beams, plain.encode_images(pixels())))


@pytest.mark.parametrize("task", ["caption", "pretrain"])
@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_the_same(make: Make, task: TaskName, beams: int) -> None:
    ours, theirs = make(task), reference(task)
    states = theirs.encode_images(pixels())
    torch.testing.assert_close(ours.encode_images(pixels()), states, rtol=0, atol=2e-5)
    expected = captions(theirs, beams, states)
    assert len({len(h.ids) for hs in expected for h in hs}) > 1, "some items end early and leave the batch"
    same(captions(ours, beams, states), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_the_same(make: Make, beams: int) -> None:
    ours, theirs = make("vqa"), reference("vqa")
    states = theirs.encode_images(pixels())
    ids, mask = texts(2 * ITEMS)
    questions = theirs.encode_questions(ids, mask, states)
    torch.testing.assert_close(ours.encode_questions(ids, mask, states), questions, rtol=0, atol=2e-5)
    starts = [[598]] * len(ids)
    actual = generate_grouped(ours.prepare_answers(questions, mask, 9), starts, decoding(beams))
    same(actual, generate_grouped(theirs.prepare_answers(questions, mask, 9), starts, decoding(beams)))
    closed = [[598, 40, 50, 3], [598, 40, 3], [598, 70, 80, 90, 3], [598, 40, 50, 60, 3]]
    for shortlist, smoothing in ((None, 0.0), (2, 0.1)):
        scores = ours.rank_answers(questions, mask, closed, shortlist, smoothing)
        torch.testing.assert_close(
            scores, theirs.rank_answers(questions, mask, closed, shortlist, smoothing), rtol=0, atol=1e-4
        )


def test_tokens_of_several_frames_in_a_row_are_read_the_same(make: Make) -> None:
    """Videos: more tokens than a picture has, and the embedding of a mean class token."""
    ids, mask = texts(3 * ITEMS)
    for task in ("caption", "vqa", "retrieval"):
        ours, theirs = make(task), reference(task)
        frames = torch.unflatten(theirs.encode_images(pixels(count=3 * ITEMS)), 0, (ITEMS, 3))
        states = frames.flatten(1, 2)
        if task == "caption":
            same(captions(ours, 3, states), captions(theirs, 3, states))
            continue
        if task == "vqa":
            actual, expected = (one.encode_questions(ids, mask, one.project_images(states)) for one in (ours, theirs))
        else:
            actual, expected = (one.match(ids, mask, states) for one in (ours, theirs))
            mean = frames[:, :, :1].mean(1)
            torch.testing.assert_close(ours.embed_images(mean), theirs.embed_images(mean), rtol=0, atol=1e-5)
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("task", ["retrieval", "pretrain"])
def test_matches_and_embeddings_are_the_same(make: Make, task: TaskName) -> None:
    ours, theirs = make(task), reference(task)
    states = theirs.encode_images(pixels())
    ids, mask = texts(3 * ITEMS)
    for actual, expected in (
        (ours.match(ids, mask, states), theirs.match(ids, mask, states)),
        (ours.embed_texts(ids, mask), theirs.embed_texts(ids, mask)),
        (ours.embed_images(states), theirs.embed_images(states)),
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_captions() -> None:
    """In a process of its own: the compiler starts workers and threads that others should not inherit."""
    call = "from tests.engine.test_engines import really_compiled; really_compiled()"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def really_compiled() -> None:
    torch.set_num_threads(1)
    ours, theirs = CompiledEngine(toy("caption"), CPU, torch.float32), reference("caption")
    states = theirs.encode_images(pixels())
    torch.testing.assert_close(ours.encode_images(pixels()), states, rtol=0, atol=2e-5)
    start = [prompt[:1] for prompt in PROMPTS]
    actual = generate_grouped(ours.prepare_captions(states, 9), start, decoding(2))
    same(actual, generate_grouped(theirs.prepare_captions(states, 9), start, decoding(2)))


def test_a_batch_changes_no_item(make: Make) -> None:
    engine = make("caption")
    batched = engine.encode_images(pixels())
    single = torch.cat([engine.encode_images(one[None]) for one in pixels()])
    torch.testing.assert_close(single, batched, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["torch", "compiled", "openvino"])
def test_an_engine_supports_what_its_model_and_its_implementation_offer(name: str, cache: Path) -> None:
    everywhere = {Captions, Answers, ImageMemory, Embeddings, Matches}
    by_task: dict[TaskName, set[type[object]]] = {
        "caption": {Captions, Explanations},
        "vqa": {Answers, ImageMemory, Explanations},
        "retrieval": {ImageMemory, Embeddings, Matches, MatchLogits, Dialogs, Explanations},
        "pretrain": {ImageMemory, Embeddings, Matches, MatchLogits, Dialogs, Explanations, Captions},
        "nlvr": {Comparisons},
        "grounding": {Grounding},
    }
    capabilities: set[type[object]] = {TorchModel}.union(*by_task.values())
    for task, offered in by_task.items():
        engine: Engine
        if name == "torch":
            engine = reference(task)
        elif name == "compiled":
            engine = CompiledEngine(toy(task), CPU, torch.float32, backend="eager")
        elif task in TASKS:
            engine = vino(cache, task)
        else:
            continue
        expected = offered & everywhere if name == "openvino" else offered | {TorchModel}
        assert {capability for capability in capabilities if engine.supports(capability)} == expected
        for capability in expected:
            assert engine.require(capability) is engine
            methods = [method for method in vars(capability) if not method.startswith("_")]
            assert all(callable(getattr(engine, method)) for method in methods)


def test_a_missing_capability_is_named_with_a_remedy(cache: Path) -> None:
    with pytest.raises(InputError, match=r"engine='openvino' does not support match logits: load .* engine='torch'"):
        vino(cache, "retrieval").require(MatchLogits)
    with pytest.raises(InputError, match=r"does not support matches: Captioner"):
        reference("caption").require(Matches)
    quantized = EagerEngine(int8.quantize(toy("retrieval")), CPU, torch.float32)
    assert quantized.supports(MatchLogits)
    assert not quantized.supports(Explanations)
    with pytest.raises(InputError, match=r"explanations: 8-bit layers have no gradients; load .* precision='fp32'"):
        quantized.require(Explanations)


def test_log_odds_agree_with_the_probability(make: Make) -> None:
    engine = make("retrieval")
    states = engine.encode_images(pixels())
    ids, mask = texts(3 * ITEMS)
    odds, probability = engine.match_log_odds(ids, mask, states), engine.match(ids, mask, states)
    torch.testing.assert_close(odds.sigmoid(), probability, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (64, 48)])
def test_an_8_bit_layer_multiplies_what_it_rounded_exactly(shape: tuple[int, int]) -> None:
    """By hand, in double precision: 127 steps for the greatest of each row and of each output channel."""
    rows, width = shape
    x, linear = torch.randn(rows, width) * torch.logspace(-3, 3, rows)[:, None], torch.nn.Linear(width, 24)
    layer = int8.Int8Linear(linear.weight, linear.bias)
    weight = linear.weight.detach().double()
    step_x, step_w = x.double().abs().amax(1, keepdim=True) / 127, weight.abs().amax(1, keepdim=True) / 127
    by_hand = (x.double() / step_x).round() @ (weight / step_w).round().T * step_x * step_w.T + linear.bias
    # Rounding in float32 may fall to the other side of a half, one step away, for a few of the inputs.
    slack = (step_x * step_w.T * 127 * 2).float()
    assert ((layer(x) - by_hand.float()).abs() <= slack + 1e-5).all()
    exact = linear(x)
    assert torch.nn.functional.cosine_similarity(layer(x), exact, dim=-1).min() > 0.999


def test_8_bit_rows_know_nothing_of_their_batch() -> None:
    bias = torch.randn(40)
    layer = int8.Int8Linear(torch.randn(40, 32), bias)
    x = torch.randn(9, 32) * torch.logspace(-4, 4, 9)[:, None]
    torch.testing.assert_close(layer(x), torch.cat([layer(row[None]) for row in x]), rtol=0, atol=0)
    assert torch.equal(layer(torch.zeros(1, 32)), bias[None])
    assert torch.isfinite(layer(torch.full((1, 32), 1e-42))).all()


def test_8_bit_words_are_embedded_and_scored_by_the_same_numbers() -> None:
    words = torch.nn.Embedding(50, 16)
    small = int8.Int8Embedding(words)
    ids = torch.tensor([[3, 4], [5, 49]])
    torch.testing.assert_close(small(ids), words(ids), rtol=0, atol=words.weight.detach().abs().max().item() / 127)
    states, bias = torch.randn(3, 16), torch.randn(50)
    plain = int8.Int8Linear(words.weight, bias)
    torch.testing.assert_close(small.scores(states, bias), plain(states), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_8_bits_stay_near(name: str, cache: Path) -> None:
    theirs = reference("retrieval")
    if name == "torch":
        ours: TestedEngine = EagerEngine(int8.quantize(toy("retrieval")), CPU, torch.float32)
    else:
        ours = vino(cache, "retrieval", "int8")
    states, expected = ours.encode_images(pixels()), theirs.encode_images(pixels())
    cosine = torch.nn.functional.cosine_similarity(ours.embed_images(states), theirs.embed_images(expected))
    assert cosine.min() >= 0.99
    ids, mask = texts(3 * ITEMS)
    assert (
        torch.nn.functional.cosine_similarity(ours.embed_texts(ids, mask), theirs.embed_texts(ids, mask)).min() > 0.99
    )
    single = torch.cat([ours.encode_images(one[None]) for one in pixels()])
    assert torch.nn.functional.cosine_similarity(single.flatten(1), states.flatten(1)).min() > 0.999


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_8_bits_describe(name: str, cache: Path) -> None:
    """Most captions are the same, and along each of the reference's captions the next token's chances stay near."""
    theirs = reference("caption")
    small = EagerEngine(int8.quantize(toy("caption")), CPU, torch.float32)
    ours: TestedEngine = small if name == "torch" else vino(cache, "caption", "int8")
    states = theirs.encode_images(pixels())
    actual, expected = captions(ours, 3, states), captions(theirs, 3, states)
    assert sum(a[0].ids == b[0].ids for a, b in zip(actual, expected, strict=True)) >= ITEMS - 2
    for item, (prompt, (best, *_)) in enumerate(zip(PROMPTS, expected, strict=True)):
        tokens = torch.tensor([prompt + list(best.ids)])
        near, far = (chances(engine, states[item : item + 1], tokens) for engine in (ours, theirs))
        assert (near - far).abs().max() < 0.05


@torch.inference_mode()
def chances(engine: TestedEngine, states: Tensor, ids: Tensor) -> Tensor:
    """Probabilities (T, V) of what follows each token of one text (1, T)."""
    session = engine.prepare_captions(states, ids.shape[1])([0])
    return torch.cat([session.step(ids[:, at : at + 1]) for at in range(ids.shape[1])]).softmax(-1)


def test_bf16_stays_near(cache: Path) -> None:
    expected = reference("retrieval").encode_images(pixels())
    for ours in (EagerEngine(toy("retrieval"), CPU, torch.bfloat16), vino(cache, "retrieval", "bf16")):
        actual = ours.encode_images(pixels()).float()
        assert torch.nn.functional.cosine_similarity(actual.flatten(1), expected.flatten(1)).min() > 0.999


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_keys_and_values_below_fp32_are_in_16_bits(cache: Path, precision: str) -> None:
    """In half the memory, and the products with them stay near those of fp32."""
    if not has_bf16():
        pytest.skip("the processor does not compute in bf16")
    theirs, ours = reference("pretrain"), vino(cache, "pretrain", precision)
    states = theirs.encode_images(pixels())
    small, large = ours.project_images(states), theirs.project_images(states)
    for actual, expected in zip(flatten_memory(small), flatten_memory(large), strict=True):
        assert actual.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(actual.float().flatten(), expected.flatten(), dim=0) > 0.999
    ids, mask = texts(3 * ITEMS)
    assert (ours.match(ids, mask, small) - theirs.match(ids, mask, large)).abs().max() < 0.02
    tokens = torch.tensor([[598, 20, 30, 40]])
    difference = chances(ours, states[:1], tokens) - chances(theirs, states[:1], tokens)
    assert difference.abs().max() < 0.05


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [1, 1, 2, 5, 3, 3]])
def test_rows_continue_the_rows_that_they_replace(make: Make, order: list[int]) -> None:
    """Twice, because the caches change places; then only the second of two items remains."""
    logits = []
    for engine in (make("caption"), reference("caption")):
        with torch.inference_mode():
            session = engine.prepare_captions(reference("caption").encode_images(pixels(count=2)), 12)([0, 1])
            session.step(torch.tensor([[598, 20], [598, 30]]))
            session.widen(3)
            for seed in range(2):
                session.step(torch.arange(6)[:, None] + 40 + seed)
                session.reorder(torch.tensor(order))
            steps = [session.step(torch.arange(6)[:, None] + 50)]
            session.keep(torch.tensor([1]))
            steps.append(session.step(torch.arange(3)[:, None] + 60))
            logits.append(torch.cat(steps))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)


def test_conversions_tell_nobody(tmp_path: Path) -> None:
    """The makers' libraries would start a process each time, to tell a server, and draw bars among our results."""
    call = """
        import sys
        from pathlib import Path
        from tests.engine.test_engines import vino
        vino(Path(sys.argv[1]), "retrieval", "int8")
        assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
    """
    command = [sys.executable, "-c", textwrap.dedent(call), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_parts_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = vino(tmp_path, "retrieval").encode_images(pixels())
    (folder,) = tmp_path.iterdir()
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(convert, "_convert", None)  # whoever converts again fails
    torch.testing.assert_close(vino(tmp_path, "retrieval").encode_images(pixels()), first, rtol=0, atol=0)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = convert._convert, []

    def full_disk(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(convert, "_convert", full_disk)
    with pytest.raises(OSError, match="No space"):
        vino(tmp_path, "retrieval")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(convert, "_convert", original)
    assert vino(tmp_path, "retrieval").encode_images(pixels()).shape == (ITEMS, 5, 32)


def test_other_weights_sizes_precisions_or_pictures_are_other_parts() -> None:
    config, pictures = toy_config("retrieval"), pixels(1, 2)
    names = {
        convert.cache_name("a", config, "fp32", None),
        convert.cache_name("b", config, "fp32", None),
        convert.cache_name("a", toy_config("retrieval", image_size=64), "fp32", None),
        convert.cache_name("a", config, "int8", None),
        convert.cache_name("a", config, "int8", pictures),
        convert.cache_name("a", config, "int8", pictures + 1),
    }
    assert len(names) == 6


def test_the_digest_is_of_the_weights(tmp_path: Path) -> None:
    for name, model in (("one", toy("retrieval")), ("same", toy("retrieval")), ("other", toy("pretrain"))):
        write.save(model, tmp_path / name, tokenizer=toy_tokenizer())
    one, equal, other = (weights_digest(tmp_path / name) for name in ("one", "same", "other"))
    assert one == equal != other
    assert weights_digest(tmp_path / "one" / "model.safetensors") == one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("toy")
    for task in ("caption", "vqa", "retrieval"):
        prompt = "a picture of " if task == "caption" else None
        write.save(toy(task), home / task, tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE), prompt=prompt)
    write_bundle(home, {task: home / task for task in ("caption", "vqa", "retrieval")})
    return home


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path))
    return tmp_path


def test_a_model_is_loaded_into_any_engine(folder: Path, own_cache: Path) -> None:
    images = [toy_image(seed) for seed in range(5)]
    plain, ours = openblip.load(folder, engine="torch"), openblip.load(folder, engine="openvino")
    assert [c.text for c in ours.caption(images)] == [c.text for c in plain.caption(images)]
    assert ours.ask(images[0], ["what is it?", "why?"])[1].text == plain.ask(images[0], ["what is it?", "why?"])[1].text
    both = [blip.match(images, ["a cat", "a dog on a bed"]) for blip in (ours, plain)]
    actual, expected = ([[m.probability, m.similarity] for row in table for m in row] for table in both)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert {path.parent.name for path in own_cache.rglob("vision.xml")} == {
        path.name for path in (own_cache / "openvino").iterdir()
    }


def test_eight_threads_give_what_one_gives(folder: Path, own_cache: Path) -> None:
    images = [toy_image(seed) for seed in range(16)]
    for engine, precision in (("openvino", "fp32"), ("torch", "int8")):
        blip = openblip.load(folder, engine=engine, precision=precision)  # type: ignore[arg-type]
        expected = [blip.caption(image) for image in images]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(blip.caption, images)) == expected


def test_calibrated_by_pictures_the_image_encoder_stays_near(own_cache: Path) -> None:
    photos = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
    blip = openblip.load(
        "pocket", task="retrieval", engine="openvino", precision="int8", calibration=[*photos, toy_image(1)]
    )
    plain = openblip.load("pocket", task="retrieval", engine="torch")
    assert (blip.embed_images(photos) * plain.embed_images(photos)).sum(1).min() > 0.99


def test_auto_follows_the_notes() -> None:
    caption, compare = toy_config("caption"), toy_config("nlvr")
    assert choose_engine("fp32", CPU, caption) == "torch"
    assert choose_engine("int8", CPU, caption) == "openvino"
    assert choose_engine("int8", CPU, compare) == "torch"
    assert choose_engine("bf16", torch.device("cuda"), caption) == "torch"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"engine": "tpu"}, "engine must be one of auto, torch, compiled, openvino, got 'tpu'"),
        ({"precision": "int4"}, "precision must be one of fp32, bf16, fp16, int8, got 'int4'"),
        ({"engine": "openvino", "precision": "fp16"}, "fp32, bf16 or int8"),
        ({"engine": "compiled", "precision": "int8"}, "needs a CPU and engine='torch' or 'openvino'"),
        ({"decode": "quick"}, "'fast' or 'exact'"),
        ({"engine": "torch", "calibration": []}, "calibration images"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        openblip.load(folder / "retrieval", **overrides)


def test_openvino_refuses_what_it_does_not_serve(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use engine='torch'"):
        OpenVinoEngine(toy_model("nlvr"), toy_config("nlvr"), "fp32", cache=tmp_path, key="x")


def test_what_openvino_does_not_serve_of_a_bundle_runs_by_the_reference(tmp_path: Path, own_cache: Path) -> None:
    """Pictures are encoded for every model of the bundle; boxes are those of plain PyTorch."""
    tasks: tuple[TaskName, ...] = ("caption", "grounding")
    for task in tasks:
        write.save(toy_model(task), tmp_path / task, tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE))
    write_bundle(tmp_path, {task: tmp_path / task for task in tasks})
    plain, converted = openblip.load(tmp_path), openblip.load(tmp_path, engine="openvino")
    picture = toy_image(1)
    encoded = converted.encode_images(picture)
    assert converted.caption(encoded).text == plain.caption(picture).text
    assert converted.ground(encoded, "a dog") == plain.ground(picture, "a dog")


def test_a_cache_that_is_full_says_so(cache: Path) -> None:
    for engine in (vino(cache, "caption"), CompiledEngine(toy("caption"), CPU, torch.float32, backend="eager")):
        session = engine.prepare_captions(engine.encode_images(pixels(0, 1)), 3)([0])
        session.step(torch.tensor([[598, 5]]))
        with pytest.raises(InputError, match="at most 3 tokens, got 4"):
            session.step(torch.tensor([[6, 7]]))
