"""The model classes of LAVIS. Inputs are dicts with images (B, 3, S, S) and texts as processors return them.

Shapes: B samples, T tokens, N patches, D width, E width of ITC embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, TypedDict, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from openblip import blip as facade
from openblip.compat.published_module import MATCH_TOKENS, QUESTION_TOKENS, SMOOTHING, PublishedModule
from openblip.compat.transformers_api.tokens import BlipTokenizer
from openblip.engine.protocols import Answers, Comparisons, Embeddings, MatchLogits
from openblip.errors import InputError, UnsupportedTaskError
from openblip.pipelines.base import TEXT_ROWS, OpenedImage, Prepared, TaskModel, iter_chunks
from openblip.pipelines.caption import CaptionPipeline, Prompt
from openblip.pipelines.vqa import VqaPipeline
from openblip.preprocess.text import FirstToken, Tokens
from openblip.tasks import TaskName

NUCLEUS_PENALTY, NUCLEUS_TOP_K = 1.1, 50  # constants of LAVIS
EXCLUDED_SCORE = -100.0


ModelT = TypeVar("ModelT", bound="BaseModel")
MethodT = TypeVar("MethodT", bound=Callable[..., Any])


class LavisTokenizer(BlipTokenizer):
    """A tokenizer that also has the ids of [ENC] and [DEC]."""

    @property
    def enc_token_id(self) -> int:
        """The id of [ENC], the first token of image-grounded texts."""
        return self.core.enc_id

    @property
    def bos_token_id(self) -> int:
        """The id of [DEC], the first token of decoded texts."""
        return self.core.dec_id


def _predicts(method: MethodT) -> MethodT:
    """Decorate a method to run without dropout, whatever the mode of the model."""

    @wraps(method)
    def call(self: BaseModel, *args: Any, **kwargs: Any) -> Any:
        with self.predicting():
            return method(self, *args, **kwargs)

    return cast(MethodT, call)


@dataclass(frozen=True, eq=False)
class BlipOutput:
    """Losses by attribute or by key. Losses that a model does not have are `None`, and are not keys.

    Attributes:
        loss: The sum of the losses.
        loss_itc: ITC.
        loss_itm: ITM.
        loss_lm: LM.
    """

    loss: Tensor
    loss_itc: Tensor | None = None
    loss_itm: Tensor | None = None
    loss_lm: Tensor | None = None

    def keys(self) -> list[str]:
        """Return the names of the losses.

        Returns:
            The names of the losses.
        """
        return [name for name, value in vars(self).items() if value is not None]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.keys():
            raise KeyError(name)
        loss: Tensor = getattr(self, name)
        return loss


class BaseModel(PublishedModule):
    """Base class of the models: an `nn.Module` whose `state_dict` has the names of LAVIS.

    Args:
        task_model: The model as pipelines use it.
        **objective_options: Options of ITC in training: `queue_size`, `momentum`, `negatives`.
    """

    architecture: ClassVar[str] = ""
    task: ClassVar[TaskName]

    def __init__(self, task_model: TaskModel, **objective_options: Any) -> None:
        super().__init__(task_model, "lavis", **objective_options)
        self.tokenizer = LavisTokenizer(task_model.tokenizer)

    @classmethod
    def from_pretrained(cls: type[ModelT], model_type: str) -> ModelT:
        """Load a published model, in evaluation mode.

        Args:
            model_type: Type of the architecture; see `model_zoo`.

        Returns:
            The model.
        """
        blip = facade.load(f"{cls.architecture}/{model_type}", task=cls.task, device="cpu")
        return cls(blip.pipeline("retrieval" if cls.task == "pretrain" else cls.task).model)

    def forward(self, *args: Any, **options: Any) -> Any:
        """Raise an error, in models without a loss.

        Args:
            *args: Ignored.
            **options: Ignored.

        Returns:
            Never.

        Raises:
            UnsupportedTaskError: Always.
        """
        raise UnsupportedTaskError(f"{type(self).__name__} has no loss, as in LAVIS")

    def _encode_images(self, image: Tensor) -> Tensor:
        size = self.task_model.image_settings.size
        if not isinstance(image, Tensor) or image.ndim != 4 or tuple(image.shape[1:]) != (3, size, size):
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"images must be a tensor (B, 3, {size}, {size}) from the eval processor, got {shape}")
        return self.task_model.engine.encode_images(image)

    def _encode_texts(self, texts: Sequence[str], first: FirstToken, max_length: int | None = None) -> Tokens:
        return self.task_model.tokenizer.encode(texts, first, max_length=max_length)


class _ContrastiveModel(BaseModel):
    """Base class of models that were trained with ITC."""

    @property
    def temp(self) -> Tensor:
        """The temperature of ITC, a scalar on the model's device."""
        temperature: Tensor = self.task_model.module.temperature
        return temperature


