"""Every published BLIP checkpoint: its address, its task, and all its names.

Data only, free of torch and of the network. A checkpoint is found under our name for it, its file name, its address,
the hub's id, mmpretrain's model and configuration names, or LAVIS's (architecture, type), written `blip_vqa/vqav2`.

The only checksums are those in file names: mmpretrain ends each with the first eight hexadecimal digits of its SHA-256.
The hub states its checksums at download; for all other files the hash of the first download is recorded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from openblip.errors import CheckpointError
from openblip.tasks import TaskName

Family = Literal["hub", "salesforce", "lavis", "mmpretrain"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Size = Literal["base", "large"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published checkpoint.

    Attributes:
        name: The hub id, the stem of the `.pth` file, or mmpretrain's model name.
        family: Family of the checkpoint.
        task: Its task.
        size: Size of the image encoder.
        image_size: Pixels per side that the stored position embeddings are for.
        address: The hub id, or the address of the file.
        data: Data that it was trained on.
        note: A peculiarity.
        digits: First digits of the file's SHA-256, if the publisher states them.
        license: License of the publisher's repository.
        mmpretrain: Names of the model and its configurations in mmpretrain.
        lavis: Architectures and types in LAVIS.
    """

    name: str
    family: Family
    task: TaskName
    size: Size
    image_size: int
    address: str
    data: str
    note: str = ""
    digits: str | None = None
    license: str = "BSD-3-Clause"
    mmpretrain: tuple[str, ...] = ()
    lavis: tuple[tuple[str, str], ...] = ()

    @property
    def file(self) -> str | None:
        """Name of the file; `None` for a hub folder."""
        return None if self.family == "hub" else self.address.rsplit("/", 1)[1]

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the checkpoint, without repeats. The first is `name`."""
        pairs = (f"{architecture}/{kind}" for architecture, kind in self.lavis)
        file = (self.file,) if self.file else ()
        return tuple(dict.fromkeys((self.name, *file, self.address, *self.mmpretrain, *pairs)))


def _hub(name: str, task: TaskName, size: Size, data: str, note: str = "") -> Published:
    address = f"Salesforce/{name}"
    return Published(
        name=address, family="hub", task=task, size=size, image_size=384, address=address, data=data, note=note
    )


_SFR = "https://storage.googleapis.com/sfr-vision-language-research"


def _salesforce(
    name: str,
    task: TaskName,
    size: Size,
    image_size: int,
    data: str,
    note: str = "",
    lavis: tuple[tuple[str, str], ...] = (),
) -> Published:
    address = f"{_SFR}/BLIP/models/{name}.pth"
    return Published(
        name=name,
        family="salesforce",
        task=task,
        size=size,
        image_size=image_size,
        address=address,
        data=data,
        note=note,
        lavis=lavis,
    )


def _lavis(name: str, task: TaskName, image_size: int, data: str, pair: tuple[str, str]) -> Published:
    address = f"{_SFR}/LAVIS/models/BLIP/{name}.pth"
    return Published(
        name=name,
        family="lavis",
        task=task,
        size="base",
        image_size=image_size,
        address=address,
        data=data,
        lavis=(pair,),
    )


def _mmpretrain(
    name: str, file: str, task: TaskName, image_size: int, data: str, configs: tuple[str, ...], note: str
) -> Published:
    return Published(
        name=name,
        family="mmpretrain",
        task=task,
        size="base",
        image_size=image_size,
        address=f"https://download.openmmlab.com/mmclassification/v1/blip/{file}",
        data=data,
        note=note,
        digits=file.removesuffix(".pth").rsplit("-", 1)[1],
        license="Apache-2.0",
        mmpretrain=(name, *configs),
    )


_VIT_B = "ViT-B: 'capfilt large' names the data, not the ViT"
_AT_384 = "positions resized from 480 px by its publisher"

PUBLISHED: tuple[Published, ...] = (
    # Hugging Face hub
    _hub("blip-image-captioning-base", "caption", "base", "COCO captions"),
    _hub("blip-image-captioning-large", "caption", "large", "COCO captions"),
    _hub("blip-vqa-base", "vqa", "base", "VQAv2", _AT_384),
    _hub("blip-vqa-capfilt-large", "vqa", "base", "VQAv2, after CapFilt-L", f"{_VIT_B}; {_AT_384}"),
    _hub("blip-itm-base-coco", "retrieval", "base", "COCO retrieval"),
    _hub("blip-itm-large-coco", "retrieval", "large", "COCO retrieval"),
    _hub("blip-itm-base-flickr", "retrieval", "base", "Flickr30k retrieval"),
    _hub("blip-itm-large-flickr", "retrieval", "large", "Flickr30k retrieval"),
    # salesforce/BLIP
    _salesforce("model_base_14M", "pretrain", "base", 224, "14M pairs"),
    _salesforce("model_base", "pretrain", "base", 224, "129M pairs"),
    _salesforce(
        "model_base_capfilt_large",
        "pretrain",
        "base",
        224,
        "129M pairs, CapFilt-L",
        _VIT_B,
        (("blip_feature_extractor", "base"), ("blip_pretrain", "base")),
    ),
    _salesforce("model_large", "pretrain", "large", 224, "129M pairs"),
    _salesforce(
        "model_base_retrieval_coco",
        "retrieval",
        "base",
        384,
        "COCO retrieval",
        "",
        (("blip_image_text_matching", "base"),),
    ),
    _salesforce(
        "model_large_retrieval_coco",
        "retrieval",
        "large",
        384,
        "COCO retrieval",
        "",
        (("blip_image_text_matching", "large"),),
    ),
    _salesforce("model_base_retrieval_flickr", "retrieval", "base", 384, "Flickr30k retrieval"),
    _salesforce("model_large_retrieval_flickr", "retrieval", "large", 384, "Flickr30k retrieval"),
    _salesforce(
        "model_base_caption_capfilt_large",
        "caption",
        "base",
        384,
        "COCO captions, after CapFilt-L",
        f"{_VIT_B}; LAVIS starts blip_classification/base from it",
    ),
    _salesforce("model_large_caption", "caption", "large", 384, "COCO captions", "", (("blip_caption", "large_coco"),)),
    _salesforce("model_vqa", "vqa", "base", 480, "VQAv2"),
    _salesforce(
        "model_base_vqa_capfilt_large",
        "vqa",
        "base",
        480,
        "VQAv2, after CapFilt-L",
        _VIT_B,
        (("blip_vqa", "vqav2"),),
    ),
    _salesforce("model_base_nlvr", "nlvr", "base", 384, "NLVR2", "", (("blip_nlvr", "nlvr"),)),
    # salesforce/LAVIS
    _lavis("blip_coco_caption_base", "caption", 384, "COCO captions, after CapFilt-L", ("blip_caption", "base_coco")),
    _lavis("blip_coco_retrieval", "retrieval", 384, "COCO retrieval, after CapFilt-L", ("blip_retrieval", "coco")),
    _lavis(
        "blip_flickr_retrieval", "retrieval", 384, "Flickr30k retrieval, after CapFilt-L", ("blip_retrieval", "flickr")
    ),
    _lavis("blip_okvqa", "vqa", 480, "VQAv2, then OK-VQA", ("blip_vqa", "okvqa")),
    _lavis("blip_aokvqa", "vqa", 480, "VQAv2, then A-OKVQA", ("blip_vqa", "aokvqa")),
    # open-mmlab/mmpretrain
    _mmpretrain(
        "blip-base_3rdparty_caption",
        "blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth",
        "caption",
        384,
        "COCO captions, after CapFilt-L",
        ("blip-base_8xb32_caption", "blip-base_8xb32_nocaps", "blip-base_8xb32_caption_flickr30k"),
        "converted from blip_coco_caption_base",
    ),
    _mmpretrain(
        "blip-base_8xb16_refcoco",
        "blip-base_8xb16_refcoco_20230508-d2d10f4c.pth",
        "grounding",
        384,
        "RefCOCO",
        (),
        "trained by mmpretrain",
    ),
    _mmpretrain(
        "blip-base_3rdparty_vqa",
        "blip-base_3rdparty-capflit_vqa_20230505-81488941.pth",
        "vqa",
        480,
        "VQAv2, after CapFilt-L",
        ("blip-base_8xb32_vqa", "blip-base_8xb32_okvqa", "blip-base_8xb32_ocrvqa"),
        "converted from model_base_vqa_capfilt_large",
    ),
    _mmpretrain(
        "blip-base_3rdparty_retrieval",
        "blip-base_3rdparty_coco-retrieval_20230419-a1804d2c.pth",
        "retrieval",
        384,
        "COCO retrieval, after CapFilt-L",
        ("blip-base_8xb32_retrieval", "blip-base_8xb32_retrieval_flickr30k"),
        "converted from blip_coco_retrieval",
    ),
    _mmpretrain(
        "blip-base_3rdparty_nlvr",
        "blip-base_3rdparty_nlvr_20230427-3b14d33f.pth",
        "nlvr",
        384,
        "NLVR2",
        ("blip-base_8xb32_nlvr",),
        "converted from model_base_nlvr",
    ),
)

# The models of each bundle, by task. `pocket` is not here: its files are in the package.
# Only ViT-B was published for VQA, NLVR2 and RefCOCO, so both bundles name those.
BUNDLES: Mapping[str, Mapping[TaskName, str]] = {
    "base": {
        "caption": "Salesforce/blip-image-captioning-base",
        "vqa": "Salesforce/blip-vqa-base",
        "retrieval": "Salesforce/blip-itm-base-coco",
        "nlvr": "model_base_nlvr",
        "grounding": "blip-base_8xb16_refcoco",
    },
    "large": {
        "caption": "Salesforce/blip-image-captioning-large",
        "vqa": "Salesforce/blip-vqa-capfilt-large",
        "retrieval": "Salesforce/blip-itm-large-coco",
        "nlvr": "model_base_nlvr",
        "grounding": "blip-base_8xb16_refcoco",
    },
}


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form `owner/name` and is not the name of a file."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith((".pth", ".json"))


def _key(name: str) -> str:
    """Return a name for comparison: in lower case, LAVIS's pairs joined by a slash, not by a colon or space."""
    folded = name.strip().casefold()
    architecture, _, kind = folded.replace(":", " ", 1).partition(" ")
    return f"{architecture}/{kind.strip()}" if kind and "/" not in folded else folded


