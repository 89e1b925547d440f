"""Penn Treebank tokenizer for caption metrics, with the same tokens as the Java program behind published scores.

Caption metrics count the tokens of `PTBTokenizer` (Stanford CoreNLP 3.4.1, lower-cased, line by line). This module
returns the same tokens without Java. Its rules were derived from the output of the original: every short sequence of
letters and every dictionary word in several contexts, every character, and random mixtures of difficult pieces
(`scripts/record_caption_metrics.py`). Of those mixtures 3 in 20,000 still differ.

>>> tokenize("The U.S. team isn't gonna pay $5.")
['the', 'u.s.', 'team', 'is', "n't", 'gon', 'na', 'pay', '$', '5', '.']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from openblip.evaluation.metrics.ptb_characters import LETTERS, SYMBOLS

# Tokens that caption metrics ignore. The brackets are in capitals, as in the original; lower-cased tokens never contain
# them, so brackets do count as words.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)


def tokenize(text: str) -> list[str]:
    """Tokenize one text.

    Args:
        text: A text.

    Returns:
        The tokens, in lower case.
    """
    return tokenize_lines([text])[0]


def tokenize_lines(texts: Iterable[str]) -> list[list[str]]:
    """Tokenize texts as one document, as the original does.

    Whether a period after an abbreviation also ends a sentence depends on the next word, even if that is in the next
    text: "a sign for Main Rd. " and "on 8th Ave. by S." get a second period, none, or a separate one.

    Args:
        texts: Texts, in order.

    Returns:
        The tokens of each text, in lower case.
    """
    lines = [_LINE_BREAK.sub(" ", text) for text in texts]
    document = "\n".join(lines)
    tokens: list[list[str]] = []
    start = 0
    for line in lines:
        end = start + len(line)
        tokens.append(_tokenize_range(document, start, end))
        start = end + 1
    return tokens


def remove_punctuation(tokens: Iterable[str]) -> list[str]:
    """Remove the tokens that caption metrics ignore.

    Args:
        tokens: Tokens.

    Returns:
        The tokens without punctuation.
    """
    return [token for token in tokens if token not in PUNCTUATION]


def _tokenize_range(text: str, start: int, end: int) -> list[str]:
    rules = _select_rules(frozenset(_SPECIAL.intersection(text[start:end])))
    tokens = []
    while start < end:
        plain = _PLAIN.match(text, start, end)
        if plain and plain[1].lower() not in _NOT_PLAIN:
            tokens.append(plain[1].lower())
            start = plain.end()
            continue
        token, start = _next_token(rules, text, start)
        if token:
            tokens.append(token)
    return tokens


def _next_token(rules: tuple[_Rule, ...], text: str, start: int) -> tuple[str, int]:
    """Return the next token ("" if it is dropped) and its end. The longest match wins, then the earliest rule."""
    best: re.Match[str] | None = None
    write: Callable[[str], str] | None = None
    for rule in rules:
        match = rule.pattern.match(text, start)
        if match and (best is None or match.end() > best.end()):
            best, write = match, rule.write
    if best is None:
        return "", start + 1
    token = best[1]
    return (write(token) if write else token).replace("\u00ad", "").lower(), best.end(1)


class _Rule(NamedTuple):
    pattern: re.Pattern[str]  # group 1 is the token; the rest is context, which counts toward the longest match
    write: Callable[[str], str] | None
    needs: frozenset[str]  # the text must contain one of these characters; empty: the rule is always tried


@lru_cache(maxsize=4096)
def _select_rules(present: frozenset[str]) -> tuple[_Rule, ...]:
    return tuple(rule for rule in _RULES if not rule.needs or rule.needs & present)


def _char_class(ranges: str) -> str:
    return "".join("-".join(re.escape(chr(int(code, 16))) for code in span.split("-")) for span in ranges.split())


def _alternatives(names: str) -> str:
    return "|".join(re.escape(name) for name in sorted(names.split(), key=len, reverse=True))


def _rule(pattern: str, written: str | Callable[[str], str] | None = None, needs: str = "", flags: int = 0) -> _Rule:
    write = (lambda _: written) if isinstance(written, str) else written
    return _Rule(re.compile(pattern, flags), write, frozenset(needs))


def _with_period(token: str) -> str:
    return token + "."


_LINE_BREAK = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")
# Tokens that need no rules, unless they are in _NOT_PLAIN: a word before a space, a comma or the final period; a comma
# before a word; the final period.
_PLAIN = re.compile(r" *([A-Za-z]{2,}(?= [A-Za-z]|, | ?\.? ?$)|[aA](?= [A-Za-z])|,(?= [A-Za-z])|\.(?= ?$))")

# Pieces: a letter, a letter or a digit, a space (a line break counts as one), the end of a sentence, an apostrophe.
_BEYOND = _char_class(LETTERS)
_ACCENTED = r"&(?:[aeiouAEIOU](?:acute|grave|uml)|HT);"
_L = rf"(?:[A-Za-z\u00ad{_BEYOND}]|{_ACCENTED})"
_A = rf"(?:[A-Za-z0-9\u00ad{_BEYOND}]|{_ACCENTED})"
_S = r"(?:[ \t\n\u00a0\u2000-\u200a\u3000]|&nbsp;)"
_CAPITALS = "".join(
    chr(code)
    for code in range(0x10000)
    if chr(code).isupper() and not 0x13A0 <= code <= 0x13F4  # without Cherokee
)
_ATTRIBUTE = r"""[A-Za-z][A-Za-z0-9:._-]*(?: *= *(?:'[^\n']*'|"[^\n"]*"))?"""
_TAG = rf"<(?:[!?][A-Za-z-][^>\n]*|/?[A-Za-z][A-Za-z0-9:._-]*(?: +{_ATTRIBUTE})* */?|/) *>"
_SENTENCE = rf"{_S}(?:[ \t\n\u00a0\u2000-\u200a\u3000]|[{_CAPITALS}]|{_TAG})"
_WORD = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"
_Q = r"(?:['\u2019\x92]|&apos;)"
_QUOTE = r"(?:['\u2019\x92`\u2018\u201b\x91]|&apos;)"
_H = r"\u058a\u2010\u2011\-"
_CLITIC = rf"{_Q}(?i:[dms]|re|ve|ll)"
_ELIDED = rf"[dloDLO]{_QUOTE}{_A}"
_THING = rf"(?:{_ELIDED})?{_A}+(?:[{_H}_](?:{_ELIDED})?{_A}+)*"
_SLASHED = rf"[A-Za-z0-9]+(?:[{_H}][A-Za-z]+){{0,2}}(?:\\?/[A-Za-z0-9]+(?:[{_H}][A-Za-z]+){{0,2}}){{1,2}}"
_NUMBER = r"[+-]?(?:\d*(?:[.:,]\d+)+|\d+)"
_END = r"(?=[^A-Za-z]|$)"

_SPLIT = frozenset(["cannot", "gonna", "gotta", "wanna", "lemme", "gimme"])  # words that are split in two

# Abbreviations. Those of the second list may end a sentence; then the period is written twice.
_INNER = (
    "adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov govs "
    "hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps rev sen "
    "sens sfc sgt spc st ste supt treas vs wm mfg mtg"
)
_FINAL = (
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga "
    "inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt sep "
    "sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo ppte ppty pte ptes pty ptys ph.d"
)
_FINAL_CAPITALISED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"
# These words start a new sentence after initials.
_STARTERS = (
    "a about according additionally after an as at but earlier he her here however if in it last many more now once "
    "one other our she since so some such that the their then there these they this we what when while yet you"
)
_STARTER = "|".join(f"[{word[0].upper()}](?i:{word[1:]})" for word in sorted(_STARTERS.split(), key=len, reverse=True))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SIGNS = {
    "[\u20ac\u20a0\xa4\x80]": "$",
    "\xa3": "#",
    "\xa2": "cents",
    "\xbc": "1/4",
    "\xbd": "1/2",
    "\xbe": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "&(?:lt|LT|Lt);|<": "<",
    "&(?:gt|GT|Gt);|>": ">",
    "&(?:amp|AMP);|&": "&",
}

_NOT_PLAIN = _SPLIT | set(f"{_INNER} {_FINAL} {_FINAL_CAPITALISED} {_BEFORE_NUMBER}".lower().split())


def _escape_brackets(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def _join_words(token: str) -> str:
    return _escape_brackets(token.replace(" ", "\u00a0"))


def _straighten_quotes(token: str) -> str:
    return re.sub(_Q, "'", token)


_CURLY = "`\u2018\u201b\u2039\x91\u2019\u203a\x92\u201c\xab\x93\u201d\xbb\x94"
_AS_LATEX = str.maketrans(dict(zip(_CURLY, ["`"] * 5 + ["'"] * 3 + ["``"] * 3 + ["''"] * 3, strict=True)))
_QUOTES = "'\u2019\x92`\u2018\u201b\x91&"
_DIGITS = "0123456789"
_RULES = (
    # Words, and words that are split in two.
    _rule(rf"((?:can(?=not)|gon(?=na)|got(?=ta)|wan(?=na)|lem(?=me)|gim(?=me)))(?:not|na|ta|me){_END}", flags=re.I),
    _rule(r"('t)(?:is|was)", None, "'", re.I),
    _rule(rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z\u00ad])n{_Q}t", None, _QUOTES, re.I),
    _rule(rf"(n{_Q}t)", _straighten_quotes, _QUOTES, re.I),
    _rule(rf"({_WORD}){_CLITIC}", None, _QUOTES),
    _rule(rf"({_CLITIC})(?:[^A-Za-z]|$)", _straighten_quotes, _QUOTES),
    # Tags, addresses, names.
    _rule(rf"({_TAG})", lambda token: token.replace(" ", "\u00a0"), "<"),
    _rule(r"(https?://[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){},-])", None, ":"),
    _rule(
        r"((?:www\.(?:[^ \t\n\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}|(?:[^ \t\n\"`'<>|.!?(){},-_$]+\.)+(?:com|net|org|edu))"
        r"(?:/[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){},-])?)",
        None,
        ".",
    ),
    _rule(
        r"((?:<|&lt;)?[a-zA-Z0-9][^ \t\n\"<>|()\u00a0]*@(?:[^ \t\n\"<>|().\u00a0]+\.)*[^ \t\n\"<>|().\u00a0]+"
        r"(?:>|&gt;)?)",
        None,
        "@",
    ),
    _rule(r"(@[A-Za-z_][A-Za-z_0-9]*)", None, "@"),
    _rule(rf"(#{_L}+)", None, "#"),
    _rule(rf"({_WORD})"),
    # Words with an apostrophe inside or at the start.
    _rule(rf"([A-HJ-XZn]{_QUOTE}{_L}{{2}}{_A}*)", None, _QUOTES),
    _rule(rf"({_L}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]{_L}*)", None, _QUOTES),
    _rule(rf"(ev{_Q}ry|li{_Q}l)", None, _QUOTES, re.I),
    _rule(rf"({_Q}n{_Q}|{_Q}till?|{_Q}cause|{_Q}em)", None, _QUOTES, re.I),
    _rule(rf"({_Q}n){_S}", None, _QUOTES, re.I),
    _rule(rf"([djl]{_Q}|ol{_Q})", None, _QUOTES, re.I),
    _rule(rf"(y{_Q})[A-Za-z]", None, _QUOTES, re.I),
    _rule(rf"({_Q}[2-9]0s)", None, _QUOTES),
    _rule(rf"({_Q}\d\d){_S}", None, _QUOTES),
    # Names with signs, and words before a period that another sign follows.
    _rule(r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)", lambda token: token.replace("&amp;", "&"), "+&"),
    _rule(r"([Cc]\+\+|[CcFf]#)", None, "+#"),
    _rule(rf"((?:{_WORD}|{_THING}|{_NUMBER})\.)[,;:]", None, "."),
    # Abbreviations, compounds and numbers.
    _rule(rf"((?i:{_alternatives(_FINAL)}))\.{_SENTENCE}", _with_period, "."),
    _rule(rf"((?:{_alternatives(_FINAL_CAPITALISED)}))\.{_SENTENCE}", _with_period, "."),
    _rule(rf"((?:{_alternatives(_FINAL)})\.)[\s\S]{{2}}", None, ".", re.I),
    _rule(rf"((?:{_alternatives(_FINAL_CAPITALISED)})\.)[\s\S]{{2}}", None, "."),
    _rule(rf"({_THING})"),
    _rule(rf"({_SLASHED})", None, "/"),
    _rule(rf"({_A}(?:{_A}|[.,])*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|{_A}+))+)", None, "-"),
    _rule(rf"({_NUMBER})", None, _DIGITS),
    _rule(r"((?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4})", _join_words, "/\u2044"),
    _rule(
        r"((?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5}"
        r"|(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
        _join_words,
        _DIGITS,
    ),
    _rule(r"([A-Za-z](?:\.[A-Za-z])*\.)", None, "."),
    _rule(rf"([A-Za-z])\.{_S}+(?:{_STARTER}|M[rs]\.|{_TAG}){_S}", None, "."),
    _rule(rf"([A-Za-z](?:\.[A-Za-z])+)\.{_S}+(?:{_STARTER}|M[rs]\.|{_TAG}){_S}", _with_period, "."),
    _rule(rf"((?:{_alternatives(f'{_INNER} {_FINAL}')})\.)", None, ".", re.I),
    _rule(rf"((?:{_alternatives(_FINAL_CAPITALISED)})\.)", None, "."),
    _rule(rf"((?:{_alternatives(_BEFORE_NUMBER)})\.){_S}?\d", None, ".", re.I),
    # Signs.
    _rule(r"([<>]?[:;=][\-o*']?[)DdpPO\\|@{(\]\[])(?![A-Za-z0-9])", _escape_brackets, ":;="),
    _rule(r"([-^x=~<>']_[-^x=~<>']|[\^x=~<>]\.[\^x=~<>])", None, "_^=~<>"),
    _rule(r"(\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\))", _escape_brackets, "("),
    _rule(r"([A-Z]*\$)", None, "$"),
    _rule(r"(\.{3,5}|\.(?:[ \u00a0]\.){2,}|\u2026)", "...", ".\u2026"),
    _rule(r"(-{5,})", None, "-"),
    _rule(r"(--{1,3}|[\u2013\u2014\u2015\x96\x97]|&(?:MD|[mn]dash);)", "--"),
    _rule(r"([?!]+)"),
    _rule(r'("|&quot;)[A-Za-z0-9$]', "``"),
    _rule(r"(''|[\"\u201d\u00bb\x94]|&quot;)", "''"),
    _rule(r"(``|[\u201c\u00ab\x93])", "``"),
    _rule(r"(')[A-Za-z][^ \t\n\u00a0]", "`"),
    _rule(rf"({_CLITIC})", _straighten_quotes, _QUOTES),
    _rule(r"(['\u2019\u203a\x92]|&apos;)", "'"),
    _rule(rf"([{_CURLY}]{{2}})", lambda token: token.translate(_AS_LATEX), _CURLY),
    _rule(r"([`\u2018\u201b\u2039\x91])", "`"),
    _rule(r"(&nbsp;)", "", "&"),
    _rule(r"(\*{2,}|@{2,}|#{2,}|_{2,}|\\\*|<<|>>|&#\d+;)", None, "*@#_<>&"),
    _rule(r"([⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+))"),
    *(_rule(rf"(\{bracket})", name, bracket) for bracket, name in _BRACKETS.items()),
    *(_rule(f"({sign})", name) for sign, name in _SIGNS.items()),
    _rule(rf"([!-~{_char_class(SYMBOLS)}])"),
)
_SPECIAL = frozenset().union(*(rule.needs for rule in _RULES))
