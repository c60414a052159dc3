"""Write message.json: one message as it stands on the wire, byte by byte.

Run it again only when the wire format changes on purpose: ``python tests/vectors/make_message.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tacit.protos.codec import encode_records
from tacit.protos.fleet_pb2 import InstructionHead
from tacit.protos.flower import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from tacit.protos.frames import encode_chunk, encode_head

VECTOR = Path(__file__).parent / "message.json"


def example_content() -> RecordDict:
    """Return the content of the message: each kind of record, and an array of each shape."""
    arrays = [
        np.array([[1.5, -2.0], [0.0, 3.25]], dtype=np.float32),
        np.array(7, dtype=np.int64),
        np.zeros((0, 3), dtype=np.float64),
        np.array([True, False]),
    ]
    config = ConfigRecord(
        {"rate": 0.5, "round": 3, "last": False, "name": "a", "raw": b"\x00\x01", "cut": [1, 2]}
    )
    metrics = MetricRecord({"num-examples": 12, "loss": 0.25, "per-class": [0.5, 1.0]})
    return RecordDict({"arrays": ArrayRecord(arrays), "config": config, "metrics": metrics})


def make_vector() -> dict[str, str]:
    """Return the parts of the message as hexadecimal digits."""
    encoded = encode_records(example_content())
    head = InstructionHead(
        run_id="r-7f3a9c20",
        message_id="r-7f3a9c20.000001",
        group_id="1",
        message_type="train",
        ttl_s=600.0,
        created_at_s=1.5e9,
        manifest=encoded.manifest,
        attempt=1,
    )
    payload = encoded.payload()
    return {
        "manifest": encoded.manifest.SerializeToString().hex(),
        "payload": payload.hex(),
        "head_frame": encode_head(head).hex(),
        "chunk_frame": encode_chunk(8, payload[8:]).hex(),
    }


if __name__ == "__main__":
    VECTOR.write_text(json.dumps(make_vector(), indent=2) + "\n")
