"""Compare captions, answers and matches of PyTorch with those of exports in four run-times, token by token.

    python examples/browser/tests/compare_runtimes.py --model FOLDER --exports FOLDER ... -- examples/photos/*.jpg

`--model` is an exported `pocket` for Node.js and Chromium; `--exports` are further ones, which `openblip-portable` runs
with onnxruntime or OpenVINO. It needs `npm ci` in `examples/browser`, the package `playwright` and Chromium
(`apt-get install chromium`). All run-times read the pixels that Pillow decoded, as PNG files. Chromium also reads the
files themselves; the report counts what its own decoders change.

Where tokens differ, the report has the margin of the decision in PyTorch: in greedy decoding, the difference between
the log-probabilities of the two likeliest tokens at that step. With beams, it is the difference between the summed
log-probabilities of the two texts at the step where they part, or between their final scores, whichever is smaller.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import openblip
import openblip_portable
from openblip.decoding import Decoding, SessionFactory, generate
from openblip.engine.protocols import Answers, Captions
from openblip.preprocess.image import load_image
from openblip_portable import decoding as portable

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = Path(__file__).resolve().parents[1]
QUESTION = "what color is it?"
TEXTS = ["a cat", "a man in front of a crowd", "two dogs run on the grass"]
MARGIN = 1e-4  # the closest decisions may differ
LIBRARIES = ("torch", "onnxruntime", "openvino", "numpy", "pillow", "tokenizers")

DESCRIBE = """async ({file, question, texts}) => {
  const {describe} = await import("/tests/describe.js");
  return describe(globalThis.blip, await (await fetch(file)).blob(), question, texts);
}"""
DECODE = """async (file) => {
  const {decodeImage} = await import("/openblip.js");
  const {data, width, height} = await decodeImage(await (await fetch(file)).blob());
  let text = "";
  for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
  return {width, height, rgb: btoa(text)};
}"""

Texts = list[list[int]]
"""Token ids of the texts of one search, the likeliest first."""


@dataclass(frozen=True)
class Search:
    """A way to decode a text.

    Attributes:
        task: "caption" or "vqa".
        num_beams: Number of beams, and of texts; 1 is greedy decoding.
    """

    task: str
    num_beams: int

    def __str__(self) -> str:
        noun = "captions" if self.task == "caption" else "answers"
        return f"{noun}, {'greedy' if self.num_beams == 1 else f'{self.num_beams} beams'}"

    def rate(self, logprob: float, length: int) -> float:
        """Return the score that texts are listed by: per token for captions."""
        return logprob / length if self.task == "caption" else logprob


SEARCHES = tuple(Search(task, num_beams) for task in ("caption", "vqa") for num_beams in (1, 3))
"""The order of the texts in `describe.js`."""
OPTIONS = ("min_new_tokens", "max_new_tokens", "no_repeat_ngram_size")
"""Options of the search that are the model's."""


@dataclass
class Description:
    """What a run-time says about an image.

    Attributes:
        texts: Token ids of each search.
        matches: Probability and similarity of each text of `TEXTS`.
        seconds: Seconds from the file to the first caption, with 3 beams.
    """

    texts: dict[Search, Texts]
    matches: list[tuple[float, float]]
    seconds: float

    def match_error(self, other: Description) -> float:
        """Return the largest difference of a probability or similarity."""
        return float(np.abs(np.array(self.matches) - np.array(other.matches)).max())


@dataclass(frozen=True)
class Difference:
    """A text that differs from PyTorch's.

    Attributes:
        image: Name of the image.
        search: The search.
        rank: Rank of the text among those of its search.
        step: New token, counted from 0, where the two texts part.
        margin: How close the decision was in PyTorch; `None` if only one of them found a text of this rank.
    """

    image: str
    search: Search
    rank: int
    step: int
    margin: float | None


