"""`BlipProcessor`: images and texts to model inputs, and token ids to text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.compat.transformers_api.features import BatchFeature
from openblip.compat.transformers_api.files import PushToHub, StrPath, local_folder, write_text
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


class BlipProcessor(PushToHub):
    """An image processor and a tokenizer in one object.

    Args:
        image_processor: The image processor: ours, or one of `transformers`.
        tokenizer: The tokenizer: ours, or one of `transformers`.

    Raises:
        TypeError: If an argument has none of the methods of its kind.
    """

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        if not callable(getattr(image_processor, "preprocess", None)):
            raise TypeError(f"image_processor must be a BlipImageProcessor, got {type(image_processor)}")
        if not callable(getattr(tokenizer, "batch_decode", None)):
            raise TypeError(f"tokenizer must be a BlipTokenizer, got {type(tokenizer)}")
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Process images, texts, or both.

        Args:
            images: An image or a list of images.
            text: A text or a list of texts.
            videos: Ignored, as in `transformers`.
            audio: Ignored, as in `transformers`.
            **kwargs: Options of the image processor and of the tokenizer, by name or grouped in `text_kwargs`,
                `images_kwargs` and `common_kwargs`. By default, texts are neither padded nor truncated.

        Returns:
            `pixel_values` of images; `input_ids` and `attention_mask` of texts.

        Raises:
            InputError: If inputs or options are invalid.
            ImageError: If an image cannot be read.
            TypeError: If there is no such option.
        """
        if images is None and text is None and videos is None and audio is None:
            raise InputError("images or text must be given")
        texts = text if isinstance(text, list) else [text]
        if text is not None and not all(isinstance(entry, str) for entry in texts):
            raise InputError(f"text must be a string or a list of strings, got {type(text).__name__}")
        text_options, image_options = _split_options(kwargs)
        data: dict[str, Any] = {}
        if text is not None:
            data.update(self.tokenizer(text, **{"return_token_type_ids": False, **text_options}))
            data.pop("token_type_ids", None)
        if images is not None:
            data.update(self.image_processor(images, **image_options))
        return BatchFeature(data)

    def decode(self, *args: Any, **kwargs: Any) -> str | list[str]:
        """Return the text of token ids.

        Args:
            *args: Arguments of `BlipTokenizer.decode`.
            **kwargs: Arguments of `BlipTokenizer.decode`.

        Returns:
            The text of token ids.
        """
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Return the texts of rows of token ids.

        Args:
            *args: Arguments of `BlipTokenizer.batch_decode`.
            **kwargs: Arguments of `BlipTokenizer.batch_decode`.

        Returns:
            The texts of rows of token ids.
        """
        return self.tokenizer.batch_decode(*args, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Return the texts of generated token ids; pipelines call it.

        Args:
            generated_outputs: Rows of ids.
            skip_special_tokens: Omit special tokens.
            **kwargs: Further arguments of `batch_decode`.

        Returns:
            The texts.
        """
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values.

        Returns:
            The settings as JSON values.
        """
        return {"image_processor": self.image_processor.to_dict(), "processor_class": "BlipProcessor"}

    def to_json_string(self) -> str:
        """Return the content of `processor_config.json`.

        Returns:
            The content of `processor_config.json`.
        """
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: StrPath) -> None:
        """Write the settings to a file.

        Args:
            json_file_path: The file.
        """
        write_text(Path(json_file_path), self.to_json_string())

    @property
    def model_input_names(self) -> list[str]:
        """The names that a call can return."""
        return ["pixel_values", "input_ids", "attention_mask"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, **kwargs: Any) -> BlipProcessor:
        """Load the image processor and the tokenizer.

        Args:
            pretrained_model_name_or_path: Local folder or hub id.
            **kwargs: Settings to override, and the location of the files (`revision`, `cache_dir`, `subfolder`, ...).

        Returns:
            The processor.

        Raises:
            CheckpointError: If files are missing or damaged.
        """
        folder, kwargs = local_folder(pretrained_model_name_or_path, kwargs)
        return cls(
            BlipImageProcessor.from_pretrained(folder, **kwargs), BlipTokenizer.from_pretrained(folder, **kwargs)
        )

    def save_pretrained(self, save_directory: StrPath, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the files that `transformers` 4 and 5 read.

        Args:
            save_directory: Folder to write to.
            push_to_hub: Upload the folder to the hub.
            **kwargs: Arguments of `push_to_hub`.

        Returns:
            The paths of all files.
        """
        folder = Path(save_directory)
        written = list(self.tokenizer.save_pretrained(folder))
        settings = self.image_processor.to_dict()
        nested = {"image_processor": settings, "processor_class": "BlipProcessor"}
        files = {"processor_config.json": nested, "preprocessor_config.json": settings}
        for name, values in files.items():
            write_text(folder / name, json.dumps(values, indent=2, sort_keys=True) + "\n")
            written.append(str(folder / name))
        self._push(folder, push_to_hub, kwargs)
        return written


def _split_options(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of texts and of images. Options outside a group override options in a group."""
    groups = {name: dict(kwargs.get(name) or {}) for name in _GROUPS}
    plain = {name: value for name, value in kwargs.items() if name not in _GROUPS}
    unknown = (plain.keys() | groups["common_kwargs"].keys()) - _TEXT_OPTIONS - OPTIONS
    if unknown:
        raise TypeError(f"BlipProcessor has no option {', '.join(sorted(unknown))}")
    shared = groups["common_kwargs"]
    return (
        {**_filter(shared, _TEXT_OPTIONS), **groups["text_kwargs"], **_filter(plain, _TEXT_OPTIONS)},
        {**_filter(shared, OPTIONS), **groups["images_kwargs"], **_filter(plain, OPTIONS)},
    )


def _filter(options: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
