"""The tokenizer: equal to transformers' on any text, at home in every form of tokenizer files, and written for both."""

from __future__ import annotations

import copy
import json
import pickle
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from openblip.errors import CheckpointError, InputError
from openblip.preprocess.text import FirstToken, Tokenizer, Tokens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _characters() -> list[str]:
    """Single characters of many scripts: with these as pieces, any difference of splitting or casing changes an id."""
    ranges = ((33, 127), (0xA1, 0x180), (0x370, 0x400), (0x400, 0x460), (0x5D0, 0x5EB), (0x2010, 0x2040))
    several = [chr(i) for first, final in ranges for i in range(first, final)]
    several += "中文字符日本語ひらがなカタカナ한국어。😀🚀👍\u0301\u0308\u200d\ufe0f\uff01"
    # White space is in no vocabulary, and readers of vocab.txt drop it; Cn stands for no character at all.
    return [c for c in several if not c.isspace() and unicodedata.category(c) != "Cn"]


WORDS = [
    "a",
    "picture",
    "of",
    "man",
    "dog",
    "snow",
    "##man",
    "##y",
    "it",
    "don",
    "do",
    "##n",
    "t",
    "café",
    "##ing",
    "1",
    "##9",
]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *WORDS, *_characters(), *(f"##{c}" for c in _characters())]))

FRAGMENTS = [
    *WORDS, *SPECIAL, "[DEC]", "[ENC]", "[mask]", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "don't", "it's", "U.S.A.",
    "É", "İ", "ẞ", "ﬁ", "e\u0301", "\x00", "\ufffd", "\u200b", "\u2028", "x" * 101, "##ing", "##", "ǅ", "ⅷ",
]  # fmt: skip
TEXTS = st.lists(
    st.one_of(st.text(max_size=8), st.text(st.sampled_from(_characters()), max_size=8), st.sampled_from(FRAGMENTS)),
    max_size=8,
).map("".join)
MANY = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return BertTokenizer.from_pretrained(folder)


def rows(tokens: Tokens) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def _varied(count: int, *, any_character: bool = True) -> list[str]:
    """Texts of one to twelve fragments: words, special tokens, punctuation, scripts, and any character at all."""
    generator = random.Random(0)
    characters = _characters()

    def fragment() -> str:
        choice = generator.randrange(4 if any_character else 3)
        if choice == 0:
            return generator.choice(FRAGMENTS)
        if choice == 1:
            return "".join(generator.choices(characters, k=generator.randint(1, 5)))
        if choice == 2:
            return generator.choice([" ", " ", ".", ", ", "'"])
        return chr(generator.choice([generator.randrange(0xD800), generator.randrange(0xE000, 0x110000)]))

    return ["".join(fragment() for _ in range(generator.randint(1, 12))) for _ in range(count)]


def test_ids_and_texts_equal_transformers_on_thousands_of_texts(ours: Tokenizer, theirs: Any) -> None:
    texts = _varied(4000)
    actual = rows(ours.encode(texts))
    expected = theirs(texts).input_ids
    assert [text for text, a, b in zip(texts, actual, expected, strict=True) if a != b] == []
    assert len({i for row in actual for i in row}) > 500  # all that lower-casing and stripping leave takes part
    for ids in actual:
        assert ours.decode(ids, clean_up=False) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)


def test_ids_and_texts_equal_the_slow_tokenizer_that_blip_was_trained_with(ours: Tokenizer, folder: Path) -> None:
    """It is written in Python, so the comparison is independent of the library beneath ours.

    The two are known to differ in a Greek sigma at the end of a word and in code points that Unicode got lately or not
    yet, so those are left out.
    """
    slow: Any = BertTokenizerLegacy(str(folder / "vocab.txt"))  # type: ignore[no-untyped-call]
    texts = [text for text in _varied(3000, any_character=False) if "Σ" not in text]
    assert len(texts) > 2500
    for text, actual in zip(texts, rows(ours.encode(texts)), strict=True):
        assert actual == slow(text).input_ids
        assert ours.decode(actual) == slow.decode(actual, skip_special_tokens=True)


