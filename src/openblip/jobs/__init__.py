"""Long commands over many pictures: what goes in, what is written, and how a job goes on where it was stopped.

A command is one function from items to records (:class:`openblip.jobs.run.Job`); all the rest is here. Nothing here
imports torch: a job that finds its work done never loads a model. ``docs/jobs.md`` tells users the same.
"""
