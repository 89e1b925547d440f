"""``openblip embed``: embeddings of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from openblip.cli.jobs import LISTS, Command, job_command
from openblip.errors import OpenBlipError

if TYPE_CHECKING:
    from openblip.jobs.items import Item
    from openblip.jobs.run import Result


@job_command(("npy", *LISTS))
def embed(job: Command) -> None:
    """Turn pictures into vectors to compare (ITC). In Python: openblip.load(MODEL).embed_images(FILES).

    They are float32 and L2-normalised, so that a dot product is their cosine. Beside vectors.npy lies
    vectors.rows.jsonl, which says which picture each row is.

    \b
    Example:
      openblip embed photos --recursive --to npy --out vectors.npy
    """

    def work(items: Iterator[Item]) -> Iterator[Result]:
        from openblip.jobs.matches import embeddings
        from openblip.jobs.records import pack_embedding

        for found in embeddings(job.blip, items, frame=job.shared.frame):
            yield found if isinstance(found, OpenBlipError) else [{"embedding": pack_embedding(found)}]

    job.run(
        work,
        tasks=("retrieval",),
        options={},
        table={"embedding (base64, float32)": "embedding"},
        concerns=lambda row: "embedding" in row or "error" in row,
    )
