"""``openblip caption``: describe pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openblip.cli import options as o
from openblip.cli.jobs import LISTS, Command, job_command

FORMATS = ("sidecar", *LISTS, "imagefolder", "kohya", "metadata")
OTHERS = {"question", "expression", "label", "words", "embedding"}  # what rows of other commands have


@job_command(FORMATS, optional_images=True)
def caption(
    job: Command,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", show_default="the checkpoint's own", help="How it begins.")
    ] = None,
    prompt_column: Annotated[
        str | None,
        typer.Option("--prompt-column", metavar="NAME", show_default=False, help="Column of a list with prompts."),
    ] = None,
    beams: Annotated[int, typer.Option("--beams", min=1, help="Width of the search.")] = 3,
    num: o.Number = 1,
    best_of: Annotated[
        int | None,
        typer.Option("--best-of", metavar="N", min=2, show_default=False, help="Of N, keep what the scorer likes."),
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="Also say how well the caption fits (ITM, ITC).")] = False,
    scorer: Annotated[
        str | None, typer.Option("--scorer", metavar="NAME", show_default="the model's matcher", help="What scores.")
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", metavar="TEXT", help="Put before every caption.")] = "",
    suffix: Annotated[str, typer.Option("--suffix", metavar="TEXT", help="Put after every caption.")] = "",
    template: Annotated[
        str,
        typer.Option("--template", metavar="TEXT", help="What is written, of {caption}, {name}, {folder}."),
    ] = "{caption}",
    forbid: Annotated[
        list[str] | None,
        typer.Option("--forbid", metavar="WORD", show_default=False, help="Never say this word; may come again."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option("--require", metavar="A|B", show_default=False, help="Say one of these words; may come again."),
    ] = None,
    trim: Annotated[
        bool, typer.Option("--trim", help="Prefer captions that came to their end; shorten those that did not.")
    ] = False,
    min_tokens: Annotated[int, typer.Option("--min-tokens", min=0, help="Least new tokens.")] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most new tokens.")] = 16,
    length_penalty: Annotated[float, typer.Option("--length-penalty", help="Above 0 favours long ones.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="Above 1 avoids repeats.")] = 1.0,
    no_repeat_ngram: Annotated[
        int, typer.Option("--no-repeat-ngram", metavar="N", min=0, help="Say no N words twice; 0 is off.")
    ] = 0,
    sample: Annotated[bool, typer.Option("--sample", help="Draw words instead of searching for the best.")] = False,
    top_p: Annotated[float, typer.Option("--top-p", help="Nucleus to draw from, with --sample.")] = 0.9,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Words to draw from, with --sample; 0 is all.")] = 0,
    temperature: Annotated[float, typer.Option("--temperature", help="Above 1 is bolder, with --sample.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Make samples repeatable.")] = None,
    ext: Annotated[str, typer.Option("--ext", metavar=".SUFFIX", help="Suffix of side-cars.")] = ".txt",
    separator: Annotated[
        str,
        typer.Option("--separator", metavar="TEXT", show_default="a line break", help="Between texts of one picture."),
    ] = "\n",
    apply: Annotated[
        list[Path] | None,
        typer.Option("--apply", metavar="EDITS.jsonl", show_default=False, help="Write back edits made in a --report."),
    ] = None,
) -> None:
    """Describe each picture in one sentence. In Python: openblip.load(MODEL).caption(FILES).

    It prints, and writes nothing unless --to says what. A job that was stopped goes on when it is run again.

    \b
    Example:
      openblip caption photos --recursive --to sidecar --existing skip --report sheet.html
    """
    if apply:
        from openblip.jobs.edits import apply_edits

        job.end(*apply_edits(apply))
        return
    if not job.shared.images:
        raise typer.BadParameter("name some pictures, or a folder of them")
    if best_of and num > best_of:
        raise typer.BadParameter(f"-n {num} of --best-of {best_of}")
    from openblip.jobs.captions import Wording, prompts_of, work

    wording = Wording(template, prefix, suffix)
    scoring = bool(score or best_of or scorer)
    decoding = {
        "prompt": prompt, "beams": beams if sample else max(beams, best_of or 1), "n": best_of or num,
        "min_new_tokens": min_tokens, "max_new_tokens": max_tokens, "length_penalty": length_penalty,
        "repetition_penalty": repetition_penalty, "no_repeat_ngram": no_repeat_ngram, "sample": sample,
        "top_p": top_p, "top_k": top_k, "temperature": temperature, "seed": seed,
        "forbid": forbid or (), "require": [alternatives.split("|") for alternatives in require or ()], "trim": trim,
    }  # fmt: skip
    matcher = (lambda: job.load(scorer)) if scorer else lambda: job.blip
    task = work(
        lambda: job.blip, decoding, wording, keep=num, frame=job.shared.frame, own_prompts=prompt_column is not None,
        scorer=matcher if scoring else None,
    )  # fmt: skip
    job.run(
        task,
        tasks=("caption", "retrieval") if scoring and not scorer else ("caption",),
        options=decoding | {"keep": num, "scoring": scoring, "prompt_column": prompt_column, "wording": vars(wording)},
        table={"caption": "text", "logprob": "logprob"} | ({"probability": "probability"} if scoring else {}),
        models={scorer: ("retrieval",)} if scorer else None,
        keep=[prompt_column] if prompt_column else [],
        asks=("prompt", prompts_of(prompt_column or "")),
        ext=ext,
        separator=separator.replace("\\n", "\n"),
        concerns=lambda row: not OTHERS & row.keys(),
    )
