"""Ask a picture several questions, freely and from a closed list: python examples/ask_photo.py [PICTURE]"""

import sys
from pathlib import Path

import openblip

photo = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "photos" / "astronaut.jpg"
blip = openblip.load("pocket")
seen = blip.encode_images(photo, task="vqa")  # encoded once, asked often
for question in ("is there a person?", "what color is it?"):
    print(question, blip.ask(seen, question).text)
best = blip.ask(seen, "is it day or night?", answers=["day", "night"])
print(f"is it day or night? {best.text} ({best.probability:.0%})")
