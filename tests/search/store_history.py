"""A store whose every state is known beforehand: batch number b always changes the same images in the same way.

`python -m tests.search.store_history FOLDER LOG` applies batches until it is killed, and notes each one in LOG
after its commit.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openblip.search.images import Batch, IndexedImage, NewImage
from openblip.search.local import LocalStore
from openblip.search.settings import IndexSettings

WIDTH, TOKENS, STATE_WIDTH = 32, 3, 8
COMPACT_EVERY = 25
SETTINGS = IndexSettings(
    model="toy", weights="0" * 16, engine="torch", precision="fp32", decode="fast", version="0", width=WIDTH,
    tokens=TOKENS, state_width=STATE_WIDTH, states="stored",
)  # fmt: skip

State = dict[str, tuple[str, int]]
"""Caption, and the number that the embedding and the states are drawn from, by id."""


def vector(number: int) -> NDArray[np.float32]:
    row = np.random.default_rng(number).standard_normal(WIDTH)
    return (row / np.linalg.norm(row)).astype(np.float32)


def states(number: int) -> NDArray[np.float16]:
    return np.random.default_rng(number).standard_normal((TOKENS, STATE_WIDTH)).astype(np.float16)


def image(name: str, caption: str, number: int) -> IndexedImage:
    return IndexedImage(
        id=name, path=f"/photos/{name}", root="/photos", hash=str(number), stamp="1:1", date="2024-01-01T00:00:00",
        width=1, height=1, caption=caption or None,
    )  # fmt: skip


def next_batch(number: int, state: State) -> Batch:
    """Return batch `number` for a store in a state, and change the state as the batch does."""
    draw = np.random.default_rng(number)
    batch = Batch()
    names = sorted(state)
    removed, updated, replaced = np.array_split(draw.permutation(names)[: draw.integers(0, 7)], 3)
    for name in removed.tolist():
        batch.removed.append(name)
        del state[name]
    for name in updated.tolist():
        state[name] = (f"caption {number}", state[name][1])
        batch.updated.append(image(name, *state[name]))
    for index in range(draw.integers(1, 12)):
        name = replaced[index] if index < len(replaced) else f"{number:05}{index:03}"
        state[str(name)] = ("", number * 100 + index)
        value = number * 100 + index
        batch.new.append(NewImage(image(str(name), "", value), vector(value), states(value)))
    return batch


def simulate(batches: int) -> State:
    """Return the state after a number of changes."""
    state: State = {}
    for number in range(batches):
        if number % COMPACT_EVERY != COMPACT_EVERY - 1:
            next_batch(number, state)
    return state


def check(store: LocalStore, expected: State) -> None:
    """Assert that a store has exactly these images, with their embeddings, states and captions."""
    images = {each.id: each for each in store.iter_images()}
    assert images.keys() == expected.keys()
    embeddings, stored = store.embeddings(list(images)), store.states(list(images))
    for name, (caption, number) in expected.items():
        assert images[name].caption == (caption or None)
        assert np.array_equal(embeddings[name], vector(number))
        assert np.array_equal(stored[name], states(number))
    assert store.count() == len(expected)


def main(folder: Path, log: Path) -> None:
    store = LocalStore(folder)
    done = store.changes()
    state = simulate(done)
    with store.writing(), log.open("a") as file:
        for number in range(done, sys.maxsize):
            if number % COMPACT_EVERY == COMPACT_EVERY - 1:
                store.compact()
            else:
                store.write(next_batch(number, state))
            file.write(f"{number + 1}\n")
            file.flush()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(Path(sys.argv[1]), Path(sys.argv[2]))
