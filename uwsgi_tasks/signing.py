"""Digests that only who knows a secret can make."""

from __future__ import annotations

from collections.abc import Sequence

SIZE = 16
"""Bytes of a digest."""


class Signer:
    """Signs with the first of *secrets*, and accepts what any of them has signed."""

    def __init__(self, secrets: Sequence[str]) -> None:
        # They load OpenSSL, half as much memory as all of us, and many have no secret.
        import hashlib  # noqa: PLC0415
        from hmac import compare_digest  # noqa: PLC0415

        self._equal = compare_digest
        # A key of BLAKE2b has 64 bytes at most, a secret any number.
        keys = [hashlib.blake2b(secret.encode("utf-8", "surrogatepass")) for secret in secrets]
        # Prepared once: a copy of it costs half of a new one.
        self._hashes = [
            hashlib.blake2b(key=key.digest(), digest_size=SIZE, person=b"uwsgi_tasks")
            for key in keys
        ]

    def sign(self, content: bytes) -> bytes:
        """Return the digest of *content*."""
        made = self._hashes[0].copy()
        made.update(content)
        return made.digest()

    def verifies(self, content: bytes, digest: bytes) -> bool:
        """Has *content* this digest, by any of the secrets? Takes the same time for all digests."""
        for prepared in self._hashes:
            made = prepared.copy()
            made.update(content)
            if self._equal(made.digest(), digest):
                return True
        return False

    @property
    def fingerprint(self) -> str:
        """Name the first secret without telling it, to compare two processes."""
        return self.sign(b"fingerprint").hex()[:12]
