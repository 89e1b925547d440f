"""`openblip embed`: compute the embeddings of images."""

from __future__ import annotations

from openblip.cli import options as o
from openblip.cli.command import command
from openblip.cli.jobs import ImageJob
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions


@command(example="openblip embed photos --recursive --to npy --out vectors.npy")
@o.images_argument
@o.input_options
@o.output_options(("npy", *o.LISTS))
@o.model_options
def embed(images: tuple[str, ...], input: InputOptions, output: OutputOptions, model: ModelOptions) -> None:
    """Compute the embedding of each image (ITC). In Python: openblip.load(MODEL).embed_images(IMAGES).

    Embeddings are float32 and L2-normalized: their dot product is the cosine. With --to npy, vectors.rows.jsonl lists
    the image of each row of vectors.npy.
    """
    from openblip.jobs.matches import EmbedAnnotator

    job = ImageJob(
        "embed",
        images,
        input,
        output,
        model,
        columns={"embedding (base64, float32)": "embedding"},
        belongs=lambda row: "embedding" in row or "error" in row,
    )
    items = job.open_items()
    with job.open_run(items, {model.model: ["retrieval"]}, {}) as run:
        annotator = EmbedAnnotator(model.load(), input.frame) if run.has_work else None
        for status in run.run(annotator):
            job.show(status)
    job.finish(run)
