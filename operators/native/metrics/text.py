"""Text as the metrics compare it: NFD, lower case, no ASCII punctuation, no English article, words between single spaces.

This is the normalization of SQuAD and DPR, as DSPy does it. It works on the bytes of UTF-8, with one table for most steps:
the bytes of other characters are never ASCII, so deleting ASCII bytes deletes only the punctuation.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

_SPACES = b"\t\n\v\f\r\x1c\x1d\x1e\x1f "  # the white space of str.split; bytes.split does not know \x1c to \x1f
_CONTROLS = bytes(c for c in range(128) if not chr(c).isprintable() and c not in _SPACES)
PUNCTUATION = string.punctuation.encode()
LOWER = bytes.maketrans(string.ascii_uppercase.encode() + _SPACES, string.ascii_lowercase.encode() + b" " * len(_SPACES))
# LOWER with all control characters as \0, so that one search finds them. They end a word: `a\x01` has an article.
_WATCHED = LOWER.translate(bytes.maketrans(_CONTROLS, bytes(len(_CONTROLS))))
# The bytes of articles, of white space and of all characters beyond ASCII (0xFF is in no UTF-8).
NO_EVIDENCE = _SPACES + b"anthe" + bytes(range(128, 255))
# Both mean `\b(a|an|the)\b`; a search that begins with a space or a letter is several times as fast.
_ARTICLE_BETWEEN_SPACES = re.compile(" (?:the|an?)(?= )")
_ARTICLE = re.compile(r"a\b(?<!\wa)|an\b(?<!\wan)|the\b(?<!\wthe)")
_SHORT = 64
_RUN = 512  # combining marks in a row; Python sorts fewer fast enough
_MARKS_OF_MARKS = "\u0f73\u0f75\u0f81"  # they have combining class 0, and are two marks in NFD


def words(text: str) -> list[str]:
    """The words of the normalized text."""
    if text.isascii():
        plain = f" {text} ".encode().translate(_WATCHED, PUNCTUATION).decode()
        if "\0" not in plain:
            return _without_articles(plain).split()
    return _words(_plain(text))


def words_of_both(one: str, other: str) -> tuple[list[str], list[str]]:
    """`words` of two texts, with one pass over both."""
    both = f" {one} \0 {other} "
    if both.isascii():
        plain = both.encode().translate(_WATCHED, PUNCTUATION).decode()
        if plain.count("\0") == 1:
            left, _, right = _without_articles(plain).partition("\0")
            return left.split(), right.split()
    return _words(_plain(one)), _words(_plain(other))


def same_words(one: str, other: str) -> bool:
    """Whether `words` of both are the same."""
    if one == other:
        return True
    if len(one) + len(other) < _SHORT:
        ours, theirs = words_of_both(one, other)
        return ours == theirs
    return same_plain(_plain(one), _plain(other))


def same_plain(one: bytes, other: bytes) -> bool:
    """`same_words` of texts in lower case without punctuation. Most pairs differ in their letters and are not split."""
    if one == other:
        return True
    return one.translate(None, NO_EVIDENCE) == other.translate(None, NO_EVIDENCE) and _words(one) == _words(other)


def passage(text: str) -> str:
    """The words in which DPR looks for an answer, each between spaces: ` eiffel tower `.

    A text without words is a single space, which is in every other passage.
    """
    normal = " ".join(words(text))
    if not (normal.isascii() and normal.isprintable()):  # of printable ASCII, DPR's tokens are the words
        normal = " ".join(_dpr_tokens().findall(_nfd(normal)))
    return f" {normal} " if normal else " "


def _without_articles(plain: str) -> str:
    """Lower-case words between spaces, without the articles."""
    if len(plain) < _SHORT:  # four passes are faster than a search; with one space only, `the the` would share it
        return plain.replace(" ", "  ").replace(" the ", "").replace(" a ", "").replace(" an ", "")
    return _ARTICLE_BETWEEN_SPACES.sub("", plain)


def _plain(text: str) -> bytes:
    """The text in lower case, without punctuation, with ASCII white space as spaces."""
    if text.isascii():
        return text.encode().translate(LOWER, PUNCTUATION)
    folded = _nfd(text).lower()
    return folded.encode("utf-8", "surrogatepass").translate(LOWER, PUNCTUATION)


def _nfd(text: str) -> str:
    """NFD in time n log n: Python uses insertion sort for combining marks, which takes a minute for half a megabyte of them."""
    for place in range(_RUN // 2, len(text), _RUN // 2):  # no long run fits between two such places
        if _is_mark(text[place]):
            return unicodedata.normalize("NFD", _with_runs_sorted(text))
    return unicodedata.normalize("NFD", text)


def _with_runs_sorted(text: str) -> str:
    """The text with its long runs of combining marks in canonical order, which has the same NFD."""
    parts, done = list[str](), 0
    for place in range(_RUN // 2, len(text), _RUN // 2):
        if place < done or not _is_mark(text[place]):
            continue
        start, end = place, place + 1
        while start > done and _is_mark(text[start - 1]):
            start -= 1
        while end < len(text) and _is_mark(text[end]):
            end += 1
        marks = (part for mark in text[start:end] for part in unicodedata.normalize("NFD", mark))
        parts += [text[done:start], *sorted(marks, key=unicodedata.combining)]
        done = end
    return "".join([*parts, text[done:]])


def _is_mark(character: str) -> bool:
    return unicodedata.combining(character) > 0 or character in _MARKS_OF_MARKS


def _words(plain: bytes) -> list[str]:
    # Every character but letters and digits ends a word, also an accent: in NFD, `thé` has an article.
    return _ARTICLE.sub(" ", plain.decode("utf-8", "surrogatepass")).split()


@cache
def _dpr_tokens() -> regex.Pattern[str]:
    """Runs of letters, marks and digits; any other character that is neither white space nor a control."""
    import regex  # DPR uses this library, with a newer Unicode than `re` and `unicodedata`

    return regex.compile(r"[\p{L}\p{M}\p{N}]+|[^\p{Z}\p{C}]")
