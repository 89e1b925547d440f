"""English tokens as the Penn Treebank writes them, equal to those of the Java tokeniser that caption scores are made with.

Caption metrics are counted in the tokens of ``PTBTokenizer`` (Stanford CoreNLP 3.4.1, lower-cased, line by line). This
is a tokeniser of our own with the same result and no Java. Its rules were found by asking the original: what it does
with every short sequence of letters and every dictionary word in a handful of contexts, with every character, and with
random mixtures, as ``scripts/record_ptb_tokens.py`` still does.

>>> tokenize("The U.S. team isn't gonna pay $5.")
['the', 'u.s.', 'team', 'is', "n't", 'gon', 'na', 'pay', '$', '5', '.']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from openblip.evaluation.metrics.ptb_characters import LETTERS, SYMBOLS

# What the caption metrics leave out. The brackets are here as their authors wrote them: in capitals, which never occur
# in lower-cased tokens, so that brackets are in fact counted as words.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)


def tokenize(text: str) -> list[str]:
    """Lower-cased tokens of one text."""
    return tokenize_lines([text])[0]


def tokenize_lines(texts: Iterable[str]) -> list[list[str]]:
    """Lower-cased tokens of texts that follow each other, a list per text.

    The original reads all captions as one document. Whether a stop after an abbreviation also ends a sentence depends
    on the next word, be it that of the next caption: "a sign for Main Rd. " and "on 8th Ave. by S." are written with or
    without a second stop, or with the stop apart.
    """
    lines = [_LINE_BREAK.sub(" ", text) for text in texts]
    document = "\n".join(lines)
    found: list[list[str]] = []
    at = 0
    for line in lines:
        end = at + len(line)
        found.append(_tokens(document, at, end))
        at = end + 1
    return found


def words(tokens: Iterable[str]) -> list[str]:
    """Of some tokens those that caption metrics count: all but punctuation."""
    return [token for token in tokens if token not in PUNCTUATION]


def _tokens(text: str, at: int, end: int) -> list[str]:
    tokens = []
    while at < end:
        plain = _PLAIN.match(text, at, end)
        if plain and (word := plain[1].lower()) not in _SPLIT:
            tokens.append(word)
            at = plain.end()
            continue
        token, at = _next(text, at)
        if token:
            tokens.append(token)
    return tokens


def _next(text: str, at: int) -> tuple[str, int]:
    """The next token ("" for what is dropped) and where it ends: the rule that sees furthest wins, or else the first."""
    best: re.Match[str] | None = None
    write: Callable[[str], str] | None = None
    for rule in _RULES:
        found = rule.pattern.match(text, at)
        if found and (best is None or found.end() > best.end()):
            best, write = found, rule.write
    if best is None:
        return "", at + 1
    token = best[1]
    return (write(token) if write else token).replace("\u00ad", "").lower(), best.end(1)


class _Rule(NamedTuple):
    pattern: re.Pattern[str]  # the token is group 1; what follows it is context, which counts when rules compete
    write: Callable[[str], str] | None = None


def _class(ranges: str) -> str:
    return "".join("-".join(re.escape(chr(int(code, 16))) for code in part.split("-")) for part in ranges.split())


def _any(names: str) -> str:
    return "|".join(sorted(names.split(), key=len, reverse=True))


def _rule(pattern: str, written: str | Callable[[str], str] | None = None, flags: int = 0) -> _Rule:
    write = (lambda _: written) if isinstance(written, str) else written
    return _Rule(re.compile(pattern, flags), write)


def _with_stop(token: str) -> str:
    return token + "."


_LINE_BREAK = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")
_PLAIN = re.compile(r" *([A-Za-z]+)(?= [A-Za-z0-9]| ?$)")

# Pieces: a letter, a letter or a digit, a space (a line break is one), a capital.
_BEYOND = _class(LETTERS)
_L = rf"[A-Za-z\u00ad{_BEYOND}]"
_A = rf"[A-Za-z0-9\u00ad{_BEYOND}]"
_S = r"[ \t\n\u00a0\u2000-\u200a\u3000]"
_CAPITALS = "".join(
    chr(code)
    for code in range(0x10000)
    if chr(code).isupper() and not 0x13A0 <= code <= 0x13F4  # Cherokee
)
_SENTENCE = rf"{_S}(?:{_S}|[{_CAPITALS}]|</?[A-Za-z!?])"
_WORD = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"
_APOSTROPHE = r"['\u2019\x92]"
_CLITIC = rf"{_APOSTROPHE}(?:[dmsDMS]|re|ve|ll|RE|VE|LL)"

# Words that are two, by the length of the first.
_SPLIT = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3}

# Abbreviations, with their stop; those of the second list may end a sentence, and then the stop is written once more.
_INNER = (
    "adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov govs "
    "hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps rev sen "
    "sens sfc sgt spc st ste supt treas vs wm mfg mtg"
)
_FINAL = (
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga "
    "inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt sep "
    "sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo ppte ppty pte ptes pty ptys"
)
_FINAL_CAPITALISED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"
# After initials, these begin a new sentence.
_STARTERS = (
    "a about according additionally after an as at but earlier he her here however if in it last many more now once "
    "one other our she since so some such that the their then there these they this we what when while yet you"
)
_STARTER = "|".join(f"[{word[0].upper()}](?i:{word[1:]})" for word in sorted(_STARTERS.split(), key=len, reverse=True))

_I = re.IGNORECASE
_RULES = (
    _rule(rf"({_WORD})"),
    _rule(rf"({_WORD}){_CLITIC}(?![A-Za-z])"),
    _rule(rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z\u00ad])n{_APOSTROPHE}t(?![A-Za-z])", None, _I),
    _rule(rf"(n{_APOSTROPHE}t)", None, _I),
    _rule(rf"({_CLITIC})(?:[^A-Za-z]|$)"),
    _rule(r"([A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*)"),
    _rule(r"([A-Za-z0-9]+(?:[-/][A-Za-z0-9]+)*)"),
    _rule(r"([A-Za-z0-9][A-Za-z0-9.,]*(?:-[A-Za-z0-9]+)+)"),
    _rule(rf"([DdLlOo]{_APOSTROPHE}[A-Za-z0-9]{{2,}})"),
    _rule(rf"([A-HJ-XZn]{_APOSTROPHE}{_L}{_L}{_A}*)"),
    _rule(rf"([A-Za-z]+[aeiouy]{_APOSTROPHE}[aeiou][A-Za-z]*)", None, _I),
    _rule(r"([+-]?(?:\d*(?:[.:,]\d+)+|\d+))"),
    _rule(r"(\d{1,4}[- \u00a0]\d{1,4}/\d{1,4})", lambda token: token.replace(" ", "\u00a0")),
    _rule(r"([A-Za-z](?:\.[A-Za-z])*\.)(?![A-Za-z0-9])"),
    _rule(rf"([A-Za-z])\.{_S}+(?:{_STARTER}){_S}"),
    _rule(rf"([A-Za-z](?:\.[A-Za-z])+)\.{_S}+(?:{_STARTER}){_S}", _with_stop),
    _rule(rf"((?:{_any(_INNER)}|{_any(_FINAL)})\.)", None, _I),
    _rule(rf"((?:{_any(_FINAL_CAPITALISED)})\.)"),
    _rule(rf"((?i:{_any(_FINAL)}))\.{_SENTENCE}", _with_stop),
    _rule(rf"((?:{_any(_FINAL_CAPITALISED)}))\.{_SENTENCE}", _with_stop),
    _rule(rf"((?:{_any(_BEFORE_NUMBER)})\.){_S}?\d", None, _I),
    *(_rule(rf"({word[:n]}){word[n:]}(?![A-Za-z])", None, _I) for word, n in _SPLIT.items()),
    *(_rule(rf"({word[n:]})", None, _I) for word, n in _SPLIT.items()),
    _rule(r"(\.\.\.+|\.(?: \.){2,}|\u2026)", "..."),
    _rule(r"(--+|[\u2013\u2014\u2015\x96\x97])", "--"),
    _rule(r"([?!]+)"),
    _rule(r'(")[A-Za-z0-9$]', "``"),
    _rule(r'(["\u201d\u00bb\x94])', "''"),
    _rule(r"([\u201c\u00ab\x93])", "``"),
    _rule(r"(')[A-Za-z]", "`"),
    _rule(r"(['\u2019\u203a\x92])", "'"),
    _rule(r"([\u2018\u201b\u2039\x91])", "`"),
    *(
        _rule(rf"(\{bracket})", name)
        for bracket, name in zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"))
    ),
    *(
        _rule(f"({sign})", name)
        for sign, name in {
            "[\u20ac\u20a0\xa4\x80]": "$",
            "\xa3": "#",
            "\xa2": "cents",
            "\xbc": "1/4",
            "\xbd": "1/2",
            "\xbe": "3/4",
            "\u2153": "1/3",
            "\u2154": "2/3",
        }.items()
    ),
    _rule(rf"([!-~{_class(SYMBOLS)}])"),
)
