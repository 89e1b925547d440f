"""The model classes of LAVIS: tensors (B, 3, S, S) and texts as processors gave them, in dicts of samples.

Shapes: B samples, T tokens, N patches, D widths, E the width of ITC embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from openblip.compat.transformers_api.tokens import BlipTokenizer
from openblip.engine.protocols import Answers, Comparisons, Embeddings, MatchLogits, TorchModel
from openblip.errors import InputError, UnsupportedTaskError
from openblip.pipelines.base import TEXT_ROWS, OpenedImage, Prepared, TaskModel, iter_chunks
from openblip.pipelines.caption import CaptionPipeline, Prompt
from openblip.pipelines.vqa import VqaPipeline
from openblip.preprocess.text import FirstToken, Tokens

QUESTION_TOKENS = MATCH_TOKENS = 35
SMOOTHING = 0.1
NUCLEUS_PENALTY, NUCLEUS_TOP_K = 1.1, 50  # fixed in that library's sampling
LEFT_OUT = -100.0


class LavisTokenizer(BlipTokenizer):
    """The tokenizer of a model, which also says the ids of [ENC] and [DEC]."""

    @property
    def enc_token_id(self) -> int:
        """The first token of a text that is read with its image."""
        return self.core.enc_id

    @property
    def bos_token_id(self) -> int:
        """[DEC], the first token of a text that is written."""
        return self.core.dec_id


class BaseModel:
    """What all models have. ``part`` is ours at work, ``module`` the ``nn.Module``."""

    def __init__(self, part: TaskModel) -> None:
        self.part = part
        self.tokenizer = LavisTokenizer(part.tokenizer)

    @property
    def module(self) -> nn.Module:
        """The network."""
        found: nn.Module = self.part.module
        return found

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.part.engine.device

    def to(self, device: str | torch.device) -> Any:
        """Move it."""
        self.part.engine = self.part.engine.require(TorchModel).to(torch.device(device))
        return self

    def eval(self) -> Any:
        """It already is."""
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the network."""
        return self.module.parameters()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.forward(*args, **options)

    def forward(self, *args: Any, **options: Any) -> Any:
        """Losses: not here."""
        raise UnsupportedTaskError(
            f"{type(self).__name__} gives no losses here: train with `openblip train`, or openblip.training.objectives"
        )

    def _states(self, image: Tensor) -> Tensor:
        size = self.part.image_settings.size
        if not isinstance(image, Tensor) or image.ndim != 4 or tuple(image.shape[1:]) != (3, size, size):
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"images are tensors (B, 3, {size}, {size}) from the eval processor, not {shape}")
        return self.part.engine.encode_images(image)

    def _encode(self, texts: Sequence[str], first: FirstToken, limit: int | None = None) -> Tokens:
        return self.part.tokenizer.encode(texts, first, max_length=limit)


class _WithTemperature(BaseModel):
    """What models trained by ITC have."""

    @property
    def temp(self) -> Tensor:
        """What ITC cosines are divided by, a scalar on the model's device."""
        found: Tensor = self.part.module.temperature
        return found


class BlipCaption(BaseModel):
    """Captions."""

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
        """``num_captions`` captions of each image of ``samples["image"]``, one image's side by side.

        Lengths count [DEC] and the prompt. With a beam search they are the best ones, at most ``num_beams``.
        """
        states, tokenizer = self._states(samples["image"]), self.part.tokenizer
        prompt = tokenizer.encode_prompt(self.part.prompt)
        if max_length <= len(prompt):
            raise InputError(f"max_length {max_length} leaves no room after the prompt's {len(prompt)} tokens")
        options: dict[str, Any] = {"num_beams": num_beams, "repetition_penalty": repetition_penalty}
        if use_nucleus_sampling:
            options = {"do_sample": True, "top_p": top_p, "top_k": NUCLEUS_TOP_K, "repetition_penalty": NUCLEUS_PENALTY}
        pipeline = CaptionPipeline(
            self.part, n=num_captions, max_new_tokens=max_length - len(prompt),
            min_new_tokens=max(0, min_length - len(prompt)), **options,
        )  # fmt: skip
        batch = [Prepared(OpenedImage(image_states), Prompt(prompt, None)) for image_states in states]
        captions = []
        for best in pipeline.postprocess(pipeline.forward(batch), batch):
            captions += [best.text, *(caption.text for caption in best.alternatives)]
        return captions


