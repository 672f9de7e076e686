"""`bucket` and `objects`: values by key, and content by its digest. On both buses."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter

import pytest
from bus_bench import Buses

from dspex.bus.errors import Fenced, StreamFull
from dspex.bus.port import Bus, StreamConfig


@pytest.mark.asyncio
async def test_a_key_has_value_and_revision(buses: Buses, unique: str) -> None:
    one, two = await buses[0].bucket(unique), await buses[1].bucket(unique)
    assert await one.get("a.b") is None
    first = await one.put("a.b", b"1")
    assert await two.get("a.b") == (b"1", first)
    second = await two.put("a.b", b"2")
    assert second > first
    assert await one.get("a.b") == (b"2", second)
    assert await one.get("a") is None


@pytest.mark.asyncio
async def test_a_key_is_written_only_at_the_expected_revision(buses: Buses, unique: str) -> None:
    one, two = await buses[0].bucket(unique), await buses[1].bucket(unique)
    first = await one.put("lease", b"1", revision=0)
    with pytest.raises(Fenced):
        await two.put("lease", b"x", revision=0)
    second = await two.put("lease", b"2", revision=first)
    for wrong in (first, second + 1, 0):
        with pytest.raises(Fenced):
            await one.put("lease", b"x", revision=wrong)
    assert await one.get("lease") == (b"2", second)


@pytest.mark.asyncio
async def test_of_two_that_create_a_key_at_once_one_succeeds(buses: Buses, unique: str) -> None:
    buckets = [await bus.bucket(unique) for bus in buses]
    results = await asyncio.gather(
        *[b.put("k", b"%d" % n, revision=0) for n, b in enumerate(buckets * 5)], return_exceptions=True
    )
    assert Counter(type(r) for r in results) == {int: 1, Fenced: 9}


@pytest.mark.asyncio
async def test_a_key_of_a_bucket_that_takes_one_value_of_each_gets_another_only_when_that_was_deleted(
    buses: Buses, unique: str
) -> None:
    before = await buses[1].bucket(unique)
    await before.put("old", b"1")
    bucket, again = await buses[0].bucket(unique, once=True), await buses[1].bucket(unique)
    first = await bucket.put("k", b"1", revision=0)
    for other in (before, bucket, again):
        for key in ("k", "old"):
            with pytest.raises(StreamFull):
                await other.put(key, b"x")
        with pytest.raises((StreamFull, Fenced)):
            await other.put("k", b"x", revision=first)
    assert await again.items() == {"k": (b"1", first), "old": (b"1", first - 1)}
    await bucket.delete("k")
    assert await again.put("k", b"2") > first


@pytest.mark.asyncio
async def test_a_deleted_key_is_gone_and_may_be_made_again(bus: Bus, unique: str) -> None:
    bucket = await bus.bucket(unique)
    first = await bucket.put("k", b"1")
    await bucket.delete("k")
    await bucket.delete("never-there")
    assert await bucket.get("k") is None
    assert await bucket.items() == {}
    with pytest.raises(Fenced):
        await bucket.put("k", b"x", revision=first)
    again = await bucket.put("k", b"2", revision=0)
    assert await bucket.get("k") == (b"2", again)
    await bucket.delete("k", revision=first)  # what was there then, and nothing that came later
    assert await bucket.get("k") == (b"2", again)
    await bucket.delete("k", revision=again)
    assert await bucket.get("k") is None


@pytest.mark.asyncio
async def test_items_of_a_bucket_are_those_below_the_prefix(bus: Bus, unique: str) -> None:
    bucket = await bus.bucket(unique)
    keys = ["lease", "lease.a.0", "lease.a.1", "leases.b", "pool.x"]
    revisions = {key: await bucket.put(key, key.encode()) for key in keys}
    await bucket.put("lease.gone", b"")
    await bucket.delete("lease.gone")
    everything = {key: (key.encode(), revisions[key]) for key in keys}
    assert await bucket.items() == everything
    assert await bucket.items("lease") == {k: everything[k] for k in keys[:3]}
    assert await bucket.items("lease.a") == {k: everything[k] for k in keys[1:3]}
    assert await bucket.items("nothing") == {}


@pytest.mark.asyncio
async def test_a_bucket_tells_its_last_revision_and_what_was_put_behind_one(bus: Bus, unique: str) -> None:
    bucket = await bus.bucket(unique)
    assert await bucket.revision() == 0
    first, second = await bucket.put("a", b"1"), await bucket.put("b.c", b"1")
    assert await bucket.revision() == second
    assert await bucket.items(after=first) == {"b.c": (b"1", second)}
    assert await bucket.items(after=second) == {}
    third = await bucket.put("a", b"2")
    assert await bucket.items(after=second) == {"a": (b"2", third)}
    assert await bucket.items("b", after=first) == {"b.c": (b"1", second)}
    await bucket.delete("a")
    assert (await bucket.revision(), await bucket.items(after=second)) == (third, {})


@pytest.mark.asyncio
async def test_keys_below_a_prefix_expire_by_when_they_were_put(bus: Bus, unique: str) -> None:
    bucket = await bus.bucket(unique)
    clock = await bus.ensure_stream(StreamConfig(f"{unique}-clock", [f"{unique}.clock"]))
    for key in ("1.a", "1.b", "1.again", "2.a", "10.a"):
        await bucket.put(key, b"")
    info = await bus.stream(clock.name)
    assert info is not None
    for key in ("1.again", "1.c"):
        await bucket.put(key, b"")
    await bucket.expire("1", info.now)
    assert sorted(await bucket.items()) == ["1.again", "1.c", "10.a", "2.a"]
    await bucket.expire("1", info.now)
    await bucket.expire("2", 0.0)
    await bucket.expire("nothing", info.now)
    assert sorted(await bucket.items()) == ["1.again", "1.c", "10.a", "2.a"]
    await bucket.expire("1", info.now + 3600)
    assert sorted(await bucket.items()) == ["10.a", "2.a"]


@pytest.mark.asyncio
async def test_the_latest_below_a_prefix_is_what_was_written_last(bus: Bus, unique: str) -> None:
    bucket = await bus.bucket(unique)
    assert await bucket.latest("a") is None
    for key in ("a.2", "a.10", "a.1", "a", "a.b.c", "ab.1", "b.1"):
        await bucket.put(key, key.encode())
    assert await bucket.latest("a") == b"a.1"
    await bucket.put("a.10", b"again")
    assert await bucket.latest("a") == b"again"


@pytest.mark.asyncio
async def test_an_object_is_named_by_its_content(buses: Buses, unique: str) -> None:
    one, two = await buses[0].objects(unique), await buses[1].objects(unique)
    large = bytes(range(256)) * (5 * 4096) + b"end"  # 5 MiB and a bit: over max_payload
    for data in (large, b"", b"small"):
        name = await one.put(data)
        assert name == hashlib.sha256(data).hexdigest()
        assert await two.put(data) == name
        assert await two.get(name) == data
    assert await one.get("0" * 64) is None


@pytest.mark.asyncio
async def test_an_object_is_removed_unless_it_was_put_again_since(buses: Buses, unique: str) -> None:
    one, two = await buses[0].objects(unique), await buses[1].objects(unique)
    data, other = b"x" * 700_000, b"other"
    name, kept = await one.put(data), await one.put(other)
    before = await two.listing()
    assert set(before) == {name, kept}
    await two.put(data)
    touched = await two.listing()
    assert touched[name] > before[name]
    assert touched[kept] == before[kept]
    assert not await one.remove(name, before[name])
    assert await one.get(name) == data
    assert await one.remove(name, touched[name])
    assert not await one.remove(name, touched[name])
    assert await two.get(name) is None
    assert set(await two.listing()) == {kept}
    assert await two.put(data) == name
    assert await one.get(name) == data


@pytest.mark.asyncio
async def test_an_object_that_is_put_while_it_is_removed_is_whole_or_gone(buses: Buses, unique: str) -> None:
    one, two = await buses[0].objects(unique), await buses[1].objects(unique)
    data = b"y" * 700_000
    name = await one.put(data)
    for _ in range(10):
        put = (await one.listing())[name]
        removed, _ = await asyncio.gather(one.remove(name, put), two.put(data))
        assert await two.get(name) == data, removed


@pytest.mark.asyncio
async def test_an_object_may_have_64_mib(bus: Bus, unique: str) -> None:
    objects = await bus.objects(unique)
    data = bytes(range(251)) * ((64 << 20) // 251 + 1)
    name = await objects.put(data)
    assert await objects.put(data) == name
    assert await objects.get(name) == data
    assert await objects.remove(name, (await objects.listing())[name])
