"""``openblip caption``: describe pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from openblip.cli import options as o
from openblip.cli.console import Line, print_results


def caption(
    images: o.Images,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", show_default="the checkpoint's own", help="How it begins.")
    ] = None,
    beams: Annotated[int, typer.Option("--beams", min=1, help="Width of the search.")] = 3,
    num: o.Number = 1,
    min_tokens: Annotated[int, typer.Option("--min-tokens", min=0, help="Least new tokens.")] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most new tokens.")] = 16,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="Above 1 avoids repeats.")] = 1.0,
    sample: Annotated[bool, typer.Option("--sample", help="Draw words instead of searching for the best.")] = False,
    top_p: Annotated[float, typer.Option("--top-p", help="Nucleus to draw from, with --sample.")] = 0.9,
    temperature: Annotated[float, typer.Option("--temperature", help="Above 1 is bolder, with --sample.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Make samples repeatable.")] = None,
    json: o.Json = False,
    model: o.Model = o.DEFAULT_MODEL,
    device: o.Device = "auto",
    engine: o.Engine = "auto",
    precision: o.Precision = "fp32",
    batch_size: o.BatchSize = None,
    workers: o.Workers = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
) -> None:
    """Describe each picture in one sentence. In Python: openblip.load(MODEL).caption(FILES).

    \b
    Example:
      openblip caption holiday/*.jpg -n 3
    """
    blip = o.load(model, device, engine, precision, batch_size, workers, threads, offline)
    found = blip.caption(
        iter(images), prompt=prompt, beams=beams, n=num, min_new_tokens=min_tokens, max_new_tokens=max_tokens,
        repetition_penalty=repetition_penalty, sample=sample, top_p=top_p, temperature=temperature, seed=seed,
    )  # fmt: skip

    def lines() -> Iterator[Line]:
        for image, result in zip(images, found, strict=True):
            if isinstance(result, Exception):
                yield Line(image, error=result)
                continue
            for one in result if num > 1 else [result]:
                yield Line(image, [one.text, f"{one.logprob:.2f}"], asdict(one))

    print_results(["caption", "logprob"], lines(), len(images), as_json=json)