class BlipCaption(BaseModel):
    """Image captioning."""

    architecture = "blip_caption"
    task = "caption"

    @property
    def prompt(self) -> str:
        """The prompt of captions."""
        return self.task_model.prompt

    def forward(self, samples: Mapping[str, Any]) -> BlipOutput:
        """Return the LM loss of captions.

        Args:
            samples: `image`: images (B, 3, S, S); `text_input`: captions with the prompt, as the "train" processor
                returns them.
        """
        loss = self.caption_loss(samples["image"], _list_texts(samples["text_input"]), self.prompt)
        return BlipOutput(loss, loss_lm=loss)

    @_predicts
    def generate(
        self,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        num_captions: int = 1,
    ) -> list[str]:
        """Generate captions.

        Args:
            samples: `image`: images (B, 3, S, S).
            use_nucleus_sampling: Sample instead of a beam search.
            num_beams: Number of beams.
            max_length: Maximum number of tokens, including [DEC] and the prompt.
            min_length: Minimum number of tokens, including [DEC] and the prompt.
            top_p: Probability mass to sample from.
            repetition_penalty: Penalty for repeated tokens in the beam search.
            num_captions: Number of captions per image; at most `num_beams` for a beam search.

        Returns:
            `num_captions` captions per image, image by image.

        Raises:
            InputError: If the images have a wrong shape, or options exclude each other.
        """
        states, tokenizer = self._encode_images(samples["image"]), self.task_model.tokenizer
        prompt = tokenizer.encode_prompt(self.task_model.prompt)
        if max_length <= len(prompt):
            raise InputError(f"max_length must be greater than the prompt's {len(prompt)} tokens, got {max_length}")
        options: dict[str, Any] = {"num_beams": num_beams, "repetition_penalty": repetition_penalty}
        if use_nucleus_sampling:
            options = {"do_sample": True, "top_p": top_p, "top_k": NUCLEUS_TOP_K, "repetition_penalty": NUCLEUS_PENALTY}
        pipeline = CaptionPipeline(
            self.task_model,
            n=num_captions,
            max_new_tokens=max_length - len(prompt),
            min_new_tokens=max(0, min_length - len(prompt)),
            **options,
        )
        batch = [Prepared(OpenedImage(image_states), Prompt(prompt, None)) for image_states in states]
        captions = []
        for hypotheses in pipeline.forward(batch):  # in the order of the search, or of the samples
            captions += [tokenizer.decode(hypothesis.ids) for hypothesis in hypotheses]
        return captions


