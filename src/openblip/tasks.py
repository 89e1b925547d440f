"""The task registry: the one list of tasks, and which class of each layer serves which task.

Everything that a user or another layer calls by the name of a task (`--task`, bundle files, recipes, `openblip train
NAME`, data, training, evaluation, pipelines) takes its names from `TASKS`. The classes are references that are imported
when they are resolved, so this module imports neither torch nor any other layer.

To add a task, see "Adding a task" in `CONTRIBUTING.md`.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from openblip.errors import InputError

TaskName = Literal["caption", "vqa", "retrieval", "nlvr", "grounding", "visdial", "pretrain"]


class Reference(str):
    """The address of a class or table of another layer, as in `"openblip.model.captioner:Captioner"`.

    Its method `resolve()` imports the module and returns the object, whose type is known to the layer that uses it.
    """

    resolve = pkgutil.resolve_name


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task and the parts of the package that serve it.

    A layer that does not serve the task has `None` (or nothing) in its field, and an entry in `absent` that says why.
    """

    name: TaskName
    title: str
    """The task in a few words, for help texts and documentation."""
    verbs: tuple[str, ...]
    """Methods of `Blip`, and commands, that answer from this task's model; the task's own verb first."""
    aliases: tuple[str, ...]
    """Names of the task, and of its models, in LAVIS and mmpretrain."""
    networks: tuple[TaskName, ...]
    """Networks that serve the task. The first one is trained for it; a task without a network of its own names another
    task's."""
    architecture: str
    """Class of the task's network in a `config.json`: the class of `transformers`, or ours where there is none."""
    model: Reference
    """The network: a module, built from a `ModelConfig`."""
    weights: Mapping[str, Reference]
    """By checkpoint family, the tables that rename weights. Each maps a network to its table."""
    data: Reference
    """Makes samples and batches of records."""
    objective: Reference
    """The training loss: a module around the network."""
    pipeline: Reference | None
    """Turns images and texts into results."""
    evaluator: Reference | None
    """Predicts and scores the items of a benchmark."""
    absent: Mapping[str, str]
    """By field, why the layer does not serve the task."""


def _tables(*families: str) -> dict[str, Reference]:
    return {family: Reference(f"openblip.checkpoints.layouts.{family}:TABLES") for family in families}


TASKS: Mapping[TaskName, TaskSpec] = {
    "caption": TaskSpec(
        name="caption",
        title="describe an image in a sentence",
        verbs=("caption", "explain"),
        aliases=("blip_caption", "captioning", "Image Caption"),
        networks=("caption", "pretrain"),
        architecture="BlipForConditionalGeneration",
        model=Reference("openblip.model.captioner:Captioner"),
        weights=_tables("hub", "salesforce", "lavis", "mmpretrain"),
        data=Reference("openblip.data.tasks.caption:CaptionData"),
        objective=Reference("openblip.training.objectives.caption:CaptionObjective"),
        pipeline=Reference("openblip.pipelines.caption:CaptionPipeline"),
        evaluator=Reference("openblip.evaluation.evaluators.caption:CaptionEvaluator"),
        absent={},
    ),
    "vqa": TaskSpec(
        name="vqa",
        title="answer a question about an image",
        verbs=("ask", "explain"),
        aliases=("blip_vqa", "Visual Question Answering"),
        networks=("vqa",),
        architecture="BlipForQuestionAnswering",
        model=Reference("openblip.model.answerer:Answerer"),
        weights=_tables("hub", "salesforce", "lavis", "mmpretrain"),
        data=Reference("openblip.data.tasks.vqa:VqaData"),
        objective=Reference("openblip.training.objectives.vqa:VqaObjective"),
        pipeline=Reference("openblip.pipelines.vqa:VqaPipeline"),
        evaluator=Reference("openblip.evaluation.evaluators.vqa:VqaEvaluator"),
        absent={},
    ),
    "retrieval": TaskSpec(
        name="retrieval",
        title="score how well a text matches an image, and embed both",
        verbs=("match", "embed", "classify", "explain"),
        aliases=(
            "blip_retrieval",
            "blip_image_text_matching",
            "image_text_matching",
            "Text-To-Image Retrieval",
            "Image-To-Text Retrieval",
        ),
        networks=("retrieval", "pretrain"),
        architecture="BlipForImageTextRetrieval",
        model=Reference("openblip.model.matcher:Matcher"),
        weights=_tables("hub", "salesforce", "lavis", "mmpretrain"),
        data=Reference("openblip.data.tasks.retrieval:RetrievalData"),
        objective=Reference("openblip.training.objectives.retrieval:RetrievalObjective"),
        pipeline=Reference("openblip.pipelines.retrieval:RetrievalPipeline"),
        evaluator=Reference("openblip.evaluation.evaluators.retrieval:RetrievalEvaluator"),
        absent={},
    ),
    "nlvr": TaskSpec(
        name="nlvr",
        title="judge whether a statement about two images is true",
        verbs=("compare",),
        aliases=("blip_nlvr",),
        networks=("nlvr",),
        architecture="Comparer",
        model=Reference("openblip.model.comparer:Comparer"),
        weights=_tables("hub", "salesforce", "lavis", "mmpretrain"),
        data=Reference("openblip.data.tasks.nlvr:NlvrData"),
        objective=Reference("openblip.training.objectives.nlvr:NlvrObjective"),
        pipeline=Reference("openblip.pipelines.nlvr:NlvrPipeline"),
        evaluator=Reference("openblip.evaluation.evaluators.nlvr:NlvrEvaluator"),
        absent={},
    ),
    "grounding": TaskSpec(
        name="grounding",
        title="find the box of an expression in an image",
        verbs=("ground",),
        aliases=("Visual Grounding",),
        networks=("grounding",),
        architecture="Grounder",
        model=Reference("openblip.model.grounder:Grounder"),
        weights=_tables("hub", "mmpretrain"),
        data=Reference("openblip.data.tasks.grounding:GroundingData"),
        objective=Reference("openblip.training.objectives.grounding:GroundingObjective"),
        pipeline=Reference("openblip.pipelines.grounding:GroundingPipeline"),
        evaluator=Reference("openblip.evaluation.evaluators.grounding:GroundingEvaluator"),
        absent={},
    ),
    "visdial": TaskSpec(
        name="visdial",
        title="rank the answers of a visual dialog",
        verbs=(),
        aliases=(),
        networks=("retrieval", "pretrain"),
        architecture="BlipForImageTextRetrieval",
        model=Reference("openblip.model.matcher:Matcher"),
        weights=_tables("hub", "salesforce", "lavis", "mmpretrain"),
        data=Reference("openblip.data.tasks.visdial:VisdialData"),
        objective=Reference("openblip.training.objectives.visdial:VisdialObjective"),
        pipeline=None,
        evaluator=Reference("openblip.evaluation.evaluators.visdial:VisdialEvaluator"),
        absent={
            "verbs": "a benchmark, not a thing that an application asks for",
            "aliases": "no other library has the task",
            "pipeline": "the evaluator ranks dialogs with the retrieval network",
        },
    ),
    "pretrain": TaskSpec(
        name="pretrain",
        title="pretraining on image-text pairs, which later tasks start from",
        verbs=(),
        aliases=("blip_pretrain", "blip_feature_extractor"),
        networks=("pretrain",),
        architecture="Pretrainer",
        model=Reference("openblip.model.pretrainer:Pretrainer"),
        weights=_tables("hub", "salesforce", "lavis"),
        data=Reference("openblip.data.tasks.pretrain:PretrainData"),
        objective=Reference("openblip.training.objectives.pretrain:PretrainObjective"),
        pipeline=None,
        evaluator=None,
        absent={
            "verbs": "its network answers `caption` and `match`, as `networks` of those tasks say",
            "pipeline": "its network runs in the pipelines of caption and retrieval",
            "evaluator": "its network is evaluated as caption and retrieval",
        },
    ),
}

