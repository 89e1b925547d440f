"""Packed captions against captions in rows of their own."""

from __future__ import annotations

from typing import cast

import torch

from openblip.data.collate import pack_texts
from openblip.model.captioner import Captioner
from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.objectives.packing import PackedRows
from tests.toys import SIZE, toy_model, toy_tokenizer

TEXTS = ["a dog", "two people walk on the beach", "a cat", "a red car on the street", "a man", "water", "a dog runs"]
COUNTS = [2, 1, 4]


def batches(prompt: str = "") -> tuple[CaptionBatch, CaptionBatch]:
    """The same captions, each in a row of its own and packed."""
    tokenizer = toy_tokenizer()
    rows = tokenizer.encode([prompt + text for text in TEXTS], "dec", 12)
    pixels = torch.randn(len(COUNTS), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    owners = torch.tensor([image for image, count in enumerate(COUNTS) for _ in range(count)])
    packed = pack_texts(rows.ids, rows.mask, COUNTS, tokenizer.pad_id)
    return (
        CaptionBatch(pixels=pixels, ids=rows.ids, mask=rows.mask, image_index=owners),
        CaptionBatch(pixels=pixels, **packed),
    )


def test_packed_captions_give_the_loss_and_gradients_of_single_ones() -> None:
    model = cast(Captioner, toy_model("caption"))
    for prompt in ("", "a photo of "):
        prompt_length = len(toy_tokenizer().encode_prompt(prompt))
        objective = CaptionObjective(model, prompt_length=prompt_length)
        results = []
        for batch in batches(prompt):
            model.zero_grad()
            loss = objective(batch)["lm"]
            loss.backward()
            results.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
        (loss, gradients), (packed_loss, packed_gradients) = results
        torch.testing.assert_close(packed_loss, loss)
        assert packed_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_row_holds_every_caption_once_and_whole() -> None:
    single, packed = batches()
    assert packed.positions is not None
    rows = PackedRows(packed.ids, packed.positions, packed.mask)
    text = 0
    for row, count in enumerate(COUNTS):
        for number in range(1, count + 1):
            where = rows.captions[row] == number
            length = int(single.mask[text].sum())
            assert rows.ids[row, where].tolist() == single.ids[text, :length].tolist()
            assert rows.positions[row, where].tolist() == list(range(length))
            text += 1


def test_groups_cover_all_rows_and_cut_only_padding() -> None:
    _, packed = batches()
    assert packed.positions is not None
    rows = PackedRows(packed.ids, packed.positions, packed.mask)
    images, tokens = [], 0
    for chosen, group in rows.group_by_length(2):
        images += chosen.tolist()
        tokens += int((group.captions > 0).sum())
        assert (group.captions > 0).any(0).all()
    assert sorted(images) == list(range(len(COUNTS)))
    assert tokens == int((rows.captions > 0).sum())
