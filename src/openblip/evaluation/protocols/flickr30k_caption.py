"""Flickr30k captions, Karpathy's test split, zero-shot (`dataset_flickr30k.json`)."""

from __future__ import annotations

from pathlib import Path

from openblip.evaluation import files
from openblip.evaluation.protocols import server
from openblip.evaluation.protocols.base import Item, Items, Preset, Protocol, PublishedScore, ServerFile, Split
from openblip.evaluation.protocols.builders import caption_presets
from openblip.evaluation.protocols.readers import check_texts, find_image, get_fields

TEST = Split("Karpathy test", ("dataset_flickr30k.json",), 1000)


def read(folder: Path, preset: Preset) -> Items:
    """Read the images of the test split with their captions."""
    items = []
    for location, entry in files.read_entries(folder / preset.split.files[0], ("images",)):
        if entry.get("split") != "test":
            continue
        image_id, name, sentences = get_fields(location, entry, imgid=int, filename=str, sentences=list)
        captions = [get_fields(location, sentence, raw=str)[0] for sentence in sentences]
        texts = check_texts(location, "sentences", captions)
        items.append(Item(image_id, find_image(folder, name, "flickr30k-images"), texts))
    return items


PROTOCOL = Protocol(
    name="flickr30k-caption",
    title="Flickr30k captions",
    published_at="cs.stanford.edu/people/karpathy/deepimagesent (dataset_flickr30k.json) and shannon.cs.illinois.edu",
    presets=caption_presets(
        TEST,
        {
            "mmpretrain": (
                PublishedScore("mmpretrain", ("blip-base_3rdparty_caption",), {"CIDEr": 68.89, "SPICE": 15.58}),
            )
        },
    ),
    reader=read,
    server_file=ServerFile("captions_flickr30k_openblip_results.json", server.build_captions),
)
