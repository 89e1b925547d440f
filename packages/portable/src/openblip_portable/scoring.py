"""Tasks that score: matches, embeddings, boxes and statements.

Shapes: I images, B texts, T tokens, E embedding width.
"""

# A path is a string and a file is an iterator, so type checkers see overlaps in the overloads. The first one fits.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from openblip_portable.base import Task, deliver, group, is_single, pair
from openblip_portable.decoding import Session, decode_boxes
from openblip_portable.errors import InputError
from openblip_portable.images import ImageInput
from openblip_portable.results import Box, Classification, Comparison, Label, Match
from openblip_portable.runtime import Array, Floats
from openblip_portable.sampling import log_softmax

Images: TypeAlias = "ImageInput | Iterable[ImageInput]"
Embedding: TypeAlias = NDArray[np.float32]


class _Retrieval(Task):
    """The task `retrieval`, which matches and embeds."""

    name = "retrieval"

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, from [CLS] to [SEP]."""
        return [self.tokenizer.encode(text, self.settings["text"]) for text in texts]

    def embed_rows(self, rows: Sequence[list[int]]) -> Floats:
        """Return the embeddings (B, E) of tokenized texts."""
        chunks = [
            self.run("text_embedding", *self.tokenizer.pad(rows[start : start + self.text_rows]))[0]
            for start in range(0, len(rows), self.text_rows)
        ]
        return np.concatenate(chunks) if chunks else np.empty((0, self.settings["embed_width"]), np.float32)

    def match_rows(self, rows: Sequence[list[int]], memory: list[Floats]) -> Array:
        """Return the logits (I, B, 2) of tokenized texts with each of I images."""
        enc = self.tokenizer.special_ids["enc"]
        grounded = [[enc, *row[1:]] for row in rows]
        images = len(memory[0])
        width = max(1, self.text_rows // images)
        chunks = []
        for start in range(0, len(rows), width):
            ids, mask = self.tokenizer.pad(grounded[start : start + width])
            both = (np.broadcast_to(array, (images, *array.shape)) for array in (ids, mask))
            chunks.append(self.run("match", *map(np.ascontiguousarray, both), *memory)[0])
        return np.concatenate(chunks, 1)


class Matcher(_Retrieval):
    """Scores how well texts fit images; the task `retrieval`. See [`Task`][openblip_portable.base.Task]."""

    @overload
    def match(self, images: ImageInput, texts: str, *, paired: bool = False) -> Match: ...
    @overload
    def match(self, images: Iterator[ImageInput], texts: str, *, paired: bool = False) -> Iterator[Match]: ...
    @overload
    def match(self, images: Sequence[ImageInput], texts: str, *, paired: bool = False) -> list[Match]: ...
    @overload
    def match(self, images: ImageInput, texts: Iterable[str]) -> list[Match]: ...
    @overload
    def match(self, images: Iterator[ImageInput], texts: Iterable[str]) -> Iterator[list[Match]]: ...
    @overload
    def match(self, images: Sequence[ImageInput], texts: Iterable[str]) -> list[list[Match]]: ...
    @overload
    def match(self, images: Sequence[ImageInput], texts: Iterable[str], *, paired: Literal[True]) -> list[Match]: ...
    def match(
        self, images: Images, texts: str | Iterable[str], *, paired: bool = False
    ) -> Match | list[Match] | Iterator[Match] | list[list[Match]] | Iterator[list[Match]]:
        """Score how well texts fit images.

        Args:
            images: One image, a list, or an iterator.
            texts: One text, or several; each image is scored with each text.
            paired: Whether to score each image with one text only: one text for all images, or one per image.

        Returns:
            A match per image, in the shape of `images`; a list of matches per image for several texts.

        Raises:
            ImageError: An image cannot be read.
            InputError: A text is not a string, or the numbers of paired images and texts differ.
        """
        result: Match | list[Match] | Iterator[Match] | list[list[Match]] | Iterator[list[Match]]
        if isinstance(texts, str):
            result = deliver((found[0] for found in self._match(_listed(images), [texts])), images)
        elif paired:
            pairs = pair(images, texts, "text")
            result = deliver((self.match(image, str(text)) for image, text in pairs), images)
        else:
            result = deliver(self._match(_listed(images), list(texts)), images)
        return result

    @overload
    def classify(
        self,
        images: ImageInput,
        labels: Sequence[str],
        *,
        template: str = ...,
        by: Literal["itc", "itm"] = ...,
        n: int = ...,
    ) -> Classification: ...
    @overload
    def classify(
        self,
        images: Iterator[ImageInput],
        labels: Sequence[str],
        *,
        template: str = ...,
        by: Literal["itc", "itm"] = ...,
        n: int = ...,
    ) -> Iterator[Classification]: ...
    @overload
    def classify(
        self,
        images: Sequence[ImageInput],
        labels: Sequence[str],
        *,
        template: str = ...,
        by: Literal["itc", "itm"] = ...,
        n: int = ...,
    ) -> list[Classification]: ...
    def classify(
        self,
        images: Images,
        labels: Sequence[str],
        *,
        template: str = "a picture of {}",
        by: Literal["itc", "itm"] = "itc",
        n: int = 1,
    ) -> Classification | list[Classification] | Iterator[Classification]:
        """Choose among labels that the model was not trained on.

        Args:
            images: One image, a list, or an iterator.
            labels: The labels to choose from.
            template: Text of a label, with `{}` in place of the label.
            by: `"itc"` compares embeddings; `"itm"` compares the odds of a match, which costs a pass per label.
            n: Labels per image.

        Returns:
            A classification per image, in the shape of `images`.

        Raises:
            ImageError: An image cannot be read.
            InputError: An option is out of range, or the template has no `{}`.
        """
        if isinstance(labels, str) or not labels or not all(isinstance(label, str) for label in labels):
            raise InputError(f"labels must be a list of strings, got {labels!r}")
        if "{}" not in template or by not in ("itc", "itm") or not 1 <= n <= len(labels):
            raise InputError(f"template needs {{}}, by must be itc or itm, and n at most {len(labels)}")
        rows = self.tokenize([template.replace("{}", label) for label in labels])
        results = self._classify(_listed(images), list(labels), rows, by, n)
        return deliver(results, images)

    def _match(self, images: Iterable[ImageInput], texts: list[Any]) -> Iterator[list[Match]]:
        rows = self.tokenize(texts)
        embedded = self.embed_rows(rows)
        for _, pixels, _ in self.iter_batches(images, lambda image: image):
            states = self.encode_images(pixels)
            similarities = self.run("image_embedding", states)[0] @ embedded.T
            logits = self.match_rows(rows, self.run("image_memory", states))
            probabilities = np.exp(log_softmax(logits))[..., 1]
            for shares, cosines in zip(probabilities.tolist(), similarities.tolist(), strict=True):
                yield [Match(share, cosine) for share, cosine in zip(shares, cosines, strict=True)]

    def _classify(
        self, images: Iterable[ImageInput], labels: list[str], rows: list[list[int]], by: str, n: int
    ) -> Iterator[Classification]:
        embedded = self.embed_rows(rows) if by == "itc" else None
        for _, pixels, _ in self.iter_batches(images, lambda image: image):
            states = self.encode_images(pixels)
            if embedded is not None:
                scores = self.run("image_embedding", states)[0] @ embedded.T / self.settings["temperature"]
            else:
                logits = self.match_rows(rows, self.run("image_memory", states))
                scores = logits[..., 1] - logits[..., 0]
            for shares in np.exp(log_softmax(scores)):
                order = np.argsort(-shares, kind="stable")[:n]
                yield Classification(tuple(Label(labels[i], float(shares[i])) for i in order))


class Embedder(_Retrieval):
    """Embeds images and texts in one space; the task `retrieval`. See [`Task`][openblip_portable.base.Task]."""

    @overload
    def embed_images(self, images: Iterator[ImageInput]) -> Iterator[Embedding]: ...
    @overload
    def embed_images(self, images: ImageInput | Sequence[ImageInput]) -> Embedding: ...
    def embed_images(self, images: Images) -> Embedding | Iterator[Embedding]:
        """Embed images.

        Args:
            images: One image, a list, or an iterator.

        Returns:
            L2-normalized float32 embeddings: (E,) for one image, (I, E) for a list, an iterator over (E,) otherwise.

        Raises:
            ImageError: An image cannot be read.
        """
        results = deliver(self._embed(_listed(images)), images)
        if isinstance(results, list):
            return np.stack(results) if results else np.empty((0, self.settings["embed_width"]), np.float32)
        return results

    def embed_texts(self, texts: str | Iterable[str]) -> Embedding:
        """Embed texts.

        Args:
            texts: One text, or several.

        Returns:
            L2-normalized float32 embeddings: (E,) for one text, (B, E) for several.

        Raises:
            InputError: A text is not a string.
        """
        single = isinstance(texts, str)
        embeddings = self.embed_rows(self.tokenize([texts] if isinstance(texts, str) else list(texts)))
        return embeddings[0] if single else embeddings

    def _embed(self, images: Iterable[ImageInput]) -> Iterator[Embedding]:
        for _, pixels, _ in self.iter_batches(images, lambda image: image):
            yield from self.run("image_embedding", self.encode_images(pixels))[0]


class Grounder(Task):
    """Finds the regions that expressions name; the task `grounding`. See [`Task`][openblip_portable.base.Task]."""

    name = "grounding"

    @overload
    def ground(self, images: ImageInput, expressions: str) -> Box: ...
    @overload
    def ground(self, images: Iterator[ImageInput], expressions: str | Iterable[str]) -> Iterator[Box]: ...
    @overload
    def ground(self, images: ImageInput | Sequence[ImageInput], expressions: str | Iterable[str]) -> list[Box]: ...
    def ground(self, images: Images, expressions: str | Iterable[str]) -> Box | list[Box] | Iterator[Box]:
        """Find the regions that expressions name.

        Args:
            images: One image, a list, or an iterator.
            expressions: One expression for all images, one per image, or several about one image, encoded once.

        Returns:
            A box per image, in the shape of `images`; a list of boxes for one image with several expressions.

        Raises:
            ImageError: An image cannot be read.
            InputError: An expression is not a string, or has no words.
        """
        items, nested = group(images, expressions, "expression")
        results = self._ground(items)
        return next(results) if nested else deliver((boxes[0] for boxes in results), images)

    def _ground(self, items: Iterable[tuple[ImageInput, list[str]]]) -> Iterator[list[Box]]:
        step = self.folder.graph(self.name, "decoder_step")
        for batch, pixels, sizes in self.iter_batches(items, lambda item: item[0]):
            states = self.encode_images(pixels)
            memory = self.run("image_memory", states)
            boxes: list[list[Box]] = [[] for _ in batch]
            count = len(batch[0][1])
            width = max(1, min(self.text_rows, 16) // len(batch))
            for start in range(0, count, width):
                rows = [self._tokenize(text) for _, expressions in batch for text in expressions[start : start + width]]
                ids, mask = (array.reshape(len(batch), -1, array.shape[1]) for array in self.tokenizer.pad(rows))
                *layers, box_mask = self.run("expression_encoder", ids, mask, states, *memory)
                flat = [tensor.reshape(-1, *tensor.shape[2:]) for tensor in layers]
                joined_mask = box_mask.reshape(len(rows), -1).astype(np.int64, copy=False)
                session = Session(step, self.settings["shapes"], flat, joined_mask)
                edges, logprobs = decode_boxes(session, self.settings["box"], len(rows))
                for index, (shares, logprob) in enumerate(zip(edges, logprobs, strict=True)):
                    image = index * len(batch) // len(rows)
                    sides = np.tile(np.array(sizes[image], np.float64), 2)
                    left, top, right, bottom = (shares * sides).tolist()
                    boxes[image].append(Box(left, top, right, bottom, math.exp(float(logprob))))
            yield from boxes

    def _tokenize(self, expression: str) -> list[int]:
        ids = self.tokenizer.encode(expression, self.settings["text"])
        limit = self.settings["shapes"]["max_positions"]
        if len(ids) < 3:
            raise InputError(f"an expression must contain words, got {expression!r}")
        if len(ids) >= limit:
            raise InputError(f"an expression must have fewer than {limit} tokens, got {len(ids)}; shorten it")
        return ids


class Comparer(Task):
    """Judges statements about two images; the task `nlvr`. See [`Task`][openblip_portable.base.Task]."""

    name = "nlvr"

    @overload
    def compare(self, left: ImageInput, right: ImageInput, statements: str) -> Comparison: ...
    @overload
    def compare(
        self, left: Iterator[ImageInput], right: Iterator[ImageInput], statements: str | Iterable[str]
    ) -> Iterator[Comparison]: ...
    @overload
    def compare(self, left: Images, right: Images, statements: str | Iterable[str]) -> list[Comparison]: ...
    def compare(
        self, left: Images, right: Images, statements: str | Iterable[str]
    ) -> Comparison | list[Comparison] | Iterator[Comparison]:
        """Judge whether statements about two images are true.

        Args:
            left: The left image of a pair, a list, or an iterator.
            right: The right images, in the shape of `left`.
            statements: One statement for all pairs, one per pair, or several about one pair, which is encoded once.

        Returns:
            A comparison per pair, in the shape of `left`; a list of comparisons for one pair with several statements.

        Raises:
            ImageError: An image cannot be read.
            InputError: The numbers of left and right images differ, or a statement is too long.
        """
        if is_single(left) != is_single(right):
            raise InputError("left and right must be two images, or equally many images")
        items, nested = group(left, statements, "statement")
        pairs = ((image, other, texts) for (image, texts), other in zip(items, _listed(right), strict=True))
        results = self._compare(pairs)
        return next(results) if nested else deliver((found[0] for found in results), left)

    def _compare(self, pairs: Iterable[tuple[ImageInput, ImageInput, list[str]]]) -> Iterator[list[Comparison]]:
        limit = self.settings["shapes"]["max_positions"]
        for batch, pixels, _ in self.iter_batches(pairs, lambda item: item[0]):
            states = self.encode_images(pixels)
            right_states = self.encode_images([self.open(other)[0] for _, other, _ in batch])
            memory = self.run("image_memory", states, right_states)
            found: list[list[Comparison]] = [[] for _ in batch]
            count = len(batch[0][2])
            width = max(1, self.text_rows // len(batch))
            for start in range(0, count, width):
                rows = [
                    self.tokenizer.encode(text, self.settings["text"])
                    for _, _, statements in batch
                    for text in statements[start : start + width]
                ]
                ids, mask = (array.reshape(len(batch), -1, array.shape[1]) for array in self.tokenizer.pad(rows))
                if ids.shape[2] >= limit:
                    raise InputError(f"a statement must have fewer than {limit} tokens, got {ids.shape[2]}; shorten it")
                logits = self.run("compare", ids, mask, *memory)[0]
                probabilities = np.exp(log_softmax(logits))[..., 1]
                for index, (scores, shares) in enumerate(zip(logits, probabilities, strict=True)):
                    found[index] += [
                        Comparison(bool(score.argmax() == 1), float(share))
                        for score, share in zip(scores, shares, strict=True)
                    ]
            yield from found


def _listed(images: Any) -> Iterable[Any]:
    return [images] if is_single(images) else images
