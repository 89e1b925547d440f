"""Every BLIP checkpoint that was published: where it lies, what it is, and every name that people call it by.

Data only, free of torch and of the network. A checkpoint is found under our name for it, its file name, its address,
the hub's id, mmpretrain's model and configuration names, or LAVIS's (architecture, type) written ``blip_vqa/vqav2``.

No checksum stands here but the one that a publisher put into a file name: mmpretrain ends each with the first eight
hex digits of its sha256. The hub tells its own at download; for the others the first download is recorded.
"""

from __future__ import annotations

import difflib
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
    """One published checkpoint.

    ``name`` is the hub id, the stem of the ``.pth`` file, or mmpretrain's model name; ``address`` the hub id or the
    https address of the file; ``image_size`` the side in pixels that its position embeddings were stored for;
    ``digits`` the first digits of the file's sha256 where the publisher gives them; ``licence`` that of the
    publisher's repository.
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
    licence: str = "BSD-3-Clause"
    mmpretrain: tuple[str, ...] = ()
    lavis: tuple[tuple[str, str], ...] = ()

    @property
    def file(self) -> str | None:
        """The name of the file; ``None`` for a hub folder, which has several."""
        return None if self.family == "hub" else self.address.rsplit("/", 1)[1]

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that this checkpoint is called, our own name first, without repeats."""
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
        licence="Apache-2.0",
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

# What a bundle's name stands for: task -> published name. (`pocket` is not here: it is files inside the package.)
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


def _key(name: str) -> str:
    """Names are compared without regard to case; LAVIS's pairs may be joined by a slash, a colon or a space."""
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
    """The checkpoint of that name, in any library's way of naming it; ``None`` if it is none of them."""
    return _BY_NAME.get(_key(name if isinstance(name, str) else "/".join(name)))


def get(name: str | tuple[str, str]) -> Published:
    """The checkpoint of that name; a :class:`CheckpointError` that names the closest ones if there is none."""
    if (entry := find(name)) is None:
        raise CheckpointError(f"no published checkpoint is called {name!r}{did_you_mean(name)}; see `openblip models`")
    return entry


def did_you_mean(name: str | tuple[str, str]) -> str:
    """``", did you mean ...?"`` with up to three names like this one, or nothing."""
    wanted = _key(name if isinstance(name, str) else "/".join(name))
    shown = {_key(bundle): bundle for bundle in ("pocket", *BUNDLES)}
    for entry in PUBLISHED:
        shown |= {_key(called): called for called in entry.names if not called.startswith("https:")}
        if entry.family == "hub":
            shown[_key(entry.name.rsplit("/", 1)[1])] = entry.name
    close = dict.fromkeys(shown[key] for key in difflib.get_close_matches(wanted, shown, n=4, cutoff=0.6))
    return f" (did you mean {' or '.join(list(close)[:3])}?)" if close else ""


def serving(task: str) -> tuple[Published, ...]:
    """The published checkpoints of a task: what an error can name when another one was loaded."""
    return tuple(entry for entry in PUBLISHED if entry.task == task)


def identify(path: Path) -> Published | None:
    """Which published checkpoint a local file or hub folder is, as far as its name tells.

    A ``.pth`` is known by its file name, a folder of the hub cache by the ``models--OWNER--NAME`` above it, and a
    folder that was copied out of it by its own name.
    """
    if path.suffix == ".pth":
        return find(path.name)
    for part in (path, *path.parents):
        if part.name.startswith("models--"):
            return find(part.name.removeprefix("models--").replace("--", "/"))
    return find(path.name) if path.is_dir() else None