@MANY
@given(text=TEXTS)
def test_ids_equal_transformers_on_any_text(text: str, ours: Tokenizer, theirs: Any) -> None:
    assert rows(ours.encode(text)) == [theirs(text).input_ids]


@pytest.mark.parametrize(
    "options", [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_casing_options_equal_transformers(options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    theirs, ours = BertTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    text = "Café MAN 中文a Привет É"
    expected = theirs(text).input_ids
    assert expected != BertTokenizer.from_pretrained(folder)(text).input_ids
    assert rows(ours.encode(text)) == [expected]
    assert rows(Tokenizer.from_folder(tmp_path / "theirs").encode(text)) == [expected]
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")(text).input_ids == expected


def test_recorded_ids_pieces_and_texts(golden: Path) -> None:
    """As the slow tokenizer of the library that BLIP pins gave them."""
    tokenizer = Tokenizer.from_vocab(golden / "vocab.txt")
    recorded = json.loads((golden / "text.json").read_text())["tokenizer"]
    assert len(recorded) > 30
    for case in recorded:
        assert rows(tokenizer.encode(case["input"])) == [case["ids"]]
        assert tokenizer.pieces(case["ids"][1:-1]) == case["tokens"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize(("file", "dec"), [("vocab.txt", 598), ("vocab_grounding.txt", 724)])
def test_recorded_vocabularies_get_the_recorded_special_ids(file: str, dec: int, golden: Path) -> None:
    tokenizer = Tokenizer.from_vocab(golden / file)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 1, 2, 3)
    assert (tokenizer.dec_id, tokenizer.enc_id, tokenizer.vocab_size) == (dec, dec + 1, dec + 2)


def test_the_published_vocabulary_gives_the_published_prompt() -> None:
    """bert-base-uncased, with the pieces that matter at their ids."""
    lines = [f"[unused{i}]" for i in range(30522)]
    known = {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1037: "a",
        3861: "picture",
        1997: "of",
    }
    for number, piece in known.items():
        lines[number] = piece
    tokenizer = Tokenizer.from_vocab(lines)
    assert tokenizer.encode_prompt("a picture of ") == [30522, 1037, 3861, 1997]
    assert rows(tokenizer.encode("a picture of ")) == [[101, 1037, 3861, 1997, 102]]
    assert (tokenizer.pad_id, tokenizer.dec_id, tokenizer.enc_id, tokenizer.vocab_size) == (0, 30522, 30523, 30524)


def test_the_first_token_says_what_to_do(ours: Tokenizer) -> None:
    pieces = rows(ours.encode("a man"))[0][1:]
    firsts: dict[FirstToken, int] = {"cls": ours.cls_id, "enc": ours.enc_id, "dec": ours.dec_id}
    for first, number in firsts.items():
        assert rows(ours.encode("a man", first)) == [[number, *pieces]]
    assert ours.encode_prompt("a man") == [ours.dec_id, *pieces[:-1]]
    assert ours.encode_prompt("") == [ours.dec_id]


def test_every_row_equals_its_single_encoding_and_is_padded_on_the_right(ours: Tokenizer) -> None:
    generator = random.Random(0)
    texts = ["", *("".join(generator.choices(["man ", "dog", " a picture", "中"], k=k)) for k in range(1, 30))]
    batch = ours.encode(texts, "enc")
    assert rows(batch) == [rows(ours.encode(text, "enc"))[0] for text in texts]
    lengths = batch.mask.sum(1)
    assert batch.ids.dtype == batch.mask.dtype == torch.int64
    assert batch.ids.shape[1] == lengths.max()
    assert torch.equal(batch.mask, (torch.arange(batch.ids.shape[1]) < lengths[:, None]).long())
    assert (batch.ids[batch.mask == 0] == ours.pad_id).all()
    assert rows(ours.encode(texts, "enc", pad_to="longest")) == rows(batch)
    assert ours.encode(texts, "enc", pad_to=200).ids.shape == (30, 200)
    assert ours.encode([]).ids.shape == (0, 0)
    assert ours.encode([], pad_to=5).mask.shape == (0, 5)


def test_truncation_keeps_the_last_token_and_equals_transformers(ours: Tokenizer, theirs: Any) -> None:
    texts = ["a man a dog a picture of snow", "a", ""]
    for length in (2, 3, 5, 8, 100):
        expected = theirs(texts, truncation=True, max_length=length, padding="max_length")
        actual = ours.encode(texts, "cls", length, length)
        assert actual.ids.tolist() == expected.input_ids
        assert actual.mask.tolist() == expected.attention_mask
    long = "man " * 5000
    assert ours.encode(long).ids.shape == (1, 5002)  # nothing is cut unasked


def test_half_a_surrogate_pair_is_no_character(ours: Tokenizer) -> None:
    assert rows(ours.encode("a \ud83dman\udc00")) == rows(ours.encode("a man"))


@MANY
@given(ids=st.lists(st.integers(0, len(VOCABULARY) + 3), max_size=12))
def test_decoding_equals_transformers(ids: list[int], ours: Tokenizer, theirs: Any) -> None:
    assert ours.decode(ids, clean_up=False) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, clean_up=False, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)
    expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    remaining = [p for i in ids if i < len(VOCABULARY) and (p := VOCABULARY[i]) not in SPECIAL]
    assert ours.decode(ids) == (
        expected.removeprefix("##") if remaining and remaining[0].startswith("##") else expected
    )


def test_decoding_reads_well(ours: Tokenizer) -> None:
    ids = rows(ours.encode("it's a man, don't!"))[0]
    assert ours.decode(ids) == "it's a man, don't!"
    assert ours.decode(ids, clean_up=False) == "it ' s a man, don ' t!"
    assert ours.decode(torch.tensor(ids)) == "it's a man, don't!"
    assert ours.decode([]) == ours.decode([ours.dec_id, ours.sep_id, ours.pad_id]) == ""


def test_ids_outside_the_vocabulary_are_left_out(ours: Tokenizer) -> None:
    man = VOCABULARY.index("man")
    assert ours.decode([-100, man, 10**9, man, -1, ours.vocab_size]) == "man man"
    assert ours.pieces([ours.dec_id, man, ours.enc_id, -100]) == ["[DEC]", "man", "[ENC]", "[-100]"]


@pytest.mark.parametrize(
    ("prompt", "pieces", "expected"),
    [
        ("a picture of", "man [SEP]", "a picture of man"),
        ("A picture of ", "a dog", "A picture of a dog"),
        ("a photo of snow", "##man [SEP]", "a photo of snowman"),
        ("a T-shirt:", "##y , a", "a T-shirt:y, a"),
        ("a man", ", a dog .", "a man, a dog."),
        ("a man", "' s dog", "a man's dog"),
        ("", "man .", "man."),
        ("  ", "##man", "man"),
        ("a man", "[SEP]", "a man"),
        ("", "", ""),
    ],
)
def test_a_prompt_is_continued_as_it_was_typed(prompt: str, pieces: str, expected: str, ours: Tokenizer) -> None:
    ids = [VOCABULARY.index(piece) for piece in pieces.split()]
    assert ours.decode_after(prompt, ids) == expected


def test_what_comes_after_a_left_out_prompt_has_no_marks(ours: Tokenizer) -> None:
    """Cut by tokens, never by characters: the original's cut loses a letter here."""
    prompt = ours.encode_prompt("a picture of snow")
    full = [*prompt, VOCABULARY.index("##man"), VOCABULARY.index("."), ours.sep_id]
    assert ours.decode(full) == "a picture of snowman."
    assert ours.decode(full[len(prompt) :]) == "man."


def _plain(folder: Path) -> None:
    """As the hub has it: the vocabulary alone, and few words beside it."""
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")  # no newline at the end
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))


