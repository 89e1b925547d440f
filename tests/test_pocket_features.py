"""The start of `pocket` and the cache of its stem's features, at toy size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from openblip.checkpoints import write
from openblip.data.images import MemberImage
from openblip.data.views import ViewCache
from tests.pocket_toys import load_script, run_script, write_tar
from tests.toys import toy_hybrid, toy_image, toy_tokenizer


def test_the_cache_holds_the_features_of_every_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [(toy_image(number), {"captions": ["a dog"]}) for number in range(5)]
    tar = tmp_path / "data" / "train" / "flickr8k-000.tar"
    write_tar(tar, photos)
    start = write.save(toy_hybrid("pretrain"), tmp_path / "start", tokenizer=toy_tokenizer())
    arguments = ["--data", tmp_path / "data", "--start", start, "--out", tmp_path / "views", "--views", 2]
    run_script(load_script("pocket_views", monkeypatch), [*arguments, "--engine", "torch"], monkeypatch)
    cache = ViewCache(tmp_path / "views", 2)
    for number in range(5):
        image = MemberImage(str(tar), f"flickr8k-000_{number:06d}.jpg")
        assert cache.read(image, 1).shape == (40, 2, 2)


def test_a_start_chooses_frequent_pieces_and_keeps_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    start = load_script("pocket_start", monkeypatch)
    pieces = ["[PAD]", "[unused0]", "[UNK]", "a", "##b", "dog", "zebra", "##ing"]
    assert start.choose_pieces(pieces, Counter({5: 9, 6: 1, 7: 4})) == [0, 1, 2, 3, 4, 5, 7]


def test_word_vectors_keep_their_geometry_in_fewer_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    start = load_script("pocket_start", monkeypatch)
    vectors = torch.randn(50, 4) @ torch.randn(4, 20)  # of rank 4
    narrow = start.project(vectors, 4)
    centered = vectors - vectors.mean(0)
    scale = (narrow.norm() / centered.norm()) ** 2
    torch.testing.assert_close(narrow @ narrow.T, scale * centered @ centered.T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(narrow.std(), torch.tensor(start.WORD_STD), rtol=1e-3, atol=0)


def test_numbers_of_near_bins_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    start = load_script("pocket_start", monkeypatch)
    vectors = torch.nn.functional.normalize(start.draw_numbers(1.0), dim=1)
    likeness = vectors @ vectors.T
    assert likeness.diagonal(1).min() > 0.8
    assert likeness.diagonal(32).abs().max() < 0.6