@dataclass
class Comparison:
    """What differs between PyTorch and other run-times.

    Attributes:
        images: Number of images.
        steps: Number of tokens that PyTorch decoded, by search.
        differences: Texts that differ, by run-time.
        match_error: Largest difference of a match from PyTorch, by run-time.
        seconds: Seconds to the first caption of each image, by run-time.
        decoded: Images that Chromium decodes to other pixels than Pillow: their names, the share of different values,
            and the largest difference.
        threads: Threads that Chromium computes with.
    """

    images: int = 0
    steps: dict[Search, int] = field(default_factory=lambda: dict.fromkeys(SEARCHES, 0))
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    match_error: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    decoded: list[tuple[str, float, int]] = field(default_factory=list)
    threads: int = 0

    def add(self, runtime: str, name: str, reference: Reference, result: Description) -> None:
        """Compare the description of an image with PyTorch's."""
        self.differences.setdefault(runtime, []).extend(reference.find_differences(name, result.texts))
        error = reference.description.match_error(result)
        self.match_error[runtime] = max(error, self.match_error.get(runtime, 0.0))
        self.seconds.setdefault(runtime, []).append(result.seconds)

    @property
    def passed(self) -> bool:
        """Whether all differences, on equal pixels and without int8, were closer decisions than `MARGIN`."""
        return all(
            difference.margin is not None and difference.margin < MARGIN
            for runtime, differences in self.differences.items()
            if runtime != OWN_DECODER and not runtime.endswith("int8")
            for difference in differences
        )

    def to_text(self) -> str:
        """Return a report."""
        lines = [f"{self.images} images; PyTorch {torch.__version__} on Pillow's pixels is the reference"]
        lines += [f"  {search}: {steps} tokens" for search, steps in self.steps.items()]
        for runtime, differences in self.differences.items():
            equal = self.images - len({difference.image for difference in differences})
            lines.append(
                f"{runtime}: {equal} of {self.images} with equal tokens; "
                f"largest difference of a match {self.match_error[runtime]:.1e}; "
                f"file to caption {statistics.median(self.seconds[runtime]):.2f} s"
            )
            for found in differences:
                margin = "of a missing text" if found.margin is None else f"{found.margin:.1e}"
                lines.append(
                    f"  {found.image}: {found.search}, text {found.rank + 1}, token {found.step}, margin {margin}"
                )
        lines.append(
            f"{len(self.decoded)} of {self.images} files are decoded by Chromium to other pixels than by Pillow"
        )
        lines += [f"  {name}: {share:.2%} of the values, by up to {largest}" for name, share, largest in self.decoded]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON, without the names of the images."""
        runtimes = {}
        for runtime, differences in self.differences.items():
            times = self.seconds[runtime]
            runtimes[runtime] = {
                "images_with_equal_tokens": self.images - len({difference.image for difference in differences}),
                "differences": [
                    {"search": str(found.search), "text": found.rank, "token": found.step, "margin": found.margin}
                    for found in differences
                ],
                "largest_match_error": self.match_error[runtime],
                "seconds_to_caption": {"median": statistics.median(times), "slowest": max(times)},
            }
        return {
            "date": time.strftime("%Y-%m-%d"),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
            "threads_of_chromium": self.threads,
            "images": self.images,
            "tokens": {str(search): steps for search, steps in self.steps.items()},
            "runtimes": runtimes,
            "decoded_otherwise": [{"share": share, "largest": largest} for _, share, largest in self.decoded],
        }


OWN_DECODER = "Chromium with its own decoder"


@dataclass
class Reference:
    """What PyTorch says about an image, with the means to ask it how close a decision was.

    Attributes:
        description: The description.
        sessions: Makes a decoding session of each task, with the ids of its prompt.
    """

    description: Description
    sessions: Mapping[str, tuple[SessionFactory, list[int]]]

    def find_differences(self, image: str, texts: Mapping[Search, Texts]) -> Iterator[Difference]:
        """Yield the texts that differ."""
        for search, expected in self.description.texts.items():
            for rank in range(max(len(expected), len(texts[search]))):
                pair = [found[rank] if rank < len(found) else None for found in (expected, texts[search])]
                if pair[0] != pair[1]:
                    yield Difference(image, search, rank, *self._measure(search, pair[0], pair[1]))

    def _measure(self, search: Search, ours: list[int] | None, theirs: list[int] | None) -> tuple[int, float | None]:
        """Return the step at which two texts part, and the margin of the decision."""
        if ours is None or theirs is None:
            return 0, None
        step = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if step is None:  # one is the start of the other
            return min(len(ours), len(theirs)), None
        sums, margins = self.trace(search.task, ours)
        if search.num_beams == 1:
            return step, margins[step]
        other_sums, _ = self.trace(search.task, theirs)
        final = search.rate(sums[-1], len(ours)) - search.rate(other_sums[-1], len(theirs))
        return step, min(abs(sums[step] - other_sums[step]), abs(final))

    def trace(self, task: str, ids: Sequence[int]) -> tuple[list[float], list[float]]:
        """Return the summed log-probability after each token, and the difference of the two likeliest tokens at it.

        Tokens that `no_repeat_ngram_size` forbids count.
        """
        factory, prompt = self.sessions[task]
        session, fed = factory([0]), list(prompt)
        sums, margins, total = [], [], 0.0
        with torch.inference_mode():
            for token in ids:
                logprobs = session.step(torch.tensor([fed]))[0].double().log_softmax(0)
                best = logprobs.topk(2).values
                total += float(logprobs[token])
                sums.append(total)
                margins.append(float(best[0] - best[1]))
                fed = [token]
        return sums, margins


def describe_with_torch(blip: openblip.Blip, image: Path) -> Reference:
    """Return what PyTorch says about a PNG file."""
    start = time.perf_counter()
    blip.caption(image)
    seconds = time.perf_counter() - start
    captions, answers = blip.pipeline("caption"), blip.pipeline("vqa")
    prompt = captions.preprocess((image, None))
    question = answers.preprocess((image, [QUESTION]))
    with torch.inference_mode():
        caption_engine = captions.model.engine.require(Captions)
        capacity = captions.decoding.capacity(len(prompt.text.ids))
        caption_factory = caption_engine.prepare_captions(captions.model.encode_images([prompt.image]), capacity)
        engine = answers.model.engine.require(Answers)
        ids, mask = answers.model.pad(question.text)
        memory = engine.project_images(answers.model.encode_images([question.image]))
        encoded = engine.encode_questions(ids, mask, memory)
        answer_factory = engine.prepare_answers(encoded, mask, answers.decoding.capacity(1))
    sessions = {
        "caption": (caption_factory, list(prompt.text.ids)),
        "vqa": (answer_factory, [answers.model.tokenizer.dec_id]),
    }
    defaults = {"caption": captions.decoding, "vqa": answers.decoding}
    texts = {}
    for search in SEARCHES:
        factory, prompt_ids = sessions[search.task]
        options = _with_beams(defaults[search.task], search.num_beams)
        texts[search] = _sort(search, generate(factory([0]), torch.tensor([prompt_ids]), options)[0])
    matches = [(match.probability, match.similarity) for match in blip.match(image, TEXTS)]
    return Reference(Description(texts, matches, seconds), sessions)


def _with_beams(options: Decoding, num_beams: int) -> Decoding:
    return Decoding(
        num_beams=num_beams, n=num_beams, eos_id=options.eos_id, pad_id=options.pad_id,
        **{name: getattr(options, name) for name in OPTIONS},
    )  # fmt: skip


def _sort(search: Search, hypotheses: Sequence[Any]) -> Texts:
    """Return the ids of hypotheses in the order in which results are listed."""
    ranked = sorted(hypotheses, key=lambda found: -search.rate(found.logprob, len(found.ids)))
    return [list(hypothesis.ids) for hypothesis in ranked]


def describe_with_portable(folder: openblip_portable.ExportFolder, image: Path) -> Description:
    """Return what `openblip-portable` says about a PNG file."""
    captioner, answerer = openblip_portable.Captioner(folder), openblip_portable.Answerer(folder)
    start = time.perf_counter()
    captioner.caption(image)
    seconds = time.perf_counter() - start
    texts = {}
    for task in (captioner, answerer):
        settings = task.settings
        memory, mask = task.run("image_memory", task.encode_images([task.open(image)[0]])), None
        if task is answerer:
            ids, mask = task.tokenizer.pad([task.tokenizer.encode(QUESTION, settings["text"])])
            encoded = task.run("question_encoder", ids[None], mask[None], *memory)
            memory = [tensor.reshape(-1, *tensor.shape[2:]) for tensor in encoded]
        for search in SEARCHES:
            if search.task != task.name:
                continue
            options = portable.Options(
                num_beams=search.num_beams, n=search.num_beams, eos_id=settings["special_ids"]["sep"],
                pad_id=settings["special_ids"]["pad"],
                **{name: settings["generation"][name] for name in OPTIONS},
            )  # fmt: skip
            session = portable.Session(folder.graph(task.name, "decoder_step"), settings["shapes"], memory, mask)
            prompts = np.array([settings["prompt_ids"]], np.int64)
            texts[search] = _sort(search, portable.generate(session, prompts, options)[0])
    found = openblip_portable.Matcher(folder).match(image, TEXTS)
    return Description(texts, [(match.probability, match.similarity) for match in found], seconds)


def describe_in_node(node: str, model: Path, images: list[Path]) -> list[Description]:
    """Return what Node.js says about PNG files."""
    request = {"model": str(model.resolve()), "images": [str(image) for image in images]}
    done = subprocess.run(
        [node, str(BROWSER / "tests" / "describe_in_node.js")],
        input=json.dumps({**request, "question": QUESTION, "texts": TEXTS}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [_read_description(result) for result in json.loads(done.stdout)]


def _read_description(result: dict[str, Any]) -> Description:
    matches = [(probability, similarity) for probability, similarity in result["matches"]]
    return Description(dict(zip(SEARCHES, result["texts"], strict=True)), matches, result["seconds"])


@contextlib.contextmanager
def serve(model: Path, photos: Path) -> Iterator[str]:
    """Serve the page, a model and a folder of photos; yield the address."""
    sys.path.insert(0, str(BROWSER))
    from serve import Server

    with Server(("127.0.0.1", 0), model) as server:
        server.folders["photos"] = photos.resolve()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def open_page(address: str, **options: Any) -> Iterator[Page]:
    """Open an address in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_context(**options).new_page()
        page.goto(address)
        try:
            yield page
        finally:
            browser.close()


