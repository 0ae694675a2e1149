"""Distinct k-mers of sequences, whichever strand: to find what two sets of sequence share."""

from dataclasses import dataclass, field

import numpy as np

from dna_mamba.data.vocabulary import BASE_BITS, STORE_T

K = 31
MOST = 1 << 24
"""About so many k-mers are kept; of longer sequence one in a power of two, chosen by a hash, the same in all sets."""
CHUNK = 1 << 22
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Kmers:
    """A sample of the canonical 31-mers of some sequences (Irber et al. 2022 name it FracMinHash)."""

    one_of: int = 1
    """A power of two: those whose hash is divisible by it are kept."""
    _parts: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def for_bases(cls, num_bases: int) -> "Kmers":
        """Choose the sample by how much sequence there will be in all."""
        one_of = 1
        while num_bases > MOST * one_of:
            one_of *= 2
        return cls(one_of)

    def add(self, stored: np.ndarray) -> None:
        """Add the 31-mers of a sequence (store bytes) that hold no N."""
        for start in range(0, max(0, len(stored) - K + 1), CHUNK):
            self._parts.append(self._sample(kmers_by_position(stored[start : start + CHUNK + K - 1])))

    def distinct(self) -> np.ndarray:
        """Give the sample, sorted, each once."""
        return np.unique(np.concatenate(self._parts)) if self._parts else np.zeros(0, np.uint64)

    def _sample(self, codes: np.ndarray) -> np.ndarray:
        codes = codes[codes != NONE]
        if self.one_of > 1:
            codes = codes[sampled(codes, self.one_of)]
        return np.unique(codes)


NONE = np.uint64(2**64 - 1)
"""Code of a 31-mer that holds an N."""


def kmers_by_position(stored: np.ndarray) -> np.ndarray:
    """Give the code of the 31-mer that begins at each position, the smaller of both strands' (uint64)."""
    bases = stored & BASE_BITS
    number = max(0, len(bases) - K + 1)
    known = np.concatenate([[0], np.cumsum(bases > STORE_T)])
    bases = np.minimum(bases, STORE_T).astype(np.uint64)
    forward, backward = np.zeros(number, np.uint64), np.zeros(number, np.uint64)
    for i in range(K):
        forward = (forward << np.uint64(2)) | bases[i : i + number]
        backward |= (np.uint64(3) - bases[i : i + number]) << np.uint64(2 * i)
    codes = np.minimum(forward, backward)
    codes[known[K : K + number] != known[:number]] = NONE
    return codes


def contained(codes: np.ndarray, distinct: np.ndarray) -> np.ndarray:
    """Say which codes stand in a sorted array."""
    if not len(distinct):
        return np.zeros(len(codes), bool)
    places = np.minimum(np.searchsorted(distinct, codes), len(distinct) - 1)
    return distinct[places] == codes


def sampled(codes: np.ndarray, one_of: int) -> np.ndarray:
    """Say which codes belong to the sample of one in a power of two."""
    mixed = codes * _MIX  # overflow is wanted: multiplication modulo 2^64
    return (mixed ^ (mixed >> np.uint64(32))) % np.uint64(one_of) == 0
