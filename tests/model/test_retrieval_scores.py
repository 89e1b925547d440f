"""The score matrices of the original retrieval evaluation, from the matcher: ITC shortlist, ITM re-ranking."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from openblip.checkpoints.read import load
from openblip.model.matcher import Matcher
from tests.conftest import GOLDEN

SHORTLIST = 4
UNSCORED = -100.0


def test_recorded_score_matrices_are_reproduced() -> None:
    recorded = load_file(GOLDEN / "retrieval.io.safetensors")
    config = {"vision": {"heads": 4}, "text": {"heads": 4}}
    model = load(GOLDEN / "retrieval.weights.safetensors", config=config, tokenizer=GOLDEN / "vocab.txt").model
    assert isinstance(model, Matcher)
    with torch.no_grad():
        tokens = model.encode_image(recorded["pixel_values"].float())
        similarity = model.embed_image(tokens) @ model.embed_text(recorded["text_ids"], recorded["text_mask"]).T
        images, texts = similarity.shape
        folded = (recorded["text_ids_enc"].repeat(images, 1), recorded["text_mask"].repeat(images, 1))
        match = model.match_logits(*folded, tokens)[:, 1].view(images, texts)
    for name, itc, itm in (("i2t", similarity, match), ("t2i", similarity.T, match.T)):
        shortlist = itc.topk(SHORTLIST, dim=1).indices
        scores = torch.full_like(itc, UNSCORED).scatter(1, shortlist, (itc + itm).gather(1, shortlist))
        torch.testing.assert_close(scores, recorded[f"score_{name}"], atol=1e-4, rtol=0)
