"""The models of the original repository, by its functions and with its signatures.

Shapes: B samples, S image size, T tokens, D width, E width of ITC embeddings.
"""

# ruff: noqa: N801 (the names are the repository's)

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys

from openblip import blip as facade
from openblip.checkpoints import hub
from openblip.checkpoints.read import LoadedModel
from openblip.compat.lavis_api.models import BlipCaption, BlipVQA, LavisTokenizer
from openblip.compat.published_module import MATCH_TOKENS, PublishedModule
from openblip.engine.eager import EagerEngine
from openblip.errors import InputError
from openblip.model.build import build_model
from openblip.model.config import CAPTION_PROMPT, ModelConfig, preset
from openblip.pipelines.base import TaskModel
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.tasks import TaskName

ModelT = TypeVar("ModelT", bound="OriginalModule")

MED_CONFIG = "configs/med_config.json"
_MED_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_positions",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}


class OriginalModule(PublishedModule):
    """Base class of the models: an `nn.Module` whose `state_dict` has the names of the published files.

    Args:
        task_model: The model as pipelines use it.
        **objective_options: Options of ITC in training: `queue_size`, `momentum`, `negatives`.
    """

    task: ClassVar[TaskName]

    def __init__(self, task_model: TaskModel, **objective_options: Any) -> None:
        super().__init__(task_model, "salesforce", **objective_options)
        self.tokenizer = LavisTokenizer(task_model.tokenizer)
        self.train()  # as in the repository, whose users call eval()


class BLIP_Decoder(OriginalModule):
    """Image captioning."""

    task = "caption"

    @property
    def prompt(self) -> str:
        """The prompt of captions."""
        return self.task_model.prompt

    @property
    def prompt_length(self) -> int:
        """Number of tokens of the prompt, [DEC] included."""
        return len(self.task_model.tokenizer.encode_prompt(self.prompt))

    def forward(self, image: Tensor, caption: str | Sequence[str]) -> Tensor:
        """Return the LM loss of captions.

        Args:
            image: Images (B, 3, S, S).
            caption: One caption per image, with the prompt.
        """
        return self.caption_loss(image, _list_texts(caption), self.prompt)

    def generate(
        self,
        image: Tensor,
        sample: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
    ) -> list[str]:
        """Generate one caption per image.

        Args:
            image: Images (B, 3, S, S).
            sample: Sample instead of a beam search.
            num_beams: Number of beams.
            max_length: Maximum number of tokens, [DEC] and the prompt included.
            min_length: Minimum number of tokens, [DEC] and the prompt included.
            top_p: Probability mass to sample from.
            repetition_penalty: Penalty for repeated tokens in the beam search.

        Returns:
            The captions, without the prompt.
        """
        with self.predicting():
            return BlipCaption(self.task_model).generate(
                {"image": image},
                use_nucleus_sampling=sample,
                num_beams=num_beams,
                max_length=max_length,
                min_length=min_length,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
            )


class BLIP_VQA(OriginalModule):
    """Visual question answering."""

    task = "vqa"

    def forward(
        self,
        image: Tensor,
        question: str | Sequence[str],
        answer: Sequence[str] | None = None,
        n: Sequence[int] | None = None,
        weights: Tensor | None = None,
        train: bool = True,
        inference: str = "rank",
        k_test: int = 128,
    ) -> Tensor | list[str]:
        """Return the loss of answers or, with `train=False`, answers.

        Args:
            image: Images (B, 3, S, S).
            question: One question per image.
            answer: The answers to all questions, in order; with `inference="rank"`, the answers to choose from.
            n: Number of answers to each question.
            weights: Weight of each answer.
            train: Return the loss.
            inference: "generate", or "rank" to choose from `answer`.
            k_test: Number of answers that the first step of ranking selects.

        Returns:
            The loss; the generated answers; or with "rank" the positions (B,) in `answer`.

        Raises:
            InputError: An argument is missing.
        """
        questions = _list_texts(question)
        if train:
            if answer is None or n is None or weights is None:
                raise InputError("answer, n and weights must be given to compute the loss")
            return self.vqa_loss(image, questions, list(answer), list(n), torch.as_tensor(weights))
        samples = {"image": image, "text_input": questions}
        with self.predicting():
            model = BlipVQA(self.task_model)
            if inference == "generate":
                return model.predict_answers(samples, inference_method="generate")
            if answer is None:
                raise InputError("answer must list the answers to choose from")
            candidates = list(answer)
            best = model.predict_answers(samples, num_ans_candidates=k_test, answer_list=candidates)
        return torch.tensor([candidates.index(text) for text in best], device=self.device)


