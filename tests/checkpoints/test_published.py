"""The list of published checkpoints: complete, consistent, and found under every name."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.checkpoints import published
from openblip.checkpoints.published import BUNDLES, PUBLISHED
from openblip.errors import CheckpointError
from openblip.model.config import preset
from openblip.tasks import NETWORKS


def test_the_list_is_complete() -> None:
    counts = {family: sum(entry.family == family for entry in PUBLISHED) for family in published.FAMILIES}
    assert counts == {"hub": 8, "salesforce": 13, "lavis": 5, "mmpretrain": 5}
    assert {entry.task for entry in PUBLISHED} <= set(NETWORKS)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_every_record_agrees_with_itself(entry: published.Published) -> None:
    assert entry.names[0] == entry.name
    assert len(entry.names) == len(set(entry.names))
    for name in entry.names:
        assert published.find(name) is entry, name
        assert published.find(name.upper()) is entry, name
    assert entry.size == (
        "large" if "large" in entry.name.replace("capfilt_large", "").replace("capfilt-large", "") else "base"
    )
    if entry.family == "hub":
        assert entry.address == entry.name
        assert entry.file is None
        assert entry.image_size == 384  # the hub's VQA models were resized when they were converted
    else:
        assert entry.address == f"{entry.address.rsplit('/', 1)[0]}/{entry.file}"
        assert entry.address.startswith("https://")
        assert entry.address.endswith(".pth")
        assert entry.image_size == preset(entry.task, entry.size).vision.image_size
    if entry.family == "mmpretrain":
        assert entry.digits is not None
        assert len(entry.digits) == 8
        assert int(entry.digits, 16) > 0
        assert str(entry.file).endswith(f"-{entry.digits}.pth")
    else:
        assert entry.digits is None


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("blip-itm-base-flickr", "Salesforce/blip-itm-base-flickr"),
        ("salesforce/BLIP-vqa-capfilt-large", "Salesforce/blip-vqa-capfilt-large"),
        ("model_large_caption.pth", "model_large_caption"),
        (
            "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_14M.pth",
            "model_base_14M",
        ),
        (
            "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP/blip_coco_caption_base.pth",
            "blip_coco_caption_base",
        ),
        ("blip_caption/large_coco", "model_large_caption"),
        ("blip_caption base_coco", "blip_coco_caption_base"),
        ("blip_vqa:vqav2", "model_base_vqa_capfilt_large"),
        (("blip_feature_extractor", "base"), "model_base_capfilt_large"),
        (("blip_nlvr", "nlvr"), "model_base_nlvr"),
        ("blip-base_8xb32_ocrvqa", "blip-base_3rdparty_vqa"),
        (
            "https://download.openmmlab.com/mmclassification/v1/blip/blip-base_8xb16_refcoco_20230508-d2d10f4c.pth",
            "blip-base_8xb16_refcoco",
        ),
    ],
)
def test_names_as_people_write_them(name: str | tuple[str, str], entry: str) -> None:
    assert published.get(name).name == entry


def test_an_unknown_name_is_told_the_close_ones() -> None:
    with pytest.raises(CheckpointError, match="did you mean base or Salesforce/blip-image-captioning-base"):
        published.get("blip-image-caption-base")
    with pytest.raises(CheckpointError, match="did you mean blip_vqa/okvqa"):
        published.get(("blip_vqa", "okvq"))
    with pytest.raises(CheckpointError, match=r"got 'zebra'; see `openblip models`"):
        published.get("zebra")
    assert published.find("zebra") is None


def test_bundles_name_what_serves_the_task() -> None:
    for name, bundle in BUNDLES.items():
        assert set(bundle) == {"caption", "vqa", "retrieval", "nlvr", "grounding"}
        for task, model in bundle.items():
            assert published.get(model).task == task, name
    assert published.get(BUNDLES["large"]["caption"]).size == "large"


def test_a_local_copy_is_recognised_by_its_name(tmp_path: Path) -> None:
    cached = tmp_path / "models--Salesforce--blip-vqa-base" / "snapshots" / "abc"
    copied = tmp_path / "blip-itm-base-coco"
    mine = tmp_path / "my-model"
    for folder in (cached, copied, mine):
        folder.mkdir(parents=True)

    def known(path: Path) -> str | None:
        entry = published.identify(path)
        return entry.name if entry else None

    assert known(cached) == "Salesforce/blip-vqa-base"
    assert known(copied) == "Salesforce/blip-itm-base-coco"
    assert known(mine) is None
    assert known(tmp_path / "model_vqa.pth") == "model_vqa"
    assert known(cached / "model.pth") is None
