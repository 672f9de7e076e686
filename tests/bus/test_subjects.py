"""Subjects: patterns against a brute force, names of low cardinality that a server accepts."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus import subjects
from dspex.bus.errors import ConfigError
from dspex.bus.subjects import includes, is_pattern, is_subject, matches, overlap

ALL = [".".join(tokens) for n in range(1, 5) for tokens in product("ab", repeat=n)]  # every subject of up to four tokens
tokens = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3)
patterns = st.one_of(tokens.map(".".join), tokens.map(lambda t: ".".join([*t, ">"])), st.just(">"))


def brute(pattern: str, subject: str) -> bool:
    """The rule of NATS, by recursion: `*` is one token, `>` one or more at the end."""

    def go(want: list[str], have: list[str]) -> bool:
        if not want or not have:
            return not want and not have
        if want == [">"]:
            return True
        return want[0] in ("*", have[0]) and go(want[1:], have[1:])

    return go(pattern.split("."), subject.split("."))


def taken(pattern: str) -> set[str]:
    return {s for s in ALL if brute(pattern, s)}


@given(patterns, st.sampled_from(ALL))
def test_matches_follows_the_wildcard_rules_of_nats(pattern: str, subject: str) -> None:
    assert matches(pattern, subject) == brute(pattern, subject)


@given(patterns, patterns)
def test_two_patterns_overlap_when_a_subject_matches_both(a: str, b: str) -> None:
    assert overlap(a, b) == bool(taken(a) & taken(b))
    assert overlap(a, b) == overlap(b, a)


@given(patterns, patterns)
def test_a_pattern_covers_another_when_it_matches_all_that_the_other_matches(wide: str, narrow: str) -> None:
    # one pattern alone may take "one a or b" as "*" does, because there are only these two here: no such pair is drawn
    assert includes(wide, narrow) == (taken(narrow) <= taken(wide))


@given(patterns)
def test_a_generated_pattern_is_valid_and_is_a_subject_only_without_wildcards(pattern: str) -> None:
    assert is_pattern(pattern)
    assert is_subject(pattern) == ("*" not in pattern and ">" not in pattern)


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a b", "a\n", "a\r\nPUB", "a\tb", "$JS.API", "$KV.x", "_INBOX.a"]
)
def test_a_text_that_cannot_be_published_to_is_neither_subject_nor_pattern(text: str) -> None:
    assert not is_subject(text)
    assert not is_pattern(text)


@pytest.mark.parametrize("text", ["a.>.b", ">.a", "a*", "a.*b", "a.b>", "**"])
def test_wildcards_stand_alone_and_the_last_one_last(text: str) -> None:
    assert not is_pattern(text)
    assert not is_subject(text)


@pytest.mark.parametrize("name", ["a", "support-triage", "A_1", "9lives", "x" * 64])
def test_a_name_of_letters_digits_and_dashes_is_a_token(name: str) -> None:
    assert subjects.token(name) == name


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "-a", "_a", "ä", "a/b", "a\n", "x" * 65, "$a"])
def test_a_name_with_other_characters_is_refused_with_the_fix(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be part of a subject") as caught:
        subjects.token(name, "pool")
    assert caught.value.code == "DX101"
    assert "pool" in caught.value.message


def test_the_application_stream_takes_its_own_subjects_and_no_calls() -> None:
    own = subjects.own_subjects("shop")
    stored = [
        subjects.log("shop", "t", "s", 3),
        subjects.edge("shop", "t", "s", 3),
        subjects.work("shop", "gpu", "t", "draft"),
        subjects.record("shop", "gpu", "t", "s", 3),
        subjects.interactive_record("shop", "gpu"),
        subjects.dead("shop", "t", "draft"),
    ]
    for subject in stored:
        assert is_subject(subject)
        assert [matches(p, subject) for p in own].count(True) == 1
    for core in (
        subjects.call("shop", "gpu", "t", "n"),
        subjects.ad_hoc_call("shop", "gpu", "predict"),
        subjects.control("shop", "gpu"),
    ):
        assert is_subject(core)
        assert not any(matches(p, core) for p in own)
    assert not any(overlap(a, b) for a in own for b in own if a != b)


def test_the_subjects_of_two_applications_never_meet() -> None:
    pairs = product(subjects.own_subjects("a"), subjects.own_subjects("b"))
    assert not any(overlap(x, y) for x, y in pairs)
    assert len({subjects.stream("a"), subjects.stream("b"), subjects.objects("a"), subjects.bucket("b") + "x"}) == 4


def test_no_application_has_what_is_anothers() -> None:
    def kept(app: str) -> list[str]:
        streams = [subjects.stream(app), subjects.sources(app), subjects.requests(app), subjects.keys(app)]
        return [*streams, *(f"KV_{name}" for name in subjects.buckets(app)), f"OBJ_{subjects.objects(app)}"]

    endings = {name.rpartition("_")[2] for name in kept("shop")} - {"shop"}
    assert len(endings) == 9
    for ending in endings:
        with pytest.raises(ConfigError, match="of an application 'shop' for its own") as caught:
            kept(f"shop_{ending}")
        assert caught.value.code == "DX101"
        assert set(kept(f"shop-{ending}")).isdisjoint(kept("shop"))
        assert kept(ending)  # of no other application


def test_workers_of_a_pool_get_the_work_of_that_pool_only() -> None:
    mine = subjects.work("shop", "gpu", "t", "draft")
    assert matches(subjects.work_pattern("shop", "gpu"), mine)
    assert not matches(subjects.work_pattern("shop", "gpu2"), mine)
    assert not matches(subjects.work_pattern("shop", "gp"), mine)


def test_priorities_fall_into_three_bands_and_each_has_work_of_its_own() -> None:
    assert [subjects.band(priority) for priority in range(10)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    mine = subjects.work("shop", "gpu", "t", "draft", 0)
    taken = [band for band in subjects.BANDS if matches(subjects.work_pattern("shop", "gpu", band), mine)]
    assert taken == [0]
    assert len({subjects.work_consumer("gpu", band) for band in subjects.BANDS}) == len(subjects.BANDS)


def test_the_side_queues_of_tenants_with_many_calls_come_right_behind_their_band_and_a_tenant_keeps_its_own() -> None:
    fronts = [subjects.band(priority) for priority in (0, 5, 9)]
    assert [one for front in fronts for one in (front, *subjects.side_queues(front))] == list(subjects.BANDS)
    assert [band for band in subjects.BANDS if not subjects.is_behind(band)] == fronts
    assert all(subjects.front_of(queue) == front for front in fronts for queue in (front, *subjects.side_queues(front)))
    found = {tenant: subjects.band(5, behind=tenant) for tenant in map(str, range(100))}
    assert set(found.values()) == set(subjects.side_queues(1))
    assert found == {tenant: subjects.band(4, behind=tenant) for tenant in found}


def test_the_work_of_an_operator_in_a_group_is_still_one_token() -> None:
    assert subjects.work("a", "p", "t", "group/draft") == "dspex.a.work.p.1.t.group-draft"


@pytest.mark.parametrize("node", ["classify", "group/draft", "support.messages", "orders.*.new", "orders.>", "a b", "ä"])
def test_dead_letters_of_any_node_have_a_subject_below_their_topology(node: str) -> None:
    subject = subjects.dead("a", "t", node)
    assert is_subject(subject)
    assert matches(subjects.dead_pattern("a", "t"), subject)
    assert matches(subjects.dead_pattern("a"), subject)
    assert not matches(subjects.dead_pattern("a", "t2"), subject)


def test_a_partition_hears_the_records_of_every_pool_and_of_no_other_partition_or_interactive_call() -> None:
    mine = subjects.record("shop", "*", "t", "s", 3)
    assert all(matches(mine, subjects.record("shop", pool, "t", "s", 3)) for pool in ("gpu", "lightweight"))
    others = [subjects.record("shop", "gpu", "t", "s", 4), subjects.record("shop", "gpu", "t2", "s", 3)]
    assert not any(matches(mine, s) for s in [*others, subjects.interactive_record("shop", "gpu")])
    assert matches(subjects.interactive_record("shop", "*"), subjects.interactive_record("shop", "gpu"))
    assert not matches(subjects.interactive_record("shop", "*"), subjects.record("shop", "gpu", "t", "s", 3))


def test_keys_are_below_their_prefix() -> None:
    assert subjects.manifest_key("t", 2) == "manifest.t.2"
    assert subjects.member_key("engine", "x") == "engine.x"


def test_a_pool_hears_the_calls_of_its_nodes_and_those_of_no_node() -> None:
    mine = [subjects.call("shop", "gpu", "t", "group/draft"), subjects.ad_hoc_call("shop", "gpu", "predict")]
    assert all(matches(subjects.call_pattern("shop", "gpu"), subject) for subject in mine)
    assert not any(matches(subjects.call_pattern("shop", "gp"), subject) for subject in mine)
