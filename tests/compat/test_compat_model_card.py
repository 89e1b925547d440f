"""The code that the published model cards and documentation show, with nothing changed but the import line."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.compat.compat_toys import SIZE, Theirs, loud, their_config

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using the model-agnostic default"),
]

OURS = "openblip"
VOCABULARY = Path(__file__).parents[1] / "golden" / "vocab.txt"
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"

# Card of Salesforce/blip-vqa-capfilt-large, one entry for each of its sections.
VQA_CARD = {
    "cpu": """
import requests
from PIL import Image
from transformers import BlipProcessor, BlipForQuestionAnswering

processor = BlipProcessor.from_pretrained("Salesforce/blip-vqa-capfilt-large")
model = BlipForQuestionAnswering.from_pretrained("Salesforce/blip-vqa-capfilt-large")

img_url = 'https://storage.googleapis.com/sfr-vision-language-research/BLIP/demo.jpg'
raw_image = Image.open(requests.get(img_url, stream=True).raw).convert('RGB')

question = "how many dogs are in the picture?"
inputs = processor(raw_image, question, return_tensors="pt")

out = model.generate(**inputs)
print(processor.decode(out[0], skip_special_tokens=True))
""",
    "gpu": """
import requests
from PIL import Image
from transformers import BlipProcessor, BlipForQuestionAnswering

processor = BlipProcessor.from_pretrained("Salesforce/blip-vqa-capfilt-large")
model = BlipForQuestionAnswering.from_pretrained("Salesforce/blip-vqa-capfilt-large").to("cuda")

img_url = 'https://storage.googleapis.com/sfr-vision-language-research/BLIP/demo.jpg'
raw_image = Image.open(requests.get(img_url, stream=True).raw).convert('RGB')

question = "how many dogs are in the picture?"
inputs = processor(raw_image, question, return_tensors="pt").to("cuda")

out = model.generate(**inputs)
print(processor.decode(out[0], skip_special_tokens=True))
""",
    "gpu-half": """
import torch
import requests
from PIL import Image
from transformers import BlipProcessor, BlipForQuestionAnswering

processor = BlipProcessor.from_pretrained("ybelkada/blip-vqa-capfilt-large")
model = BlipForQuestionAnswering.from_pretrained("ybelkada/blip-vqa-capfilt-large", torch_dtype=torch.float16).to("cuda")

img_url = 'https://storage.googleapis.com/sfr-vision-language-research/BLIP/demo.jpg'
raw_image = Image.open(requests.get(img_url, stream=True).raw).convert('RGB')

question = "how many dogs are in the picture?"
inputs = processor(raw_image, question, return_tensors="pt").to("cuda", torch.float16)

out = model.generate(**inputs)
print(processor.decode(out[0], skip_special_tokens=True))
""",  # noqa: E501 (as it stands there)
}

CAPTION_CODE = """
from transformers import BlipProcessor, BlipForConditionalGeneration

processor = BlipProcessor.from_pretrained("Salesforce/blip-image-captioning-large")
model = BlipForConditionalGeneration.from_pretrained("Salesforce/blip-image-captioning-large")

text = "a photography of"
inputs = processor(raw_image, text, return_tensors="pt")
out = model.generate(**inputs)
print(processor.decode(out[0], skip_special_tokens=True))

inputs = processor(raw_image, return_tensors="pt")
out = model.generate(**inputs, num_beams=3, max_new_tokens=12)
print(processor.decode(out[0], skip_special_tokens=True))
print(processor.batch_decode(out))

labels = processor(text=["a dog on a mat", "two cats"], padding=True, return_tensors="pt").input_ids
inputs = processor([raw_image, raw_image], ["a dog on a mat", "two cats"], padding=True, return_tensors="pt")
print(round(model(**inputs, labels=labels).loss.item(), 4))
"""

MATCH_CODE = """
from transformers import BlipProcessor, BlipForImageTextRetrieval

processor = BlipProcessor.from_pretrained("Salesforce/blip-itm-base-coco")
model = BlipForImageTextRetrieval.from_pretrained("Salesforce/blip-itm-base-coco")

question = "A woman and a dog sitting together in a beach."
inputs = processor(raw_image, question, return_tensors="pt")
itm_scores = model(**inputs)[0]
cosine_score = model(**inputs, use_itm_head=False)[0]
print([[round(x, 4) for x in row] for row in itm_scores.tolist()], round(cosine_score.item(), 4))
"""

FOLDERS = {
    "Salesforce/blip-vqa-capfilt-large": "BlipForQuestionAnswering",
    "ybelkada/blip-vqa-capfilt-large": "BlipForQuestionAnswering",
    "Salesforce/blip-image-captioning-large": "BlipForConditionalGeneration",
    "Salesforce/blip-itm-base-coco": "BlipForImageTextRetrieval",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy models, saved by transformers under the names of the model cards."""
    root = tmp_path_factory.mktemp("hub")
    vocabulary = len(VOCABULARY.read_text().splitlines())
    processor = Theirs.BlipProcessor(
        Theirs.BlipImageProcessor(size={"height": SIZE, "width": SIZE}), Theirs.BertTokenizer(str(VOCABULARY))
    )
    for number, (folder, name) in enumerate(FOLDERS.items()):
        model = getattr(Theirs, name)(their_config(vocab=vocabulary + 2, dec=vocabulary))
        loud(model, seed=number, scale=0.25)
        model.save_pretrained(root / folder)
        processor.save_pretrained(root / folder)
    return root


@pytest.fixture
def _there(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run inside that folder, with a local photo behind every address."""

    class Response:
        def __init__(self, path: Path) -> None:
            self.raw = path.open("rb")

    monkeypatch.chdir(hub)
    monkeypatch.setattr("requests.get", lambda address, **_: Response(PHOTOS / "cat.jpg"))


def _run(code: str, library: str) -> str:
    """What code prints when its classes come from ``library``."""
    code = code.replace("from transformers import", f"from {library} import")
    if not torch.cuda.is_available():
        code = code.replace('"cuda"', '"cpu"')
    names: dict[str, Any] = {"raw_image": Image.open(PHOTOS / "cat.jpg").convert("RGB")}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


@pytest.mark.usefixtures("_there")
@pytest.mark.parametrize("code", [*VQA_CARD.values(), CAPTION_CODE, MATCH_CODE], ids=[*VQA_CARD, "caption", "match"])
def test_code_prints_the_same(code: str) -> None:
    ours = _run(code, OURS)
    assert ours.strip()
    assert ours == _run(code, "transformers")
