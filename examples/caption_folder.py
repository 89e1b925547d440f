"""Caption every photo in a folder, and print the scores: python examples/caption_folder.py [FOLDER]"""

import sys
from pathlib import Path

import openblip

folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "photos")
blip = openblip.load("pocket")
paths = sorted(folder.glob("*.jpg"))
for path, caption in zip(paths, blip.caption(iter(paths), on_error="return"), strict=True):  # an iterator streams
    if isinstance(caption, openblip.OpenBlipError):
        print(f"{path.name}: {caption}")
    else:
        print(f"{path.name}: {caption.text} ({caption.logprob:.1f}{'' if caption.finished else ', cut off'})")