class BlipVQA(BaseModel):
    """Visual question answering."""

    architecture = "blip_vqa"
    task = "vqa"

    def forward(self, samples: Mapping[str, Any]) -> BlipOutput:
        """Return the weighted LM loss of answers.

        Args:
            samples: `image`: images (B, 3, S, S); `text_input`: questions; `answer`: the answers to all questions, in
                order; `n_answers`: their number per question (B,); `weight`: weight of each answer.
        """
        loss = self.vqa_loss(
            samples["image"],
            _list_texts(samples["text_input"]),
            _list_texts(samples["answer"]),
            torch.as_tensor(samples["n_answers"]).tolist(),
            torch.as_tensor(samples["weight"]),
        )
        return BlipOutput(loss, loss_lm=loss)

    @_predicts
    def predict_answers(
        self,
        samples: Mapping[str, Any],
        num_beams: int = 3,
        inference_method: str = "rank",
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | None = None,
        **unused: Any,
    ) -> list[str]:
        """Answer a question about each image.

        Args:
            samples: `image`: images (B, 3, S, S); `text_input`: one question per image.
            num_beams: Number of beams when answers are generated.
            inference_method: "rank" to choose from `answer_list`, or "generate".
            max_len: Maximum number of tokens of generated answers, including [DEC].
            min_len: Minimum number of tokens of generated answers, including [DEC].
            num_ans_candidates: Number of answers that the first step of ranking selects.
            answer_list: Answers to choose from.
            **unused: Further arguments, which are ignored.

        Returns:
            One answer per image.

        Raises:
            InputError: If the images have a wrong shape, or options are invalid.
        """
        questions = _list_texts(samples["text_input"])
        if inference_method not in ("rank", "generate"):
            raise InputError(f"inference_method must be 'rank' or 'generate', got {inference_method!r}")
        if inference_method == "rank" and not answer_list:
            raise InputError("inference_method='rank' needs an answer_list; otherwise use 'generate'")
        text = self._encode_texts(questions, "enc", QUESTION_TOKENS)
        states = self._encode_images(samples["image"])
        question_states = self.task_model.engine.require(Answers).encode_questions(text.ids, text.mask, states)
        if inference_method == "rank" and answer_list is not None:
            shortlist = min(num_ans_candidates, len(answer_list))
            pipeline = VqaPipeline(self.task_model, answers=answer_list, shortlist=shortlist, smoothing=SMOOTHING)
            return [answer.text for answer in pipeline.rank(question_states, text.mask)]
        pipeline = VqaPipeline(
            self.task_model, num_beams=num_beams, max_new_tokens=max_len - 1, min_new_tokens=max(0, min_len - 1)
        )
        return [answer.text for answer in pipeline.generate(question_states, text.mask)]


class BlipITM(BaseModel):
    """Image-text matching."""

    architecture = "blip_image_text_matching"
    task = "retrieval"

    @_predicts
    def forward(self, samples: Mapping[str, Any], match_head: str = "itm") -> Tensor:
        """Score images and texts.

        Args:
            samples: `image`: images (B, 3, S, S); `text_input`: texts.
            match_head: "itm" or "itc".

        Returns:
            ITM logits (B, 2) of each image with its text, or ITC cosine similarities (images, texts).

        Raises:
            InputError: If the images have a wrong shape, or the numbers of images and texts differ for "itm".
        """
        states = self._encode_images(samples["image"])
        texts = _list_texts(samples["text_input"])
        if match_head == "itc":
            text = self._encode_texts(texts, "cls", MATCH_TOKENS)
            engine = self.task_model.engine.require(Embeddings)
            return engine.embed_images(states) @ engine.embed_texts(text.ids, text.mask).T
        if match_head != "itm":
            raise InputError(f"match_head must be 'itm' or 'itc', got {match_head!r}")
        if len(texts) != len(states):
            raise InputError(f"match_head='itm' needs one text for each of {len(states)} images, got {len(texts)}")
        text = self._encode_texts(texts, "enc", MATCH_TOKENS)
        return self.task_model.engine.require(MatchLogits).match_logits(text.ids, text.mask, states)


@dataclass(frozen=True, eq=False)
class BlipOutputFeatures:
    """Features by attribute or by key. Features that were not computed are `None`, and are not keys.

    Attributes:
        image_embeds: Image states (B, N + 1, D).
        image_embeds_proj: Projected and normalized image states (B, N + 1, E).
        text_embeds: Text states (B, T, D).
        text_embeds_proj: Projected and normalized text states (B, T, E).
        multimodal_embeds: States (B, T, D) of image-grounded texts.
    """

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None

    def keys(self) -> list[str]:
        """Return the names of the computed features.

        Returns:
            The names of the computed features.
        """
        return [name for name, value in vars(self).items() if value is not None]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.keys():
            raise KeyError(name)
        feature: Tensor = getattr(self, name)
        return feature


