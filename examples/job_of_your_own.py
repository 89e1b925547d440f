"""A command of your own, which goes on when it was stopped: python examples/job_of_your_own.py FOLDER OUT.jsonl"""

import sys
from collections.abc import Iterator

import openblip
from openblip.data.sources.images import open_images
from openblip.jobs.items import Item, gather
from openblip.jobs.journal import Identity
from openblip.jobs.run import Job, Result
from openblip.jobs.sinks import SinkOptions, open_sink

folder, out = sys.argv[1:3]


def work(items: Iterator[Item]) -> Iterator[Result]:
    """From items to records, in order, with an error in the place of what failed."""
    blip = openblip.load("pocket")  # loaded only if something is left to do
    images = (item.source() for item in items)
    for answer in blip.ask(images, "is there a dog?", answers=["yes", "no"], on_error="return"):
        yield answer if isinstance(answer, openblip.OpenBlipError) else [{"text": answer.text}]


sink = open_sink("jsonl", SinkOptions(out))
job = Job(list(gather(open_images([folder]), base=sink.base)), work, sink, Identity("dogs", {"vqa": "pocket"}, {}))
print(job.run())