def compare(model: Path, files: list[Path], node: str, exports: Sequence[Path] = ()) -> Comparison:
    """Compare run-times.

    Args:
        model: Folder of an exported `pocket`, for Node.js and Chromium.
        files: Images.
        node: Path of Node.js.
        exports: Folders of exported `pocket`s that `openblip-portable` runs.
    """
    comparison = Comparison(len(files))
    with tempfile.TemporaryDirectory() as folder:
        exact = []
        for index, file in enumerate(files):
            exact.append(Path(folder) / f"{index}.png")
            load_image(file).save(exact[-1], compress_level=1)
            shutil.copyfile(file, exact[-1].with_suffix(file.suffix.lower()))
        blip = openblip.load("pocket", engine="torch", precision="fp32")
        references = [describe_with_torch(blip, image) for image in exact]
        for reference in references:
            comparison.seconds.setdefault("PyTorch", []).append(reference.description.seconds)
            for search, texts in reference.description.texts.items():
                comparison.steps[search] += sum(map(len, texts))

        def add_all(runtime: str, results: Sequence[Description]) -> None:
            for file, reference, result in zip(files, references, results, strict=True):
                comparison.add(runtime, file.name, reference, result)

        for path in exports:
            export = openblip_portable.ExportFolder(path)
            library = "onnxruntime" if export.runtime == "onnx" else "OpenVINO"
            openblip_portable.Captioner(export).caption(exact[0])  # loads its graphs
            add_all(f"{library}, {export.precision}", [describe_with_portable(export, image) for image in exact])
        add_all("Node.js", describe_in_node(node, model, exact))
        with serve(model, Path(folder)) as address, open_page(address) as page:
            comparison.threads = page.evaluate("""async () => {
              const {Blip} = await import("/openblip.js");
              globalThis.blip = await Blip.load("/model/");
              for (const task of ["caption", "vqa", "retrieval"]) await blip.prepare(task);
              return blip.threads;
            }""")
            describe = partial_describe(page)
            describe("0.png")  # the first run of a graph plans its memory
            add_all("Chromium", [describe(image.name) for image in exact])
            own_names = [f"{index}{file.suffix.lower()}" for index, file in enumerate(files)]
            add_all(OWN_DECODER, [describe(name) for name in own_names])
            for file, name in zip(files, own_names, strict=True):
                difference = compare_pixels(file, page.evaluate(DECODE, f"/photos/{name}"))
                if difference is not None:
                    comparison.decoded.append((file.name, *difference))
    return comparison