def _in_vocabulary(folder: Path) -> None:
    lines = [*VOCABULARY, "[DEC]", "[ENC]"]
    (folder / "vocab.txt").write_text("\r\n".join(["\ufeff" + lines[0], *lines[1:], ""]), encoding="utf-8")


def _added_as_in_transformers_4(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    n = len(VOCABULARY)
    (folder / "added_tokens.json").write_text(json.dumps({"[ENC]": n + 1, "[DEC]": n}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "[DEC]"}, "additional_special_tokens": ["[ENC]"], "cls_token": "[CLS]"})
    )


def _named_but_not_added(folder: Path) -> None:
    _plain(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"], "eos_token": "[SEP]"})
    )


def _by_transformers(folder: Path, kind: Any, *, added: bool) -> None:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    tokenizer = kind.from_pretrained(folder)
    if added:
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    (folder / "vocab.txt").unlink()
    tokenizer.save_pretrained(folder)


def _fast(folder: Path) -> None:
    _by_transformers(folder, BertTokenizer, added=False)


def _fast_with_tokens(folder: Path) -> None:
    _by_transformers(folder, BertTokenizer, added=True)


def _slow_with_tokens(folder: Path) -> None:
    _by_transformers(folder, BertTokenizerLegacy, added=True)


def _json_alone(folder: Path) -> None:
    _fast_with_tokens(folder)
    (folder / "tokenizer_config.json").unlink()


