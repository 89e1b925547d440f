"""Every model class, compared with transformers for equal weights: values, losses, hidden states, and signatures."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openblip.errors import ConfigError, InputError
from tests.compat.compat_toys import (
    CLASSES,
    CLS,
    VOCAB,
    WHOLE,
    WIDTH,
    Ours,
    Theirs,
    close,
    ids,
    our_config,
    pair,
    pixels,
    their_config,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
COMMON = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
IMAGES = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(7))


def _inputs(name: str) -> dict[str, Any]:
    """What a class needs at least."""
    both = {"input_ids": ids(), "pixel_values": pixels()}
    return {
        "BlipTextModel": {"input_ids": ids()},
        "BlipVisionModel": {"pixel_values": pixels()},
        "BlipForQuestionAnswering": {**both, "labels": ids(2, 4, seed=3)},
    }.get(name, both)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs(name: str) -> None:
    theirs, ours = pair(name)
    inputs = _inputs(name)
    close(ours(**inputs), theirs(**inputs))
    if name != "BlipVisionModel":
        close(ours(**inputs, attention_mask=COMMON), theirs(**inputs, attention_mask=COMMON))
    if name not in ("BlipVisionModel", "BlipForQuestionAnswering"):  # for VQA see test_compat_padding.py
        close(ours(**inputs, attention_mask=MIXED), theirs(**inputs, attention_mask=MIXED))


@pytest.mark.parametrize("name", CLASSES)
def test_hidden_states_attentions_and_tuples(name: str) -> None:
    theirs, ours = pair(name)
    inputs = _inputs(name) | {"output_attentions": True, "output_hidden_states": True}
    close(ours(**inputs), theirs(**inputs))
    close(ours(**inputs, return_dict=False), theirs(**inputs, return_dict=False))
    chosen = _inputs(name) | {"output_hidden_states": [0, -1]}
    close(ours(**chosen), theirs(**chosen))


@pytest.mark.parametrize("name", CLASSES)
def test_the_configuration_requests_hidden_states_and_attentions(name: str) -> None:
    theirs, ours = pair(name)
    for model in (theirs, ours):
        for config in (model.config, *(getattr(model.config, n, None) for n in ("text_config", "vision_config"))):
            if config is not None:
                config.output_hidden_states = config.output_attentions = True
    close(ours(**_inputs(name)), theirs(**_inputs(name)))
    theirs.config.return_dict = ours.config.return_dict = False
    close(ours(**_inputs(name)), theirs(**_inputs(name)))


def test_outputs_by_attribute_name_and_index() -> None:
    _, ours = pair("BlipForConditionalGeneration")
    output = ours(pixels(), ids())
    assert output.logits is output["logits"] is output[0] is output.decoder_logits
    assert output.loss is None
    assert "loss" not in output
    assert output.get("loss", 5) == 5
    assert list(output) == list(output.keys()) == ["logits", "image_embeds", "last_hidden_state"]
    assert [name for name, _ in output.items()] == list(output)
    assert len(output) == len(output.to_tuple()) == len(output[0:]) == 3
    assert dict(**output)["logits"] is output.logits
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(KeyError):
        output["nothing"] = 1
    output["loss"] = torch.tensor(1.0)
    assert output[0] is output.loss


@pytest.mark.parametrize("size", [32, 48, 64])
def test_other_image_sizes(size: int) -> None:
    for name in ("BlipVisionModel", "BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipModel"):
        theirs, ours = pair(name)
        inputs = _inputs(name) | {"pixel_values": pixels(size=size), "interpolate_pos_encoding": True}
        close(ours(**inputs), theirs(**inputs))
    wide = torch.randn(1, 3, 32, 64)
    theirs, ours = pair("BlipVisionModel")
    close(ours(wide, interpolate_pos_encoding=True), theirs(wide, interpolate_pos_encoding=True))


def test_image_size_is_checked() -> None:
    """Difference `image-size`: 5.23 reads a smaller picture with the first of its positions, in silence."""
    theirs, ours = pair("BlipVisionModel")
    assert theirs(pixels(size=16)).last_hidden_state.shape[1] == 2
    for size in (16, 64):
        with pytest.raises(ValueError, match="32 x 32"):
            ours(pixels(size=size))
    for model in (theirs, ours):
        with pytest.raises(ValueError, match="pixel_values"):
            model()


@pytest.mark.parametrize(
    "options",
    [
        {"is_decoder": True},
        {"encoder_hidden_states": IMAGES},
        {"encoder_hidden_states": IMAGES, "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0]] * 2)},
        {"encoder_hidden_states": IMAGES, "is_decoder": True, "attention_mask": MIXED, "output_attentions": True},
        {"encoder_hidden_states": IMAGES[:1], "encoder_attention_mask": torch.ones(1, 5)},
        {"position_ids": torch.tensor([[3, 4, 5, 6, 7, 8]])},
        {"attention_mask": torch.zeros(2, 6)},
        {"attention_mask": MIXED.bool()},
        {"is_decoder": True, "use_cache": False},
    ],
    ids=lambda options: "-".join(options),
)
def test_text_model_options(options: dict[str, Any]) -> None:
    theirs, ours = pair("BlipTextModel")
    close(ours(ids(), **options), theirs(ids(), **options))


def test_text_model_other_inputs() -> None:
    theirs, ours = pair("BlipTextModel")
    states = torch.randn(2, 4, WIDTH)
    original = states.clone()
    close(ours(inputs_embeds=states), theirs(inputs_embeds=states.clone()))
    assert torch.equal(states, original)
    close(
        ours(encoder_embeds=states, encoder_hidden_states=IMAGES),
        theirs(encoder_embeds=states, encoder_hidden_states=IMAGES),
    )
    for arguments in ({}, {"input_ids": ids(), "inputs_embeds": states}):
        with pytest.raises(ValueError, match="either"):
            ours(**arguments)
    bare = Ours.BlipTextModel(ours.config, add_pooling_layer=False)
    assert bare(ids()).pooler_output is None


def test_caller_tensors_are_not_changed() -> None:
    """Difference `caller-tensors`: 5.23 adds positions to ``inputs_embeds`` and [DEC] to ``input_ids`` in place."""
    theirs, ours = pair("BlipTextModel")
    states = torch.randn(2, 4, WIDTH)
    for model, unchanged in ((ours, True), (theirs, False)):
        argument = states.clone()
        model(inputs_embeds=argument)
        assert torch.equal(argument, states) is unchanged
    theirs, ours = pair("BlipForConditionalGeneration")
    for model, unchanged in ((ours, True), (theirs, False)):
        prompt = ids()
        model.generate(pixels(), prompt)
        assert torch.equal(prompt, ids()) is unchanged


def test_incremental_decoding() -> None:
    theirs, ours = _language_models()
    words = ids(2, 9)
    expected = theirs(words, encoder_hidden_states=IMAGES).logits
    for options in ({}, {"attention_mask": True}):
        caches: list[Any] = [None, None]
        for start, end in ((0, 4), (4, 5), (5, 9)):
            step_options = {"attention_mask": torch.ones(2, end, dtype=torch.long)} if options else {}
            outputs = [
                model(
                    words[:, start:end],
                    encoder_hidden_states=IMAGES,
                    past_key_values=cache,
                    use_cache=True,
                    **step_options,
                )
                for model, cache in zip((ours, theirs), caches, strict=True)
            ]
            close(outputs[0].logits, outputs[1].logits)
            close(outputs[0].logits, expected[:, start:end])
            caches = [output.past_key_values for output in outputs]
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == 9
    rows = torch.tensor([1, 1])
    for cache in caches:
        cache.reorder_cache(rows)
    close(
        *(
            model(words[:, :1], encoder_hidden_states=IMAGES[rows], past_key_values=cache).logits
            for model, cache in zip((ours, theirs), caches, strict=True)
        )
    )
    with pytest.raises(ValueError, match="is_decoder"):
        ours.bert(words[:, :1], past_key_values=caches[0])


def _language_models() -> tuple[Any, Any]:
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    captioner, ours = pair("BlipForConditionalGeneration")
    assert isinstance(captioner.text_decoder, BlipTextLMHeadModel)
    return captioner.text_decoder, ours.text_decoder


@pytest.mark.parametrize(
    "options",
    [
        {"labels": ids()},
        {"labels": ids(), "reduction": "none"},
        {"labels": ids().masked_fill(ids() > 40, -100), "attention_mask": MIXED},
        {"return_logits": True},
        {"logits_to_keep": 2},
        {"logits_to_keep": torch.tensor([0, 3])},
        {"is_decoder": False},
    ],
    ids=lambda options: "-".join(options),
)
def test_language_model(options: dict[str, Any]) -> None:
    theirs, ours = _language_models()
    for model in (theirs, ours):
        model.label_smoothing = 0.1
    close(ours(ids(), encoder_hidden_states=IMAGES, **options), theirs(ids(), encoder_hidden_states=IMAGES, **options))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_gradients(smoothing: float) -> None:
    labels = ids().masked_fill(ids() == 3, -100)
    arguments: dict[str, dict[str, Any]] = {
        "BlipForConditionalGeneration": {"labels": labels},
        "BlipForQuestionAnswering": {"labels": ids(2, 5, seed=2), "decoder_attention_mask": MIXED[:, :5]},
        "BlipModel": {"return_loss": True},
    }
    for name, options in arguments.items():
        theirs, ours = pair(name, their_config(label_smoothing=smoothing))
        inputs = {"input_ids": ids(), "pixel_values": pixels(), "attention_mask": COMMON, **options}
        actual, expected = ours(**inputs), theirs(**inputs)
        close(actual, expected)
        actual.loss.backward()
        expected.loss.backward()
        gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
        assert gradients
        for parameter_name, parameter in ours.named_parameters():
            if parameter_name in gradients:
                torch.testing.assert_close(parameter.grad, gradients[parameter_name], atol=1e-4, rtol=1e-3)


def test_vqa_decoder_input_ids_and_labels() -> None:
    theirs, ours = pair("BlipForQuestionAnswering")
    inputs = {"input_ids": ids(), "pixel_values": pixels(), "decoder_input_ids": ids(2, 3, seed=5)}
    close(ours(**inputs), theirs(**inputs))
    labels = ids(2, 3, seed=5)
    labels[0, -1] = -100
    close(ours(**inputs, labels=labels), theirs(**inputs, labels=labels))
    for model in (ours, theirs):
        with pytest.raises(ValueError, match="decoder_input_ids"):
            model(ids(), pixels())


def test_vqa_ignored_labels_become_padding() -> None:
    """Difference `ignored-labels`: -100 in labels makes 5.23 fail, as it feeds them to the decoder."""
    theirs, ours = pair("BlipForQuestionAnswering")
    labels = ids(2, 5, seed=2)
    labels[1, 3:] = -100
    with pytest.raises(IndexError):
        theirs(ids(), pixels(), labels=labels)
    expected = theirs(ids(), pixels(), labels=labels, decoder_input_ids=labels.masked_fill(labels == -100, 0))
    close(ours(ids(), pixels(), labels=labels), expected)


def test_two_towers_features() -> None:
    theirs, ours = pair("BlipModel")
    close(ours.get_text_features(ids(), MIXED), theirs.get_text_features(ids(), MIXED))
    close(ours.get_image_features(pixels()), theirs.get_image_features(pixels()))
    close(ours.get_text_features(ids(), return_dict=False), theirs.get_text_features(ids(), return_dict=False))
    close(
        ours.get_image_features(pixels(size=48), interpolate_pos_encoding=True, output_hidden_states=True),
        theirs.get_image_features(pixels(size=48), interpolate_pos_encoding=True, output_hidden_states=True),
    )
    close(ours.get_multimodal_features(ids(), pixels(), MIXED), theirs.get_multimodal_features(ids(), pixels(), MIXED))
    close(ours(ids(3), pixels(2)), theirs(ids(3), pixels(2)))


def test_retrieval_by_cosine() -> None:
    theirs, ours = pair("BlipForImageTextRetrieval")
    inputs = {"input_ids": ids(3), "pixel_values": pixels(2), "use_itm_head": False}
    close(ours(**inputs), theirs(**inputs))
    close(ours(**inputs, output_attentions=True), theirs(**inputs, output_attentions=True))


@pytest.mark.parametrize("counts", [(1, 3), (3, 1)])
def test_one_image_with_many_texts_and_one_text_with_many_images(counts: tuple[int, int]) -> None:
    images, texts = counts
    for name in ("BlipForConditionalGeneration", "BlipForImageTextRetrieval"):
        theirs, ours = pair(name)
        mask = torch.ones(texts, 6, dtype=torch.long)
        inputs = {"input_ids": ids(texts), "pixel_values": pixels(images), "attention_mask": mask}
        close(ours(**inputs), theirs(**inputs))


@pytest.mark.parametrize("counts", [(2, 4), (4, 2), (2, 3)])
def test_other_batch_sizes_are_errors(counts: tuple[int, int]) -> None:
    for name in ("BlipForConditionalGeneration", "BlipForImageTextRetrieval"):
        theirs, ours = pair(name)
        for model, error in ((theirs, RuntimeError), (ours, ValueError)):
            with pytest.raises(error):
                model(input_ids=ids(counts[1]), pixel_values=pixels(counts[0]))


# --- the arguments of version 4 -----------------------------------------------------------------------------------

ORDERS_OF_4: dict[str, tuple[str, ...]] = {
    "BlipVisionModel": (
        "pixel_values", "output_attentions", "output_hidden_states", "return_dict", "interpolate_pos_encoding",
    ),
    "BlipForConditionalGeneration": (
        "pixel_values", "input_ids", "attention_mask", "output_attentions", "output_hidden_states", "labels",
        "return_dict", "interpolate_pos_encoding",
    ),
    "BlipForQuestionAnswering": (
        "input_ids", "pixel_values", "decoder_input_ids", "decoder_attention_mask", "attention_mask",
        "output_attentions", "output_hidden_states", "labels", "return_dict", "interpolate_pos_encoding",
    ),
    "BlipForImageTextRetrieval": (
        "input_ids", "pixel_values", "use_itm_head", "attention_mask", "output_attentions", "output_hidden_states",
        "return_dict", "interpolate_pos_encoding",
    ),
    "BlipModel": (
        "input_ids", "pixel_values", "attention_mask", "position_ids", "return_loss", "output_attentions",
        "output_hidden_states", "return_dict", "interpolate_pos_encoding",
    ),
    "BlipTextModel": (
        "input_ids", "attention_mask", "position_ids", "head_mask", "inputs_embeds", "encoder_embeds",
        "encoder_hidden_states", "encoder_attention_mask", "past_key_values", "use_cache", "output_attentions",
        "output_hidden_states", "return_dict", "is_decoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS_OF_4)
def test_argument_order_of_version_4(name: str) -> None:
    """Difference `positional-order`: where the two orders can be told apart, ours understands both."""
    theirs, ours = pair(name)
    values: dict[str, Any] = {
        **_inputs(name),
        "attention_mask": COMMON,
        "output_attentions": True,
        "output_hidden_states": True,
        "return_dict": True,
        "use_itm_head": False,
        "interpolate_pos_encoding": False,
        "is_decoder": True,
    }
    names = ORDERS_OF_4[name]
    today = {key: value for key, value in values.items() if key in names}
    close(ours(*(values.get(key) for key in names)), theirs(**today))
    if name in ("BlipForConditionalGeneration", "BlipForQuestionAnswering"):
        short = names[: names.index("output_hidden_states")]
        keywords = {key: value for key, value in today.items() if key in short}
        if name == "BlipForQuestionAnswering":  # a truth value in the place of labels gives it away
            keywords["decoder_input_ids"] = values["decoder_input_ids"] = ids(2, 3)
        close(ours(*(values.get(key) for key in short)), theirs(**keywords))
    with pytest.raises(TypeError):
        ours(*(values.get(key) for key in names), None)
    with pytest.raises(TypeError, match="twice"):
        ours(*(values.get(key) for key in names), **{names[0]: None})


def test_argument_order_of_version_5() -> None:
    theirs, ours = pair("BlipForConditionalGeneration")
    for args in ((pixels(), ids(), MIXED, ids(), False, 0), (pixels(), ids(), None, None, True)):
        close(ours(*args), theirs(*args))
    theirs, ours = pair("BlipForQuestionAnswering")
    answered = (ids(), pixels(), None, None, COMMON, ids(2, 4), True)
    close(ours(*answered), theirs(*answered))


def test_unknown_arguments_are_errors() -> None:
    """Difference `unknown-argument`: 5.23 ignores unknown arguments."""
    theirs, ours = pair("BlipForConditionalGeneration")
    theirs(pixels(), ids(), attention_maks=MIXED)
    with pytest.raises(TypeError, match="attention_maks"):
        ours(pixels(), ids(), attention_maks=MIXED)
    _, text = pair("BlipTextModel")
    text(ids(), head_mask=None)
    with pytest.raises(ValueError, match="head_mask"):
        text(ids(), head_mask=torch.ones(2, 4))


# --- modules and their names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_names(name: str) -> None:
    theirs, ours = pair(name)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}
    assert {n for n, _ in ours.named_parameters("outer")} == {n for n, _ in theirs.named_parameters("outer")}
    by_name = dict(theirs.named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        assert torch.equal(parameter, by_name[parameter_name])
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    # Their weights go into ours and ours into theirs.
    assert not any(theirs.load_state_dict(ours.state_dict()))
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_parameters(only_trainable=True) == theirs.num_parameters(only_trainable=True)
    assert (ours.device, ours.dtype) == (theirs.device, theirs.dtype)


@pytest.mark.parametrize("name", WHOLE)
def test_hub_names_inside_another_module(name: str) -> None:
    theirs, ours = pair(name)
    mine, yours = nn.ModuleDict({"blip": ours}), nn.ModuleDict({"blip": theirs})
    assert set(mine.state_dict()) == set(yours.state_dict())
    twin = nn.ModuleDict({"blip": type(ours)(ours.config)}).eval()
    assert not any(twin.load_state_dict(yours.state_dict()))
    close(twin["blip"](**_inputs(name)), theirs(**_inputs(name)))
    state = yours.state_dict()
    state["blip.vision_model.embeddings.surplus"] = state.pop("blip.vision_model.post_layernorm.weight")
    result = twin.load_state_dict(state, strict=False)
    assert result.missing_keys == ["blip.vision_model.post_layernorm.weight"]
    assert result.unexpected_keys == ["blip.vision_model.embeddings.surplus"]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("assign", [False, True])
def test_strict_loading_reports_hub_names(name: str, assign: bool) -> None:
    theirs, ours = pair(name)
    state = theirs.state_dict()
    missing = next(iter(state))
    state["something.else"] = state.pop(missing)
    with pytest.raises(RuntimeError) as caught:
        ours.load_state_dict(state, assign=assign)
    assert f'Missing key(s) in state_dict: "{missing}"' in str(caught.value)
    assert 'Unexpected key(s) in state_dict: "something.else"' in str(caught.value)
    state = theirs.state_dict()
    missing = next(name for name, tensor in state.items() if tensor.ndim > 1)
    state[missing] = state[missing][..., :1]
    with pytest.raises(RuntimeError, match=f"size mismatch for {missing}"):
        ours.load_state_dict(state, assign=assign)
    original = {n: p.clone() for n, p in ours.named_parameters()}
    ours.load_state_dict({}, strict=False, assign=assign)
    assert all(torch.equal(parameter, original[n]) for n, parameter in ours.named_parameters())


def test_tied_names() -> None:
    """Difference `tied-weights`: 5.23 lets a repeat that differs overwrite the tensor it repeats, or unties it."""
    theirs, ours = pair("BlipForConditionalGeneration")
    state = theirs.state_dict()
    repeats = [name for name in state if ".predictions.decoder." in name]
    assert len(repeats) == 2
    our_state = ours.state_dict()
    assert our_state[repeats[1]].data_ptr() == our_state[
        "text_decoder.bert.embeddings.word_embeddings.weight"
    ].data_ptr() or (
        our_state[repeats[0]].data_ptr() == our_state["text_decoder.bert.embeddings.word_embeddings.weight"].data_ptr()
    )
    for name in repeats:  # files leave them out
        del state[name]
    assert sorted(ours.load_state_dict(state, strict=False).missing_keys) == sorted(repeats)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert not any(ours.load_state_dict(state))
    state[repeats[0]] += 1
    with pytest.raises(RuntimeError, match="must be equal"):
        ours.load_state_dict(state)
    # An old file's position numbers are no weight.
    state = theirs.state_dict() | {"text_decoder.bert.embeddings.position_ids": torch.arange(40)[None]}
    assert not any(ours.load_state_dict(state))


def test_counts_of_the_published_sizes() -> None:
    """Numbers of state-dict entries and parameters at the published sizes, including VQA with ViT-L."""
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"num_attention_heads": 12}
    published = {
        "BlipForConditionalGeneration": (473, 223_971_644, 617, 446_290_492),
        "BlipForImageTextRetrieval": (472, 223_744_258, 616, 446_128_642),
        "BlipForQuestionAnswering": (789, 361_230_140, 933, 588_267_580),
        "BlipModel": (471, 224_726_017, 615, 447_175_937),
    }
    for name, (base_names, base, large_names, big) in published.items():
        for vision, names, count in (({}, base_names, base), (large, large_names, big)):
            with torch.device("meta"):
                model = getattr(Ours, name)(Ours.BlipConfig(text_config=text, vision_config=vision))
            assert (len(model.state_dict()), model.num_parameters()) == (names, count)


def test_vqa_with_a_wider_image_encoder_is_refused() -> None:
    """Difference `vqa-width`: 5.23 builds such a model, and its forward fails in a matrix product."""
    theirs, ours = pair("BlipForQuestionAnswering", their_config(vision_width=48))
    assert ours.num_parameters() == theirs.num_parameters()
    inputs = {"input_ids": ids(), "pixel_values": pixels()}
    for model, error in ((theirs, RuntimeError), (ours, ConfigError)):
        with pytest.raises(error):
            model(**inputs, labels=ids())
        with pytest.raises(error):
            model.generate(**inputs)
    theirs, ours = pair("BlipForConditionalGeneration", their_config(vision_width=48))
    close(ours(**inputs), theirs(**inputs))


class Wrapped(nn.Module):
    """A stand-in for LoRA: the layer, and a low-rank way around it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