class BLIP_ITM(OriginalModule):
    """Image-text matching."""

    task = "retrieval"

    def forward(self, image: Tensor, caption: str | Sequence[str], match_head: str = "itm") -> Tensor:
        """Score images and texts. As in the repository, "itm" reads texts that start with [CLS].

        Args:
            image: Images (B, 3, S, S).
            caption: Texts, one per image for "itm".
            match_head: "itm" or "itc".

        Returns:
            ITM logits (B, 2), or ITC cosine similarities (images, texts).

        Raises:
            InputError: `match_head` is unknown.
        """
        network, text = self.network, self._tokens(_list_texts(caption), "cls", MATCH_TOKENS)
        states = network.encode_image(self._check_images(image).to(next(network.parameters()).dtype))
        if match_head == "itm":
            return network.match_logits(text.ids, text.mask, states)
        if match_head == "itc":
            return network.embed_image(states) @ network.embed_text(text.ids, text.mask).T
        raise InputError(f"match_head must be 'itm' or 'itc', got {match_head!r}")


class BLIP_Base(OriginalModule):
    """Features of images, texts, and image-text pairs."""

    task = "pretrain"

    def forward(self, image: Tensor, caption: str | Sequence[str], mode: str) -> Tensor:
        """Return states; position 0 represents the image or text.

        Args:
            image: Images (B, 3, S, S).
            caption: Texts.
            mode: "image", "text" or "multimodal".

        Returns:
            Image states (B, N + 1, D), or text states (B, T, D).

        Raises:
            InputError: `mode` is unknown.
        """
        network = self.network
        if mode not in ("image", "text", "multimodal"):
            raise InputError(f"mode must be 'image', 'text' or 'multimodal', got {mode!r}")
        if mode == "text":
            text = self._tokens(_list_texts(caption), "cls")
            return network.text.encode(text.ids, text.mask)
        states: Tensor = network.encode_image(self._check_images(image).to(next(network.parameters()).dtype))
        if mode == "image":
            return states
        text = self._tokens(_list_texts(caption), "enc")
        return network.text.encode_grounded(text.ids, text.mask, states)


class BLIP_NLVR(OriginalModule):
    """Statements about two images."""

    task = "nlvr"

    def forward(self, image: Tensor, text: str | Sequence[str], targets: Tensor, train: bool = True) -> Tensor:
        """Return the loss of judgments or, with `train=False`, logits.

        Args:
            image: The left images of all pairs, followed by the right images (2 B, 3, S, S).
            text: One statement per pair.
            targets: 1 for true statements, 0 for false ones (B,).
            train: Return the loss.

        Returns:
            The loss, or logits (B, 2), column 1 for "true".
        """
        left, right = self._check_images(image).chunk(2)
        if train:
            return self.nlvr_loss(left, right, _list_texts(text), targets)
        tokens = self._tokens(_list_texts(text), "enc")
        dtype = next(self.network.parameters()).dtype
        pair = self.network.encode_image(torch.cat([left, right]).to(dtype)).chunk(2)
        return self.network.logits(tokens.ids, tokens.mask, (pair[0], pair[1]))