FORMS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "plain": (_plain, False),
    "in the vocabulary": (_in_vocabulary, True),
    "added, transformers 4": (_added_as_in_transformers_4, True),
    "named but not added": (_named_but_not_added, True),
    "fast": (_fast, False),
    "fast, added": (_fast_with_tokens, True),
    "slow, added": (_slow_with_tokens, True),
    "tokenizer.json alone": (_json_alone, True),
}
SAMPLES = ["a man", "", "A Picture of CAFÉ, don't! 中文 😀", "a [DEC] man [ENC] [SEP] dog [mask]", "x" * 120]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_files_gives_the_same_tokenizer_and_round_trips(form: str, tmp_path: Path) -> None:
    make, knows = FORMS[form]
    source, saved, reloaded = tmp_path / "source", tmp_path / "saved", tmp_path / "reloaded"
    source.mkdir()
    make(source)
    n = len(VOCABULARY)
    first = Tokenizer.from_folder(source)
    assert (first.dec_id, first.enc_id, first.vocab_size) == (n, n + 1, n + 2)
    assert (first.pad_id, first.unk_id, first.cls_id, first.sep_id) == (0, 1, 2, 3)
    expected = rows(first.encode(SAMPLES))
    assert (n in expected[3]) == knows  # written out, the tokens are read only where the files have them
    if form != "in the vocabulary":  # a byte order mark there stops transformers
        theirs = AutoTokenizer.from_pretrained(source, tokenizer_type="bert")
        if form != "tokenizer.json alone":
            assert [theirs(text).input_ids for text in SAMPLES] == expected

    first.save(saved)
    second = Tokenizer.load(saved)
    second.save(reloaded)
    names = {"vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in saved.iterdir()} == names
    for name in names:
        assert (saved / name).read_bytes() == (reloaded / name).read_bytes()
    assert (second.dec_id, second.enc_id, second.vocab_size) == (n, n + 1, n + 2)
    assert rows(second.encode(SAMPLES)) == expected
    for unread in ("nothing", "tokenizer.json"):  # transformers also reads it from vocab.txt alone
        (saved / unread).unlink(missing_ok=True)
        for theirs in (AutoTokenizer.from_pretrained(saved), BertTokenizer.from_pretrained(saved)):
            assert isinstance(theirs, BertTokenizer)
            assert [theirs(text).input_ids for text in SAMPLES] == expected
            assert theirs.pad_token_id == 0
            assert theirs.bos_token_id == (n if knows else None)
            assert (n + 1 in theirs.all_special_ids) == knows
            assert theirs.decode(rows(first.encode("it's a man", "dec"))[0], skip_special_tokens=True) in (
                "it's a man",
                "it ' s a man",
            )


def test_ids_that_only_a_configuration_knows_are_kept(folder: Path, tmp_path: Path) -> None:
    """Toy checkpoints have [DEC] anywhere; the hub's files never tell."""
    n = len(VOCABULARY)
    for dec, enc, expected in (
        (n + 7, None, (n + 7, n + 8)),
        (n + 3, n + 1, (n + 3, n + 1)),
        (None, n + 5, (n, n + 5)),
    ):
        first = Tokenizer.from_folder(folder, dec_id=dec, enc_id=enc)
        assert (first.dec_id, first.enc_id) == expected
        assert first.vocab_size == max(expected) + 1
        first.save(tmp_path)
        assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").split() == VOCABULARY
        second = Tokenizer.from_folder(tmp_path)
        assert (second.dec_id, second.enc_id) == expected
        assert Tokenizer.from_folder(tmp_path, dec_id=n + 20).enc_id == n + 21
        assert len(AutoTokenizer.from_pretrained(tmp_path).get_vocab()) == n
    inside = Tokenizer.from_folder(folder, dec_id=VOCABULARY.index("snow"))
    assert inside.decode(inside.encode_prompt("a man")) == "a man"
    knows = Tokenizer.from_vocab([*VOCABULARY, "[DEC]", "[ENC]"], dec_id=3, enc_id=4)
    assert (knows.dec_id, knows.enc_id) == (n, n + 1)


def test_padding_and_truncation_left_in_tokenizer_json_have_no_effect(folder: Path, tmp_path: Path) -> None:
    theirs = BertTokenizer.from_pretrained(folder)
    theirs.backend_tokenizer.enable_truncation(4)
    theirs.backend_tokenizer.enable_padding(length=6)
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert rows(tokenizer.encode("a man a dog")) == rows(Tokenizer.load(folder / "vocab.txt").encode("a man a dog"))
    tokenizer.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] is None


