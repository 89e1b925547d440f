"""The public API: `load` returns a [`Blip`][openblip.Blip], whose methods run preprocessing, batching and inference.

Examples:
    >>> blip = openblip.load("pocket")  # doctest: +SKIP
    >>> blip.caption("photo.jpg").text  # doctest: +SKIP
    'a cat lying on a bed'
    >>> [answer.text for answer in blip.ask("photo.jpg", ["what is it?", "where is it?"])]  # doctest: +SKIP
    ['cat', 'bed']
"""
# A str is a Sequence[str], and a file an Iterator[bytes]; the first overload that fits is the right one.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip import defaults
from openblip.checkpoints import published, read
from openblip.checkpoints.containers import weights_digest
from openblip.checkpoints.folder import Bundle
from openblip.checkpoints.hub import is_offline
from openblip.checkpoints.resolve import check_local, resolve
from openblip.defaults import Decode, EngineName, Precision, PrecisionOption
from openblip.engine.choice import choose
from openblip.engine.create import check_engine, create_engine, default_batch_size
from openblip.engine.device import resolve_device
from openblip.errors import DownloadError, InputError, OpenBlipError, UnsupportedTaskError
from openblip.io import limits
from openblip.io.limits import Limit, Stop
from openblip.model.config import ModelConfig, ModelKind
from openblip.pipelines.base import TEXT_ROWS, Batching, TaskModel, iter_chunks
from openblip.pipelines.caption import CaptionPipeline
from openblip.pipelines.encode import encode_images
from openblip.pipelines.explain import (
    EXPLAINED_TASKS,
    ExplainAnswerPipeline,
    ExplainCaptionPipeline,
    ExplainedTask,
    ExplainMatchPipeline,
    ExplainPipeline,
)
from openblip.pipelines.grounding import GroundingPipeline
from openblip.pipelines.inputs import EncodedImage, ImageInput
from openblip.pipelines.nlvr import NlvrPipeline
from openblip.pipelines.retrieval import (
    ClassifyPipeline,
    Embedding,
    EmbedPipeline,
    RetrievalPipeline,
    TensorEmbedPipeline,
)
from openblip.pipelines.shapes import (
    ImageInputs,
    ImageList,
    ImageStream,
    OnError,
    Output,
    Progress,
    TextList,
    Texts,
    add_right_images,
    grouped_inputs,
    paired_inputs,
    report_progress,
    single_inputs,
)
from openblip.pipelines.vqa import VqaPipeline
from openblip.preprocess.image import ImageSource, load_image, resize, to_tensor
from openblip.preprocess.text import Tokenizer
from openblip.results import Answer, Box, Caption, Classification, Comparison, Explanation, Match
from openblip.tasks import SERVED_TASKS, TASKS, TaskName, did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.signatures import (
        AskOptions,
        CaptionOptions,
        CaptionPipelineOptions,
        ClassifyOptions,
        ExplainOptions,
        Raise,
        Return,
        SharedOptions,
        VqaPipelineOptions,
    )

ConfigValue: TypeAlias = "str | int | float | bool | Sequence[ConfigValue] | Mapping[str, ConfigValue] | None"
ConfigOverrides: TypeAlias = "Mapping[str, ConfigValue]"


@dataclass(frozen=True, kw_only=True)
class _Loader:
    """The arguments of `load` that apply to every model of a bundle."""

    engine: EngineName
    precision: Precision
    device: torch.device
    config: ModelConfig | ConfigOverrides | None
    tokenizer: Tokenizer | None
    calibration: Sequence[Image.Image]
    exact_decode: bool
    batching: Batching
    bundled: bool
    offline: bool | None

    def load(self, source: str | Path, task: ModelKind | None) -> TaskModel:
        """Load one model."""
        path = source if isinstance(source, Path) and source.exists() else resolve(source, offline=self.offline)
        checkpoint = read.load(path, task=task, config=self.config, tokenizer=self.tokenizer)
        pixels = None
        if self.calibration:
            resized = np.stack([resize(image, checkpoint.image.size) for image in self.calibration])
            pixels = to_tensor(resized, checkpoint.image)
        engine = create_engine(
            self.engine,
            self.precision,
            self.device,
            checkpoint.model,
            checkpoint.config,
            key=partial(weights_digest, Path(checkpoint.source)),
            calibration=pixels,
            bundled=self.bundled,
        )
        return TaskModel(checkpoint, engine, batching=self.batching, exact_decode=self.exact_decode)