@pytest.mark.parametrize("name", WHOLE)
def test_adapters_by_the_usual_target_names(name: str) -> None:
    def adapt(model: nn.Module) -> int:
        targets = [
            n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(("query", "value", "qkv"))
        ]
        for target in targets:
            parent, _, leaf = target.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Wrapped(model.get_submodule(target)))  # type: ignore[arg-type]
        return len(targets)

    theirs, ours = pair(name)
    plain = ours(**_inputs(name))[0].detach()
    assert adapt(ours) == adapt(theirs) > 0
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}
    assert any(n.endswith("attention.self.query.lora_A.weight") for n in ours.state_dict())
    assert not any(ours.load_state_dict(theirs.state_dict()))
    adapted = ours(**_inputs(name))
    close(adapted, theirs(**_inputs(name)))
    assert not torch.allclose(adapted[0], plain, atol=1e-3)


def test_added_modules_keep_their_names() -> None:
    _, ours = pair("BlipForConditionalGeneration")
    ours.text_decoder.bert.encoder.layer[0].extra = nn.Linear(2, 2)
    names = [n for n in ours.state_dict() if "extra" in n]
    assert names == [n for n, _ in ours.named_parameters() if "extra" in n]
    assert len(names) == 2
    state = {n: tensor.clone() + 1 for n, tensor in ours.state_dict().items()}
    assert not any(ours.load_state_dict(state))
    assert torch.equal(ours.text_decoder.bert.encoder.layer[0].extra.weight, state[names[0]])


