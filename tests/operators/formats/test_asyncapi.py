"""`Topology.to_asyncapi`: what a topology reads and sends, as AsyncAPI 3.0 says it."""

from __future__ import annotations

from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema
from jsonschema import Draft202012Validator
from pydantic import BaseModel

import dspex


class Order(BaseModel):
    id: int
    notes: list[str] = []


def topology() -> dspex.Topology:
    made = dspex.Topology("shop")
    made.source("shop.orders.*", Order).call(dspex.predict("notes: list[str] -> mood"), name="read").sink("shop.moods.{mood}")
    made.source("shop.raw.>").map(lambda data: data, name="as_it_is").sink("shop.copies")
    return made


def test_sources_are_received_sinks_are_sent_and_pools_have_queues() -> None:
    found = topology().to_asyncapi()
    assert found["asyncapi"] == "3.0.0"
    said = {name: (of["action"], of["channel"]["$ref"]) for name, of in found["operations"].items()}
    assert said == {
        "receive_shop_orders__": ("receive", "#/channels/shop_orders__"),
        "receive_shop_raw__": ("receive", "#/channels/shop_raw__"),
        "send_shop_moods__mood_": ("send", "#/channels/shop_moods__mood_"),
        "send_shop_copies": ("send", "#/channels/shop_copies"),
        "receive_pool_lightweight": ("receive", "#/channels/pool_lightweight"),
    }
    assert found["operations"]["receive_pool_lightweight"]["bindings"]["nats"]["queue"] == "lightweight"
    addresses = {channel["title"]: channel["address"] for channel in found["channels"].values()}
    assert addresses["shop.orders.*"] == "shop.orders.{token2}"
    assert addresses["shop.raw.>"] == "shop.raw.{rest}"
    assert addresses["shop.moods.{mood}"] == "shop.moods.{mood}"


def test_payloads_have_schemas_of_what_the_graph_knows() -> None:
    channels = topology().to_asyncapi()["channels"]
    payload = channels["shop_moods__mood_"]["messages"]["event"]["payload"]
    Draft202012Validator.check_schema(payload)
    Draft202012Validator(payload).validate({"id": 1, "notes": ["a"], "mood": "good"})
    assert list(Draft202012Validator(payload).iter_errors({"id": "one"}))
    assert channels["shop_copies"]["messages"]["event"]["payload"] == {}


def test_another_reader_of_asyncapi_takes_the_document() -> None:
    read = ApplicationSchema.model_validate(topology().to_asyncapi())
    assert set(read.channels) == set(topology().to_asyncapi()["channels"])