class BlipFeatureExtractor(_ContrastiveModel):
    """Features of images, texts, and image-text pairs."""

    architecture = "blip_feature_extractor"
    task = "pretrain"

    @_predicts
    def extract_features(self, samples: Mapping[str, Any], mode: str = "multimodal") -> BlipOutputFeatures:
        """Compute features. Position 0 of the states represents the image or text.

        Args:
            samples: `image`: images (B, 3, S, S); `text_input`: texts.
            mode: "image", "text", or "multimodal" for image states and the states of image-grounded texts.

        Returns:
            The features.

        Raises:
            InputError: If the mode is unknown or its inputs are missing.
        """
        if mode not in ("image", "text", "multimodal"):
            raise InputError(f"mode must be 'image', 'text' or 'multimodal', got {mode!r}")
        for name in {"image": ["image"], "text": ["text_input"]}.get(mode, ["image", "text_input"]):
            if samples.get(name) is None:
                raise InputError(f"mode {mode!r} needs samples[{name!r}]")
        module = self.task_model.module
        with torch.inference_mode():
            if mode == "image":
                states = self._encode_images(samples["image"])
                projected = F.normalize(module.vision_proj(states), dim=-1)
                return BlipOutputFeatures(image_embeds=states, image_embeds_proj=projected)
            texts = _list_texts(samples["text_input"])
            if mode == "text":
                text = self._encode_texts(texts, "cls").to(self.device)
                states = module.text.encode(text.ids, text.mask)
                projected = F.normalize(module.text_proj(states), dim=-1)
                return BlipOutputFeatures(text_embeds=states, text_embeds_proj=projected)
            text = self._encode_texts(texts, "enc").to(self.device)
            states = self._encode_images(samples["image"])
            grounded = module.text.encode_grounded(text.ids, text.mask, states)
            return BlipOutputFeatures(image_embeds=states, multimodal_embeds=grounded)

    def forward(self, samples: Mapping[str, Any], mode: str = "multimodal") -> BlipOutputFeatures:
        """Compute features; the name of `extract_features` in earlier versions of LAVIS.

        Args:
            samples: Inputs of `extract_features`.
            mode: Mode of `extract_features`.

        Returns:
            The features.
        """
        return self.extract_features(samples, mode)


class Judgments(TypedDict):
    """Logits (B, 2) of statements, column 1 for "true", and their labels (B,), if there are any."""

    predictions: Tensor
    targets: Tensor | None


class BlipNLVR(BaseModel):
    """Statements about two images."""

    architecture = "blip_nlvr"
    task = "nlvr"

    def forward(self, samples: Mapping[str, Any], is_train: bool = True) -> BlipOutput | Judgments:
        """Return the loss of judgments or, with `is_train=False`, the judgments.

        Args:
            samples: `image0`, `image1`: images (B, 3, S, S); `text_input`: one statement per pair; `label`: 1 for true
                statements (B,).
            is_train: Return the loss.
        """
        if not is_train:
            return self.predict(samples)
        texts = _list_texts(samples["text_input"])
        return BlipOutput(self.nlvr_loss(samples["image0"], samples["image1"], texts, samples["label"]))

    @_predicts
    def predict(self, samples: Mapping[str, Any]) -> Judgments:
        """Judge statements.

        Args:
            samples: `image0`, `image1`: images (B, 3, S, S); `text_input`: one statement per pair; `label`: optional.

        Returns:
            `predictions`: logits (B, 2), column 1 for "true"; `targets`: the labels.
        """
        text = self._encode_texts(_list_texts(samples["text_input"]), "enc")
        left, right = self._encode_images(samples["image0"]), self._encode_images(samples["image1"])
        logits = self.task_model.engine.require(Comparisons).compare_logits(text.ids, text.mask, left, right)
        return {"predictions": logits, "targets": samples.get("label")}


class BlipPretrain(_ContrastiveModel):
    """The pretraining model: its weights and losses."""

    architecture = "blip_pretrain"
    task = "pretrain"

    def forward(self, samples: Mapping[str, Any], alpha: float = 0.4) -> BlipOutput:
        """Return the losses of pretraining.

        Args:
            samples: `image`: images (B, 3, S, S); `text_input`: one text per image; `epoch`, `iters` and
                `num_iters_per_epoch`, from which `alpha` rises in the first two epochs.
            alpha: Weight of the momentum targets, after they have risen.
        """
        losses = self.pretrain_losses(
            samples["image"], _list_texts(samples["text_input"]), alpha * _progress(samples, epochs=2)
        )
        return BlipOutput(sum(losses.values(), torch.tensor(0.0)), losses["itc"], losses["itm"], losses["lm"])


