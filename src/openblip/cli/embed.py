"""`openblip embed`: compute the embeddings of images."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from openblip.cli import options as o
from openblip.cli.command import command
from openblip.cli.jobs import ImageJob
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions, RayOptions

if TYPE_CHECKING:
    from openblip.jobs.matches import EmbedAnnotator


@command(example="openblip embed photos --recursive --to npy --out vectors.npy")
@o.images_argument
@o.input_options
@o.output_options(("npy", *o.LISTS))
@o.model_options
@o.ray_options
def embed(
    images: tuple[str, ...], input: InputOptions, output: OutputOptions, model: ModelOptions, cluster: RayOptions
) -> None:
    """Compute the embedding of each image (ITC). In Python: openblip.load(MODEL).embed_images(IMAGES).

    Embeddings are float32 and L2-normalized: their dot product is the cosine. With --to npy, vectors.rows.jsonl lists
    the image of each row of vectors.npy.
    """
    job = ImageJob(
        "embed",
        images,
        input,
        output,
        model,
        columns={"embedding (base64, float32)": "embedding"},
        belongs=lambda row: "embedding" in row or "error" in row,
        cluster=cluster,
    )
    make_annotator = partial(_make_annotator, model, input.frame)
    if cluster.ray is not None:
        job.run_on_ray(cluster, make_annotator, {model.model: ["retrieval"]}, {})
        return
    items = job.open_items()
    with job.open_run(items, {model.model: ["retrieval"]}, {}) as run:
        for status in run.run(make_annotator() if run.has_work else None):
            job.show(status)
    job.finish(run)


def _make_annotator(model: ModelOptions, frame: int) -> EmbedAnnotator:
    """Load the model, and return its annotator."""
    from openblip.jobs.matches import EmbedAnnotator

    return EmbedAnnotator(model.load(), frame)
