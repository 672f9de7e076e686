"""What users of other engines suffer from, and how drafts of this one failed: each is held by a test, which names it.

A test names what it holds by its letter and number, in a comment behind its signature: `# E7, G4`. N: of any engine on NATS;
P: of one other engine; E: event time; I: identity, order and commits; G: gates.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover  # it runs none of our code
HERE = Path(__file__).parents[1]
ID = re.compile(r"\b[NPEIG]\d{1,2}\b")
PAINS = {
    "N1": "a consumer is silent after the server was restarted",
    "N2": "messages wait in a process for longer than their ack_wait, and come twice",
    "N3": "one message is fetched at a time",
    "N4": "a retry does not wait for its back-off",
    "N5": "a slow handler gives no sign of life, and one that hangs gives signs for ever",
    "N6": "a full buffer drops what it cannot hold",
    "N7": "a redelivery breaks the order of a key, or order makes everything wait",
    "N8": "a consumer group has no partitions",
    "N9": "streams of others are changed",
    "N10": "a batch goes early, or one by one",
    "N11": "an option is taken and ignored",
    "N12": "two pipelines on one stream end each other's consumer",
    "N13": "a limit of concurrency is not kept",
    "N14": "what the server can do is out of reach: atomic batches",
    "N15": "work is done twice because its ack was lost",
    "P1": "FastStream: without an id, retries are not counted and go on for ever",
    "P2": "FastStream: its test broker delivers nothing again",
    "P3": "Connect: no batch by time and number for each key, and nothing that forgets a key",
    "P4": "Connect: tests cannot look at a whole pipeline",
    "P5": "Bytewax: a failure before the first checkpoint is recovered wrongly",
    "P6": "Bytewax: a new version reads what an old one stored as something else",
    "P7": "Quix: windows of a stream that became silent never close",
    "P8": "Quix, Faust: a partition or a consumer stands still, and the process looks healthy",
    "P9": "Quix: partitions that come and go keep recovery from ever being done",
    "P10": "Quix: a join stands still after a restart",
    "P11": "Faust: a rebalance does not end",
    "P12": "Faust: after a rebalance two owners write",
    "P13": "Faust: stopping hangs",
    "P14": "Faust: more processes than partitions hang",
    "P15": "Arroyo: it cannot be restarted after a sink has failed",
    "P16": "Arroyo: it cannot be restarted without its state",
    "P17": "Numaflow: a part of a pipeline cannot be paused alone",
    "P18": "Numaflow: calls of a model cannot be limited to a rate",
    "P19": "Kafka Streams: windows wait a day for late events unless told otherwise",
    "E0": "answers of a model are late for the windows behind it",
    "E1": "a window behind a call in one stage gets everything late",
    "E2": "silence moves event time to today",
    "E3": "one event of the future makes all others late",
    "E4": "a watermark goes back",
    "E5": "results of windows are late for the next window",
    "E6": "a replay closes other windows",
    "E7": "who is cut off from a source takes it for idle",
    "E8": "a partition that never had an event holds all others",
    "E9": "watermarks cost a message for each pair of partitions",
    "E10": "a watermark is stated of what is not committed",
    "E11": "a source that is added holds or spoils the windows that are open",
    "E12": "what was dropped holds a watermark for ever",
    "E13": "an event that waits holds all windows",
    "E14": "a late event is late again when it is redriven",
    "E15": "an event of an open window is late",
    "E16": "a session that grows becomes another one",
    "E17": "windows that end together let nothing else have its turn",
    "E18": "a sliding window writes a state for each step",
    "E19": "a day of downtime expires state",
    "E20": "a source that is read faster fills the state of a join",
    "E21": "an event is looked up in a table that was not read yet",
    "I1": "children of one event have one id behind a hop",
    "I2": "a call is taken for an earlier one, and its paid answer is dropped",
    "I3": "outputs in another order are lost and doubled when an event is processed again",
    "I4": "a recovered engine iterates in another order",
    "I5": "the events of one message are all taken or none",
    "I6": "a function that fails leaves a half-changed state",
    "I7": "an engine that lost one partition loses the commits of its others",
    "I8": "a new edge merges stages that hold something",
    "I9": "more state than a message holds cannot be committed",
    "I10": "a large snapshot cannot be stored, or is taken for a torn commit",
    "I11": "a clock that was ahead once stops all deadlines",
    "I12": "a result of a window that fails is lost",
    "I13": "a rate holds for each partition, and a gather over a hop waits for ever",
    "G1": "letters that are redriven pass the gate",
    "G2": "a gate holds what would open it, or lets pass what opens calls",
    "G3": "state closes a gate that nothing can open",
    "G4": "a partition that waits keeps all others waiting",
    "G5": "a full stream keeps commits from making room",
    "G6": "a deadline beats a result that is stored",
}


def held() -> set[str]:
    """What tests name behind their signatures, which end in a line of their own where they are long."""
    lines = [line for file in HERE.rglob("test_*.py") for line in file.read_text().splitlines()]
    signatures = [line for line in lines if line.startswith((")", "def test_", "async def test_"))]
    return {id for line in signatures for id in ID.findall(line.partition("#")[2])}


def test_each_pain_of_other_engines_is_held_by_a_test_that_names_it() -> None:
    assert held() == set(PAINS)
