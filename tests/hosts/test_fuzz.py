"""Fuzzing of the hosts: no answer of 500 or above, and the same workers afterwards.

PSPNET_FUZZ_REQUESTS and PSPNET_FUZZ_SEED set number and seed; the toolkit gets a tenth of the requests.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.support import hosts
from tests.hosts import fuzz
from tests.hosts.exchange import encoded, opened, picture, post

REQUESTS = int(os.environ.get("PSPNET_FUZZ_REQUESTS", "2000"))
SEED = int(os.environ.get("PSPNET_FUZZ_SEED", "0"))
CLIENTS = 4
FRAME_PNG = encoded(picture(96, 128))
# A damaged header may declare any image size; limit the cost of each.
SMALL = {"PSPNET_PIXELS": "262144", "PSPNET_BODY_SECONDS": "5"}


@pytest.fixture(scope="module")
def serve(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Host]:
    """`pspnet serve` that rejects large images."""
    with hosts.serve(model_dir, tmp_path_factory.mktemp("serve"), workers=2, environment=SMALL) as host:
        host.wait_ready(FRAME_PNG, "image/png")
        yield host


def problem_of(host: hosts.Host, answer: fuzz.Answer) -> str | None:
    """Return the problem of an answer, or None."""
    if answer.status >= 500 or b"Traceback" in answer.body:
        return f"{answer.status} {answer.body[:200]!r}"
    if answer.status == 200 and answer.content_type == "image/png":
        with opened(answer.body) as image:
            image.load()
    if 400 <= answer.status < 500 and answer.content_type.startswith("text/plain"):
        text = answer.body.decode().strip()
        if "\n" in text or len(text) > 400:
            return f"{answer.status} with more than a sentence: {text[:200]!r}"
    return None


def run(host: hosts.Host, count: int) -> Counter[int]:
    """Send `count` requests from several clients and count the statuses. Fails with the numbers of bad requests."""
    problems = []

    def send(number: int) -> int:
        # TorchServe itself answers unknown paths and forms with 500; only the handlers are tested here.
        answer = fuzz.exchange(host.port, fuzz.request(SEED, number, plain=host.name == "toolkit"))
        problem = problem_of(host, answer)
        if problem:
            problems.append(f"request {number} of seed {SEED}: {problem}")
        return answer.status

    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = Counter(pool.map(send, range(count)))
    assert not problems, "\n".join(problems[:10])
    return statuses


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.campaign)])
def test_no_request_fails_a_host(host: hosts.Host, times: int) -> None:
    count = times * (REQUESTS if host.name == "serve" else REQUESTS // 10)
    before, mask = host.workers(), post(host, FRAME_PNG).body
    statuses = run(host, count)
    print(f"{host.name}: {count} requests, statuses {dict(statuses)}")
    # Check that the generator covers accepted requests and several reasons for rejection.
    assert statuses[200] > count / 20
    assert {400, 406, 415} <= set(statuses)
    time.sleep(1.0)
    assert host.workers() == before
    assert post(host, FRAME_PNG).body == mask
