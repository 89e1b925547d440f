"""The OpenVINO engine for CPUs. Install it with `pip install 'openblip[openvino]'`."""

from __future__ import annotations

from openblip.engine.openvino.engine import CAPABILITIES, OpenVinoEngine

__all__ = ["CAPABILITIES", "OpenVinoEngine"]
