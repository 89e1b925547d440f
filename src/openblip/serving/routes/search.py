"""The routes of the search index: search, and a gallery with thumbnails."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from openblip.errors import ImageError, OpenBlipError, SearchError
from openblip.io.jsonlines import Json
from openblip.search import Hit, IndexedImage
from openblip.serving import plans, searching
from openblip.serving.documents import describe
from openblip.serving.errors import ApiError, from_library
from openblip.serving.schemas import ImagesRequest, Integer, Text
from openblip.serving.searching import Gallery, make_filter
from openblip.serving.service import service_of

router = APIRouter(tags=["search"])

_MAX_RESULTS = 200
_MAX_RERANK = 200


class SearchRequest(ImagesRequest):
    """A query: a text, an image, both, minus texts, or filters alone."""

    text: Text | None = None
    minus: Text | Annotated[list[Text], Field(max_length=20)] = Field(
        default=[], description="Text, or texts, that results should not fit."
    )
    n: Integer = Field(default=20, ge=1, le=_MAX_RESULTS)
    rerank: Integer = Field(
        default=0, ge=0, le=_MAX_RERANK, description="Length of the shortlist to re-rank by ITM; needs a text."
    )
    min_probability: float = Field(default=0.5, ge=0, le=1, description="Cut-off of the re-rank.")
    folder: Text | None = Field(default=None, description="Relative to an indexed folder.")
    after: Text | None = Field(default=None, description="First date, such as 2024-05.")
    before: Text | None = Field(default=None, description="First date that is excluded.")
    caption: Text | None = Field(default=None, description="Words of the caption.")
    hide_duplicates: bool = False


class GalleryImage(BaseModel):
    """An indexed image. Its `name` is the path below the indexed folder."""

    id: str
    name: str
    caption: str | None
    date: str | None
    width: int
    height: int
    thumbnail: str


class SearchHit(GalleryImage):
    """A result, with the cosine of the embeddings (ITC) and, after a re-rank, the probability of a match (ITM)."""

    similarity: float
    probability: float | None
    duplicates: list[str]


class UnreadableImage(BaseModel):
    """An indexed image that could not be re-ranked, because its file is missing or damaged."""

    id: str
    name: str
    message: str


class SearchResponse(BaseModel):
    """Results, best first. `nothing_found` says that the re-rank accepted none.

    `best_rejected` is the highest probability among the images that the re-rank left out. `errors` lists the images
    that could not be read.
    """

    model: str
    results: list[SearchHit]
    nothing_found: bool
    searched: int
    best_rejected: float | None
    errors: list[UnreadableImage]


class GalleryResponse(BaseModel):
    """A page of the index, newest first. `next` is the cursor of the next page."""

    items: list[GalleryImage]
    next: str | None
    total: int


@router.post(
    "/v1/search", **describe(SearchRequest, SearchResponse, "Search the index.", {"text": "a dog on a beach", "n": 5})
)
async def search(request: Request) -> JSONResponse:
    """Find images by a text, an image or both. `rerank` ranks the best images by the probability of a match (ITM)."""
    service = service_of(request)
    fields, images = await service.read(request, SearchRequest)
    service.models.find(fields.model)
    gallery = gallery_of(request)
    if len(images) > 1:
        raise ApiError(422, "a search must have at most one image", param="images", code="invalid_value")
    minus = (fields.minus,) if isinstance(fields.minus, str) else tuple(fields.minus)
    plans.check_texts([fields.text or "", fields.caption or "", *minus], 1, service.limits, "text")
    query = searching.Query(
        text=fields.text,
        image=images[0] if images else None,
        minus=minus,
        n=fields.n,
        rerank=fields.rerank,
        min_probability=fields.min_probability,
        where=make_filter(fields.model_dump()),
        hide_duplicates=fields.hide_duplicates,
    )
    (found,) = await service.run(request, gallery.stage, [query], units=1 + fields.rerank)
    if isinstance(found, OpenBlipError):
        raise from_library(found, "images.0" if isinstance(found, ImageError) else None)
    return JSONResponse(
        {
            "model": gallery.model.name,
            "results": [_hit_fields(hit) for hit in found.hits],
            "nothing_found": found.nothing_found,
            "searched": found.searched,
            "best_rejected": found.best_rejected,
            "errors": [
                {"id": image.id, "name": image.name, "message": "the file is gone or cannot be read"}  # no path
                for image in found.errors
            ],
        }
    )


@router.get("/v1/gallery", **describe(None, GalleryResponse, "List the indexed images.", invalid_query=True))
async def gallery(
    request: Request,
    n: Annotated[int, Query(ge=1, le=_MAX_RESULTS)] = 60,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
    folder: Annotated[str | None, Query(max_length=1000)] = None,
    after: Annotated[str | None, Query(max_length=40)] = None,
    before: Annotated[str | None, Query(max_length=40)] = None,
    caption: Annotated[str | None, Query(max_length=1000)] = None,
) -> JSONResponse:
    """Return a page of the index, newest first."""
    index = gallery_of(request).index
    where = make_filter({"folder": folder, "after": after, "before": before, "caption": caption})
    try:
        page = await asyncio.to_thread(index.list, n, cursor, where)
    except SearchError:
        raise
    except OpenBlipError as error:
        raise ApiError(422, str(error), code="invalid_value") from None
    items: list[Json] = [_image_fields(image) for image in page.images]
    return JSONResponse({"items": items, "next": page.next, "total": page.total})


@router.get(
    "/v1/gallery/{image_id}/thumbnail",
    **describe(None, None, "A small JPEG of an indexed image.", invalid_query=True, media_type="image/jpeg"),
)
async def thumbnail(
    request: Request, image_id: str, size: Annotated[int, Query(ge=16, le=searching.MAX_THUMBNAIL)] = 320
) -> Response:
    """Return the re-encoded image, without its metadata."""
    service = service_of(request)
    async with service.thumbnails:
        content = await asyncio.to_thread(gallery_of(request).thumbnail, image_id, size)
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})


def gallery_of(request: Request) -> Gallery:
    """Return the index of the server.

    Raises:
        ApiError: The server has no index (404).
    """
    gallery = service_of(request).gallery
    if gallery is None:
        raise ApiError(404, "this server has no index; start it with openblip serve --index DIR", code="no_index")
    return gallery


def _image_fields(image: IndexedImage | Hit) -> dict[str, Any]:
    return {
        "id": image.id,
        "name": image.name,
        "caption": image.caption,
        "date": image.date,
        "width": image.width,
        "height": image.height,
        "thumbnail": f"/v1/gallery/{image.id}/thumbnail",
    }


def _hit_fields(hit: Hit) -> dict[str, Any]:
    scores = {"similarity": hit.similarity, "probability": hit.probability, "duplicates": list(hit.duplicates)}
    return {**_image_fields(hit), **scores}
