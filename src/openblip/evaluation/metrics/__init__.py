"""Metrics: functions of predictions and references. They need no model and import no torch.

| Module | Metrics |
|---|---|
| [`captions`][openblip.evaluation.metrics.captions] | BLEU-1..4, ROUGE-L, CIDEr; METEOR and SPICE with Java |
| [`answers`][openblip.evaluation.metrics.answers] | VQA accuracy by five rules |
| [`ranks`][openblip.evaluation.metrics.ranks] | Recall at 1, 5 and 10, median rank |
| [`boxes`][openblip.evaluation.metrics.boxes] | IoU, accuracy at an IoU threshold |
| [`dialogs`][openblip.evaluation.metrics.dialogs] | MRR, recall, mean rank, NDCG of visual dialog |
| [`bootstrap`][openblip.evaluation.metrics.bootstrap] | Paired bootstrap: is one model better than another? |
"""