TASK_NAMES: tuple[TaskName, ...] = tuple(TASKS)
"""The names of all tasks."""

NETWORKS: tuple[TaskName, ...] = tuple(spec.name for spec in TASKS.values() if spec.networks[0] == spec.name)
"""The tasks with a network of their own: what checkpoints, bundles and saved configurations are of."""

SERVED_TASKS: Mapping[str, tuple[TaskName, ...]] = {
    network: tuple(spec.name for spec in TASKS.values() if network in spec.networks and spec.pipeline is not None)
    for network in NETWORKS
}
"""For each network, the tasks with a pipeline that it serves. Hub architectures that serve no task are not in it."""


def find(name: str) -> TaskSpec:
    """Return the task of a name or alias. Capitals and the difference between `-`, `_` and space do not matter.

    Args:
        name: A name, or a name of the task in another library.

    Returns:
        The task.

    Raises:
        InputError: If no task has this name. The message suggests the nearest name.
    """
    for spec in TASKS.values():
        if _plain(name) in map(_plain, (spec.name, *spec.aliases)):
            return spec
    raise InputError(f"task must be one of {', '.join(TASKS)}, got {name!r}{did_you_mean(name)}")


def check(name: str, choices: Iterable[str] = TASK_NAMES, *, label: str = "task") -> TaskName:
    """Return `name` if it is the exact name of a task, as files and recipes write it.

    Args:
        name: The name.
        choices: The names that are accepted.
        label: What to call the argument in the message.

    Returns:
        The name.

    Raises:
        InputError: If the name is not among the choices. The message suggests the nearest name.
    """
    names = tuple(choices)
    if name not in names:
        raise InputError(f"{label} must be one of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}")
    return cast(TaskName, name)


def did_you_mean(name: str, choices: Iterable[str] = TASK_NAMES) -> str:
    """Return `; did you mean X?` for the choice nearest to `name`, or nothing if none is near.

    Args:
        name: A name that is not among the choices.
        choices: The names to suggest. The aliases of a task, and its verbs, suggest the task.

    Returns:
        The end of a message.
    """
    names = {choice.casefold(): choice for choice in choices}
    for spec in TASKS.values():
        if spec.name in names.values():
            names |= {text.casefold(): spec.name for text in (*spec.verbs[:1], *spec.aliases)}
    near = difflib.get_close_matches(str(name).casefold(), names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")