class BlipVQA(BaseModel):
    """Answers."""

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
        """An answer to each question of ``samples["text_input"]`` about its image.

        "rank" chooses from ``answer_list`` in two steps, the first of which keeps ``num_ans_candidates``; "generate"
        writes one. Lengths count [DEC].
        """
        questions = samples["text_input"]
        questions = [questions] if isinstance(questions, str) else list(questions)
        if inference_method not in ("rank", "generate"):
            raise InputError(f"inference_method is 'rank' or 'generate', not {inference_method!r}")
        if inference_method == "rank" and not answer_list:
            raise InputError("ranking needs an answer_list; or give inference_method='generate'")
        text = self._encode(questions, "enc", QUESTION_TOKENS)
        heard = self.part.engine.require(Answers).encode_questions(text.ids, text.mask, self._states(samples["image"]))
        if inference_method == "rank" and answer_list is not None:
            shortlist = min(num_ans_candidates, len(answer_list))
            ranking = VqaPipeline(self.part, answers=answer_list, shortlist=shortlist, smoothing=SMOOTHING)
            return [answer.text for answer in ranking.rank(heard, text.mask)]
        generation = VqaPipeline(
            self.part, num_beams=num_beams, max_new_tokens=max_len - 1, min_new_tokens=max(0, min_len - 1)
        )
        return [answer.text for answer in generation.generate(heard, text.mask)]


class BlipITM(BaseModel):
    """Match scores."""

    def forward(self, samples: Mapping[str, Any], match_head: str = "itm") -> Tensor:
        """By "itm" logits (B, 2) of each image with its text; by "itc" cosines (images, texts)."""
        states = self._states(samples["image"])
        texts = samples["text_input"]
        texts = [texts] if isinstance(texts, str) else list(texts)
        if match_head == "itc":
            text = self._encode(texts, "cls", MATCH_TOKENS)
            engine = self.part.engine.require(Embeddings)
            return engine.embed_images(states) @ engine.embed_texts(text.ids, text.mask).T
        if match_head != "itm":
            raise InputError(f"match_head is 'itm' or 'itc', not {match_head!r}")
        if len(texts) != len(states):
            raise InputError(f"by itm {len(states)} images take {len(states)} texts, not {len(texts)}")
        text = self._encode(texts, "enc", MATCH_TOKENS)
        return self.part.engine.require(MatchLogits).match_logits(text.ids, text.mask, states)


@dataclass(frozen=True, eq=False)
class BlipOutputFeatures:
    """Features, by attribute or by key; what was not asked for is ``None`` and no key."""

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None

    def keys(self) -> list[str]:
        """The names of what is there."""
        return [name for name, value in vars(self).items() if value is not None]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.keys():
            raise KeyError(name)
        found: Tensor = getattr(self, name)
        return found


