"""The objects that the routes of one application share, and the processing of a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from starlette.requests import Request

from openblip.blip import Blip
from openblip.errors import ImageError, OpenBlipError, StoppedError
from openblip.io.fetch import Fetcher, FetchOptions, HostError
from openblip.preprocess.limits import DecodeLimits
from openblip.serving.admission import Admission, CostModel
from openblip.serving.batching import Batcher, Recorder, Stage
from openblip.serving.body import ModelT, decode_image_text, read_body
from openblip.serving.editing import LiveSheet
from openblip.serving.errors import ApiError, deadline_error, from_library
from openblip.serving.gate import Exchange, ServerState
from openblip.serving.keys import KeyStore
from openblip.serving.logs import log
from openblip.serving.metrics import Metrics
from openblip.serving.models import Models
from openblip.serving.options import ServerOptions
from openblip.serving.searching import Gallery

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_MAX_FETCHES = 4


class Service:
    """The models, the queue and the metrics of one application.

    Args:
        blips: Models by name.
        options: Options of the server.
        recorder: Receives each batch, for tests.
    """

    def __init__(self, blips: Mapping[str, Blip], options: ServerOptions, *, recorder: Recorder | None = None) -> None:
        limits = options.limits
        self.options, self.limits = options, limits
        self.state = ServerState()
        self.keys = KeyStore(options.keys)
        self.metrics = Metrics()
        self.costs = CostModel()
        self.admission = Admission(limits, self.costs, self.metrics)
        decode_limits = DecodeLimits(limits.max_decode_bytes, limits.max_pixels)
        self.models = Models(blips, decode_limits)
        self.batcher = Batcher(
            self.metrics,
            self.costs,
            workers=options.decode_workers,
            max_wait=limits.max_batch_wait,
            recorder=recorder,
        )
        self.thumbnails = asyncio.Semaphore(options.decode_workers)
        self.gallery = None if options.index is None else Gallery(options.index, self.models, decode_limits)
        self.sheet = None if options.edit is None else LiveSheet(options.edit, options.existing)
        self._fetches = asyncio.Semaphore(_MAX_FETCHES)
        self._fetcher = _make_fetcher(options)

    async def read(self, request: Request, model: type[ModelT]) -> tuple[ModelT, list[bytes]]:
        """Read a request, and fetch its images if that is allowed.

        Args:
            request: The request.
            model: Model of its fields.

        Returns:
            The fields, and the encoded images.

        Raises:
            ApiError: The request is invalid, or its deadline has passed.
        """
        exchange = exchange_of(request)
        self.batcher.expect(1)
        try:
            remaining = exchange.job.deadline - time.monotonic()
            fields, images = await asyncio.wait_for(self._read(request, model), remaining)
        except asyncio.TimeoutError:
            exchange.job.cancelled = True
            if exchange.body_read:
                raise deadline_error(exchange.timeout) from None
            raise ApiError(408, "the body did not arrive in time", code="body_timeout") from None
        finally:
            self.batcher.expect(-1)
        self.metrics.phase_seconds.labels("read").observe(time.monotonic() - exchange.started)
        return fields, images

    async def load_images(self, request: Request, texts: Mapping[str, str]) -> list[bytes]:
        """Return the encoded images of texts, before the deadline.

        Args:
            request: The request.
            texts: Base64, data URIs or addresses, by the field that contains them.

        Raises:
            ApiError: A text is not an image or must not be fetched (422), there are too many (413), or the deadline has
                passed (504).
        """
        exchange = exchange_of(request)
        if len(texts) > self.limits.max_images:
            raise self._too_many_images(len(texts))
        loads = [self._fetch(exchange, decode_image_text(text, param), param) for param, text in texts.items()]
        try:
            return list(await asyncio.wait_for(asyncio.gather(*loads), exchange.job.deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise deadline_error(exchange.timeout) from None

    async def _read(self, request: Request, model: type[ModelT]) -> tuple[ModelT, list[bytes]]:
        parsed = await read_body(request, model)
        if len(parsed.images) > self.limits.max_images:
            raise self._too_many_images(len(parsed.images))
        exchange = exchange_of(request)
        images = [await self._fetch(exchange, image, f"images.{i}") for i, image in enumerate(parsed.images)]
        return parsed.request, images

    async def run(
        self, request: Request, stage: Stage[ItemT, Any, ResultT], items: Sequence[ItemT], *, units: float = 1.0
    ) -> list[ResultT | OpenBlipError]:
        """Run items in the batches of all requests.

        Args:
            request: The request.
            stage: The computation.
            items: The items.
            units: Size of each item, for the estimate of its seconds.

        Returns:
            A result, or an error, for each item.

        Raises:
            ApiError: The queue is full (429), or the deadline has passed (504).
        """
        exchange = exchange_of(request)
        seconds = self.costs.seconds(stage.kind, units)
        if exchange.ticket is not None:
            exchange.ticket.settle(seconds * len(items))
        futures = self.batcher.submit(exchange.job, stage, items, units=units)
        if (ticket := exchange.ticket) is not None:

            def finish(_: object) -> None:
                ticket.finish(seconds)

            for future in futures:
                future.add_done_callback(finish)
        return await self._wait(request, exchange, futures)

    async def _wait(
        self, request: Request, exchange: Exchange, futures: Sequence[asyncio.Future[ResultT | OpenBlipError]]
    ) -> list[ResultT | OpenBlipError]:
        """Wait for results, the deadline or the end of the connection, whichever is first."""
        gathered = asyncio.gather(*futures)
        gone = asyncio.ensure_future(_watch(request))
        waited: set[asyncio.Future[Any]] = {gathered, gone}
        remaining = exchange.job.deadline - time.monotonic()
        try:
            await asyncio.wait(waited, timeout=max(0.0, remaining), return_when=asyncio.FIRST_COMPLETED)
            if gathered.done():
                results = gathered.result()
                if any(isinstance(result, StoppedError) for result in results):
                    raise deadline_error(exchange.timeout)
                return list(results)
            exchange.job.cancelled = gone.done()
            raise ClientGoneError if gone.done() else deadline_error(exchange.timeout)
        finally:
            gone.cancel()
            if not gathered.done():
                exchange.job.cancelled = True
                gathered.cancel()

    def _too_many_images(self, count: int) -> ApiError:
        message = f"a request must have at most {self.limits.max_images} images, got {count}"
        return ApiError(413, message, param="images", code="too_many_images")

    async def _fetch(self, exchange: Exchange, image: bytes | str, param: str) -> bytes:
        """Return the bytes of an image. An address is fetched only if its host is on the allow-list."""
        if isinstance(image, bytes):
            return image
        if self._fetcher is None:
            raise ApiError(
                422, "addresses are not fetched: send the image in base64", param=param, code="fetching_disabled"
            )
        async with self._fetches:
            try:
                return await asyncio.to_thread(self._fetcher.fetch_bytes, image)
            except HostError as error:
                log("fetch_refused", level=logging.DEBUG, request=exchange.id, reason=error.detail)
                message = "the address is not allowed, or its host cannot be found"  # the same message in both cases
                raise ApiError(422, message, param=param, code="address_not_allowed") from None
            except ImageError as error:
                raise ApiError(422, str(error), param=param, code="fetch_failed") from None


class ClientGoneError(Exception):
    """The client closed the connection, so no response is sent."""


def service_of(request: Request) -> Service:
    """Return the service of a request's application."""
    return cast(Service, request.app.state.service)


