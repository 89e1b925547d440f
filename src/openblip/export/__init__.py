"""Export of models to files that run without PyTorch: ONNX and OpenVINO graphs, with their parity report.

[`export_model`][openblip.export.run.export_model] writes a folder, [`graphs`][openblip.export.graphs] says what each
graph computes, and [`manifest`][openblip.export.manifest] what the folder contains. `openblip-portable` runs it in
Python, `onnxruntime` in any other language. Install what it needs with `pip install 'openblip[export]'`.
"""

from __future__ import annotations
