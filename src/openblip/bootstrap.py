"""The bootstrap of the paper (figure 3): pretrain, fine-tune captioner and filter, run CapFilt, pretrain again.

Every step is identified by its settings and by the content of its inputs. A finished step is skipped while
its identity is unchanged; otherwise it and the steps that depend on it run again. A step that was stopped resumes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.capfilt.folder import CapFiltFolder
from openblip.capfilt.rows import read_metadata
from openblip.capfilt.rules import Keep, Rule
from openblip.capfilt.run import CapFiltJob, ModelOptions
from openblip.capfilt.run import run as run_capfilt
from openblip.capfilt.scoring import Sampling
from openblip.checkpoints.fingerprint import fingerprint
from openblip.checkpoints.folder import MODEL, Bundle
from openblip.data.files import is_local
from openblip.data.images import FileImage
from openblip.data.records import Record
from openblip.data.sources.shards import plan_shards, read_shard
from openblip.errors import ConfigError, JobError, OpenBlipError
from openblip.io import atomic
from openblip.io.hashing import compute_sha256, sha256
from openblip.jobs.executors import Executor, run_in_process, run_in_processes
from openblip.jobs.ray import run_on_ray
from openblip.tasks import TaskName
from openblip.training.config import parsing, recipe_from_table
from openblip.training.run import run as train

STEPS = ("pretrain", "captioner", "filter", "capfilt", "final")
_TASKS: Mapping[str, TaskName] = {
    "pretrain": "pretrain",
    "captioner": "caption",
    "filter": "retrieval",
    "final": "pretrain",
}


@dataclass(frozen=True, kw_only=True)
class CapFiltSettings:
    """Settings of the CapFilt step.

    Attributes:
        keep: Scores that decide; see [`Rule`][openblip.capfilt.rules.Rule].
        itm_threshold: Minimum ITM probability of a kept text.
        itc_threshold: Minimum ITC cosine of a kept text.
        num: Synthetic texts per image.
        top_p: Total probability of the tokens to sample from.
        min_new_tokens: Minimum number of tokens of a text.
        max_new_tokens: Maximum number of tokens of a text.
        repetition_penalty: Penalty of repeated tokens.
        prompt: Start of every text.
        seed: Seed of the samples.
        device: Device to compute on.
        engine: Engine to run the models with.
        precision: Precision of the arithmetic.
        batch_size: Images per batch.
        num_workers: Threads that open images.
        workers: Processes, or actors on Ray.
        ray: Address of Ray; `None` runs on this machine.
        shard_rows: Rows per shard of lists and folders.
    """

    keep: Keep = "itm"
    itm_threshold: float = 0.5
    itc_threshold: float | None = None
    num: int = 1
    top_p: float = 0.9
    min_new_tokens: int = 6
    max_new_tokens: int = 26
    repetition_penalty: float = 1.1
    prompt: str | None = None
    seed: int = 0
    device: str = "auto"
    engine: str = "auto"
    precision: str = "fp32"
    batch_size: int | None = None
    num_workers: int | None = None
    workers: int = 1
    ray: str | None = None
    shard_rows: int = 1000

    def sampling(self) -> Sampling:
        """Return the sampling options of the captioner."""
        return Sampling(
            num=self.num,
            top_p=self.top_p,
            min_new_tokens=self.min_new_tokens,
            max_new_tokens=self.max_new_tokens,
            repetition_penalty=self.repetition_penalty,
            prompt=self.prompt,
            seed=self.seed,
        )

    def executor(self) -> Executor:
        """Return the executor of the step: this process, several processes or Ray."""
        if self.ray is not None:
            return run_on_ray(self.ray, workers=self.workers)
        return run_in_process if self.workers == 1 else run_in_processes(self.workers)


@dataclass(frozen=True, kw_only=True)
class BootstrapRecipe:
    """The settings of a bootstrap.

    Attributes:
        out: Folder of the steps.
        human: Image-text pairs written by people. They are never filtered.
        web: Noisy image-text pairs from the web.
        images: Folder for relative image paths of lists.
        val: Validation data of all training steps.
        pretrain: Settings of the first pretraining, as in a training recipe.
        captioner: Settings of the captioner's fine-tuning.
        filter: Settings of the filter's fine-tuning.
        capfilt: Settings of CapFilt.
        final: Settings of the second pretraining; by default `pretrain`.

    Raises:
        ConfigError: A setting is missing.
    """

    out: str
    human: tuple[str, ...]
    web: tuple[str, ...]
    images: str | None = None
    val: tuple[str, ...] = ()
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    captioner: Mapping[str, Any] = field(default_factory=dict)
    filter: Mapping[str, Any] = field(default_factory=dict)
    capfilt: CapFiltSettings = field(default_factory=CapFiltSettings)
    final: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("out", "human", "web"):
            if not getattr(self, name):
                raise ConfigError(f"{name} must be set in the recipe of a bootstrap")


def read_bootstrap(path: Path, overrides: Sequence[str] = ()) -> BootstrapRecipe:
    """Read the recipe of a bootstrap from a YAML file.

    Args:
        path: The file.
        overrides: `key=value` assignments, such as `capfilt.num=5`.

    Returns:
        The recipe.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown, missing or out of range.
    """
    return parsing.build(BootstrapRecipe, parsing.override(parsing.read_table(path), overrides))


class Bootstrap:
    """Runs the steps of a recipe.

    Args:
        recipe: The recipe.
        notify: Receives a line for every step.
    """

    def __init__(self, recipe: BootstrapRecipe, notify: Callable[[str], None] = lambda text: None) -> None:
        self.recipe, self._notify = recipe, notify
        self.out = Path(recipe.out)
        self._hashes: dict[tuple[str, ...], str] = {}

    def run(self) -> Path:
        """Run the unfinished steps, in order.

        Returns:
            Folder of the final model.

        Raises:
            ConfigError: A setting cannot be used.
            JobError: A folder of the output was not made by this bootstrap.
        """
        for step in STEPS:
            self._run_step(step)
        return self.out / "final" / MODEL

    def _run_step(self, step: str) -> None:
        """Skip a finished step, resume a stopped one, and start over if settings or inputs changed."""
        folder, state_path = self.out / step, self.out / f"{step}.json"
        identity = self._identify(step)
        state = json.loads(state_path.read_text(encoding="utf-8")) if state_path.exists() else None
        if state == {"identity": identity, "done": True} and folder.exists():
            self._notify(f"{step}: done before")
            return
        if state is None and folder.exists():
            raise JobError(f"{folder} exists and was not made by this bootstrap; choose another out")
        if state is not None and state["identity"] != identity:
            self._notify(f"{step}: settings or inputs changed, starting over")
            shutil.rmtree(folder, ignore_errors=True)
        atomic.write_json(state_path, {"identity": identity, "done": False})
        self._notify(f"{step}: running")
        if step == "capfilt":
            self._filter()
        else:
            train(recipe_from_table(self._table(step)), resume=True)
        atomic.write_json(state_path, {"identity": identity, "done": True})

    def _table(self, step: str) -> dict[str, Any]:
        """Return the training recipe of a step."""
        recipe = self.recipe
        settings = recipe.pretrain if step == "final" and recipe.final is None else getattr(recipe, step)
        table: dict[str, Any] = {**settings, "task": _TASKS[step], "out": str(self.out / step)}
        data = {**table.get("data", {}), "images": recipe.images}
        if recipe.val:
            data["val"] = list(recipe.val)
        extra = {"pretrain": recipe.web, "final": (str(CapFiltFolder(self.out / "capfilt").parquet),)}
        data["train"] = [*recipe.human, *extra.get(step, ())]
        if step in ("captioner", "filter"):
            table["start"] = [str(self.out / "pretrain" / MODEL)]
        return {**table, "data": data}

    def _filter(self) -> None:
        settings = self.recipe.capfilt
        models = ModelOptions(
            str(self.out / "captioner" / MODEL),
            str(self.out / "filter" / MODEL),
            settings.device,
            settings.engine,
            settings.precision,
            settings.batch_size,
            settings.num_workers,
        )
        rule = Rule(settings.keep, settings.itm_threshold, settings.itc_threshold)
        job = CapFiltJob(str(self.out / "capfilt"), models, settings.sampling(), rule)
        run_capfilt(
            self.recipe.web,
            job,
            images=self.recipe.images,
            shard_rows=settings.shard_rows,
            execute=settings.executor(),
        )

    def _identify(self, step: str) -> str:
        """Return a hash of a step's settings and of the content of its inputs."""
        recipe = self.recipe
        inputs: dict[str, Any] = {}
        if step == "capfilt":
            settings: Any = parsing.as_table(recipe.capfilt)
            for name in ("workers", "ray", "batch_size", "num_workers", "device", "shard_rows"):
                settings.pop(name, None)  # they do not change the results
            inputs = {"captioner": self._hash_model("captioner"), "filter": self._hash_model("filter")}
        else:
            settings = self._table(step)
            settings["data"] = {k: v for k, v in settings["data"].items() if k not in ("train", "val")}
            settings.pop("out")
            inputs["human"] = self._hash_sources(recipe.human)
            inputs["val"] = self._hash_sources(recipe.val)
            if step in ("captioner", "filter"):
                settings.pop("start")
                inputs["start"] = self._hash_model("pretrain")
            else:
                start = settings.get("start", ())
                inputs["start"] = [_hash_start(name) for name in ([start] if isinstance(start, str) else start)]
        if step in ("pretrain", "capfilt"):
            inputs["web"] = self._hash_sources(recipe.web)
        if step == "final":
            folder, digest = CapFiltFolder(self.out / "capfilt"), hashlib.sha256()
            for shard in folder.shards():
                path = folder.rows_path(shard)
                digest.update(f"{shard} {compute_sha256(path)} {json.dumps(read_metadata(path)['rule'])}\n".encode())
            inputs["filtered"] = digest.hexdigest()
        content = json.dumps([step, settings, inputs], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()

    def _hash_model(self, step: str) -> str:
        return fingerprint(str(self.out / step / MODEL), [_TASKS[step]], offline=True)[_TASKS[step]]

    def _hash_sources(self, sources: Sequence[str]) -> str:
        """Return a hash of the content of some data: its files, and the image files that their rows name."""
        key = tuple(sources)
        if key not in self._hashes:
            digest = hashlib.sha256()
            for shard in plan_shards(sources, images=self.recipe.images) if sources else ():
                if shard.kind != "files" and is_local(shard.address) and Path(shard.address).is_file():
                    digest.update(sha256(shard.address).encode())
                if shard.kind == "tar":
                    continue
                for name, record in read_shard(shard):
                    content = name
                    if isinstance(record, Record):
                        content = f"{name} {record.captions} {[_hash_image(image) for image in record.images]}"
                    digest.update(content.encode("utf-8", "backslashreplace") + b"\n")
            self._hashes[key] = digest.hexdigest()
        return self._hashes[key]


def _hash_image(image: object) -> str:
    """Return the hash of an image's own file; other images are part of a file that is hashed as a whole."""
    if isinstance(image, FileImage) and is_local(image.path) and Path(image.path).is_file():
        return sha256(image.path)
    return str(getattr(image, "address", ""))


def _hash_start(name: str) -> str:
    """Return the hash of the files of a checkpoint to start from, or its name if they are not on this machine."""
    try:
        task: TaskName = "pretrain"
        if Bundle.find(name) is None and not Path(name).exists():
            return name
        return next(iter(fingerprint(name, [task], offline=True).values()))
    except OpenBlipError:
        return name