@pytest.mark.parametrize("name", WHOLE)
def test_copies(name: str) -> None:
    theirs, ours = pair(name)
    expected = theirs(**_inputs(name))
    for duplicate in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(0.0)
        close(duplicate(**_inputs(name)), expected)
        assert set(duplicate.state_dict()) == set(theirs.state_dict())


@pytest.mark.parametrize("name", WHOLE)
def test_half_precision(name: str) -> None:
    theirs, ours = pair(name)
    inputs = _inputs(name)
    for dtype, tolerance in ((torch.bfloat16, 0.15), (torch.float16, 0.02)):
        actual, expected = ours.to("cpu", dtype)(**inputs), theirs.to("cpu", dtype)(**inputs)
        assert ours.dtype == dtype
        close(actual, expected, tolerance)


def test_word_embeddings_are_shared_with_the_output() -> None:
    theirs, ours = pair("BlipForConditionalGeneration")
    words = nn.Embedding(VOCAB, WIDTH)
    for model in (theirs, ours):
        model.set_input_embeddings(copy.deepcopy(words))
        model.tie_weights()
        assert torch.equal(model.get_input_embeddings().weight, words.weight)
    close(ours(pixels(), ids()), theirs(pixels(), ids()))
    for name in CLASSES:
        _, model = pair(name)
        assert type(model.get_input_embeddings()).__name__ in ("Embedding", "BlipVisionEmbeddings")
        assert model.can_generate() is (name in WHOLE[:2])


