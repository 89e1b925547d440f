"""Training steps recorded from the original implementations: losses, gradients, queues, momentum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.objectives.contrastive import ContrastiveObjective, Features, Negatives
from openblip.training.objectives.gather import Scope
from openblip.training.objectives.grounding import GroundingBatch, GroundingObjective, box_bins
from openblip.training.objectives.language import lm_loss, lm_targets
from openblip.training.objectives.nlvr import NlvrBatch, NlvrObjective
from openblip.training.objectives.pretrain import PretrainBatch, PretrainObjective
from openblip.training.objectives.retrieval import RetrievalBatch, RetrievalObjective
from openblip.training.objectives.vqa import VqaBatch, VqaObjective
from tests.training.training_toys import Recording


def close(ours: Tensor, recorded: Tensor | float) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(recorded).reshape(ours.shape), atol=1e-4, rtol=0)


class Drawn:
    """Draws the arg-max, as the recorded steps did, and records the weights."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.drawn: list[list[int]] = []

    def __call__(self, weights: Tensor) -> Tensor:
        self.weights.append(weights)
        self.drawn.append(weights.argmax(1).tolist())
        return weights.argmax(1)


def restore(objective: ContrastiveObjective[Any, Any, Any, Any], recording: Recording) -> None:
    twin = {key: value for key, value in recording.state.items() if key.startswith("momentum.")}
    objective.twin.load_state_dict({key.removeprefix("momentum."): value for key, value in twin.items()})
    objective.queue.image.copy_(recording.state["queue.image"])
    objective.queue.text.copy_(recording.state["queue.text"])
    objective.queue.pointer.copy_(recording.state["queue.pointer"])
    assert objective.queue.pointer.tolist() == [recording.json["ptr_before"]]


def check_state(objective: ContrastiveObjective[Any, Any, Any, Any], recording: Recording) -> None:
    """Queues, pointer, temperature and every momentum tensor after the step."""
    after = {key.removeprefix("after."): value for key, value in recording.io.items() if key.startswith("after.")}
    close(objective.queue.image, after["image_queue"])
    close(objective.queue.text, after["text_queue"])
    assert objective.queue.pointer.tolist() == [recording.json["ptr_after"]]
    close(objective.model.temperature.detach(), after["temp"])
    twin = {f"momentum.{name}": slow for name, slow in objective.twin.named_parameters()}
    for key, tensor in after.items():
        if "_m." in key:
            torch.testing.assert_close(twin[recording.ours(key)], tensor, atol=1e-6, rtol=0)
    recorded = {recording.ours(key): value for key, value in recording.json["momentum_after"].items()}
    assert recorded.keys() == twin.keys()
    for name, value in recorded.items():
        assert twin[name].double().norm().item() == pytest.approx(value["norm"], abs=1e-4)
        assert twin[name].double().sum().item() == pytest.approx(value["sum"], abs=1e-4)


def check_draws(draw: Drawn, recording: Recording) -> None:
    for ours, direction in zip(draw.weights, ("t2i", "i2t"), strict=True):
        recorded = recording.io[f"negative_weights_{direction}"]
        close(ours / ours.sum(1, keepdim=True), recorded / recorded.sum(1, keepdim=True))
    assert draw.drawn == [recording.json["negative_image_for_text"], recording.json["negative_text_for_image"]]


@pytest.fixture
def pretrain() -> Recording:
    return Recording("pretrain", "pretrain")


def test_pretraining_step(pretrain: Recording) -> None:
    model, draw, io, facts = pretrain.model, Drawn(), pretrain.io, pretrain.json
    objective = PretrainObjective(model, queue_size=facts["queue_size"], momentum=facts["momentum"], draw=draw)
    restore(objective, pretrain)
    batch = PretrainBatch(pixels=io["pixel_values"], ids=io["input_ids"], mask=io["attention_mask"])
    losses = objective(batch, alpha=facts["alpha"])
    close(losses["itc"], io["loss_ita"])
    close(losses["itm"], io["loss_itm"])
    close(losses["lm"], io["loss_lm"])
    check_draws(draw, pretrain)
    close(draw.weights[0], io["negative_weights_t2i"])  # the floor of 1e-4 too, not only the odds
    sum(losses.values(), torch.zeros(())).backward()
    pretrain.check_gradients()
    check_state(objective, pretrain)

    draw.drawn.clear()
    turned = PretrainBatch(pixels=batch.pixels.flip(0), ids=batch.ids.flip(0), mask=batch.mask.flip(0))
    losses, second = objective(turned, alpha=0.0), facts["second_step"]
    for ours, recorded in (("itc", "loss_ita"), ("itm", "loss_itm"), ("lm", "loss_lm")):
        close(losses[ours].detach(), second[recorded])
    assert draw.drawn == [second["negative_image_for_text"], second["negative_text_for_image"]]
    assert objective.queue.pointer.tolist() == [second["ptr_after"]]