def test_settings_of_transformers_come_back_and_paths_do_not(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    remaining = {"model_max_length": 512, "clean_up_tokenization_spaces": False, "processor_class": "BlipProcessor"}
    more = {"additional_special_tokens": ["[X]"], "eos_token": "[SEP]", "name_or_path": "/home/me/secret"}
    (source / "tokenizer_config.json").write_text(json.dumps({**remaining, **more}))
    Tokenizer.load(source).save(tmp_path / "saved")
    written = (tmp_path / "saved" / "tokenizer_config.json").read_text()
    assert json.loads(written).items() >= remaining.items()
    assert "secret" not in written
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (
        theirs("a [X] man").input_ids
        == AutoTokenizer.from_pretrained(source, tokenizer_type="bert")("a [X] man").input_ids
    )
    assert (theirs.eos_token_id, theirs.model_max_length) == (3, 512)


def test_a_cut_off_save_leaves_the_old_files(ours: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.save(tmp_path)
    previous = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        Tokenizer.from_vocab([*VOCABULARY, "more"]).save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in previous} == previous


def test_unfit_files_are_checkpoint_errors(tmp_path: Path, folder: Path) -> None:
    def refuse(complaint: str, **files: str) -> None:
        index = tmp_path / str(len(list(tmp_path.iterdir())))
        index.mkdir()
        for name, content in files.items():
            (index / name.replace("__", ".")).write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError, match=complaint):
            Tokenizer.load(index)

    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8")
    description = Tokenizer.load(folder).backend.to_str()
    refuse("neither tokenizer.json nor vocab.txt")
    refuse(r"lacks \[CLS\], \[SEP\]", vocab__txt="[PAD]\n[UNK]\na\n")
    refuse("line 3 of the vocabulary repeats line 1", vocab__txt="[PAD]\n[UNK]\n[PAD]\n")
    refuse("cannot read", vocab__txt=vocabulary, tokenizer_config__json="{")
    refuse("must contain a JSON object", vocab__txt=vocabulary, tokenizer_config__json="[]")
    refuse("gaps", vocab__txt=vocabulary, added_tokens__json=json.dumps({"[DEC]": len(VOCABULARY) + 5}))
    refuse("added as 7", vocab__txt=vocabulary, added_tokens__json=json.dumps({"[SEP]": 7}))
    refuse("BPE", tokenizer__json=tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    refuse("not in the format of transformers", tokenizer__json="{}")
    refuse("not in the format of transformers", tokenizer__json=json.dumps({"model": {"vocab": ["a"]}}))
    refuse("cannot be used", tokenizer__json=description.replace("BertPreTokenizer", "NoSuchThing"))
    with pytest.raises(CheckpointError, match="cannot read"):
        Tokenizer.load(tmp_path / "gone.txt")
    with pytest.raises(CheckpointError, match="cannot read"):
        Tokenizer.load(tmp_path / "gone.json")
    (tmp_path / "latin.txt").write_bytes(b"[PAD]\ncaf\xe9\n")
    with pytest.raises(CheckpointError, match="cannot read"):
        Tokenizer.load(tmp_path / "latin.txt")


def test_wrong_arguments(ours: Tokenizer, folder: Path) -> None:
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: ours.encode(["a", 3]), "got int"),  # type: ignore[list-item]
        (lambda: ours.encode(b"a man"), "got int"),  # type: ignore[arg-type]
        (lambda: ours.encode_prompt(None), "got NoneType"),  # type: ignore[arg-type]
        (lambda: ours.encode("a", "bos"), "'cls', 'enc' or 'dec'"),  # type: ignore[arg-type]
        (lambda: ours.encode("a", max_length=1), "got 1"),
        (lambda: ours.encode("a man a dog", pad_to=4), "6 tokens, got 4"),
        (lambda: Tokenizer.from_folder(folder, dec_id=-1), "must not be negative"),
    ]
    for call, complaint in wrong:
        with pytest.raises(InputError, match=complaint):
            call()


