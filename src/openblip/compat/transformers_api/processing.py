"""``BlipProcessor``: pictures and texts to what a model reads, and ids back to text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.compat.transformers_api.features import BatchFeature
from openblip.compat.transformers_api.files import StrPath, local_folder, write_text
from openblip.compat.transformers_api.images import OPTIONS, BlipImageProcessor
from openblip.compat.transformers_api.tokens import BlipTokenizer
from openblip.errors import InputError

_TEXT_OPTIONS = frozenset(
    (
        *("text_pair", "add_special_tokens", "padding", "truncation", "max_length", "stride", "is_split_into_words"),
        *("pad_to_multiple_of", "padding_side", "return_token_type_ids", "return_attention_mask", "verbose"),
        *("return_overflowing_tokens", "return_special_tokens_mask", "return_offsets_mapping", "return_length"),
        "return_tensors",
    )
)
_GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs", "videos_kwargs", "audio_kwargs")


class BlipProcessor:
    """An image processor and a tokenizer that are called as one."""

    def __init__(self, image_processor: BlipImageProcessor, tokenizer: BlipTokenizer) -> None:
        if not isinstance(image_processor, BlipImageProcessor):
            raise TypeError(f"image_processor is a BlipImageProcessor, not {type(image_processor)}")
        if not isinstance(tokenizer, BlipTokenizer):
            raise TypeError(f"tokenizer is a BlipTokenizer, not {type(tokenizer)}")
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """``pixel_values`` of pictures, ``input_ids`` and ``attention_mask`` of texts, or all of them.

        Texts are neither padded nor cut unless asked; options of both kinds may stand side by side, or apart in
        ``text_kwargs``, ``images_kwargs`` and ``common_kwargs``. ``videos`` and ``audio`` are ignored, as in that
        library.
        """
        if images is None and text is None and videos is None and audio is None:
            raise InputError("BlipProcessor needs images, text, or both")
        if text is not None and not _is_text(text):
            raise InputError("text is a string or a list of strings")
        text_options, image_options = _sorted(kwargs)
        data: dict[str, Any] = {}
        if text is not None:
            data.update(self.tokenizer(text, **{"return_token_type_ids": False, **text_options}))
            data.pop("token_type_ids", None)
        if images is not None:
            data.update(self.image_processor(images, **image_options))
        return BatchFeature(data)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's :meth:`~BlipTokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's :meth:`~BlipTokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a call can return."""
        return ["pixel_values", "input_ids", "attention_mask"]

    @classmethod
    def from_pretrained(cls, name_or_path: StrPath, **kwargs: Any) -> BlipProcessor:
        """Both parts from a local folder or hub id; ``kwargs`` override their settings."""
        folder, kwargs = local_folder(name_or_path, kwargs)
        return cls(
            BlipImageProcessor.from_pretrained(folder, **kwargs), BlipTokenizer.from_pretrained(folder, **kwargs)
        )

    def save_pretrained(self, save_directory: StrPath) -> list[str]:
        """Write the tokenizer's files, and the image settings as ``transformers`` 4 and as 5 reads them."""
        folder = Path(save_directory)
        written = list(self.tokenizer.save_pretrained(folder))
        settings = self.image_processor.to_dict()
        nested = {"image_processor": settings, "processor_class": "BlipProcessor"}
        files = {"processor_config.json": nested, "preprocessor_config.json": settings}
        for name, values in files.items():
            write_text(folder / name, json.dumps(values, indent=2, sort_keys=True) + "\n")
            written.append(str(folder / name))
        return written


def _is_text(text: Any) -> bool:
    return isinstance(text, str) or (isinstance(text, list) and all(isinstance(one, str) for one in text))


def _sorted(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of texts and those of pictures; what stands outside a group goes before what is in it."""
    groups = {name: dict(kwargs.get(name) or {}) for name in _GROUPS}
    plain = {name: value for name, value in kwargs.items() if name not in _GROUPS}
    unknown = (plain.keys() | groups["common_kwargs"].keys()) - _TEXT_OPTIONS - OPTIONS
    if unknown:
        raise TypeError(f"BlipProcessor has no option {', '.join(sorted(unknown))}")
    shared = groups["common_kwargs"]
    return (
        {**_only(shared, _TEXT_OPTIONS), **groups["text_kwargs"], **_only(plain, _TEXT_OPTIONS)},
        {**_only(shared, OPTIONS), **groups["images_kwargs"], **_only(plain, OPTIONS)},
    )


def _only(options: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
