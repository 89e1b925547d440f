"""Protocols: the files of a benchmark, the settings of each reference implementation, and published scores (no torch).

A preset has the settings of one reference: `paper` (the authors' code), `lavis` or `mmpretrain`. References differ
in split, lengths, penalties, shortlists, cleaning and scoring; a score means nothing without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.answers import Rule
from openblip.evaluation.metrics.ids import ItemId
from openblip.tasks import TaskName

if TYPE_CHECKING:
    from openblip.preprocess.image import ImageSource

PresetName = Literal["paper", "lavis", "mmpretrain"]
PRESET_NAMES: tuple[PresetName, ...] = get_args(PresetName)


@dataclass(frozen=True)
class PublishedScore:
    """A published result.

    Attributes:
        source: Where it was published.
        checkpoints: Our names of the checkpoints that it may belong to.
        values: The metrics as printed (multiplied by 100).
    """

    source: str
    checkpoints: tuple[str, ...]
    values: Mapping[str, float]


Published: TypeAlias = Mapping[PresetName, tuple[PublishedScore, ...]]


@dataclass(frozen=True)
class Split:
    """A split of a data set.

    Attributes:
        name: The name of the split.
        files: The files that it needs in the data folder.
        count: The number of items (images or questions) of the complete split.
    """

    name: str
    files: tuple[str, ...]
    count: int


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of one reference implementation.

    Attributes:
        task: The task of the protocol, which decides the evaluator.
        split: The split to evaluate.
        published: Scores that were published with these settings.
        note: Why no score was published with these settings.
    """

    task: ClassVar[TaskName]
    split: Split
    published: tuple[PublishedScore, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class CaptionPreset(Preset):
    """Captions by beam search.

    Attributes:
        max_length: The most tokens. As in the originals, lengths include [DEC] and the prompt, four tokens together.
        min_length: The fewest tokens.
        prompt: The text that starts every caption and is removed from it; `None` for the checkpoint's own.
        scored_images: "all" images of the references, each of which needs a file, or, as in mmpretrain, only the
            "listed" ones.
    """

    task = "caption"
    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    repetition_penalty: float = 1.0
    prompt: str | None = None
    scored_images: Literal["all", "listed"] = "all"

    @property
    def max_new_tokens(self) -> int:
        """The most tokens after the prompt."""
        return self.max_length - 4

    @property
    def min_new_tokens(self) -> int:
        """The fewest tokens after the prompt."""
        return max(0, self.min_length - 4)


@dataclass(frozen=True, kw_only=True)
class VqaPreset(Preset):
    """Answers to questions about images or videos.

    Attributes:
        inference: "rank" the answers of `answer_list` in two steps, or "generate" an answer.
        rule: The scoring rule; "" if only a server can score.
        answer_list: The file of answers to rank.
        shortlist: The number of answers that the first step of ranking keeps.
        smoothing: The label smoothing of ranking.
        max_length: The most tokens of a generated answer, [DEC] included.
        min_length: The fewest tokens of a generated answer, [DEC] included.
        max_words: The most words of a question.
        strip_punctuation: Remove all punctuation from questions, as mmpretrain does.
        strip_answer_punctuation: Remove all punctuation from people's answers too, but not from predictions.
        num_frames: The number of frames to sample from each video; `None` for images.
    """

    task = "vqa"
    inference: Literal["rank", "generate"]
    rule: Rule | Literal[""] = "official"
    answer_list: str = ""
    shortlist: int = 128
    smoothing: float = 0.1
    num_beams: int = 3
    max_length: int = 10
    min_length: int = 1
    max_words: int = 50
    strip_punctuation: bool = False
    strip_answer_punctuation: bool = False
    num_frames: int | None = None

    @property
    def needs_server(self) -> bool:
        """Whether only the server can score: the answers are not public."""
        return not self.rule


@dataclass(frozen=True, kw_only=True)
class RetrievalPreset(Preset):
    """Retrieval in two stages: a shortlist by ITC, re-ranked by ITM after [ENC].

    Attributes:
        shortlist: The number of candidates that the first stage keeps.
        max_words: The most words of a text; `None` for no limit.
        max_tokens: The most tokens of a text.
        strip_punctuation: Remove all punctuation from texts, as mmpretrain does.
        num_frames: The number of frames to sample from each video; `None` for images.
    """

    task = "retrieval"
    shortlist: int
    max_words: int | None
    max_tokens: int = 35
    strip_punctuation: bool = False
    num_frames: int | None = None


@dataclass(frozen=True, kw_only=True)
class NlvrPreset(Preset):
    """Statements about two images.

    Attributes:
        max_words: The most words of a statement.
        first_token: The token before a statement: [ENC], or [CLS] as in mmpretrain.
        clean: Clean statements as captions.
    """

    task = "nlvr"
    max_words: int = 40
    first_token: Literal["enc", "cls"] = "enc"
    clean: bool = True


@dataclass(frozen=True, kw_only=True)
class GroundingPreset(Preset):
    """Boxes of expressions.

    Attributes:
        threshold: The IoU from which a box counts as right.
    """

    task = "grounding"
    threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class VisdialPreset(Preset):
    """Answers of visual dialog, ranked by ITM; the caption is encoded together with the image.

    Attributes:
        max_tokens: The most tokens of a dialog. A longer dialog loses its beginning.
    """

    task = "visdial"
    max_tokens: int = 256


@dataclass(frozen=True)
class Item:
    """One item of a benchmark.

    Attributes:
        id: The id, unique in the benchmark.
        image: The path of the image or video.
        texts: Reference captions; for a pair of images the statement; for a box the expression; for a dialog the
            caption.
        question: The question.
        answers: People's answers; for a pair of images "True" or "False"; for a dialog the candidates.
        second_image: The path of the second image of a pair.
        box: The reference box: left, top, right and bottom in pixels.
        domain: The domain of a NoCaps image: "in", "near" or "out".
        question_type: The type of the question.
        answer_type: The type of the answer.
        content: The image, or a file object that reads it, if it has no file of its own.
    """

    id: ItemId
    image: str
    texts: tuple[str, ...] = ()
    question: str = ""
    answers: tuple[str, ...] = ()
    second_image: str = ""
    box: tuple[float, ...] = ()
    domain: str = ""
    question_type: str = ""
    answer_type: str = ""
    content: ImageSource | None = field(default=None, repr=False, compare=False)

    @property
    def source(self) -> ImageSource:
        """The image, in a form that a model accepts."""
        return self.image if self.content is None else self.content


@dataclass(frozen=True)
class DialogItem(Item):
    """One round of a visual dialog: `texts` has the caption of the image, `answers` the candidates.

    Attributes:
        history: The questions and answers of the rounds before.
        answer_index: The index of the right candidate.
        relevance: How relevant annotators found each candidate; empty if they did not judge the round.
    """

    history: tuple[tuple[str, str], ...] = ()
    answer_index: int = 0
    relevance: tuple[float, ...] = ()


Items: TypeAlias = list[Item]


@dataclass(frozen=True)
class ServerFile:
    """The file that an official server or script scores.

    Attributes:
        name: The name of the file.
        build: Builds the content from the predictions: a text, or a value to write as JSON.
    """

    name: str
    build: Callable[[Mapping[ItemId, Any]], object]


@dataclass(frozen=True)
class Protocol:
    """A benchmark.

    Attributes:
        name: The name on the command line.
        title: The name in reports.
        published_at: Where the files are published.
        presets: The settings of each reference implementation.
        reader: Reads the items of a folder.
        server_file: The file for the official server, if there is one.
    """

    name: str
    title: str
    published_at: str
    presets: Mapping[PresetName, Preset]
    reader: Callable[[Path, Preset], Items]
    server_file: ServerFile | None = None

    @property
    def task(self) -> TaskName:
        """The task of the presets."""
        return self.presets["paper"].task

    def preset(self, name: str) -> Preset:
        """Return a preset.

        Args:
            name: "paper", "lavis" or "mmpretrain".

        Returns:
            The settings.

        Raises:
            EvaluationError: If there is no such preset.
        """
        for preset_name, preset in self.presets.items():
            if preset_name == name:
                return preset
        raise EvaluationError(f"the preset of {self.name} must be {', '.join(self.presets)}, got {name!r}")

    def read(self, folder: Path, preset: Preset) -> Items:
        """Read the items of a split.

        Args:
            folder: The folder of the benchmark's files.
            preset: The preset.

        Returns:
            The items, in the order of the files.

        Raises:
            EvaluationError: If a file is missing, broken or damaged, or if two items have the same id.
        """
        items = self.reader(folder, preset)
        numbers: dict[ItemId, int] = {}
        for number, item in enumerate(items, 1):
            if item.id in numbers:
                raise EvaluationError(
                    f"{folder / preset.split.files[0]}: id {item.id!r} occurs a second time, as items "
                    f"{numbers[item.id]} and {number} of {preset.split.name}; every item needs its own id"
                )
            numbers[item.id] = number
        return items


@dataclass(frozen=True)
class Benchmark:
    """A protocol with one preset and the folder of its files, all of which exist.

    Attributes:
        protocol: The protocol.
        preset_name: The name of the preset.
        folder: The folder of the files.
    """

    protocol: Protocol
    preset_name: str
    folder: Path

    def __post_init__(self) -> None:
        """Check that the preset and all files exist.

        Raises:
            EvaluationError: If there is no such preset, or if files are missing. The message lists them and where they
                are published.
        """
        files = self.preset.split.files
        missing = [name for name in files if not (self.folder / name).is_file()]
        if missing:
            raise EvaluationError(
                f"{self.protocol.title} needs {', '.join(files)} in {self.folder}; missing: {', '.join(missing)}. "
                f"Published at {self.protocol.published_at}"
            )

    @property
    def preset(self) -> Preset:
        """The settings."""
        return self.protocol.preset(self.preset_name)

    def read(self) -> Items:
        """Read the items.

        Returns:
            The items, in the order of the files.

        Raises:
            EvaluationError: If a file is broken, or if two items have the same id.
        """
        return self.protocol.read(self.folder, self.preset)