class BlipFeatureExtractor(_WithTemperature):
    """Features of images, of texts, and of both together."""

    def extract_features(self, samples: Mapping[str, Any], mode: str = "multimodal") -> BlipOutputFeatures:
        """``mode`` "image": (B, N + 1, D) and, projected, (B, N + 1, E); "text": (B, T, D) and (B, T, E).

        "multimodal": (B, T, D) of texts that read their images, and the images' own. Position 0 stands for the whole.
        Projections are normalised at every position.
        """
        if mode not in ("image", "text", "multimodal"):
            raise InputError(f"mode is 'image', 'text' or 'multimodal', not {mode!r}")
        for name in {"image": ["image"], "text": ["text_input"]}.get(mode, ["image", "text_input"]):
            if samples.get(name) is None:
                raise InputError(f"mode {mode!r} needs samples[{name!r}]")
        with torch.inference_mode():
            if mode == "image":
                return self._image(self._states(samples["image"]))
            texts = samples["text_input"]
            texts = [texts] if isinstance(texts, str) else list(texts)
            if mode == "text":
                return self._text(self._encode(texts, "cls").to(self.device))
            text, states = self._encode(texts, "enc").to(self.device), self._states(samples["image"])
            read = self.part.module.text.encode_grounded(text.ids, text.mask, states)
            return BlipOutputFeatures(image_embeds=states, multimodal_embeds=read)

    def forward(self, samples: Mapping[str, Any], mode: str = "multimodal") -> BlipOutputFeatures:
        """As :meth:`extract_features`, from when that library called it so."""
        return self.extract_features(samples, mode)

    def _image(self, states: Tensor) -> BlipOutputFeatures:
        projected = F.normalize(self.part.module.vision_proj(states), dim=-1)
        return BlipOutputFeatures(image_embeds=states, image_embeds_proj=projected)

    def _text(self, text: Tokens) -> BlipOutputFeatures:
        states = self.part.module.text.encode(text.ids, text.mask)
        projected = F.normalize(self.part.module.text_proj(states), dim=-1)
        return BlipOutputFeatures(text_embeds=states, text_embeds_proj=projected)


class BlipNLVR(BaseModel):
    """Verdicts on statements about two images."""

    def predict(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """``predictions``: logits (B, 2), the second one for "true"; ``targets``: the labels as given."""
        texts = samples["text_input"]
        text = self._encode([texts] if isinstance(texts, str) else list(texts), "enc")
        first, second = self._states(samples["image0"]), self._states(samples["image1"])
        logits = self.part.engine.require(Comparisons).compare_logits(text.ids, text.mask, first, second)
        return {"predictions": logits, "targets": samples.get("label")}


class BlipPretrain(_WithTemperature):
    """The pretraining model: its weights, for what one builds on them."""


class BlipRetrieval(_WithTemperature):
    """Retrieval in two steps: a shortlist by ITC, scored anew by ITM."""

    def compute_sim_matrix(
        self, data_loader: Any, task_cfg: Mapping[str, Any] | Any = None, **options: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score matrices (images, texts) and (texts, images).

        ``data_loader.dataset.text`` lists the texts; the loader gives batches with ``image``. The ``k_test`` best of
        each row by cosine get ITM logit plus cosine, all others -100.
        """
        k = options.get("k_test", _setting(task_cfg, "k_test"))
        texts = [text for chunk in iter_chunks(data_loader.dataset.text, TEXT_ROWS) for text in self._rows(chunk)]
        states = torch.cat([self._states(batch["image"]) for batch in data_loader])
        engine = self.part.engine.require(Embeddings)
        parts = [engine.embed_texts(*self.part.pad(chunk)) for chunk in iter_chunks(texts, TEXT_ROWS)]
        cosines = (engine.embed_images(states) @ torch.cat(parts).T).cpu()
        grounded = [[self.part.tokenizer.enc_id, *ids[1:]] for ids in texts]
        i2t, t2i = torch.full_like(cosines, LEFT_OUT), torch.full_like(cosines.T, LEFT_OUT)
        for image, row in enumerate(cosines):
            best = row.topk(min(k, len(row))).indices
            for some in torch.split(best, TEXT_ROWS):
                scores = self._itm([grounded[i] for i in some.tolist()], states[image, None])
                i2t[image, some] = scores + row[some]
        for text, row in enumerate(cosines.T):
            best = row.topk(min(k, len(row))).indices
            for some in torch.split(best, TEXT_ROWS):
                t2i[text, some] = self._itm([grounded[text]] * len(some), states[some.to(states.device)]) + row[some]
        return i2t.numpy(), t2i.numpy()

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode([text], "cls", MATCH_TOKENS).ids[0].tolist() for text in texts]

    def _itm(self, rows: list[list[int]], states: Tensor) -> Tensor:
        return self.part.engine.require(MatchLogits).match_logits(*self.part.pad(rows), states)[:, 1].cpu()


def _setting(settings: Any, name: str) -> int:
    found = settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, None)
    if not isinstance(found, int) or found < 1:
        raise InputError(f"task_cfg says {name}, how many candidates are scored anew, not {found!r}")
    return found
