"""A command of your own, which resumes after it was stopped: python examples/job_of_your_own.py FOLDER OUT.jsonl"""

import sys
from collections.abc import Iterator

import openblip
from openblip.jobs.annotator import BlipAnnotator
from openblip.jobs.items import Item, open_items
from openblip.jobs.journal import Identity
from openblip.jobs.run import Result, open_sink_run
from openblip.jobs.sinks import SinkOptions, open_sink


class DogAnnotator(BlipAnnotator):
    """Whether there is a dog in an image."""

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield for each item, in order, its records or its error."""
        images = (item.source() for item in items)
        for answer in self.blip.ask(images, "is there a dog?", answers=["yes", "no"], on_error="return"):
            yield answer if isinstance(answer, openblip.OpenBlipError) else [{"text": answer.text}]


folder, out = sys.argv[1:3]
sink = open_sink("jsonl", SinkOptions(out))
items = open_items([folder], base=sink.base)
with open_sink_run(items, sink, Identity("dogs", {"vqa": "pocket"}, {}), model="pocket") as run:
    annotator = DogAnnotator(openblip.load("pocket")) if run.has_work else None
    for status in run.run(annotator):
        print(status.item.name, status.outcome)
print(dict(run.counts))
