"""Texts that are hard to normalize, for the tests of the metrics: generated, and written by hand."""

from __future__ import annotations

from hypothesis import strategies as st

# Articles next to characters that may or may not end a word; characters that NFD or lower case changes; all white space.
PIECES = [
    *(
        "a",
        "an",
        "the",
        "The",
        "AN",
        "tHe",
        "theatre",
        "banana",
        "ana",
        "a_b",
        "the_",
        "yes",
        "no",
        "noanswer",
        "No",
        "NoAnswer",
    ),
    *("cat", "Cat", "tower", "Eiffel", "noanswers", "12345678", "123456789", "abcdefgh", "abcdefghi", "abcdefghj", "1", "x"),
    *(" ", "  ", "\t", "\n", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028"),
    *("\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\u200d", "\ufeff", "\u2060", "\u180e", "\u00ad"),
    *("\x00", "\x01", "\x08", "\x0e", "\x1b", "\x7f", "\x80", "\x9f"),
    *(
        ".",
        ",",
        "!",
        "'",
        "-",
        "_",
        "(",
        ")",
        "$",
        "^",
        "`",
        "~",
        "\\",
        "[",
        "]",
        "{",
        "|",
        "–",
        "—",
        "’",
        "“",
        "…",
        "¿",
        "·",
        "«",
    ),
    *(
        "\u0301",
        "\u0308",
        "\u0323",
        "\u20dd",
        "é",
        "É",
        "ñ",
        "Å",
        "\u212b",
        "K",
        "Ω",
        "ǅ",
        "İ",
        "ı",
        "ſ",
        "ß",
        "ẞ",
        "Σ",
        "σ",
        "ς",
    ),
    *(
        "ΑΣ",
        "ΌΔΟΣ",
        "ﬁ",
        "ﬀ",
        "１２",
        "Ａ",
        "²",
        "½",
        "Ⅳ",
        "ⓐ",
        "™",
        "°",
        "€",
        "한",
        "각",
        "中",
        "日本",
        "ا",
        "क्ष",
        "กำ",
        "שׁ",
        "ا\u064b",
    ),
    *(
        "𝐀",
        "𐐀",
        "😀",
        "👨‍👩‍👧",
        "🇫🇷",
        "\U0001f1eb",
        "\U000e0061",
        "\U0010ffff",
        "\ufffd",
        "\uffff",
        "\ufdd0",
        "\u0378",
        "\ue000",
    ),
    *("\U0001fadf", "\U00016d40", "\u1c89"),  # of Unicode 16: letters to some, unassigned to others
]
SURROGATES = ["\ud800", "\udfff", "\ud83d"]

CORPUS = [
    *(
        "",
        " ",
        "a",
        "an",
        "the",
        "the the the",
        "a an the",
        "...",
        "!?",
        "The.",
        "the-cat",
        "the–cat",
        "thé",
        "the\u0301",
        "\u0301the",
    ),
    *(
        "a\x00the b",
        "\x7fthe",
        "a\x1cb",
        "a\x85b",
        "a\u2028b",
        "İstanbul",
        "ΟΔΟΣ ΟΔΟΣ.",
        "ﬁsh",
        "１２ ３",
        "naïve café",
        "nai\u0308ve",
    ),
    *(
        "The,  Eiffel  Tower!",
        "a.m.",
        "U.S.A.",
        "can't",
        "$1,000.50",
        "3.14",
        "C++",
        "yes",
        "no",
        "noanswer",
        "No answer",
        "Yes.",
    ),
    *(
        "yes no",
        "cat cat cat dog",
        "dog cat cat",
        "한국어",
        "中文 文本",
        "\ufeffthe",
        "the\u200bcat",
        "a\u200da",
        "x\n\ny\tz",
        "ﬀ a ﬀ",
    ),
    *(
        "an_apple",
        "_the_",
        "the1",
        "1the",
        "1 a 1",
        "Ⅳ the ⅳ",
        "ⓐ a",
        "a½",
        "a²b",
        "🇫🇷 a 🇫🇷",
        "word\x00",
        "word",
        "wordword\x00",
    ),
]


def texts(*, surrogates: bool = True) -> st.SearchStrategy[str]:
    """Texts of the pieces above, of any characters, or of both."""
    pieces = st.sampled_from([*PIECES, *(SURROGATES if surrogates else [])])
    anything = st.text(st.characters(codec=None if surrogates else "utf-8"), max_size=4)
    mixed = st.lists(pieces | anything, max_size=10).map("".join)
    spaced = st.lists(pieces | anything, max_size=10).map(" ".join)
    plain = st.lists(st.sampled_from(["a", "the", "cat", "dog", "Cat.", "noanswers", "eiffel-tower", "yes"]), max_size=12).map(
        " ".join
    )
    return mixed | spaced | plain | st.sampled_from(CORPUS)


@st.composite
def pairs(draw: st.DrawFn, *, surrogates: bool = True) -> tuple[str, str]:
    """Two texts that often share words, or differ only in characters that normalization removes."""
    one = draw(texts(surrogates=surrogates))
    change = draw(st.integers(0, 6))
    if change == 0:
        return one, draw(texts(surrogates=surrogates))
    if change == 1:
        return one, one.upper()
    if change == 2:
        return one, f"The {one}, a!"
    if change == 3:
        return one, " ".join(draw(st.permutations(one.split())))
    if change == 4:
        return one, one[draw(st.integers(0, len(one))) :]
    if change == 5:
        return one + " " + draw(texts(surrogates=surrogates)), one
    return one, one.replace(" ", draw(st.sampled_from(["  ", "\t", "\x1f", "\u3000", "", "\x00", "-"])))
