"""A model of another library as an `nn.Module`: our network, with the published names in its `state_dict`.

LAVIS and the original repository share the network, its names and its losses; their classes differ in arguments.

Shapes: B samples, T tokens, S image size.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from openblip.checkpoints.containers import read_weight_file
from openblip.checkpoints.layouts import Family, table
from openblip.checkpoints.layouts.table import Table
from openblip.errors import InputError
from openblip.model.comparer import Comparer
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.pipelines.base import TaskModel
from openblip.preprocess.text import FirstToken, Tokens
from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.objectives.contrastive import ContrastiveObjective
from openblip.training.objectives.nlvr import NlvrBatch, NlvrObjective
from openblip.training.objectives.pretrain import PretrainBatch, PretrainObjective
from openblip.training.objectives.retrieval import RetrievalBatch, RetrievalObjective
from openblip.training.objectives.vqa import VqaBatch, VqaObjective

SMOOTHING = 0.1
QUESTION_TOKENS = MATCH_TOKENS = 35
CAPTION_TOKENS, PRETRAIN_TOKENS = 40, 30
_NETWORK, _OBJECTIVE = "network.", "objective."
_TRAINING = {"twin.": "momentum.", "queue.": "queue."}  # our names of training state in files

ModuleT = TypeVar("ModuleT", bound="PublishedModule")


class PublishedModule(nn.Module):
    """A network with published names.

    Args:
        task_model: The model as pipelines use it.
        family: Family of checkpoints whose names `state_dict` has.
        **objective_options: Options of the objective of models with momentum features: `queue_size`, `momentum`,
            `negatives`.
    """

    objective: ContrastiveObjective[Any, Any, Any, Any] | None

    def __init__(self, task_model: TaskModel, family: Family, **objective_options: Any) -> None:
        super().__init__()
        self.task_model = task_model
        self.network: Any = task_model.module
        self.layout: Table = table(family, task_model.config.task)
        self.objective = None
        self._objective_options = objective_options
        untyped: Any = self  # torch's stubs declare other signatures
        untyped.register_state_dict_post_hook(_to_published_names)
        untyped.register_load_state_dict_pre_hook(_to_our_names)
        self.eval()

    @property
    def module(self) -> nn.Module:
        """OpenBLIP's network."""
        return cast(nn.Module, self.network)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def visual_encoder(self) -> nn.Module:
        """The image encoder."""
        return cast(nn.Module, self.network.vision)

    @property
    def text_encoder(self) -> nn.Module:
        """The text encoder.

        Raises:
            AttributeError: The model has none.
        """
        return self._part("encoder", "text")

    @property
    def text_decoder(self) -> nn.Module:
        """The text decoder.

        Raises:
            AttributeError: The model has none.
        """
        return self._part("decoder", "text" if isinstance(self.network, Pretrainer) else "decoder")

    def _part(self, *names: str) -> nn.Module:
        for name in names:
            if name in self.network._modules:
                return cast(nn.Module, self.network._modules[name])
        raise AttributeError(f"{type(self).__name__} has no {names[0]}")

    def train(self: ModuleT, mode: bool = True) -> ModuleT:
        """Set training mode, in which the weights require gradients, or evaluation mode.

        Args:
            mode: Training mode.

        Returns:
            The model.
        """
        super().train(mode)
        if mode:
            self.network.requires_grad_(True)
        return self

    def _apply(self: ModuleT, function: Any, recurse: bool = True) -> ModuleT:
        """Move or cast the network, and tell the engine, which pipelines ask for device and type."""
        nn.Module._apply(self, function, recurse)  # type: ignore[no-untyped-call]
        engine: Any = self.task_model.engine
        engine.device, engine.dtype = self.device, next(self.network.parameters()).dtype
        return self

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Predict without dropout, whatever the mode."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def load_checkpoint(self, filename: str | Path) -> _IncompatibleKeys:
        """Load the weights of a file, whose names are checked.

        Args:
            filename: The file.

        Returns:
            Missing and unexpected names, which are empty.
        """
        return self.load_state_dict(read_weight_file(Path(filename)).tensors)

    # Losses.

    def _check_images(self, images: Tensor) -> Tensor:
        size = self.network.config.vision.image_size
        if not isinstance(images, Tensor) or images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images must be a tensor (B, 3, {size}, {size}) from the eval processor, got {shape}")
        return images.to(self.device)

    def _tokens(self, texts: Sequence[str], first: FirstToken, max_length: int | None = None) -> Tokens:
        return self.task_model.tokenizer.encode(texts, first, max_length=max_length).to(self.device)

    def caption_loss(self, images: Tensor, texts: Sequence[str], prompt: str) -> Tensor:
        """Return the LM loss of captions, whose prompt is given, not learned.

        Args:
            images: Images (B, 3, S, S).
            texts: Captions with the prompt.
            prompt: The prompt.
        """
        text = self._tokens(texts, "dec", CAPTION_TOKENS)
        length = len(self.task_model.tokenizer.encode_prompt(prompt))
        objective = CaptionObjective(self.network, prompt_length=length, smoothing=SMOOTHING)
        return objective.forward(CaptionBatch(pixels=self._check_images(images), ids=text.ids, mask=text.mask))["lm"]

    def vqa_loss(
        self, images: Tensor, questions: Sequence[str], answers: Sequence[str], counts: Sequence[int], weights: Tensor
    ) -> Tensor:
        """Return the weighted LM loss of answers.

        Args:
            images: Images (B, 3, S, S).
            questions: One question per image.
            answers: The answers to all questions, in order.
            counts: Number of answers to each question.
            weights: Weight of each answer.
        """
        question, answer = self._tokens(questions, "enc", QUESTION_TOKENS), self._tokens(answers, "dec")
        index = torch.arange(len(questions)).repeat_interleave(torch.as_tensor(counts))
        batch = VqaBatch(
            pixels=self._check_images(images),
            ids=question.ids,
            mask=question.mask,
            answer_ids=answer.ids,
            answer_mask=answer.mask,
            question_index=index.to(self.device),
            weights=torch.as_tensor(weights, dtype=torch.float32).to(self.device),
        )
        return VqaObjective(self.network, smoothing=SMOOTHING).forward(batch)["vqa"]

    def nlvr_loss(self, left: Tensor, right: Tensor, texts: Sequence[str], targets: Tensor) -> Tensor:
        """Return the cross-entropy of judgments of statements about pairs of images.

        Args:
            left: Left images (B, 3, S, S).
            right: Right images (B, 3, S, S).
            texts: Statements.
            targets: 1 for true statements, 0 for false ones (B,).
        """
        assert isinstance(self.network, Comparer)
        text = self._tokens(texts, "enc")
        batch = NlvrBatch(
            left_pixels=self._check_images(left),
            right_pixels=self._check_images(right),
            ids=text.ids,
            mask=text.mask,
            labels=targets.to(self.device),
        )
        return NlvrObjective(self.network).forward(batch)["nlvr"]

    def retrieval_losses(
        self, images: Tensor, texts: Sequence[str], alpha: float, image_ids: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses `itc` and `itm`; in training mode, momentum features and queues advance.

        Args:
            images: Images (B, 3, S, S).
            texts: One text per image.
            alpha: Weight of the momentum targets.
            image_ids: Ids (B,) of the images.
        """
        text = self._tokens(texts, "cls", MATCH_TOKENS)
        objective = self.prepare_training()
        batch = RetrievalBatch(
            pixels=self._check_images(images),
            ids=text.ids,
            mask=text.mask,
            image_ids=image_ids.flatten().to(self.device),
        )
        return cast("dict[str, Tensor]", objective.forward(batch, alpha))

    def pretrain_losses(self, images: Tensor, texts: Sequence[str], alpha: float) -> dict[str, Tensor]:
        """Return the losses `itc`, `itm` and `lm`; in training mode, momentum features and queues advance.

        Args:
            images: Images (B, 3, S, S).
            texts: One text per image.
            alpha: Weight of the momentum targets.
        """
        text = self._tokens(texts, "cls", PRETRAIN_TOKENS)
        batch = PretrainBatch(pixels=self._check_images(images), ids=text.ids, mask=text.mask)
        return cast("dict[str, Tensor]", self.prepare_training().forward(batch, alpha))

    def prepare_training(self) -> ContrastiveObjective[Any, Any, Any, Any]:
        """Return the objective with momentum features and queues, which are made by the first call.

        They then are part of `state_dict`, under their published names.
        """
        if self.objective is None:
            assert isinstance(self.network, Matcher)
            kind: Any = PretrainObjective if isinstance(self.network, Pretrainer) else RetrievalObjective
            self.objective = kind(self.network, **self._objective_options).to(self.device)
            self.objective.train(self.training)
        return self.objective


def _published(module: PublishedModule, name: str) -> list[str]:
    """Return the published names of a tensor of a module's state; empty for tensors that files do not store."""
    if name.startswith(_NETWORK):
        return [theirs for _, theirs in module.layout.theirs(name.removeprefix(_NETWORK))]
    for ours, stored in _TRAINING.items():
        if name.startswith(_OBJECTIVE + ours):
            rest = name.removeprefix(_OBJECTIVE + ours)
            return [theirs for group, theirs in module.layout.theirs(stored + rest) if group.training][:1]
    return []


def _to_published_names(module: nn.Module, state: MutableMapping[str, Any], prefix: str, _metadata: object) -> None:
    assert isinstance(module, PublishedModule)
    for name in [name for name in state if name.startswith((prefix + _NETWORK, prefix + _OBJECTIVE))]:
        tensor = state.pop(name)
        for theirs in _published(module, name.removeprefix(prefix)):
            state[prefix + theirs] = tensor


def _to_our_names(
    module: nn.Module, state: MutableMapping[str, Any], prefix: str, _metadata: object, *_args: object
) -> None:
    assert isinstance(module, PublishedModule)
    ours: dict[str, Tensor] = {}
    for name in [name for name in state if name.startswith(prefix)]:
        target = module.layout.ours(name.removeprefix(prefix))
        if target is None:
            continue
        group, our_name = target
        tensor = state.pop(name)
        if group.kind == "constant":
            continue
        if not group.training:
            ours.setdefault(_NETWORK + our_name, tensor)
        elif module.objective is not None:
            for inside, stored in _TRAINING.items():
                if our_name.startswith(stored):
                    ours[_OBJECTIVE + inside + our_name.removeprefix(stored)] = tensor
    if module.objective is not None:
        for name, tensor in module.objective.queue.state_dict().items():  # what files do not name stays
            ours.setdefault(f"{_OBJECTIVE}queue.{name}", tensor)
        ours |= {  # the objective's model is the network
            f"{_OBJECTIVE}model.{name.removeprefix(_NETWORK)}": tensor
            for name, tensor in ours.items()
            if name.startswith(_NETWORK)
        }
    state.update({prefix + name: tensor for name, tensor in ours.items()})
