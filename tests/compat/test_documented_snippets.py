"""Code as mmpretrain and LAVIS document it, with another import line, over original-format files, nothing patched."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.published_toys import fill
from tests.toys import toy_image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mmpretrain-lavis.md").read_text(encoding="utf-8")
TAIL = """
import sys
assert not {"mmpretrain", "mmcv", "mmengine", "lavis", "transformers", "torchvision"} & set(sys.modules)
"""
# What our own facade says about the same pictures, under the same names.
OURS = """
import json, openblip
caption = openblip.load("blip-base_3rdparty_caption").caption("demo/cat-dog.png", min_new_tokens=0).text
box = openblip.load("blip-base_8xb16_refcoco").ground("demo/cat-dog.png", "dog")
matcher = openblip.load("blip-base_3rdparty_retrieval")
words = ["cat", "dog", "snake", "bird"]
cosines = matcher.embed_texts(words) @ matcher.embed_images("demo/bird.JPEG")
print(json.dumps([caption, [box.left, box.top, box.right, box.bottom], words[int(cosines.argmax())]]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("user")
    for name in ("demo/cat-dog.png", "demo/bird.JPEG", "docs/_static/merlion.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        toy_image(len(name)).save(folder / name)
    return folder, fill(folder / "cache")


def run(program: str, home: tuple[Path, dict[str, str]]) -> list[str]:
    folder, environment = home
    environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    source = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program], cwd=folder, env=environment | source,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def snippets(library: str) -> str:
    section = PAGE.partition(f"## {library}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


def test_mmpretrain_snippets(home: tuple[Path, dict[str, str]]) -> None:
    program = snippets("mmpretrain")
    assert program.count("inference_model(") == 2
    lines = run(program + TAIL + OURS, home)
    import json

    caption, box, word = json.loads(lines[-1])
    assert ast.literal_eval(lines[0]) == {"pred_caption": caption}
    assert ast.literal_eval(lines[1]) == [
        "blip-base_3rdparty_caption", "blip-base_3rdparty_nlvr", "blip-base_3rdparty_retrieval",
        "blip-base_3rdparty_vqa", "blip-base_8xb16_refcoco",
    ]  # fmt: skip
    assert ast.literal_eval(lines[2]) == ["blip-base_8xb16_refcoco"]
    assert set(ast.literal_eval(lines[3])) == {"question", "pred_answer"}
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d*", lines[4])]
    assert numbers == pytest.approx(box, abs=1e-3)
    assert (home[0] / "drawn" / "cat-dog.png").is_file()
    assert re.match(r"\{'pred_scores': array\(\[.*'pred_label': [01], 'pred_score': 0\.\d+\}", lines[5])
    assert re.match(r"\[\{'match_score': tensor\(.*'sample_idx': [01], 'sample': \{'img_path': 'demo/", lines[6])
    assert f"'text': '{word}'" in lines[7]
    assert (home[0] / "t2i_retri.pth").is_file()


def test_lavis_snippets(home: tuple[Path, dict[str, str]]) -> None:
    lines = run(snippets("LAVIS") + TAIL, home)
    assert [len(ast.literal_eval(line)) for line in lines[:3]] == [1, 3, 1]
    assert lines[3].startswith("torch.Size([1, ")
    assert lines[3].endswith("64])")
    assert lines[4].startswith("tensor([[")
    zoo = dict(line.split(maxsplit=1) for line in lines[5:15] if line.startswith("blip_"))
    assert zoo["blip_caption"] == "base_coco, large_coco"
    probability, cosine, shape = lines[-3:]
    assert 0 < float(probability) < 1
    assert cosine.startswith("tensor([[")
    assert ast.literal_eval(shape)[2] == 3
