"""A server without keys, and requests that a proxy on the same machine sent on."""

import pytest
from served import sender, served_app

from serve.forwarding import sign_of_a_proxy
from serve.keys import warnings_without_keys
from serve.settings import parse_args


@pytest.fixture(scope="module")
def send():
    return sender(served_app())


@pytest.mark.parametrize(
    "name",
    [
        *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Server", "X-Forwarded", "Forwarded"),
        *("Via", "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "CF-Ray"),
        *("Fastly-Client-IP", "Fly-Client-IP", "X-Original-Forwarded-For", "X-Envoy-External-Address", "CDN-Loop"),
        *("X-Scheme", "Tailscale-User-Login", "x_forwarded_for"),
    ],
)
@pytest.mark.parametrize("value", ["203.0.113.9", "127.0.0.1", ""])
def test_without_keys_a_request_from_a_proxy_is_refused(send, name, value):
    answer = send("GET", "/v1/models", headers={name: value})
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert error["code"] == "no_keys"
    assert f"came through a proxy (the header {name.lower()}); start the server with API keys" in error["message"]


def test_a_proxy_that_adds_nothing_but_speaks_http_1_0_is_recognized():
    assert sign_of_a_proxy(["host", "connection"], http_version="1.0") == "HTTP/1.0"
    assert sign_of_a_proxy(["host", "connection"], http_version="1.1") is None


@pytest.mark.parametrize(
    "name",
    [
        *("X-Request-ID", "X-Goog-Api-Client", "X-Stainless-Lang", "OpenAI-Organization", "Origin", "Referer"),
        *("traceparent", "X-B3-TraceId", "X-Amzn-Trace-Id", "Sec-Fetch-Site", "Accept-Encoding", "Cookie"),
    ],
)
def test_headers_of_local_clients_are_no_sign_of_a_proxy(send, name):
    assert send("GET", "/v1/models", headers={name: "1"}).status_code == 200


def test_with_keys_proxies_are_welcome():
    send = sender(served_app(keys=("secret",)))
    headers = {"X-Forwarded-For": "203.0.113.9", "Via": "1.1 proxy", "Authorization": "Bearer secret"}
    assert send("GET", "/v1/models", headers=headers).status_code == 200


def test_a_probe_through_a_proxy_needs_no_key(send):
    assert send("GET", "/health", headers={"Via": "1.1 proxy"}).status_code == 200


def test_who_serves_without_keys_is_told_about_proxies():
    args = parse_args({"scorers": [{"scorer": {"class_name": "PEP8Scorer"}}], "keys": {"env": "MY_KEYS"}})
    (warning,) = warnings_without_keys(args)
    assert "reverse proxy" in warning
    assert "MY_KEYS" in warning
