"""The scores of two lists of words: how many they share, in relation to the words of each."""

from __future__ import annotations

from collections import Counter

LABELS = frozenset({"yes", "no", "noanswer"})  # HotPotQA: an answer that is partly one of these is wrong
_MANY = 48  # words: two Counters are faster from this number on


def _overlap(ours: list[str], theirs: list[str]) -> int:
    """The number of words that both have. A word counts as often as in the list that has it less often."""
    if len(ours) > len(theirs):
        ours, theirs = theirs, ours
    same = 0
    if len(ours) > _MANY:
        of_theirs = Counter(theirs).get
        for word, n in Counter(ours).items():
            if m := of_theirs(word):
                same += n if n < m else m
        return same
    once = set(ours)
    if len(once) == len(ours):
        return len(once.intersection(theirs))
    left: dict[str, int] = {}
    count = left.get
    for word in ours:
        left[word] = count(word, 0) + 1
    for word in theirs:
        if seen := count(word):
            left[word] = seen - 1
            same += 1
    return same


def f1(ours: list[str], theirs: list[str]) -> float:
    same = _overlap(ours, theirs)
    if not same:
        return 0.0
    precise, complete = same / len(ours), same / len(theirs)
    return (2 * precise * complete) / (precise + complete)  # in DSPy's order: the last bit counts


def hotpot_f1(ours: list[str], theirs: list[str]) -> float:
    if ours != theirs and (_is_label(ours) or _is_label(theirs)):
        return 0.0
    return f1(ours, theirs)


def _is_label(found: list[str]) -> bool:
    return len(found) == 1 and found[0] in LABELS


def precision(ours: list[str], theirs: list[str]) -> float:
    return _overlap(ours, theirs) / len(ours) if ours else 0.0


def recall(ours: list[str], theirs: list[str]) -> float:
    return _overlap(ours, theirs) / len(theirs) if theirs else 0.0


def jaccard(ours: list[str], theirs: list[str]) -> float:
    either = set(ours).union(theirs)
    return len(set(ours).intersection(theirs)) / len(either) if either else 0.0