class BLIP_Retrieval(OriginalModule):
    """Image-text retrieval."""

    task = "retrieval"

    @property
    def temp(self) -> Tensor:
        """The temperature of ITC."""
        return self.network.temperature

    def forward(self, image: Tensor, caption: Sequence[str], alpha: float, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of ITC and ITM; in training mode, momentum features and queues advance.

        Args:
            image: Images (B, 3, S, S).
            caption: One text per image.
            alpha: Weight of the momentum targets.
            idx: Ids (B,) of the images.
        """
        losses = self.retrieval_losses(image, list(caption), alpha, idx)
        return losses["itc"], losses["itm"]


class BLIP_Pretrain(OriginalModule):
    """Pretraining."""

    task = "pretrain"

    @property
    def temp(self) -> Tensor:
        """The temperature of ITC."""
        return self.network.temperature

    def forward(self, image: Tensor, caption: Sequence[str], alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of ITC, ITM and LM; in training mode, momentum features and queues advance.

        Args:
            image: Images (B, 3, S, S).
            caption: One text per image.
            alpha: Weight of the momentum targets.
        """
        losses = self.pretrain_losses(image, list(caption), alpha)
        return losses["itc"], losses["itm"], losses["lm"]


def blip_decoder(pretrained: str | Path = "", **kwargs: Any) -> BLIP_Decoder:
    """Return a captioner.

    Args:
        pretrained: File, address or name of published weights; "" for random weights.
        **kwargs: `image_size` (384), `vit` ("base" or "large"), `prompt` ("a picture of "), `med_config`; and
            `vit_grad_ckpt` and `vit_ckpt_layer`, which change memory, not results, and are ignored.

    Returns:
        The model, in training mode.
    """
    return _create(BLIP_Decoder, pretrained, 384, kwargs)


def blip_feature_extractor(pretrained: str | Path = "", **kwargs: Any) -> BLIP_Base:
    """Return a model that computes features.

    Args:
        pretrained: File, address or name of published weights; "" for random weights.
        **kwargs: Arguments of `blip_decoder`, with an `image_size` of 224, without `prompt`.

    Returns:
        The model, in training mode.
    """
    return _create(BLIP_Base, pretrained, 224, kwargs)


def blip_itm(pretrained: str | Path = "", **kwargs: Any) -> BLIP_ITM:
    """Return a model that matches images and texts.

    Args:
        pretrained: File, address or name of published weights; "" for random weights.
        **kwargs: Arguments of `blip_decoder`, without `prompt`; and `embed_dim` (256).

    Returns:
        The model, in training mode.
    """
    return _create(BLIP_ITM, pretrained, 384, kwargs)


def blip_vqa(pretrained: str | Path = "", **kwargs: Any) -> BLIP_VQA:
    """Return a model that answers questions.

    Args:
        pretrained: File, address or name of published weights; "" for random weights.
        **kwargs: Arguments of `blip_decoder`, with an `image_size` of 480, without `prompt`.

    Returns:
        The model, in training mode.
    """
    return _create(BLIP_VQA, pretrained, 480, kwargs)


def blip_nlvr(pretrained: str | Path = "", **kwargs: Any) -> BLIP_NLVR:
    """Return a model that judges statements about two images.

    Args:
        pretrained: File, address or name of published weights; "" for random weights.
        **kwargs: Arguments of `blip_decoder`, with an `image_size` of 480, without `prompt`.

    Returns:
        The model, in training mode.
    """
    return _create(BLIP_NLVR, pretrained, 480, kwargs)


def blip_retrieval(pretrained: str | Path = "", **kwargs: Any) -> BLIP_Retrieval:
    """Return a model for retrieval, with momentum features and queues in training.

    Args:
        pretrained: File, address or name of published weights; "" for random weights.
        **kwargs: Arguments of `blip_decoder`, without `prompt`; and `embed_dim` (256), `queue_size` (57600),
            `momentum` (0.995), `negative_all_rank` (`False`).

    Returns:
        The model, in training mode.
    """
    return _create(BLIP_Retrieval, pretrained, 384, kwargs)


def blip_pretrain(**kwargs: Any) -> BLIP_Pretrain:
    """Return a pretraining model.

    Args:
        **kwargs: Arguments of `blip_retrieval`, with an `image_size` of 224, without `negative_all_rank`. The
            repository starts from DeiT and BERT; here `openblip train` does, and this function has random weights.

    Returns:
        The model, in training mode.
    """
    return _create(BLIP_Pretrain, "", 224, kwargs)


def load_checkpoint(model: OriginalModule, url_or_filename: str | Path) -> tuple[OriginalModule, _IncompatibleKeys]:
    """Load weights into a model; position embeddings are resized to the model's image size.

    Args:
        model: The model.
        url_or_filename: File, address or name of published weights.

    Returns:
        The model, and its missing and unexpected names, which are empty.
    """
    source = _load(model.task, url_or_filename, model.network.config.vision.image_size)
    return model, model.network.load_state_dict(source.module.state_dict())


def init_tokenizer() -> LavisTokenizer:
    """Return the tokenizer: BERT's, with [DEC] and [ENC].

    Returns:
        The tokenizer.
    """
    return LavisTokenizer(Tokenizer.from_vocab(hub.bert_vocabulary()))


def _create(model_class: type[ModelT], pretrained: str | Path, image_size: int, kwargs: Mapping[str, Any]) -> ModelT:
    """Return a model with published or random weights."""
    options = dict(kwargs)
    size = int(options.pop("image_size", image_size))
    vit = options.pop("vit", "base")
    if vit not in ("base", "large"):
        raise InputError(f"vit must be 'base' or 'large', got {vit!r}")
    med_config = options.pop("med_config", MED_CONFIG)
    for name in ("vit_grad_ckpt", "vit_ckpt_layer"):
        options.pop(name, None)
    prompt = options.pop("prompt", CAPTION_PROMPT) if model_class.task == "caption" else ""
    embed_dim = options.pop("embed_dim", 256)
    if "negative_all_rank" in options:
        options["negatives"] = "all" if options.pop("negative_all_rank") else "rank"
    if unknown := options.keys() - {"queue_size", "momentum", "negatives"}:
        raise TypeError(f"{model_class.__name__} has no argument {', '.join(sorted(unknown))}")
    if str(pretrained):
        task_model = _load(model_class.task, pretrained, size, _read_med_config(med_config))
        if (
            task_model.config.vision.width != preset(model_class.task, vit).vision.width
            and not Path(str(pretrained)).exists()
        ):
            raise InputError(f"vit={vit!r} does not fit the weights of {pretrained}")
        task_model.prompt = prompt
        return model_class(task_model, **options)
    config = dataclasses.replace(preset(model_class.task, vit, size), embed_width=embed_dim)
    config = _with_sizes(config, _read_med_config(med_config))
    image = ImageSettings(size=size)
    tokenizer = Tokenizer.from_vocab(hub.bert_vocabulary())
    loaded = LoadedModel(build_model(config), config, tokenizer, image, prompt, "salesforce", "")
    return model_class(TaskModel(loaded, EagerEngine(loaded.model, torch.device("cpu"), torch.float32)), **options)


def _load(task: TaskName, source: str | Path, image_size: int, text: Mapping[str, Any] | None = None) -> TaskModel:
    """Return published weights, in float32 on the CPU, for images of another size if necessary."""
    config: dict[str, Any] = {"image_size": image_size}
    if text:
        config["text"] = {name: value for name, value in text.items() if name != "vocab_size"}
    blip = facade.load(source, task=task, device="cpu", precision="fp32", config=config)
    return blip.pipeline("retrieval" if task == "pretrain" else task).model


def _read_med_config(med_config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes in a `med_config.json`, under our names; its default name stands for the usual sizes."""
    if not isinstance(med_config, Mapping):
        path = Path(med_config)
        if not path.is_file():
            if path.name == Path(MED_CONFIG).name:
                return {}
            raise InputError(f"med_config must be a file, got {med_config}")
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    else:
        values = med_config
    return {ours: values[theirs] for theirs, ours in _MED_FIELDS.items() if theirs in values}


def _with_sizes(config: ModelConfig, sizes: Mapping[str, Any]) -> ModelConfig:
    """Return a configuration with other sizes of the text transformer, whose vocabulary gets [DEC] and [ENC]."""
    changes = dict(sizes)
    if "vocab_size" in changes:
        changes["vocab_size"] = max(int(changes["vocab_size"]), config.text.vocab_size)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, **changes))


def _list_texts(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
