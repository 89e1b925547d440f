"""Find the photos that match a text: python examples/search_photos.py [WORDS] [FOLDER]"""

import sys
from pathlib import Path

import openblip

words = sys.argv[1] if len(sys.argv) > 1 else "a man in a suit"
folder = Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent / "photos")
blip = openblip.load("pocket")
paths = sorted(folder.glob("*.jpg"))
cosines = blip.embed_images(paths) @ blip.embed_texts(words)  # ITC: fast, selects the shortlist
shortlist = [paths[i] for i in cosines.argsort()[::-1][:3]]
matches = blip.match(shortlist, words)  # ITM: slower, ranks the shortlist
for path, match in sorted(zip(shortlist, matches, strict=True), key=lambda pair: -pair[1].probability):
    print(f"{path.name}: {match.probability:.3f}")
