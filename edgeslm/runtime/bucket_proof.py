"""The golden vector of a graph, computed by one signature after the other.

All signatures of a graph are the same network, so each must give what the package states; a runtime may compute one
right and another wrong. Each is proved on its own bucket's cache, from zeros, before it computes for anybody. Greedy
decoding proves ``decode``, together with the prefill that the tokens were put in by. A vector of a single token says
nothing about prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgeslm.errors import ProofError
from edgeslm.runtime.buckets import Bucket, Signature
from edgeslm.runtime.executor import Logits
from edgeslm.schema.package import GraphProof

_HINT = "This runtime computes other values than the package was made with; it is not served"


class Computer(Protocol):
    """Computes the signatures of one bucket over a sequence that is empty at first."""

    @property
    def position(self) -> int:
        """Tokens that are in the cache."""

    def step(self, token: int) -> Logits:
        """Append `token` by the decode signature; logits of what follows, (vocab,) float32."""

    def compute(self, signature: Signature, chunk: Sequence[int]) -> Logits | None:
        """Append `chunk` by `signature`; logits after each token of it, where it gives them."""


class BucketProof:
    """The golden vector of one graph."""

    def __init__(self, golden: GraphProof, path: str) -> None:
        """`path` of the graph is for messages."""
        self._golden = golden
        self.path = path

    @property
    def places(self) -> int:
        """Positions that it takes: a bucket with fewer can't be proved."""
        return len(self._golden.tokens) + len(self._golden.greedy) - 1

    def check(self, computer: Computer, bucket: Bucket, signature: Signature) -> set[str]:
        """Compute it by `signature`.

        Returns:
            Names of the signatures that had a part in it: they are proved.

        Raises:
            ProofError: logits or greedy continuation differ from what the package states.
            InferenceError: the runtime fails.
        """
        tokens = self._golden.tokens
        filler = signature if signature.kind == "prefill" else _shortest(bucket)
        took_part = {signature.name}
        if signature.kind == "verify":
            count = min(signature.count, len(tokens))
            took_part |= self._fill(computer, tokens[:-count], bucket, filler)
            rows = computer.compute(signature, tokens[-count:])
            if rows is None:
                raise ProofError(f"'{signature.name}' gives no logits", path=self.path, hint=_HINT)
            self._compare(rows.reshape(signature.count, -1)[count - 1], 0)
            return took_part
        took_part |= self._fill(computer, tokens[:-1], bucket, filler)
        token = tokens[-1]
        for index in range(len(self._golden.greedy)):
            token = self._compare(computer.step(token), index)
        return took_part | {bucket.decode.name}

    def _fill(
        self, computer: Computer, tokens: Sequence[int], bucket: Bucket, filler: Signature | None
    ) -> set[str]:
        """Append `tokens` by `filler` as far as it fits, else by single steps; what took part."""
        took_part = set()
        while tokens:
            if filler is not None and filler.fits(computer.position):
                computer.compute(filler, tokens[: filler.count])
                tokens = tokens[filler.count :]
                took_part.add(filler.name)
            else:
                computer.step(tokens[0])
                tokens = tokens[1:]
                took_part.add(bucket.decode.name)
        return took_part

    def _compare(self, logits: Logits, index: int) -> int:
        """The next token; `logits` are those before token `index` of the answer."""
        golden = self._golden
        if index == 0:
            self._compare_logits([float(logits[i]) for i in golden.logit_ids if i < logits.size])
        token, expected = int(logits.argmax()), golden.greedy[index]
        if token != expected:
            raise ProofError(
                f"golden vector: token {index} is {token}, the package states {expected}",
                path=self.path,
                hint=_HINT,
            )
        return token

    def _compare_logits(self, found: list[float]) -> None:
        golden = self._golden
        if len(found) != len(golden.logits):
            raise ProofError("golden vector names tokens beyond the vocabulary", path=self.path)
        # Negated so that NaN counts as a difference.
        apart = [(f, e) for f, e in zip(found, golden.logits, strict=True) if not abs(f - e) <= golden.atol]
        if not apart:
            return
        what = (
            "all logits are zero"
            if not any(found)
            else f"a logit is {apart[0][0]:.4f} instead of {apart[0][1]:.4f}"
        )
        raise ProofError(
            f"golden vector: {what} ({len(apart)} of {len(found)} differ by more than {golden.atol:g})",
            path=self.path,
            hint=_HINT,
        )


def _shortest(bucket: Bucket) -> Signature | None:
    return bucket.prefill[min(bucket.prefill)] if bucket.prefill else None