def test_text_configuration_without_cross_attention() -> None:
    config = their_config(is_decoder=False)
    theirs, ours = pair("BlipModel", config)
    close(ours(ids(), pixels()), theirs(ids(), pixels()))
    with pytest.raises(ConfigError, match="cross-attention"):
        ours.get_multimodal_features(ids(), pixels())


def test_random_initialization() -> None:
    """Difference `random-initialization`: 5.23 initializes the image encoder to almost zero (1e-10)."""
    config = their_config()
    theirs = Theirs.BlipForImageTextRetrieval(config)
    ours = Ours.BlipForImageTextRetrieval(our_config(config))
    by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.ndim > 1:
            assert 0.01 < parameter.std() < 0.03
            if name.startswith("vision_model"):
                assert by_name[name].std() < 1e-8
            else:
                assert 0.01 < by_name[name].std() < 0.03
        elif name.endswith("bias") and "patch" not in name:
            assert not parameter.any()
            assert not by_name[name].any()


def test_submodels_work_by_themselves() -> None:
    theirs, ours = pair("BlipForConditionalGeneration")
    image = theirs.vision_model(pixels())
    close(ours.vision_model(pixels()), image)
    states = image.last_hidden_state
    close(
        ours.text_decoder(ids(), encoder_hidden_states=states).logits,
        theirs.text_decoder(ids(), encoder_hidden_states=states).logits,
    )
    shapes: list[tuple[int, ...]] = []
    ours.vision_model.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output[0].shape)))
    ours(pixels(), ids())
    ours.generate(pixels(), max_new_tokens=1)
    assert shapes == [(2, 5, WIDTH)] * 2
    assert ids()[0, 0] == CLS


