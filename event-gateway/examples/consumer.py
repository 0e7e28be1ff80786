#!/usr/bin/env python3
"""A consumer of events in a data pipeline: it chooses by the headers, holds each document against the JSON Schema, and
commits what it is through with.

    pip install -r requirements.txt
    consumer.py BROKERS TOPIC GROUP [RECORDS]

Prints `host probe id` of each event; what it cannot use goes to stderr with the reason. Ends after RECORDS records.
"""

import json
import sys
from itertools import count
from pathlib import Path

from confluent_kafka import Consumer, KafkaException
from jsonschema import Draft202012Validator, ValidationError

SCHEMA = Path(__file__).parent.parent / "schema" / "event.schema.json"
# Within it fields are only added, so that this program reads what later gateways write.
SCHEMA_VERSION = "1"


def event(message, headers, validator):
    """The document; ValueError or ValidationError where this program cannot use it."""
    if missing := [name for name in ("schema", "probe", "host") if name not in headers]:
        raise ValueError(f"it has no header {missing[0]}")
    if headers["schema"] != SCHEMA_VERSION:
        raise ValueError(f"its schema is {headers['schema']}, this program reads {SCHEMA_VERSION}")
    if message.value() is None:
        raise ValueError("it is empty")
    document = json.loads(message.value())
    validator.validate(document)
    return document


def main(brokers, topic, group, records=None):
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
        }
    )
    consumer.subscribe([topic])
    try:
        for _ in range(int(records)) if records else count():
            while (message := consumer.poll(1)) is None:
                pass
            if message.error():
                raise KafkaException(message.error())
            headers = {name: value.decode() for name, value in message.headers() or [] if value is not None}
            try:
                document = event(message, headers, validator)
                # The same event may come again: whoever stores it takes its id as the key.
                print(headers["host"], headers["probe"], document["event"]["id"])
            except (ValueError, ValidationError) as error:
                why = getattr(error, "message", error)
                print(f"{message.partition()}/{message.offset()}: {why}", file=sys.stderr)
            # It is committed in the background, and not before this.
            consumer.store_offsets(message)
    finally:
        # What was stored is committed with it.
        consumer.close()


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: consumer.py BROKERS TOPIC GROUP [RECORDS]")
    main(*sys.argv[1:])
