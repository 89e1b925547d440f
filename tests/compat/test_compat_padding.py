"""Padding that all rows share is computed as in transformers; other padding does not change results.

The oracle is transformers with one row at a time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.errors import InputError
from tests.compat.compat_toys import DEC, PAD, SEP, close, ids, padded, pair, pixels

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using the model-agnostic default"),
]

CAPTIONER, ANSWERER = "BlipForConditionalGeneration", "BlipForQuestionAnswering"
LOUD = 0.3
LENGTHS = [7, 3, 5, 7]
SEEDS = (1, 2)


def _alone(rows: Tensor, mask: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """A row without the padding that only it has: what a caller would have passed for it alone."""
    keep = (mask[row] == 1) | (mask == 0).all(0)
    return rows[row : row + 1, keep], mask[row : row + 1, keep]


def _stripped(row: list[int], *, beams: int) -> list[int]:
    """A generated row without what fills it up."""
    filler = SEP if beams > 1 else PAD
    while row and row[-1] == filler:
        row = row[:-1]
    return row


# --- generate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", [CAPTIONER, ANSWERER])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 2, "max_length": 15, "min_length": 9}], ids=str
)
def test_common_padding_equals_transformers(name: str, left: bool, options: dict[str, Any]) -> None:
    rows, mask = padded([5, 5], 8, left=left)
    for seed in SEEDS:
        theirs, ours = pair(name, seed=seed, scale=LOUD)
        for masks in ({"attention_mask": mask}, {}):
            actual = ours.generate(input_ids=rows, pixel_values=pixels(), **masks, **options)
            expected = theirs.generate(input_ids=rows.clone(), pixel_values=pixels(), **masks, **options)
            assert actual.tolist() == expected.tolist()
    single, single_mask = rows[:1], mask[:1]
    actual = ours.generate(input_ids=single, pixel_values=pixels(1), attention_mask=single_mask, **options)
    expected = theirs.generate(input_ids=single.clone(), pixel_values=pixels(1), attention_mask=single_mask, **options)
    assert actual.tolist() == expected.tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.6])
@pytest.mark.parametrize("left", [False, True])
def test_penalties_with_padding_equal_transformers(left: bool, penalty: float) -> None:
    rows, mask = padded([5], 8, left=left)
    for seed in SEEDS:
        theirs, ours = pair(CAPTIONER, seed=seed, scale=LOUD)
        options = {"input_ids": rows, "pixel_values": pixels(1), "attention_mask": mask, "repetition_penalty": penalty}
        actual = ours.generate(**options)
        assert actual.tolist() == theirs.generate(**options | {"input_ids": rows.clone()}).tolist()
        if left and penalty != 1.0:
            with pytest.raises(InputError, match="left"):
                ours.generate(**options, no_repeat_ngram_size=2)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("common", [0, 2])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", [CAPTIONER, ANSWERER])
def test_results_do_not_depend_on_the_batch(name: str, beams: int, common: int, left: bool) -> None:
    """Difference `batch-padding`: a row does not depend on its batch; in 5.23 it does."""
    rows, mask = padded(LENGTHS, max(LENGTHS) + common, left=left)
    images = pixels(len(rows))
    changed = 0
    for seed in SEEDS:
        theirs, ours = pair(name, seed=seed, scale=LOUD)
        mixed = ours.generate(input_ids=rows, pixel_values=images, attention_mask=mask, num_beams=beams).tolist()
        reference = theirs.generate(
            input_ids=rows.clone(), pixel_values=images, attention_mask=mask, num_beams=beams
        ).tolist()
        for row in range(len(rows)):
            row_ids, row_mask = _alone(rows, mask, row)
            alone = theirs.generate(
                input_ids=row_ids.clone(), pixel_values=images[row : row + 1], attention_mask=row_mask, num_beams=beams
            )
            expected = _stripped(alone[0].tolist(), beams=beams)
            assert _stripped(mixed[row], beams=beams) == expected
            changed += _stripped(reference[row], beams=beams) != expected
        if name == CAPTIONER and not common and not left:
            # Prompts keep their own lengths: [DEC], the words, no [SEP].
            assert [line[:2] for line in mixed] == [[DEC, row[1]] for row in rows.tolist()]
    assert changed  # else the test could not tell the two apart


def test_padding_without_a_mask() -> None:
    """As in transformers, captioning masks padding ids; VQA does not, and treats them as words."""
    theirs, ours = pair(CAPTIONER, seed=1, scale=LOUD)
    rows, mask = padded(LENGTHS, 7)
    images = pixels(len(rows))
    assert ours.generate(images, rows).tolist() == ours.generate(images, rows, mask).tolist()
    theirs, ours = pair(ANSWERER, seed=1, scale=LOUD)
    assert ours.generate(rows, images).tolist() == theirs.generate(rows, images).tolist()


@pytest.mark.parametrize("name", [CAPTIONER, ANSWERER])
def test_order_and_batch_size_do_not_matter(name: str) -> None:
    _, ours = pair(name, seed=2, scale=LOUD)
    rows, mask = padded(LENGTHS, 7)
    images = pixels(len(rows))
    inputs = {"input_ids": rows, "pixel_values": images, "attention_mask": mask}
    texts = [_stripped(line, beams=1) for line in ours.generate(**inputs).tolist()]
    order = torch.tensor([2, 0, 3, 1])
    turned = ours.generate(**{key: value[order] for key, value in inputs.items()}).tolist()
    assert [_stripped(line, beams=1) for line in turned] == [texts[i] for i in order.tolist()]


def test_mixed_prompts_with_several_sequences_and_scores() -> None:
    _, ours = pair(CAPTIONER, seed=2, scale=LOUD)
    rows, mask = padded([6, 4], 6)
    options = {"num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True}
    mixed = ours.generate(pixels(), rows, mask, **options)
    for row in range(2):
        row_ids, row_mask = _alone(rows, mask, row)
        alone = ours.generate(pixels()[row : row + 1], row_ids, row_mask, **options)
        for rank in range(2):
            line = mixed.sequences[2 * row + rank].tolist()
            assert _stripped(line, beams=3) == _stripped(alone.sequences[rank].tolist(), beams=3)
            close(mixed.sequences_scores[2 * row + rank], alone.sequences_scores[rank])


def test_the_text_decoder_by_itself_ignores_padding() -> None:
    theirs, ours = (model.text_decoder for model in pair(CAPTIONER, seed=1, scale=LOUD))
    rows, mask = padded([5, 3], 5)
    states, states_mask = torch.randn(2, 6, 32), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    options: dict[str, Any] = {"eos_token_id": SEP, "pad_token_id": PAD, "max_new_tokens": 8}
    sequences = ours.generate(rows, mask, states, states_mask, **options).tolist()
    for row, width in ((0, 6), (1, 3)):
        row_ids, row_mask = _alone(rows, mask, row)
        alone = theirs.generate(
            input_ids=row_ids, attention_mask=row_mask, encoder_hidden_states=states[row : row + 1, :width], **options
        )
        assert _stripped(sequences[row], beams=1) == _stripped(alone[0].tolist(), beams=1)


# --- forward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("common", [0, 2])
def test_states_of_mixed_texts(left: bool, common: int) -> None:
    theirs, ours = pair("BlipTextModel")
    rows, mask = padded(LENGTHS, 7 + common, left=left)
    images = torch.randn(len(rows), 5, 32)
    for options in ({}, {"encoder_hidden_states": images}, {"encoder_hidden_states": images, "is_decoder": True}):
        outputs = ours(rows, mask, **options)
        for row in range(len(rows)):
            row_ids, row_mask = _alone(rows, mask, row)
            row_options = dict(options)
            if "encoder_hidden_states" in row_options:
                row_options["encoder_hidden_states"] = images[row : row + 1]
            alone = theirs(row_ids, attention_mask=row_mask, **row_options)
            # A causal token that is padding on the left sees nothing, so its state means nothing.
            blind = "is_decoder" in options and left
            keep = (mask[row] == 1) | (mask == 0).all(0) & (not blind)
            close(outputs.last_hidden_state[row, keep], alone.last_hidden_state[0, row_mask[0] == 1 if blind else ...])
            if not (blind and common):
                close(outputs.pooler_output[row], alone.pooler_output[0])


def test_positions_of_the_caller_are_used() -> None:
    theirs, ours = pair("BlipTextModel")
    rows, mask = padded(LENGTHS, 7, left=True)
    positions = torch.arange(7)[None].expand(len(rows), -1)
    actual, expected = (
        ours(rows, mask, position_ids=positions),
        theirs(rows, attention_mask=mask, position_ids=positions),
    )
    real = mask == 1
    close(actual.last_hidden_state[real], expected.last_hidden_state[real])


@pytest.mark.parametrize("left", [False, True])
def test_scores_of_mixed_texts(left: bool) -> None:
    rows, mask = padded(LENGTHS, 7, left=left)
    images = pixels(len(rows))
    for name, options in (
        ("BlipForImageTextRetrieval", {}),
        ("BlipForImageTextRetrieval", {"use_itm_head": False}),
        ("BlipModel", {}),
    ):
        theirs, ours = pair(name)
        outputs = ours(rows, images, attention_mask=mask, **options)
        for row in range(len(rows)):
            row_ids, row_mask = _alone(rows, mask, row)
            alone = theirs(row_ids, images[row : row + 1], attention_mask=row_mask, **options)
            score, row_score = ("logits_per_image",) * 2 if name == "BlipModel" else ("itm_score",) * 2
            mine = outputs[score][row] if score == "itm_score" and not options else outputs[score][row, row].view(1)
            close(mine, alone[row_score][0])
    theirs, ours = pair("BlipModel")
    for row in range(len(rows)):
        row_ids, row_mask = _alone(rows, mask, row)
        features = ours.get_text_features(rows, mask).pooler_output[row]
        close(features, theirs.get_text_features(row_ids, attention_mask=row_mask).pooler_output[0])
        both = ours.get_multimodal_features(rows, images, mask)[row]
        close(both, theirs.get_multimodal_features(row_ids, images[row : row + 1], row_mask)[0])


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("common", [0, 2])
def test_vqa_loss_of_mixed_questions(left: bool, common: int) -> None:
    """Difference `question-mask`: 5.23 drops the mask of what cross-attention reads, so padded questions leak."""
    theirs, ours = pair(ANSWERER)
    rows, mask = padded(LENGTHS, 7 + common, left=left)
    images, labels = pixels(len(rows)), ids(len(rows), 4, seed=9)
    batch_loss = ours(rows, images, labels=labels, attention_mask=mask).loss
    alone = []
    for row in range(len(rows)):
        row_ids, row_mask = _alone(rows, mask, row)
        answer = labels[row : row + 1]
        alone.append(theirs(row_ids, images[row : row + 1], labels=answer, attention_mask=row_mask).loss)
    close(batch_loss, torch.stack(alone).mean())
    assert abs(theirs(rows, images, labels=labels, attention_mask=mask).loss - batch_loss) > 1e-4


@pytest.mark.parametrize("left", [False, True])
def test_caption_logits_of_mixed_texts(left: bool) -> None:
    theirs, ours = pair(CAPTIONER)
    rows, mask = padded(LENGTHS, 7, left=left)
    images = pixels(len(rows))
    batch_logits = ours(images, rows, mask).logits
    for row in range(len(rows)):
        row_ids, row_mask = _alone(rows, mask, row)
        close(batch_logits[row, mask[row] == 1], theirs(images[row : row + 1], row_ids, row_mask).logits[0])


@pytest.mark.parametrize("left", [False, True])
def test_caption_loss_and_gradients_of_mixed_texts(left: bool) -> None:
    """Difference `batch-padding`: padding on the left shifts the positions that 5.23 trains with."""
    theirs, ours = pair(CAPTIONER)
    rows, mask = padded(LENGTHS, 7, left=left)
    images, first = pixels(len(rows)), mask.cumsum(1) == 1
    labels = rows.masked_fill((mask == 0) | first, -100)  # nothing precedes a first token but padding
    batch_loss = ours(images, rows, mask, labels=labels).loss
    batch_loss.backward()
    alone: Any = torch.tensor(0.0)  # the mean over the labels of all rows, each computed without padding
    for row in range(len(rows)):
        row_ids, row_mask = _alone(rows, mask, row)
        loss = theirs(images[row : row + 1], row_ids, row_mask, labels=row_ids.clone()).loss
        alone = alone + loss * (row_ids.shape[1] - 1) / int((labels != -100).sum())
    alone.backward()
    close(batch_loss, alone)
    for actual, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (actual.grad is None) == (expected.grad is None)
        if expected.grad is not None:
            close(actual.grad, expected.grad, 1e-4)
    difference = (theirs(images, rows, mask, labels=labels).loss - batch_loss).abs().item()
    assert difference > 1e-4 if left else difference < 1e-5


@pytest.mark.parametrize("left", [False, True])
def test_incremental_decoding_of_mixed_texts(left: bool) -> None:
    _, ours = (model.text_decoder for model in pair(CAPTIONER))
    rows, mask = padded([6, 4], 6, left=left)
    states = torch.randn(2, 5, 32)
    more = ids(2, 3, seed=4)
    prefix_output = ours(rows, mask, encoder_hidden_states=states, use_cache=True)
    longer = torch.cat([mask, torch.ones_like(more)], 1)
    second = ours(more, longer, encoder_hidden_states=states, past_key_values=prefix_output.past_key_values)
    full_output = ours(torch.cat([rows, more], 1), longer, encoder_hidden_states=states)
    close(second.logits, full_output.logits[:, 6:])
    # The new tokens of the short row follow its own last one, as if it had come alone.
    short = torch.cat([ids(1, 4, seed=1), more[1:]], 1)
    close(second.logits[1], ours(short, encoder_hidden_states=states[1:]).logits[0, 4:])


def test_masks_are_checked() -> None:
    """Difference `mask-shape`: 5.23 also takes masks with four axes."""
    _, ours = pair("BlipForImageTextRetrieval")
    with pytest.raises(InputError, match="row 1"):
        ours(ids(), pixels(), attention_mask=torch.tensor([[1] * 6, [0] * 6]))
    with pytest.raises(InputError, match="must have shape"):
        ours(ids(), pixels(), attention_mask=torch.ones(2, 1, 1, 6))
    _, ours = pair(CAPTIONER)
    with pytest.raises(InputError, match="must have the shape"):
        ours.generate(pixels(), ids(), torch.ones(2, 5))
