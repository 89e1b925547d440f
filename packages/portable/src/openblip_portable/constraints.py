"""Words that a caller forbids or requires, as token constraints of decoding. The rules and errors are openblip's."""

from __future__ import annotations

from collections.abc import Sequence

from openblip_portable.errors import InputError
from openblip_portable.text import Tokenizer
from openblip_portable.words import ForbiddenWords, Phrase, RequiredWords, contains_phrase, split_words


def forbid_words(tokenizer: Tokenizer, words: Sequence[str]) -> ForbiddenWords | None:
    """Return the token constraint of words that must not occur.

    Args:
        tokenizer: The tokenizer.
        words: The words.

    Returns:
        The constraint; `None` without words.

    Raises:
        InputError: The vocabulary cannot spell a word, or `words` is no list.
    """
    phrases = dict.fromkeys(_to_phrase(tokenizer, word, "forbid") for word in _check_words(words, "forbid"))
    return ForbiddenWords(tokenizer.pieces, tuple(phrases)) if phrases else None


def require_words(
    tokenizer: Tokenizer, clauses: Sequence[str | Sequence[str]], prompt: str | None, forbid: Sequence[str]
) -> RequiredWords | None:
    """Return the token constraint of words that must occur, except those in the prompt.

    Args:
        tokenizer: The tokenizer.
        clauses: Words, or lists of alternative words.
        prompt: Text that all captions start with.
        forbid: Words that must not occur.

    Returns:
        The constraint; `None` without words.

    Raises:
        InputError: The vocabulary cannot spell a word, `clauses` is no list, or all alternatives are forbidden.
    """
    if isinstance(clauses, str):
        raise InputError(f"require must be a list of words or of lists of alternatives, got {clauses!r}")
    forbidden = {_to_phrase(tokenizer, word, "forbid") for word in forbid}
    prompt_words = split_words(tokenizer.pieces, tokenizer.spell(prompt)) if prompt else []
    required = []
    for clause in clauses:
        words = _check_words([clause] if isinstance(clause, str) else clause, "require")
        phrases = [(_to_phrase(tokenizer, word, "require"), tuple(tokenizer.spell(word))) for word in words]
        allowed = tuple(pair for pair in phrases if pair[0] not in forbidden)
        if not allowed:
            raise InputError(f"require must name words that forbid allows, got {' or '.join(words) or 'an empty list'}")
        if not any(contains_phrase(prompt_words, phrase) for phrase, _ in phrases):
            required.append(allowed)
    return RequiredWords(tokenizer.pieces, tuple(required)) if required else None


def _to_phrase(tokenizer: Tokenizer, text: str, option: str) -> Phrase:
    ids = tokenizer.spell(text)
    if not ids or tokenizer.special_ids["unk"] in ids:
        raise InputError(f"{option} must name words that the model's vocabulary can spell, got {text!r}")
    return tuple(split_words(tokenizer.pieces, ids))


def _check_words(words: Sequence[str], option: str) -> list[str]:
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{option} must be a list of words, got {words!r}")
    return list(words)
