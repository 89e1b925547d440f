"""`openblip embed`: compute the embeddings of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from openblip.cli import options as o
from openblip.cli.command import command
from openblip.cli.jobs import Job
from openblip.cli.options import InputOptions, ModelOptions, OutputOptions
from openblip.errors import OpenBlipError

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


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
    job = Job("embed", images, input, output, model)

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.matches import embeddings
        from openblip.jobs.records import pack_embedding

        for found in embeddings(job.blip, items, frame=input.frame):
            yield found if isinstance(found, OpenBlipError) else [{"embedding": pack_embedding(found)}]

    job.run(
        work,
        tasks=("retrieval",),
        options={},
        table={"embedding (base64, float32)": "embedding"},
        concerns=lambda row: "embedding" in row or "error" in row,
    )