def test_both_vocabularies_are_resized() -> None:
    """Difference `resized-answerer`: 5.23 resizes only the question encoder."""
    theirs, ours = pair("BlipForQuestionAnswering")
    for model in (theirs, ours):
        model.resize_token_embeddings(VOCAB + 4)
    sizes = [[len(m.get_input_embeddings().weight) for m in (x.text_encoder, x.text_decoder)] for x in (theirs, ours)]
    assert sizes == [[VOCAB + 4, VOCAB], [VOCAB + 4, VOCAB + 4]]
    assert torch.isfinite(ours(ids(), pixels(), labels=ids()).loss)
    assert ours.text_decoder.cls.predictions.decoder.weight is ours.text_decoder.get_input_embeddings().weight


def test_options_of_other_backends_are_refused() -> None:
    """Differences `quantization` and `attention`."""
    _, ours = pair("BlipForConditionalGeneration")
    with pytest.raises(InputError, match="attn_implementation"):
        ours.set_attn_implementation("flash_attention_2")
    with pytest.raises(InputError, match="quantization_config"):
        type(ours).from_pretrained(None, quantization_config={"load_in_8bit": True})


@pytest.mark.parametrize("name", ["BlipForConditionalGeneration", "BlipModel"])
def test_models_of_the_meta_device_are_initialized(name: str) -> None:
    """As loaders do it: shapes first, memory without values, then weights and buffers."""
    with torch.device("meta"):
        model = getattr(Ours, name)(our_config(their_config())).eval()
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(10**6)  # what memory may contain
    model.init_weights()
    assert torch.isfinite(model(input_ids=ids(), pixel_values=pixels())[0]).all()
