"""CapFilt: bootstrap the captions of web images (Li et al. 2022, section 3.3).

A captioner samples synthetic captions of each image, a filter scores web and synthetic texts (ITM and ITC), and a rule
keeps the texts that match. Scores are stored, so that another rule needs no model.

- `rules`: the rule that keeps or drops a text
- `rows`: the stored rows, and verdicts for a table of rows
- `scoring`: captions and scores of a batch of images
- `images`: reading and storing images
- `folder`: the output folder, which is the manifest of a run
- `run`: runs over all shards, in this process, several processes or on Ray
- `rethreshold`: another rule for stored scores
- `summary`, `report`: counts and the HTML report

`rules`, `rows`, `folder`, `rethreshold`, `summary` and `report` load without torch.
"""