def exchange_of(request: Request) -> Exchange:
    """Return the exchange of a request, which the gate created."""
    return cast(Exchange, request.scope["openblip"])


def item_error(error: OpenBlipError, param: str, text_param: str | None = None) -> ApiError:
    """Return the error of one item of a request.

    Args:
        error: The error.
        param: The item.
        text_param: Field of the texts, for items that have an image and texts.
    """
    return from_library(error, param if text_param is None or isinstance(error, ImageError) else text_param)


def raise_errors(
    results: Sequence[ResultT | OpenBlipError], param: str, text_param: str | None = None
) -> list[ResultT]:
    """Return results; raise the first error.

    Args:
        results: Results and errors, one per item.
        param: Field of the items.
        text_param: Field of the texts, for items that have an image and texts.

    Raises:
        ApiError: An item failed; its `param` has the item's index.
    """
    for index, result in enumerate(results):
        if isinstance(result, OpenBlipError):
            raise item_error(result, f"{param}.{index}", text_param)
    return cast("list[ResultT]", list(results))


async def _watch(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _make_fetcher(options: ServerOptions) -> Fetcher | None:
    if not options.allow_fetch:
        return None
    limits = options.limits
    return Fetcher(
        FetchOptions(
            max_bytes=limits.max_body_bytes,
            max_pixels=limits.max_pixels,
            max_seconds=min(10.0, limits.max_seconds),
            interval=0.0,
            only_hosts=options.allow_fetch,
            robots=False,  # one image for one user: the server is not a crawler
        )
    )
