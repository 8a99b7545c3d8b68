"""What a probe is answered."""

import http.client
import json
import socket
from types import SimpleNamespace

import pytest

from tests.servers import free_port
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.health import answer


@pytest.fixture
def place():
    """A worker that is well or not, and the address of its probes."""
    found = SimpleNamespace(address=("127.0.0.1", free_port()), is_well=True)
    answer(found.address, lambda: found.is_well, {"pid": 7})
    return found


def ask(address, method="GET", path="/"):
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/healthz?full=1"])
def test_one_that_is_well_answers_200_with_what_is_known_of_it(place, path):
    code, said = ask(place.address, path=path)

    assert (code, json.loads(said)) == (200, {"healthy": True, "pid": 7})


def test_one_that_is_not_answers_503(place):
    place.is_well = False

    code, said = ask(place.address)

    assert (code, json.loads(said)["healthy"]) == (503, False)


def test_who_asks_for_the_head_alone_gets_no_more(place):
    assert ask(place.address, "HEAD") == (200, b"")


def test_one_who_says_nothing_keeps_nobody_waiting(place):
    with socket.create_connection(place.address):
        assert ask(place.address)[0] == 200


def test_an_address_that_cannot_be_had_is_refused(place):
    host, port = place.address

    with pytest.raises(ConfigurationError) as caught:
        answer(place.address, lambda: True, {})
    assert str(caught.value) == f"--health {host}:{port}: Address already in use"


def test_a_host_that_there_is_not_is_refused():
    with pytest.raises(ConfigurationError, match=r"--health no\.such\.host\.invalid:8080: "):
        answer(("no.such.host.invalid", 8080), lambda: True, {})


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_it_answers_at_addresses_of_the_new_kind():
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
            port = one.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    answer(("::1", port), lambda: True, {})

    assert ask(("::1", port))[0] == 200