def test_many_threads_share_one(ours: Tokenizer) -> None:
    """Every call has its own padding and truncation: a setting on the shared tokenizer would leak between threads."""
    generator = random.Random(1)
    texts = ["man " * generator.randint(0, 40) for _ in range(300)]
    calls = [
        (texts[i : i + 7], generator.choice([None, 5, 9]), generator.choice(["cls", "enc", "dec"])) for i in range(290)
    ]
    expected = [rows(ours.encode(part, first, length)) for part, length, first in calls]  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda call: rows(ours.encode(call[0], call[2], call[1])), calls))
    assert actual == expected


def test_copies_are_equal(ours: Tokenizer) -> None:
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        expected = f"Tokenizer(vocab_size={ours.vocab_size}, dec_id={ours.dec_id}, enc_id={ours.enc_id})"
        assert repr(other) == repr(ours) == expected
        assert rows(other.encode(SAMPLES)) == rows(ours.encode(SAMPLES))


def test_tokens_move_between_devices(ours: Tokenizer) -> None:
    moved = ours.encode(SAMPLES).to("meta")
    assert moved.ids.device.type == moved.mask.device.type == "meta"


def test_importing_the_module_loads_neither_torch_nor_tokenizers() -> None:
    code = "import sys, openblip.preprocess.text; sys.exit(bool({'torch', 'tokenizers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