def partial_describe(page: Page) -> Callable[[str], Description]:
    """Return a function that describes a photo of the server in Chromium."""
    request = {"question": QUESTION, "texts": TEXTS}
    return lambda name: _read_description(page.evaluate(DESCRIBE, {"file": f"/photos/{name}", **request}))


def compare_pixels(file: Path, decoded: dict[str, Any]) -> tuple[float, int] | None:
    """Return the share of different values, and the largest difference; `None` if the images are equal."""
    image = load_image(file)
    shape = (decoded["height"], decoded["width"], 3)
    pixels = np.frombuffer(base64.b64decode(decoded["rgb"]), np.uint8).reshape(shape)
    difference = np.abs(np.asarray(image).astype(int) - pixels)
    return (float((difference > 0).mean()), int(difference.max())) if difference.any() else None


def main() -> None:
    """Print a report; exit with 1 if tokens differ on the same pixels where PyTorch's decision was not close."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, help="images to describe")
    parser.add_argument("--model", type=Path, required=True, help="folder of an exported pocket")
    parser.add_argument("--exports", type=Path, nargs="*", default=[], help="further exports, for openblip-portable")
    parser.add_argument("--node", default="node", help="path of Node.js")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--out", type=Path, help="JSON file to write the report to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    comparison = compare(options.model, options.images, options.node, options.exports)
    print(comparison.to_text())
    if options.out:
        options.out.write_text(json.dumps(comparison.to_dict(), indent=1) + "\n", encoding="utf-8")
    sys.exit(not comparison.passed)


if __name__ == "__main__":
    main()