def load(
    name_or_path: str | Path,
    *,
    task: ModelKind | None = None,
    engine: EngineName = defaults.ENGINE,
    precision: PrecisionOption = defaults.PRECISION,
    device: str = defaults.DEVICE,
    config: ModelConfig | ConfigOverrides | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    decode: Decode = defaults.DECODE,
    calibration: Iterable[ImageSource] | None = None,
    threads: int | None = None,
    offline: bool | None = None,
) -> Blip:
    """Load a model or a bundle of models.

    Args:
        name_or_path: A bundle ("pocket", "base", "large": one model per task, each loaded on first use), a hub id, a
            published name of mmpretrain or LAVIS, a folder or a `.pth` file.
        task: Task of the checkpoint if its file fits several, or the only task to use of a bundle.
        engine: "torch" (the reference), "compiled" (`torch.compile`), "openvino" (an extra, for CPUs) or "auto".
            See `docs/engines.md`.
        precision: Precision of the arithmetic: "fp32", "bf16", "fp16" or "int8", whatever the file stores; or "auto",
            the fastest precision and, with `engine="auto"`, the fastest engine for this machine. Results may then
            differ slightly from fp32. `Blip.engine` and `Blip.precision` report the choice.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto": a GPU if there is one and the engine and precision run on it.
        config: Configuration of a `.pth` file, or values to change, such as `{"image_size": 480}`.
        tokenizer: Tokenizer, vocabulary file or folder for a `.pth` file; by default bert-base-uncased's.
        batch_size: Images to run together; by default 4 or 8 on a CPU and 64 on a GPU. Results do not depend on it.
        num_workers: Threads that open images ahead of the model; by default 2.
        decode: "fast" decodes large JPEG files at reduced size, which changes pixels by a fraction of a gray level;
            "exact" decodes them in full.
        calibration: Sample images that OpenVINO quantizes the image encoder with (`precision="int8"` only).
        threads: CPU threads to compute with, for all models of the process; by default all cores.
        offline: Whether to use only files on this machine; by default as the environment says. The models of a bundle
            that are not here are then left out of `tasks`.

    Returns:
        The model.

    Raises:
        CheckpointError: A file is missing or damaged, or does not fit the model.
        DownloadError: A download failed, or offline mode is on and no model is on this machine.
        ConfigError: The configuration is impossible.
        InputError: An argument is wrong.

    Examples:
        >>> blip = openblip.load("Salesforce/blip-image-captioning-base", precision="bf16")  # doctest: +SKIP
        >>> blip.tasks  # doctest: +SKIP
        ('caption',)
    """
    if not str(name_or_path):
        raise InputError("name_or_path must name a model, got an empty text; try 'pocket'")
    if decode not in get_args(Decode):
        raise InputError(f"decode must be 'fast' or 'exact', got {decode!r}")
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)  # OpenVINO uses as many
    torch_device = resolve_device(device, cpu_only=engine == "openvino" or precision == "int8")
    is_chosen = precision == "auto" and engine == "auto"
    choice = choose(engine, precision, torch_device.type)
    engine, precision = choice.engine, choice.precision
    check_engine(engine, precision, torch_device, calibrated=calibration is not None)
    batching = Batching(
        default_batch_size(precision, torch_device) if batch_size is None else batch_size,
        defaults.NUM_WORKERS if num_workers is None else num_workers,
    )
    images = [load_image(image) for image in calibration or ()]
    if calibration is not None and not images:
        raise InputError("calibration must contain at least one image (a dozen is recommended), got none")
    bundle = Bundle.find(name_or_path)
    loader = _Loader(
        engine=engine,
        precision=precision,
        device=torch_device,
        config=config,
        tokenizer=Tokenizer.load(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer,
        calibration=images,
        exact_decode=decode == "exact",
        batching=batching,
        bundled=bundle is not None or is_chosen,
        offline=offline,
    )
    loaders: dict[TaskName, Callable[[], TaskModel]] = {}
    missing: dict[TaskName, str] = {}
    if bundle is None:
        load_model = cache(partial(loader.load, name_or_path, task))
        loaders = dict.fromkeys(SERVED_TASKS.get(load_model().config.task, ()), load_model)
    else:
        for network in cast("Iterable[TaskName]", bundle.models if task is None else (task,)):
            if network not in bundle.models:
                raise bundle.error_without(network)
            if tokenizer is None and network in bundle.without_vocabulary:
                raise bundle.error_without_vocabulary(network)
            source = bundle.models[network]
            if isinstance(source, str) and (is_offline() if offline is None else offline):
                try:
                    check_local(source)
                except DownloadError as error:
                    missing |= dict.fromkeys(SERVED_TASKS[network], str(error))
                    continue
            load_model = cache(partial(loader.load, source, network))
            for served in SERVED_TASKS[network]:
                if served == network or served not in loaders:
                    loaders[served] = load_model
        if not loaders:
            raise DownloadError(f"{name_or_path} cannot be used: {next(iter(missing.values()))}")
    return Blip(str(name_or_path), loaders, batching=batching, engine=engine, precision=precision, missing=missing)


class Blip:
    """A BLIP model, or a bundle of models, for images and videos. Create one with `load`.

    **Images.** An image is a path, bytes, a file object, a PIL image, an array (H, W, 3) of uint8 RGB, a tensor
    (3, H, W) of uint8 or of floats from 0 to 1, an `https` address, or an [`EncodedImage`][openblip.EncodedImage].

    **Shapes.** One image gives one result. A list of images, or an array with a batch axis, gives a list. An iterator
    gives an iterator, which opens images as its results are consumed.

    **Errors.** With `on_error="raise"`, the default, the first failing item raises its error. The error has the `index`
    and the `item`, and for lists the results so far as `partial`. With `on_error="return"`, errors are returned in
    place of results. A task that the model does not support always raises `UnsupportedTaskError`.

    **Videos.** `caption`, `ask`, `match`, `embed_images` and `encode_images` take videos too: the path of a video file
    or a [`Video`][openblip.Video]. By default 8 frames are used; their tokens are concatenated, and their embeddings
    averaged (Li et al. 2022, section 5.6).

    **Progress.** With `progress=True`, methods show a progress bar on a terminal. A function instead of `True` gets the
    number of finished images and the total, which is `None` for iterators.

    **Limits.** With `timeout=30`, a call raises `TimeLimitError` after 30 seconds. With `stop=event.is_set`, it raises
    `StoppedError` soon after `event.set()` in another thread. Both are checked at every step of the decoder and between
    batches. For lists, the error has the results so far as `partial`.

    One `Blip` can be used by several threads.

    Attributes:
        name: The name or path that was loaded.
        engine: The requested engine.
        precision: The precision of the arithmetic.
    """

    def __init__(
        self,
        name: str,
        loaders: Mapping[TaskName, Callable[[], TaskModel]],
        *,
        batching: Batching | None = None,
        engine: EngineName = "torch",
        precision: Precision = "fp32",
        missing: Mapping[TaskName, str] | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.precision = precision
        self.batching = batching or Batching()
        self._loaders = dict(loaders)
        self._missing = dict(missing or {})  # why a model of the bundle cannot be loaded
        self._models: dict[TaskName, TaskModel] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Return the model's name, tasks, engine and precision."""
        return f"Blip({self.name!r}, tasks={self.tasks}, engine={self.engine!r}, precision={self.precision!r})"

    @property
    def tasks(self) -> tuple[TaskName, ...]:
        """The tasks that the model supports."""
        return tuple(self._loaders)

    @property
    def batch_size(self) -> int:
        """Number of images that run together. Results do not depend on it."""
        return self.batching.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.batching.batch_size = size

    @property
    def num_workers(self) -> int:
        """Number of threads that open images ahead of the model."""
        return self.batching.num_workers

    @overload
    def caption(
        self, images: ImageInput, *, on_error: Raise = "raise", **options: Unpack[CaptionOptions]
    ) -> Caption: ...
    @overload
    def caption(
        self, images: ImageInput, *, on_error: Return, **options: Unpack[CaptionOptions]
    ) -> Caption | OpenBlipError: ...
    @overload
    def caption(
        self, images: ImageList, *, on_error: Raise = "raise", **options: Unpack[CaptionOptions]
    ) -> list[Caption]: ...
    @overload
    def caption(
        self, images: ImageList, *, on_error: Return, **options: Unpack[CaptionOptions]
    ) -> list[Caption | OpenBlipError]: ...
    @overload
    def caption(
        self, images: ImageStream, *, on_error: Raise = "raise", **options: Unpack[CaptionOptions]
    ) -> Iterator[Caption]: ...
    @overload
    def caption(
        self, images: ImageStream, *, on_error: Return, **options: Unpack[CaptionOptions]
    ) -> Iterator[Caption | OpenBlipError]: ...
    def caption(
        self,
        images: ImageInputs,
        *,
        prompt: str | Iterable[str | None] | None = None,
        num_beams: int | None = None,
        n: int = 1,
        min_new_tokens: int = 1,
        max_new_tokens: int = 16,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int | None = None,
        do_sample: bool = False,
        top_p: float | None = None,
        top_k: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        forbid: Sequence[str] = (),
        require: Sequence[str | Sequence[str]] = (),
        trim: bool = False,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Caption]:
        """Describe images.

        Args:
            images: One image or video, a list, or an iterator.
            prompt: Text that captions start with, one for all images or one per image. `None` is the checkpoint's
                own prompt ("a picture of " for published models), which the caption's text omits; `""` is none.
            num_beams: Beams of the search; by default 3, or 1 with `do_sample`.
            n: Captions per image. The best one carries the others in `alternatives`, the likeliest first: by
                log-probability over length ** `length_penalty`, which is the `score` by default.
            min_new_tokens: Fewest new tokens before the end.
            max_new_tokens: Most new tokens, the end token included.
            length_penalty: Above 0 prefers long captions, below 0 short ones. Beam search only.
            repetition_penalty: Above 1 avoids repetitions.
            no_repeat_ngram_size: Size of the n-grams of tokens that must not occur twice; 0 allows all. The default is
                the checkpoint's own: 2 for `pocket`, 0 for published models.
            do_sample: Whether to sample tokens instead of searching for the best caption.
            top_p: Samples from the most probable tokens with this total probability; by default 0.9.
            top_k: Samples from this many of the most probable tokens; by default from all.
            temperature: Above 1 samples more diverse captions, below 1 more probable ones; by default 1.
            seed: Makes samples repeatable. A sample with a seed depends only on its image.
            forbid: Words that must not occur, however their pieces spell them.
            require: Words, or lists of alternative words, that the search steers towards. Where one is missing, the
                caption is `unmet`.
            trim: Whether to prefer finished captions, and to remove words such as "of the" from the end of others.
            on_error: `"raise"` or `"return"` the error of an image that cannot be captioned.
            progress: Whether to show a progress bar, or a function of the number done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            A caption per image, in the shape of `images`.

        Raises:
            ImageError: An image cannot be read.
            InputError: An option is out of range, or options contradict each other.
            UnsupportedTaskError: The model does not caption.

        Examples:
            >>> best = blip.caption("photo.jpg", n=3)  # doctest: +SKIP
            >>> [best.text, *(caption.text for caption in best.alternatives)]  # doctest: +SKIP
            ['a cat on a bed', 'a cat lying on a bed', 'a cat asleep on a bed']
        """
        pipeline = self.pipeline(
            "caption",
            prompt=prompt if isinstance(prompt, str) else None,
            num_beams=num_beams,
            n=n,
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            do_sample=do_sample,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            seed=seed,
            forbid=forbid,
            require=require,
            trim=trim,
        )
        inputs = paired_inputs(images, prompt, "prompt")
        return inputs.deliver(pipeline.run(inputs.items), on_error, progress, timeout, stop)

    @overload
    def ask(
        self, images: ImageInput, questions: str, *, on_error: Raise = "raise", **options: Unpack[AskOptions]
    ) -> Answer: ...
    @overload
    def ask(
        self, images: ImageInput, questions: str, *, on_error: Return, **options: Unpack[AskOptions]
    ) -> Answer | OpenBlipError: ...
    @overload
    def ask(
        self, images: ImageInput, questions: TextList, *, on_error: Raise = "raise", **options: Unpack[AskOptions]
    ) -> list[Answer]: ...
    @overload
    def ask(
        self, images: ImageInput, questions: TextList, *, on_error: Return, **options: Unpack[AskOptions]
    ) -> list[Answer] | OpenBlipError: ...
    @overload
    def ask(
        self, images: ImageList, questions: str | TextList, *, on_error: Raise = "raise", **options: Unpack[AskOptions]
    ) -> list[Answer]: ...
    @overload
    def ask(
        self, images: ImageList, questions: str | TextList, *, on_error: Return, **options: Unpack[AskOptions]
    ) -> list[Answer | OpenBlipError]: ...
    @overload
    def ask(
        self, images: ImageStream, questions: str | Texts, *, on_error: Raise = "raise", **options: Unpack[AskOptions]
    ) -> Iterator[Answer]: ...
    @overload
    def ask(
        self, images: ImageStream, questions: str | Texts, *, on_error: Return, **options: Unpack[AskOptions]
    ) -> Iterator[Answer | OpenBlipError]: ...
    def ask(
        self,
        images: ImageInputs,
        questions: str | Iterable[str],
        *,
        answers: Sequence[str] | None = None,
        n: int = 1,
        shortlist: int | None = None,
        smoothing: float | None = None,
        num_beams: int | None = None,
        min_new_tokens: int | None = None,
        max_new_tokens: int | None = None,
        length_penalty: float | None = None,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Answer] | Output[list[Answer]]:
        """Answer questions about images.

        Args:
            images: One image or video, a list, or an iterator.
            questions: One question for all images, one per image, or several about one image, which is encoded once.
            answers: Answers to choose from, by the probability of each whole answer; by default answers are generated.
            n: Answers per question. The likeliest one carries the others in `alternatives`, ranked by probability. A
                single generated answer is the search's choice, which `length_penalty` influences.
            shortlist: Number of `answers` that a first step keeps; by default all. The original uses 128.
            smoothing: Label smoothing of the ranking of `answers`; by default 0. The original uses 0.1.
            num_beams: Beams of the search for generated answers; by default 3.
            min_new_tokens: Fewest new tokens of generated answers; by default 1.
            max_new_tokens: Most new tokens of generated answers, the end token included; by default 9.
            length_penalty: Exponent of the length that divides the log-probability of an answer in the search; by
                default 1, as published. With 0 the search returns its most probable answer.
            on_error: `"raise"` or `"return"` the error of an image or question.
            progress: Whether to show a progress bar, or a function of the number of images done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            An answer per image, in the shape of `images`; a list of answers for one image with several questions.

        Raises:
            ImageError: An image cannot be read.
            InputError: An option is out of range, or belongs to the other way of answering.
            UnsupportedTaskError: The model does not answer questions.

        Examples:
            >>> blip.ask("photo.jpg", "is it day or night?", answers=["day", "night"]).text  # doctest: +SKIP
            'day'
        """
        pipeline = self.pipeline(
            "vqa",
            answers=answers,
            n=n,
            shortlist=shortlist,
            smoothing=smoothing,
            num_beams=num_beams,
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
        )
        inputs = grouped_inputs(images, questions, "question")
        return inputs.deliver_lists(pipeline.run(inputs.items), on_error, progress, timeout, stop)

    @overload
    def match(
        self,
        images: ImageInput,
        texts: str,
        *,
        paired: bool = False,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Match: ...
    @overload
    def match(
        self,
        images: ImageInput,
        texts: str,
        *,
        paired: bool = False,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> Match | OpenBlipError: ...
    @overload
    def match(
        self,
        images: ImageInput,
        texts: TextList,
        *,
        paired: Literal[False] = False,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> list[Match]: ...
    @overload
    def match(
        self,
        images: ImageInput,
        texts: TextList,
        *,
        paired: Literal[False] = False,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> list[Match] | OpenBlipError: ...
    @overload
    def match(
        self,
        images: ImageList,
        texts: str,
        *,
        paired: bool = False,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> list[Match]: ...
    @overload
    def match(
        self, images: ImageList, texts: str, *, paired: bool = False, on_error: Return, **options: Unpack[SharedOptions]
    ) -> list[Match | OpenBlipError]: ...
    @overload
    def match(
        self,
        images: ImageList,
        texts: TextList,
        *,
        paired: Literal[False] = False,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> list[list[Match]]: ...
    @overload
    def match(
        self,
        images: ImageList,
        texts: TextList,
        *,
        paired: Literal[False] = False,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> list[list[Match] | OpenBlipError]: ...
    @overload
    def match(
        self,
        images: ImageList,
        texts: TextList,
        *,
        paired: Literal[True],
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> list[Match]: ...
    @overload
    def match(
        self,
        images: ImageList,
        texts: TextList,
        *,
        paired: Literal[True],
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> list[Match | OpenBlipError]: ...
    @overload
    def match(
        self,
        images: ImageStream,
        texts: str,
        *,
        paired: bool = False,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Iterator[Match]: ...
    @overload
    def match(
        self,
        images: ImageStream,
        texts: str,
        *,
        paired: bool = False,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> Iterator[Match | OpenBlipError]: ...
    @overload
    def match(
        self,
        images: ImageStream,
        texts: TextList,
        *,
        paired: Literal[False] = False,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Iterator[list[Match]]: ...
    @overload
    def match(
        self,
        images: ImageStream,
        texts: TextList,
        *,
        paired: Literal[False] = False,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> Iterator[list[Match] | OpenBlipError]: ...
    @overload
    def match(
        self,
        images: ImageStream,
        texts: Texts,
        *,
        paired: Literal[True],
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Iterator[Match]: ...
    @overload
    def match(
        self,
        images: ImageStream,
        texts: Texts,
        *,
        paired: Literal[True],
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> Iterator[Match | OpenBlipError]: ...
    def match(
        self,
        images: ImageInputs,
        texts: str | Iterable[str],
        *,
        paired: bool = False,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Match] | Output[list[Match]]:
        """Score how well texts fit images. Images and texts are embedded once each.

        Args:
            images: One image or video, a list, or an iterator.
            texts: One text, or several; each image is scored with each text.
            paired: Whether to score each image with one text only: one text for all images, or one per image.
            on_error: `"raise"` or `"return"` the error of an image.
            progress: Whether to show a progress bar, or a function of the number of images done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            A match per image, in the shape of `images`; a list of matches per image for several texts.

        Raises:
            ImageError: An image cannot be read.
            InputError: A text is not a string, or the numbers of paired images and texts differ.
            UnsupportedTaskError: The model does not match images and texts.

        Examples:
            >>> blip.match("photo.jpg", ["a cat", "a dog"])  # doctest: +SKIP
            [Match(probability=0.98, similarity=0.41), Match(probability=0.02, similarity=0.25)]
        """
        model = self.pipeline("retrieval").model
        if paired or isinstance(texts, str):
            shared = [texts] if isinstance(texts, str) and not paired else None
            pairs = paired_inputs(images, texts, "text")
            return pairs.deliver_lists(
                RetrievalPipeline(model, shared).run(pairs.items), on_error, progress, timeout, stop
            )
        inputs = replace(paired_inputs(images, None, "text"), nested=True)
        return inputs.deliver_lists(
            RetrievalPipeline(model, list(texts)).run(inputs.items), on_error, progress, timeout, stop
        )

    @overload
    def classify(
        self, images: ImageInput, labels: TextList, *, on_error: Raise = "raise", **options: Unpack[ClassifyOptions]
    ) -> Classification: ...
    @overload
    def classify(
        self, images: ImageInput, labels: TextList, *, on_error: Return, **options: Unpack[ClassifyOptions]
    ) -> Classification | OpenBlipError: ...
    @overload
    def classify(
        self, images: ImageList, labels: TextList, *, on_error: Raise = "raise", **options: Unpack[ClassifyOptions]
    ) -> list[Classification]: ...
    @overload
    def classify(
        self, images: ImageList, labels: TextList, *, on_error: Return, **options: Unpack[ClassifyOptions]
    ) -> list[Classification | OpenBlipError]: ...
    @overload
    def classify(
        self, images: ImageStream, labels: TextList, *, on_error: Raise = "raise", **options: Unpack[ClassifyOptions]
    ) -> Iterator[Classification]: ...
    @overload
    def classify(
        self, images: ImageStream, labels: TextList, *, on_error: Return, **options: Unpack[ClassifyOptions]
    ) -> Iterator[Classification | OpenBlipError]: ...
    def classify(
        self,
        images: ImageInputs,
        labels: Sequence[str],
        *,
        template: str = "a picture of {}",
        by: Literal["itc", "itm"] = "itc",
        n: int = 1,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Classification]:
        """Choose among labels that the model was not trained on.

        Args:
            images: One image, a list, or an iterator.
            labels: The labels to choose from.
            template: Text of a label, with `{}` in place of the label.
            by: `"itc"` compares embeddings over the learned temperature; images and texts are embedded once each.
                `"itm"` compares the odds of a match, which costs a pass of the model per image and label.
            n: Labels per image.
            on_error: `"raise"` or `"return"` the error of an image.
            progress: Whether to show a progress bar, or a function of the number done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            The most probable labels of each image, in the shape of `images`.

        Raises:
            ImageError: An image cannot be read.
            InputError: An option is out of range, or the template has no `{}`.
            UnsupportedTaskError: The model does not match images and texts.

        Examples:
            >>> blip.classify("photo.jpg", ["cat", "dog", "rocket"]).text  # doctest: +SKIP
            'cat'
        """
        pipeline = ClassifyPipeline(self.pipeline("retrieval").model, labels, template=template, by=by, n=n)
        inputs = single_inputs(images)
        return inputs.deliver(pipeline.run(inputs.items), on_error, progress, timeout, stop)

    @overload
    def ground(
        self, images: ImageInput, expressions: str, *, on_error: Raise = "raise", **options: Unpack[SharedOptions]
    ) -> Box: ...
    @overload
    def ground(
        self, images: ImageInput, expressions: str, *, on_error: Return, **options: Unpack[SharedOptions]
    ) -> Box | OpenBlipError: ...
    @overload
    def ground(
        self, images: ImageInput, expressions: TextList, *, on_error: Raise = "raise", **options: Unpack[SharedOptions]
    ) -> list[Box]: ...
    @overload
    def ground(
        self, images: ImageInput, expressions: TextList, *, on_error: Return, **options: Unpack[SharedOptions]
    ) -> list[Box] | OpenBlipError: ...
    @overload
    def ground(
        self,
        images: ImageList,
        expressions: str | TextList,
        *,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> list[Box]: ...
    @overload
    def ground(
        self, images: ImageList, expressions: str | TextList, *, on_error: Return, **options: Unpack[SharedOptions]
    ) -> list[Box | OpenBlipError]: ...
    @overload
    def ground(
        self,
        images: ImageStream,
        expressions: str | Texts,
        *,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Iterator[Box]: ...
    @overload
    def ground(
        self, images: ImageStream, expressions: str | Texts, *, on_error: Return, **options: Unpack[SharedOptions]
    ) -> Iterator[Box | OpenBlipError]: ...
    def ground(
        self,
        images: ImageInputs,
        expressions: str | Iterable[str],
        *,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Box] | Output[list[Box]]:
        """Find the regions that expressions name.

        The four coordinates are tokens, decoded one after the other. Each is the most probable one or the median of its
        distribution, as the model's `box_reading` says.

        Args:
            images: One image, a list, or an iterator.
            expressions: One expression for all images, one per image, or several about one image, which is encoded
                once.
            on_error: `"raise"` or `"return"` the error of an image or expression.
            progress: Whether to show a progress bar, or a function of the number of images done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            A box per image, in the shape of `images`; a list of boxes for one image with several expressions.

        Raises:
            ImageError: An image cannot be read.
            InputError: An expression has no words, or the size of an encoded image is unknown.
            UnsupportedTaskError: The model does not ground expressions, or the input is a video.

        Examples:
            >>> blip.ground("photo.jpg", "the cat on the left").edges  # doctest: +SKIP
            (12.0, 40.5, 210.0, 305.5)
        """
        inputs = grouped_inputs(images, expressions, "expression")
        return inputs.deliver_lists(self.pipeline("grounding").run(inputs.items), on_error, progress, timeout, stop)

    @overload
    def compare(
        self,
        left: ImageInput,
        right: ImageInput,
        statements: str,
        *,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Comparison: ...
    @overload
    def compare(
        self,
        left: ImageInput,
        right: ImageInput,
        statements: str,
        *,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> Comparison | OpenBlipError: ...
    @overload
    def compare(
        self,
        left: ImageInput,
        right: ImageInput,
        statements: TextList,
        *,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> list[Comparison]: ...
    @overload
    def compare(
        self,
        left: ImageInput,
        right: ImageInput,
        statements: TextList,
        *,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> list[Comparison] | OpenBlipError: ...
    @overload
    def compare(
        self,
        left: ImageList,
        right: ImageList,
        statements: str | TextList,
        *,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> list[Comparison]: ...
    @overload
    def compare(
        self,
        left: ImageList,
        right: ImageList,
        statements: str | TextList,
        *,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> list[Comparison | OpenBlipError]: ...
    @overload
    def compare(
        self,
        left: ImageStream,
        right: ImageStream,
        statements: str | Texts,
        *,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Iterator[Comparison]: ...
    @overload
    def compare(
        self,
        left: ImageStream,
        right: ImageStream,
        statements: str | Texts,
        *,
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> Iterator[Comparison | OpenBlipError]: ...
    def compare(
        self,
        left: ImageInputs,
        right: ImageInputs,
        statements: str | Iterable[str],
        *,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Comparison] | Output[list[Comparison]]:
        """Judge whether statements about two images are true (NLVR2).

        Args:
            left: The left image of a pair, a list, or an iterator.
            right: The right images, in the shape of `left`.
            statements: One statement for all pairs, one per pair, or several about one pair, which is encoded once.
            on_error: `"raise"` or `"return"` the error of a pair or statement.
            progress: Whether to show a progress bar, or a function of the number of pairs done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            A comparison per pair, in the shape of `left`; a list of comparisons for one pair with several statements.

        Raises:
            ImageError: An image cannot be read.
            InputError: The numbers of left and right images differ, or a statement is too long.
            UnsupportedTaskError: The model does not compare images, or an input is a video.

        Examples:
            >>> blip.compare("left.jpg", "right.jpg", "both images show a cat").label  # doctest: +SKIP
            True
        """
        inputs = grouped_inputs(left, statements, "statement")
        pairs = add_right_images(inputs, right)
        return inputs.deliver_lists(self.pipeline("nlvr").run(pairs), on_error, progress, timeout, stop)

    @overload
    def explain(
        self,
        images: ImageInput,
        texts: str | None = None,
        *,
        on_error: Raise = "raise",
        **options: Unpack[ExplainOptions],
    ) -> Explanation: ...
    @overload
    def explain(
        self, images: ImageInput, texts: str | None = None, *, on_error: Return, **options: Unpack[ExplainOptions]
    ) -> Explanation | OpenBlipError: ...
    @overload
    def explain(
        self, images: ImageInput, texts: TextList, *, on_error: Raise = "raise", **options: Unpack[ExplainOptions]
    ) -> list[Explanation]: ...
    @overload
    def explain(
        self, images: ImageInput, texts: TextList, *, on_error: Return, **options: Unpack[ExplainOptions]
    ) -> list[Explanation] | OpenBlipError: ...
    @overload
    def explain(
        self,
        images: ImageList,
        texts: str | TextList | None = None,
        *,
        on_error: Raise = "raise",
        **options: Unpack[ExplainOptions],
    ) -> list[Explanation]: ...
    @overload
    def explain(
        self,
        images: ImageList,
        texts: str | TextList | None = None,
        *,
        on_error: Return,
        **options: Unpack[ExplainOptions],
    ) -> list[Explanation | OpenBlipError]: ...
    @overload
    def explain(
        self,
        images: ImageStream,
        texts: str | Texts | None = None,
        *,
        on_error: Raise = "raise",
        **options: Unpack[ExplainOptions],
    ) -> Iterator[Explanation]: ...
    @overload
    def explain(
        self,
        images: ImageStream,
        texts: str | Texts | None = None,
        *,
        on_error: Return,
        **options: Unpack[ExplainOptions],
    ) -> Iterator[Explanation | OpenBlipError]: ...
    def explain(
        self,
        images: ImageInputs,
        texts: str | Iterable[str] | None = None,
        *,
        task: ExplainedTask = "retrieval",
        answer: str | None = None,
        layer: int | None = None,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Explanation] | Output[list[Explanation]]:
        """Show which parts of images raise the score of each word, by Grad-CAM on cross-attention.

        Args:
            images: One image, a list, or an iterator.
            texts: One text for all images, one per image, or several about one image, which is encoded once.
            task: The kind of text: `"retrieval"` for texts to match, `"caption"` for captions (`None` is the
                model's own) or `"vqa"` for questions.
            answer: The answer to explain, for questions; by default the model's own.
            layer: Text layer whose cross-attention is explained, from 0; by default the middle one, 6 of 12.
            on_error: `"raise"` or `"return"` the error of an image or text.
            progress: Whether to show a progress bar, or a function of the number of images done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            An explanation per image, in the shape of `images`; a list of explanations for one image with several
            texts.

        Raises:
            ImageError: An image cannot be read.
            InputError: An option is out of range, a text is missing, or the engine computes no gradients.
            UnsupportedTaskError: The model does not support the task, or the input is a video.

        Examples:
            >>> explanation = blip.explain("photo.jpg", "a cat on a bed")  # doctest: +SKIP
            >>> explanation.words, explanation.maps.shape  # doctest: +SKIP
            (('a', 'cat', 'on', 'a', 'bed'), (5, 24, 24))
        """
        if task not in EXPLAINED_TASKS:
            hint = did_you_mean(task, EXPLAINED_TASKS)
            raise InputError(f"task must be one of {', '.join(EXPLAINED_TASKS)}, got {task!r}{hint}")
        if answer is not None and task != "vqa":
            raise InputError(f"an answer needs task='vqa', got task={task!r}")
        model = self.pipeline(task).model
        pipeline: ExplainPipeline
        if task == "retrieval":
            pipeline = ExplainMatchPipeline(model, layer=layer)
        elif task == "caption":
            pipeline = ExplainCaptionPipeline(model, layer=layer)
        else:
            pipeline = ExplainAnswerPipeline(model, layer=layer, answer=answer)
        inputs = grouped_inputs(images, texts, "text")
        return inputs.deliver_lists(pipeline.run(inputs.items), on_error, progress, timeout, stop)

    @overload
    def embed_images(
        self,
        images: ImageInput,
        *,
        output: Literal["numpy"] = "numpy",
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Embedding: ...
    @overload
    def embed_images(
        self,
        images: ImageInput,
        *,
        output: Literal["numpy"] = "numpy",
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> Embedding | OpenBlipError: ...
    @overload
    def embed_images(
        self,
        images: ImageList,
        *,
        output: Literal["numpy"] = "numpy",
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Embedding: ...
    @overload
    def embed_images(
        self,
        images: ImageList,
        *,
        output: Literal["numpy"] = "numpy",
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> list[Embedding | OpenBlipError]: ...
    @overload
    def embed_images(
        self,
        images: ImageStream,
        *,
        output: Literal["numpy"] = "numpy",
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Iterator[Embedding]: ...
    @overload
    def embed_images(
        self,
        images: ImageStream,
        *,
        output: Literal["numpy"] = "numpy",
        on_error: Return,
        **options: Unpack[SharedOptions],
    ) -> Iterator[Embedding | OpenBlipError]: ...
    @overload
    def embed_images(
        self,
        images: ImageInput,
        *,
        output: Literal["torch"],
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Tensor: ...
    @overload
    def embed_images(
        self, images: ImageInput, *, output: Literal["torch"], on_error: Return, **options: Unpack[SharedOptions]
    ) -> Tensor | OpenBlipError: ...
    @overload
    def embed_images(
        self,
        images: ImageList,
        *,
        output: Literal["torch"],
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Tensor: ...
    @overload
    def embed_images(
        self, images: ImageList, *, output: Literal["torch"], on_error: Return, **options: Unpack[SharedOptions]
    ) -> list[Tensor | OpenBlipError]: ...
    @overload
    def embed_images(
        self,
        images: ImageStream,
        *,
        output: Literal["torch"],
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Iterator[Tensor]: ...
    @overload
    def embed_images(
        self, images: ImageStream, *, output: Literal["torch"], on_error: Return, **options: Unpack[SharedOptions]
    ) -> Iterator[Tensor | OpenBlipError]: ...
    def embed_images(
        self,
        images: ImageInputs,
        *,
        output: Literal["numpy", "torch"] = "numpy",
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Embedding] | Output[Tensor]:
        """Embed images for the contrastive loss (ITC), in the space of `embed_texts`.

        Shapes: N images, E embedding width (256 for published models).

        Args:
            images: One image or video, a list, or an iterator.
            output: `"numpy"` for arrays, or `"torch"` for tensors on the device of the model.
            on_error: `"raise"` or `"return"` the error of an image.
            progress: Whether to show a progress bar, or a function of the number done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            L2-normalized float32 embeddings: an array (E,) for one image, an array (N, E) for a list (a list of arrays
            (E,) and errors with `on_error="return"`), and an iterator over arrays (E,) for an iterator. Tensors instead
            of arrays with `output="torch"`.

        Raises:
            ImageError: An image cannot be read.
            UnsupportedTaskError: The model does not embed images.

        Examples:
            >>> cosines = blip.embed_images(paths) @ blip.embed_texts(["a cat", "a dog"]).T  # doctest: +SKIP
        """
        model = self.pipeline("retrieval").model
        inputs = single_inputs(images)
        if _check_output(output) == "torch":
            tensors = TensorEmbedPipeline(model).run(inputs.items)
            results = inputs.deliver(tensors, on_error, progress, timeout, stop)
            if isinstance(results, list) and on_error == "raise":
                tensor_rows = cast("list[Tensor]", results)
                return torch.stack(tensor_rows) if tensor_rows else torch.empty(0, model.config.embed_width)
            return results
        arrays = inputs.deliver(EmbedPipeline(model).run(inputs.items), on_error, progress, timeout, stop)
        if isinstance(arrays, list) and on_error == "raise":
            rows = cast("list[Embedding]", arrays)
            return np.stack(rows) if rows else np.empty((0, model.config.embed_width), np.float32)
        return arrays

    @overload
    def embed_texts(
        self, texts: Iterator[str], *, output: Literal["numpy"] = "numpy", **options: Unpack[SharedOptions]
    ) -> Iterator[Embedding]: ...
    @overload
    def embed_texts(
        self, texts: Iterator[str], *, output: Literal["torch"], **options: Unpack[SharedOptions]
    ) -> Iterator[Tensor]: ...
    @overload
    def embed_texts(
        self, texts: str | TextList, *, output: Literal["numpy"] = "numpy", **options: Unpack[SharedOptions]
    ) -> Embedding: ...
    @overload
    def embed_texts(
        self, texts: str | TextList, *, output: Literal["torch"], **options: Unpack[SharedOptions]
    ) -> Tensor: ...
    def embed_texts(
        self,
        texts: str | Iterable[str],
        *,
        output: Literal["numpy", "torch"] = "numpy",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Embedding | Tensor | Iterator[Embedding] | Iterator[Tensor]:
        """Embed texts for the contrastive loss (ITC), in the space of `embed_images`.

        Shapes: N texts, E embedding width.

        Args:
            texts: One text, a list, or an iterator.
            output: `"numpy"` for arrays, or `"torch"` for tensors on the device of the model.
            progress: Whether to show a progress bar, or a function of the number done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            L2-normalized float32 embeddings: an array (E,) for one text, an array (N, E) for a list, and an iterator
            over arrays (E,) for an iterator. Tensors instead of arrays with `output="torch"`.

        Raises:
            InputError: A text is not a string.
            UnsupportedTaskError: The model does not embed texts.

        Examples:
            >>> blip.embed_texts(["a cat", "a dog"]).shape  # doctest: +SKIP
            (2, 256)
        """
        _check_output(output)
        pipeline = self.pipeline("retrieval")
        listed = [texts] if isinstance(texts, str) else texts
        batches = (pipeline.embed_texts(pipeline.tokenize(chunk)) for chunk in iter_chunks(listed, TEXT_ROWS))
        embeddings: Iterator[Tensor] = (embedding for batch in batches for embedding in batch)
        if timeout is not None or stop is not None:
            embeddings = limits.apply(embeddings, Limit(timeout, stop))
        if progress is not False:
            total = len(listed) if isinstance(listed, Sequence) else None
            embeddings = report_progress(embeddings, total, progress)
        if isinstance(texts, Iterator):
            return embeddings if output == "torch" else (embedding.cpu().numpy() for embedding in embeddings)
        rows = list(embeddings)
        stacked = torch.stack(rows) if rows else torch.empty(0, pipeline.model.config.embed_width)
        if isinstance(texts, str):
            stacked = stacked[0]
        return stacked if output == "torch" else stacked.cpu().numpy()

    @overload
    def encode_images(
        self,
        images: ImageInput,
        *,
        task: TaskName | None = None,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> EncodedImage: ...
    @overload
    def encode_images(
        self, images: ImageInput, *, task: TaskName | None = None, on_error: Return, **options: Unpack[SharedOptions]
    ) -> EncodedImage | OpenBlipError: ...
    @overload
    def encode_images(
        self,
        images: ImageList,
        *,
        task: TaskName | None = None,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> list[EncodedImage]: ...
    @overload
    def encode_images(
        self, images: ImageList, *, task: TaskName | None = None, on_error: Return, **options: Unpack[SharedOptions]
    ) -> list[EncodedImage | OpenBlipError]: ...
    @overload
    def encode_images(
        self,
        images: ImageStream,
        *,
        task: TaskName | None = None,
        on_error: Raise = "raise",
        **options: Unpack[SharedOptions],
    ) -> Iterator[EncodedImage]: ...
    @overload
    def encode_images(
        self, images: ImageStream, *, task: TaskName | None = None, on_error: Return, **options: Unpack[SharedOptions]
    ) -> Iterator[EncodedImage | OpenBlipError]: ...
    def encode_images(
        self,
        images: ImageInputs,
        *,
        task: TaskName | None = None,
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[EncodedImage]:
        """Encode images once for many calls. Every method takes an encoded image in place of an image.

        Args:
            images: One image or video, a list, or an iterator.
            task: The task to encode for: a bundle has an image encoder for each. By default all tasks.
            on_error: `"raise"` or `"return"` the error of an image.
            progress: Whether to show a progress bar, or a function of the number done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            An encoded image per image, in the shape of `images`.

        Raises:
            ImageError: An image cannot be read.
            UnsupportedTaskError: The model does not support the task.

        Examples:
            >>> image = blip.encode_images("photo.jpg", task="vqa")  # doctest: +SKIP
            >>> blip.ask(image, "what is it?").text, blip.ask(image, "where is it?").text  # doctest: +SKIP
            ('cat', 'bed')
        """
        models: list[TaskModel] = []
        for name in (task,) if task else self.tasks:
            model = self.pipeline(name).model
            if model not in models:
                models.append(model)
        inputs = single_inputs(images)
        return inputs.deliver(encode_images(models, inputs.items), on_error, progress, timeout, stop)

    @overload
    def pipeline(self, task: Literal["caption"], **options: Unpack[CaptionPipelineOptions]) -> CaptionPipeline: ...
    @overload
    def pipeline(self, task: Literal["vqa"], **options: Unpack[VqaPipelineOptions]) -> VqaPipeline: ...
    @overload
    def pipeline(self, task: Literal["retrieval"], *, texts: TextList | None = None) -> RetrievalPipeline: ...
    @overload
    def pipeline(self, task: Literal["nlvr"]) -> NlvrPipeline: ...
    @overload
    def pipeline(self, task: Literal["grounding"]) -> GroundingPipeline: ...
    @overload
    def pipeline(self, task: TaskName) -> AnyPipeline: ...
    def pipeline(self, task: TaskName, **options: Any) -> AnyPipeline:
        """Return the pipeline of a task, for work below the level of the other methods.

        Args:
            task: "caption", "vqa", "retrieval", "nlvr" or "grounding".
            **options: Options of the pipeline, which the methods `caption` and `ask` take too; `texts` for retrieval.

        Returns:
            The pipeline. Its `run` yields results for items; its `model` has the tokenizer and the engine.

        Raises:
            InputError: The task has no pipeline, or an option is out of range.
            UnsupportedTaskError: The model does not support the task.
            DownloadError: The model of the task is not on this machine, and offline mode was on.

        Examples:
            >>> pipeline = blip.pipeline("vqa")  # doctest: +SKIP
            >>> items = [(path, ["what is it?", "where is it?"]) for path in paths]  # doctest: +SKIP
            >>> for answers in pipeline.run(items):  # doctest: +SKIP
            ...     print(answers)
        """
        reference = TASKS[task].pipeline if task in TASKS else None
        if reference is None:
            names = [spec.name for spec in TASKS.values() if spec.pipeline is not None]
            raise InputError(f"task must be one of {', '.join(names)}, got {task!r}{did_you_mean(task, names)}")
        if task not in self._loaders and task in self._missing:
            raise DownloadError(self._missing[task])
        if task not in self._loaders:
            checkpoints = [repr(entry.name) for entry in published.serving(task)[:2]]
            raise UnsupportedTaskError(
                f"{self.name!r} supports {', '.join(self.tasks) or 'no task'}, not {task}; "
                f"load {' or '.join(checkpoints) or 'a checkpoint of that task'}"
            )
        with self._lock:
            if task not in self._models:
                self._models[task] = self._loaders[task]()
        pipeline: AnyPipeline = reference.resolve()(self._models[task], **options)
        return pipeline


AnyPipeline: TypeAlias = CaptionPipeline | VqaPipeline | RetrievalPipeline | NlvrPipeline | GroundingPipeline


def _check_output(output: str) -> str:
    if output not in ("numpy", "torch"):
        raise InputError(f"output must be 'numpy' or 'torch', got {output!r}")
    return output