class BlipRetrieval(_ContrastiveModel):
    """Retrieval in two steps: ITC selects candidates, ITM scores them."""

    architecture = "blip_retrieval"
    task = "retrieval"

    def forward(self, samples: Mapping[str, Any], alpha: float = 0.4) -> BlipOutput:
        """Return the losses of retrieval.

        Args:
            samples: `image`: images (B, 3, S, S); `text_input`: one text per image; `image_id`: ids of the images (B,);
                `epoch`, `iters` and `num_iters_per_epoch`, from which `alpha` rises in the first epoch.
            alpha: Weight of the momentum targets, after they have risen.
        """
        losses = self.retrieval_losses(
            samples["image"],
            _list_texts(samples["text_input"]),
            alpha * _progress(samples, epochs=1),
            torch.as_tensor(samples["image_id"]),
        )
        return BlipOutput(losses["itc"] + losses["itm"], losses["itc"], losses["itm"])

    @_predicts
    def compute_sim_matrix(
        self, data_loader: Any, task_cfg: Mapping[str, Any] | Any = None, **options: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score all images and texts.

        The `k_test` most similar entries of each row get the sum of ITM logit and ITC similarity, all others -100.

        Args:
            data_loader: Yields batches with `image`; its `dataset.text` lists the texts.
            task_cfg: Mapping or object with `k_test`.
            **options: `k_test`, which overrides `task_cfg`.

        Returns:
            Scores (images, texts) and (texts, images).

        Raises:
            InputError: If `k_test` is missing or invalid.
        """
        k_test = task_cfg.get("k_test") if isinstance(task_cfg, Mapping) else getattr(task_cfg, "k_test", None)
        if not isinstance(k_test, int) or k_test < 1:
            raise InputError(f"k_test of task_cfg must be a positive number of candidates, got {k_test!r}")
        k_test = options.get("k_test", k_test)
        model = self.task_model
        rows = [model.token_ids(text, "cls", MATCH_TOKENS) for text in data_loader.dataset.text]
        states = torch.cat([self._encode_images(batch["image"]) for batch in data_loader])
        engine = model.engine.require(Embeddings)
        text_embeds = torch.cat([engine.embed_texts(*model.pad(batch)) for batch in iter_chunks(rows, TEXT_ROWS)])
        cosines = (engine.embed_images(states) @ text_embeds.T).cpu()
        rows = [[model.tokenizer.enc_id, *ids[1:]] for ids in rows]
        image_to_text = torch.full_like(cosines, EXCLUDED_SCORE)
        for image, row in enumerate(cosines):
            for texts in torch.split(row.topk(min(k_test, len(row))).indices, TEXT_ROWS):
                logits = self._match_logits([rows[text] for text in texts.tolist()], states[image, None])
                image_to_text[image, texts] = logits + row[texts]
        text_to_image = torch.full_like(cosines.T, EXCLUDED_SCORE)
        for text, row in enumerate(cosines.T):
            for images in torch.split(row.topk(min(k_test, len(row))).indices, TEXT_ROWS):
                logits = self._match_logits([rows[text]] * len(images), states[images.to(states.device)])
                text_to_image[text, images] = logits + row[images]
        return image_to_text.numpy(), text_to_image.numpy()

    def _match_logits(self, rows: list[list[int]], states: Tensor) -> Tensor:
        ids, mask = self.task_model.pad(rows)
        return self.task_model.engine.require(MatchLogits).match_logits(ids, mask, states)[:, 1].cpu()


def _progress(samples: Mapping[str, Any], epochs: int) -> float:
    """Return how far the weight of momentum targets has risen, from 0 to 1; 1 without numbers of iterations."""
    if "num_iters_per_epoch" not in samples:
        return 1.0
    total = samples["num_iters_per_epoch"]
    done = int(samples.get("epoch", 0)) * total + int(samples.get("iters", 0))
    return min(1.0, done / (epochs * total))


def _list_texts(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