def test_pretraining_shares_what_the_paper_shares(pretrain: Recording) -> None:
    """Every recorded pair of names of one parameter is one of ours, and nothing else is shared."""
    for group in pretrain.json["shared_parameter_names"]:
        ours = {pretrain.ours(name) for name in group}
        assert len(ours) == 1
    names = [name for name, _ in pretrain.model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len(pretrain.json["grad_norms"])


def test_pretraining_lm(pretrain: Recording) -> None:
    model, io = pretrain.model, pretrain.io
    assert lm_targets(io["lm_input_ids"], io["attention_mask"])[:, 1:].equal(io["lm_labels"][:, 1:])
    logits = model.logits(io["lm_input_ids"][:2], io["attention_mask"][:2], model.encode_image(io["pixel_values"][:2]))
    attended = io["attention_mask"][:2].bool()
    close(logits[attended].detach(), io["lm_logits_first2"][attended])


@pytest.mark.parametrize("negatives", ["rank", "all"])
def test_retrieval_step(negatives: Scope) -> None:
    recording, draw = Recording("retrieval_train", "retrieval", weights="retrieval"), Drawn()
    model, io, facts = recording.model, recording.io, recording.json
    objective = RetrievalObjective(
        model, queue_size=facts["queue_size"], momentum=facts["momentum"], negatives=negatives, draw=draw
    )
    restore(objective, recording)
    objective.queue.ids.copy_(io["before.idx_queue"])
    batch = RetrievalBatch(
        pixels=io["pixel_values"], ids=io["input_ids"], mask=io["attention_mask"], image_ids=io["idx"]
    )
    losses = objective(batch, alpha=facts["alpha"])
    close(losses["itc"], io["loss_ita"])
    close(losses["itm"], io["loss_itm"])
    check_draws(draw, recording)
    sum(losses.values(), torch.zeros(())).backward()
    recording.check_gradients()
    check_state(objective, recording)
    assert objective.queue.ids.equal(io["after.idx_queue"])

    draw.drawn.clear()
    turned = RetrievalBatch(
        pixels=batch.pixels.flip(0),
        ids=batch.ids.flip(0),
        mask=batch.mask.flip(0),
        image_ids=batch.image_ids.flip(0) + 1,
    )
    losses, second = objective(turned, alpha=0.0), facts["second_step"]
    assert turned.image_ids.tolist() == second["idx"]
    close(losses["itc"].detach(), second["loss_ita"])
    close(losses["itm"].detach(), second["loss_itm"])
    assert draw.drawn == [second["negative_image_for_text"], second["negative_text_for_image"]]
    assert objective.queue.pointer.tolist() == [second["ptr_after"]]


def test_caption_step() -> None:
    recording = Recording("caption", "caption")
    model, io = recording.model, recording.io
    prompt = recording.json["prompt_length"]
    assert lm_targets(io["input_ids"], io["attention_mask"], prompt).equal(io["labels"])
    batch = CaptionBatch(pixels=io["pixel_values"], ids=io["input_ids"], mask=io["attention_mask"])
    loss = CaptionObjective(model, prompt_length=prompt)(batch)["lm"]
    close(loss, io["loss"])
    loss.backward()
    recording.check_gradients()
    states = model.decoder.decode(batch.ids, batch.mask, model.encode_image(batch.pixels))
    close(lm_loss(states, io["labels"], model.to_logits, reduction="none").detach(), io["loss_per_sample_sum"])


def test_answer_step() -> None:
    recording = Recording("vqa", "vqa")
    model, io = recording.model, recording.io
    batch = VqaBatch(
        pixels=io["pixel_values"],
        ids=io["question_ids"],
        mask=io["question_mask"],
        answer_ids=io["answer_ids"],
        answer_mask=io["answer_mask"],
        question_index=torch.arange(len(io["n"])).repeat_interleave(io["n"]),
        weights=io["weights"],
    )
    loss = VqaObjective(model)(batch)["vqa"]
    close(loss, io["loss"])
    loss.backward()
    recording.check_gradients()


def test_nlvr_step() -> None:
    recording = Recording("nlvr", "nlvr")
    model, io = recording.model, recording.io
    first_images, second = io["pixel_values"].chunk(2)
    batch = NlvrBatch(
        left_pixels=first_images,
        right_pixels=second,
        ids=io["input_ids"],
        mask=io["attention_mask"],
        labels=io["targets"],
    )
    loss = NlvrObjective(model)(batch)["nlvr"]
    close(loss, io["loss"])
    loss.backward()
    recording.check_gradients()


def test_grounding_step() -> None:
    recording = Recording("grounding", "grounding")
    model, io, facts = recording.model, recording.io, recording.json
    height, width = facts["img_shape_hw"]
    sizes = torch.tensor([[width, height]]).expand(len(io["boxes_xyxy"]), 2).float()
    batch = GroundingBatch(
        pixels=io["pixel_values"], ids=io["text_ids"], mask=io["text_mask"], boxes=io["boxes_xyxy"], sizes=sizes
    )
    first_images = facts["tokens"]["first_bin"]
    assert (box_bins(batch.boxes, sizes, facts["image_res"]) + first_images).equal(io["decoder_input_ids"][:, 1:])
    losses = GroundingObjective(model, log_weighted=True)(batch)
    close(losses["box"], io["loss.loss_seq_init"])
    close(losses["box"], io["token_losses"].mean())
    torch.testing.assert_close(losses["box_weighted"], io["loss.loss_seq"].reshape(()), atol=1e-4, rtol=1e-5)
    assert not losses["box_weighted"].requires_grad
    losses["box"].backward()
    recording.check_gradients()


def test_features_and_negatives_are_what_they_say() -> None:
    """The two records that objectives hand from step to step hold one row per pair."""
    recording = Recording("retrieval_train", "retrieval", weights="retrieval")
    objective, io = RetrievalObjective(recording.model, queue_size=24), recording.io
    tokens = objective.model.encode_image(io["pixel_values"])
    features = objective.features(io["pixel_values"], tokens, io["input_ids"], io["attention_mask"])
    assert isinstance(features, Features)
    for feature in (features.image, features.text, features.image_m, features.text_m):
        torch.testing.assert_close(feature.norm(dim=-1), torch.ones(4))
    negatives = objective.negatives(io["idx"], features)
    assert isinstance(negatives, Negatives)
    assert (io["idx"][negatives.images] != io["idx"]).all()
    assert (io["idx"][negatives.texts] != io["idx"]).all()
    assert negatives.exist.all()
