"""Row P12c: what the Open Inference Protocol's text promises, asked of ``zoo serve`` with clients that others wrote."""

from __future__ import annotations

import json
import subprocess

from figures import Figure
from predict_access import shop_service
from predict_peers import PEERS, SERVED, peer_python


def p12c() -> list[Figure]:
    """Every check of ``peers/ask_protocol.py``."""
    with shop_service() as (_, client):
        served = [str(client.base_url).rstrip("/"), "churn", "1", "user_id"]
        command = [peer_python("protocol"), str(SERVED / "ask_protocol.py"), *served]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout)
    clients = PEERS["protocol"]
    failed = [each for each in told if each["failed"]]
    for each in failed:
        print(f"{each['check']}: {each['failed']}")
    return [
        Figure(
            id="P12c",
            what=f"Open Inference Protocol v2 over HTTP: checks of {len(told)} (live, ready, metadata, every datatype and shape of an "
            f"input, nested and flat data, ids, outputs, parameters, errors, binary extension) that failed, by {' and '.join(clients)}",
            ours=len(failed),
            unit="checks",
            must="0",
            reached=not failed,
            why="; ".join(f"{each['check']}: {each['failed']}" for each in failed)[:500],
        )
    ]
