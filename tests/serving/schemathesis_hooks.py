"""Images for schemathesis: what the OpenAPI document calls an image is one most of the time."""

from __future__ import annotations

import base64
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.serving.serving_toys import encode
from tests.toys import toy_image

FILES = [encode(toy_image(seed), image_format) for seed, image_format in enumerate(("PNG", "JPEG", "GIF", "WEBP"))]
TEXTS = [base64.b64encode(file).decode() for file in FILES]


def register() -> None:
    """Let schemathesis send images."""
    uris = [f"data:image/png;base64,{text}" for text in TEXTS]
    schemathesis.openapi.format("openblip-image", st.sampled_from([*TEXTS, *uris]))
    schemathesis.openapi.media_type("application/octet-stream", st.sampled_from(FILES))
    schemathesis.hook(filter_case)


def filter_case(context: Any, case: Any) -> bool:
    """Send no invalid forms: their fields have no types, so that a number or an object is a valid text."""
    return not (case.media_type == "multipart/form-data" and case.meta.generation.mode.is_negative)


register()