def _index() -> dict[str, Published]:
    index: dict[str, Published] = {}
    for entry in PUBLISHED:
        for name in entry.names:
            if index.setdefault(_key(name), entry) is not entry:
                raise AssertionError(f"{name!r} names two checkpoints")
        if entry.family == "hub":  # the bare name, as people write it
            index.setdefault(_key(entry.name.rsplit("/", 1)[1]), entry)
    return index


_BY_NAME = _index()


def find(name: str | tuple[str, str]) -> Published | None:
    """Return the checkpoint with a name, as any library writes it.

    Args:
        name: A name, or LAVIS's architecture and type.

    Returns:
        The checkpoint; `None` if there is none with this name.
    """
    return _BY_NAME.get(_key(name if isinstance(name, str) else "/".join(name)))


def get(name: str | tuple[str, str]) -> Published:
    """Return the checkpoint with a name.

    Args:
        name: A name, or LAVIS's architecture and type.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If there is none with this name. The message suggests the nearest names.
    """
    if (entry := find(name)) is None:
        raise CheckpointError(
            f"name must be the name of a published checkpoint, got {name!r}{did_you_mean(name)}; see `openblip models`"
        )
    return entry


def did_you_mean(name: str | tuple[str, str]) -> str:
    """Return ` (did you mean X or Y?)` with up to three similar names, or nothing.

    Args:
        name: A name that no checkpoint has.

    Returns:
        The end of a message.
    """
    key = _key(name if isinstance(name, str) else "/".join(name))
    names = {_key(bundle): bundle for bundle in ("pocket", *BUNDLES)}
    for entry in PUBLISHED:
        names |= {_key(alias): alias for alias in entry.names if not alias.startswith("https:")}
        if entry.family == "hub":
            names[_key(entry.name.rsplit("/", 1)[1])] = entry.name
    bundles = [bundle for bundle in ("pocket", *BUNDLES) if bundle in re.split(r"[^a-z]+", key)]
    if key == "blip":
        bundles = ["base"]
    similar = dict.fromkeys(bundles)  # "blip-base" is no checkpoint, and means the bundle
    similar |= dict.fromkeys(names[match] for match in difflib.get_close_matches(key, names, n=4, cutoff=0.6))
    return f" (did you mean {' or '.join(list(similar)[:3])}?)" if similar else ""


def serving(task: str) -> tuple[Published, ...]:
    """Return the published checkpoints of a task, for errors that suggest one.

    Args:
        task: Name of the task.
    """
    return tuple(entry for entry in PUBLISHED if entry.task == task)


def identify(path: Path) -> Published | None:
    """Return the published checkpoint that a local file or folder is, as far as its name shows.

    A `.pth` is identified by its file name, a folder of the hub's cache by the `models--OWNER--NAME` above it, and a
    copy of such a folder by its name.

    Args:
        path: The file or folder.

    Returns:
        The checkpoint; `None` if no published checkpoint has this name.
    """
    if path.suffix == ".pth":
        return find(path.name)
    for folder in (path, *path.parents):
        if folder.name.startswith("models--"):
            return find(folder.name.removeprefix("models--").replace("--", "/"))
    return find(path.name) if path.is_dir() else None
