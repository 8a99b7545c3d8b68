"""Digests that only who knows a secret can make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgi_tasks.signing import SIZE, Signer

OLD, NEW = "the old secret", "the new secret"


@given(st.binary())
def test_what_was_signed_is_accepted(content):
    signer = Signer([OLD])
    assert signer.verifies(content, signer.sign(content))


def test_a_digest_has_the_size_that_payloads_leave_for_it():
    assert len(Signer([OLD]).sign(b"x")) == SIZE


def test_two_processes_make_the_same_digest():
    assert Signer([OLD]).sign(b"x") == Signer([OLD]).sign(b"x")


@given(st.binary(), st.binary())
def test_the_digest_of_something_else_is_refused(content, other):
    signer = Signer([OLD])
    assert signer.verifies(content, signer.sign(other)) is (content == other)


@pytest.mark.parametrize("digest", [b"", b"x", bytes(SIZE), bytes(100)])
def test_what_is_no_digest_is_refused(digest):
    assert Signer([OLD]).verifies(b"x", digest) is False


def test_what_another_secret_has_signed_is_refused():
    assert Signer([NEW]).verifies(b"x", Signer([OLD]).sign(b"x")) is False


def test_the_first_secret_signs():
    assert Signer([NEW, OLD]).sign(b"x") == Signer([NEW]).sign(b"x")


@pytest.mark.parametrize("secret", [NEW, OLD])
def test_what_any_of_the_secrets_has_signed_is_accepted(secret):
    assert Signer([NEW, OLD]).verifies(b"x", Signer([secret]).sign(b"x"))


def test_secrets_that_differ_late_make_other_digests():
    assert Signer(["x" * 100 + "1"]).sign(b"x") != Signer(["x" * 100 + "2"]).sign(b"x")


@pytest.mark.parametrize("secret", ["gehëim", "half of a pair: \ud83d", "x" * 10_000])
def test_any_text_is_a_secret(secret):
    signer = Signer([secret])
    assert signer.verifies(b"x", signer.sign(b"x"))


def test_a_digest_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda *both: compared.append(both) or False)
    assert Signer([NEW, OLD]).verifies(b"x", b"y") is False
    assert [theirs for _, theirs in compared] == [b"y", b"y"]


def test_signing_leaves_no_trace_of_what_was_signed_before():
    signer = Signer([OLD])
    signer.sign(b"something else")
    signer.verifies(b"and more", b"")
    assert signer.sign(b"x") == Signer([OLD]).sign(b"x")


def test_a_fingerprint_tells_the_first_secrets_apart_and_nothing_of_them():
    found = Signer([OLD]).fingerprint
    assert found == Signer([OLD, NEW]).fingerprint != Signer([NEW, OLD]).fingerprint
    assert (len(found), OLD in found) == (12, False)
