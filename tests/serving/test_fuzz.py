"""A few of the requests of `python -m benchmarks.fuzz`: whatever is sent, the answer is one that the server means."""

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks

from benchmarks import fuzz, fuzz_requests
from serving.http.openapi import document
from tests.serving.grpc_calls import calling, infer_request

load_all_checks()
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def few(times):
    """The same ones each time."""
    return settings(
        max_examples=times,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize(
    "requests", [pytest.param(requests, id=name) for name, requests in fuzz.operations(document(token=False))]
)
def test_what_is_documented_is_so(server, requests):
    """Statuses, media types, headers and bodies of answers to requests made from the document."""

    @few(10)
    @given(requests)
    def send(case):
        response = case.call(base_url=server.url)
        assert fuzz.is_right(response.status_code), response.text
        case.validate_response(response, checks=CHECKS)

    send()


def test_bytes(server):
    statuses = set()

    @few(300)
    @given(fuzz_requests.http_requests())
    def send(sent):
        status = fuzz.status_of(server, sent)
        assert fuzz.is_right(status, sent.whole)
        statuses.add(status)

    send()
    # It reaches what there is. Which further refusals are among so few is chance.
    assert {200, 400, None} < statuses
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_messages(server, raw):
    codes, message = set(), infer_request(raw=raw).SerializeToString()
    with calling(server) as call:

        @few(100)
        @given(fuzz_requests.damaged(message) | fuzz_requests.repeated(message))
        def send(message):
            code = call("ModelInfer", message).code().name
            assert code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND")
            codes.add(code)

        send()
    assert len(codes) == 3
