"""`openblip caption`: describe images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from openblip.cli import options as o
from openblip.cli.command import Choice, command, decoding_option, input_option, output_option
from openblip.cli.console import finish
from openblip.cli.jobs import ImageJob, plural
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions, RayOptions

if TYPE_CHECKING:
    from openblip.jobs.captions import CaptionAnnotator, CaptionTemplate
    from openblip.tasks import TaskName

FORMATS = ("sidecar", *o.LISTS, "imagefolder", "kohya", "metadata")
FIELDS_OF_OTHERS = {"question", "expression", "label", "words", "embedding"}  # rows of other commands in a shared list
PLAIN_TEXT = {"template": "{caption}", "prefix": "", "suffix": ""}


@command(example="openblip caption photos --recursive --to sidecar --existing skip --report sheet.html")
@o.images_argument
@o.input_options
@input_option("--prompt-column", metavar="NAME", help="Column of a list to take the prompt of each image from.")
@decoding_option("--prompt", show_default="the checkpoint's prompt", help="Text to start every caption with.")
@decoding_option(
    "--num-beams", type=o.POSITIVE, show_default="3, or 1 with --do-sample", help="Number of beams in the search."
)
@decoding_option(
    "--best-of",
    type=click.IntRange(min=2),
    help="Generate N captions and keep the ones with the highest matching score.",
)
@decoding_option("--min-new-tokens", type=o.NATURAL, default=1, help="Minimum number of tokens to generate.")
@decoding_option("--max-new-tokens", type=o.POSITIVE, default=16, help="Maximum number of tokens to generate.")
@decoding_option("--length-penalty", type=float, default=1.0, help="Favor long captions if above 0 (beam search).")
@decoding_option("--repetition-penalty", type=float, default=1.0, help="Penalize repeated words if above 1.")
@decoding_option(
    "--no-repeat-ngram-size",
    type=o.NATURAL,
    show_default="the checkpoint's",
    help="Forbid repeated sequences of N tokens; 0 allows them.",
)
@decoding_option("--do-sample", is_flag=True, help="Sample tokens instead of searching with beams.")
@decoding_option(
    "--top-p", type=float, show_default="0.9", help="Sample from the most likely tokens with this total probability."
)
@decoding_option("--top-k", type=o.NATURAL, show_default="all", help="Sample from the N most likely tokens.")
@decoding_option(
    "--temperature", type=float, show_default="1.0", help="Flatten the probabilities if above 1, sharpen them if below."
)
@decoding_option("--seed", type=int, show_default="random", help="Seed that makes samples repeatable.")
@decoding_option(
    "--forbid", metavar="WORD", multiple=True, help="Never use this word; repeat the option for more words."
)
@decoding_option("--require", metavar="A|B", multiple=True, help="Use one of these words; repeat the option for more.")
@decoding_option("--trim", is_flag=True, help="Prefer complete captions, and shorten incomplete ones.")
@o.num_option
@output_option("--score", is_flag=True, help="Add the matching scores of each caption (ITM and ITC).")
@output_option("--scorer", metavar="NAME", show_default="--model", help="Model to score captions with.")
@output_option("--prefix", default="", show_default=False, help="Text to write before every caption.")
@output_option("--suffix", default="", show_default=False, help="Text to write after every caption.")
@output_option(
    "--template",
    default="{caption}",
    help="Text to write, with {caption}, {name} and {folder} filled in.",
)
@output_option("--ext", metavar=".SUFFIX", default=".txt", help="Suffix of sidecar files; .xmp writes XMP.")
@output_option(
    "--name",
    type=Choice(("stem", "full")),
    default="stem",
    help="Name of sidecar files: stem for photo.txt, full for photo.jpg.txt.",
)
@output_option(
    "--separator",
    default="\n",
    show_default="a line break",
    help="Text to write between the captions of one image.",
)
@output_option(
    "--apply",
    type=o.PATH,
    metavar="EDITS.jsonl",
    multiple=True,
    help="Write back the edits exported from a --report page, and exit. If folders were moved, also name the new one.",
)
@output_option(
    "--move-excluded",
    type=o.PATH,
    metavar="DIR",
    show_default="leave them",
    help="Move the images that were excluded in a --report page to this folder, with --apply.",
)
@o.output_options(FORMATS)
@o.model_options
@o.ray_options
def caption(
    images: tuple[str, ...],
    input: InputOptions,
    prompt: str | None,
    prompt_column: str | None,
    num_beams: int | None,
    best_of: int | None,
    min_new_tokens: int,
    max_new_tokens: int,
    length_penalty: float,
    repetition_penalty: float,
    no_repeat_ngram_size: int | None,
    do_sample: bool,
    top_p: float | None,
    top_k: int | None,
    temperature: float | None,
    seed: int | None,
    forbid: tuple[str, ...],
    require: tuple[str, ...],
    trim: bool,
    num: int,
    score: bool,
    scorer: str | None,
    prefix: str,
    suffix: str,
    template: str,
    ext: str,
    name: Literal["stem", "full"],
    separator: str,
    apply: tuple[Path, ...],
    move_excluded: Path | None,
    output: OutputOptions,
    model: ModelOptions,
    cluster: RayOptions,
) -> None:
    """Describe each image in one sentence. In Python: openblip.load(MODEL).caption(IMAGES).

    Print the captions, or write them to files with --to. To resume an interrupted job, run the same command again.
    """
    if apply:
        write_edits(apply, images, move_excluded, quiet=output.quiet)
        return
    if move_excluded is not None:
        raise click.UsageError("--move-excluded requires --apply EDITS.jsonl")
    if best_of and num > best_of:
        raise click.UsageError(f"--num must not exceed --best-of {best_of}, got {num}")
    from openblip.jobs.captions import CaptionTemplate, prompt_fields

    if best_of and not do_sample:
        num_beams = max(num_beams or 3, best_of)
    generation = {
        "prompt": prompt,
        "num_beams": num_beams,
        "n": best_of or num,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "length_penalty": length_penalty,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "do_sample": do_sample,
        "top_p": top_p,
        "top_k": top_k,
        "temperature": temperature,
        "seed": seed,
        "forbid": forbid,
        "require": [words.split("|") for words in require],
        "trim": trim,
    }
    texts = {"template": template, "prefix": prefix, "suffix": suffix}
    caption_template = None if texts == PLAIN_TEXT else CaptionTemplate(**texts)
    columns = {"caption": "text", "logprob": "logprob", "score": "score", "confidence": "confidence"}
    models: dict[str, tuple[TaskName, ...]] = {model.model: ("caption",)}
    use_matcher = bool(score or best_of or scorer)
    if use_matcher:
        columns["probability"] = "probability"
        matcher_name = scorer or model.model
        models[matcher_name] = (*models.get(matcher_name, ()), "retrieval")

    job = ImageJob(
        "caption",
        images,
        input,
        output,
        model,
        columns=columns,
        optional=["confidence"],
        belongs=lambda row: not FIELDS_OF_OTHERS & row.keys(),
        key_fields=["prompt"],
        ext=ext,
        naming=name,
        separator=separator.replace("\\n", "\n"),
        cluster=cluster,
    )
    fields_of = partial(prompt_fields, prompt_column) if prompt_column else None
    kept_columns = [prompt_column] if prompt_column else []
    make_annotator = partial(
        _make_annotator,
        model,
        input.frame,
        generation,
        num,
        item_prompts=prompt_column is not None,
        template=caption_template,
        scorer=(scorer or model.model) if use_matcher else None,
    )
    options = {**generation, **texts, "num": num, "score": use_matcher, "prompt_column": prompt_column}
    if cluster.ray is not None:
        job.run_on_ray(cluster, make_annotator, models, options, columns=kept_columns, fields_of=fields_of)
        return
    items = job.open_items(columns=kept_columns, fields_of=fields_of)
    naming = None if name == "stem" else name
    with job.open_run(items, models, options | {"ext": ext, "separator": separator, "name": naming}) as run:
        for status in run.run(make_annotator() if run.has_work else None):
            job.show(status)
    job.finish(run)


def _make_annotator(
    model: ModelOptions,
    frame: int,
    generation: Mapping[str, Any],
    keep: int,
    *,
    item_prompts: bool,
    template: CaptionTemplate | None,
    scorer: str | None,
) -> CaptionAnnotator:
    """Load the model, and the model that scores captions if there is one, and return the annotator."""
    from openblip.jobs.captions import CaptionAnnotator

    blip = model.load()
    matcher = None if scorer is None else blip if scorer == model.model else model.load(scorer)
    return CaptionAnnotator(blip, frame, generation, keep, item_prompts, template, matcher)


def write_edits(files: Sequence[Path], folders: Sequence[str], excluded: Path | None, *, quiet: bool) -> None:
    """Write back the edits of contact sheets, move the excluded images, and exit with the code of the outcome."""
    from openblip.jobs import edits

    count, notes = edits.apply_edits(files, folders)
    moved, marked = 0, edits.count_excluded(files)
    if excluded is not None:
        moved, more_notes = edits.move_excluded(files, excluded, folders)
        notes += more_notes
    for note in notes:
        click.echo(f"error: {note}", err=True)
    if not quiet:
        click.echo(f"{plural(count, 'edit')} written", err=True)
        if moved:
            click.echo(f"{plural(moved, 'excluded image')} moved to {excluded}", err=True)
        elif marked and excluded is None:
            click.echo(
                f"{plural(marked, 'image')} marked as excluded; --move-excluded DIR moves them with their texts",
                err=True,
            )
    finish(len(notes), count + moved + len(notes))
