"""Ask several questions about a photo, freely and with a list of answers: python examples/ask_photo.py [PHOTO]"""

import sys
from pathlib import Path

import openblip

photo = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "photos" / "astronaut.jpg"
blip = openblip.load("pocket")
encoded = blip.encode_images(photo, task="vqa")  # used for all questions
for question in ("is there a person?", "what color is it?"):
    print(question, blip.ask(encoded, question).text)
best = blip.ask(encoded, "is it day or night?", answers=["day", "night"])
print(f"is it day or night? {best.text} ({best.probability:.0%})")
