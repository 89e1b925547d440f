"""Export of models to files that run without PyTorch: ONNX and OpenVINO graphs, with their parity report.

[`export_model`][openblip.export.run.export_model] writes a folder. [`graphs`][openblip.export.graphs] describes the
graphs, and [`manifest`][openblip.export.manifest] the other content of the folder. `openblip-portable` runs it in
Python, `onnxruntime` in other languages. Install the libraries with `pip install 'openblip[export]'`.
"""

from __future__ import annotations
