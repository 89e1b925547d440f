"""``openblip explain``: show where the model looked for each word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from openblip.cli import options as o
from openblip.cli.console import Line, print_results
from openblip.cli.drawings import Drawings
from openblip.errors import ImageError

if TYPE_CHECKING:
    from openblip.explaining import Explained


def explain(
    images: o.Images,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            "-t",
            metavar="TEXT",
            show_default="the model's own caption",
            help="A text to match, a caption or a question; give it again for more.",
        ),
    ] = None,
    of: Annotated[
        str,
        typer.Option(
            "--of",
            metavar="WHAT",
            show_default="match, caption without a text",
            help="What is explained: a match, a caption, or the answer to a question.",
        ),
    ] = "",
    answer: Annotated[
        str | None,
        typer.Option("--answer", metavar="TEXT", show_default="the model's own", help="The answer to explain."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", metavar="N", show_default="the middle", help="Of the text transformer.")
    ] = None,
    out: o.Drawn = None,
    json: o.Json = False,
    model: o.Model = o.DEFAULT_MODEL,
    device: o.Device = "auto",
    engine: o.Engine = "torch",
    precision: o.Precision = "fp32",
    batch_size: o.BatchSize = None,
    workers: o.Workers = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
) -> None:
    """Show where the model looked for each word (Grad-CAM). In Python: openblip.load(MODEL).explain(FILE, TEXTS).

    Prints where in the picture, in percent from its left and its top, each word has its strongest patch; --out draws
    the heat maps, --json gives them as numbers.

    \b
    Example:
      openblip explain photo.jpg -t "a man in a red coat" --out looked.png
      openblip explain photo.jpg --of caption --out looked.png
      openblip explain photo.jpg --of answer -t "what is he holding?" --out looked.png
    """
    from openblip.drawing import draw_explanation
    from openblip.preprocess.image import load_image

    texts: list[str | None] = list(text) if text else [None]
    what = cast("Explained", of or ("match" if text else "caption"))
    drawings = Drawings(out, len(images) * len(texts)) if out else None
    blip = o.load(model, device, engine, precision, batch_size, workers, threads, offline)

    def lines() -> Iterator[Line]:
        for image in images:
            try:
                picture = load_image(image)
                found = blip.explain(picture, text or None, of=what, answer=answer, layer=layer)
            except ImageError as error:
                yield Line(image, error=error)
                continue
            for one in found if text else [found]:
                drawn = {"drawing": str(drawings.save(image, draw_explanation(picture, one)))} if drawings else {}
                if json:
                    yield Line(image, record={**one.record(), **drawn})
                    continue
                for word, heat in zip(one.words, one.maps, strict=True):
                    yield Line(image, [word, *_strongest(heat), *drawn.values()])

    columns = ["word", "from left", "from top", *(["drawing"] if drawings else [])]
    print_results(columns, lines(), len(images), as_json=json)


def _strongest(heat: Any) -> tuple[str, str]:
    """Where the middle of the hottest patch lies, in percent of the width and of the height."""
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    return f"{100 * (column + 0.5) / heat.shape[1]:.0f}%", f"{100 * (row + 0.5) / heat.shape[0]:.0f}%"
