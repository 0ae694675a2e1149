"""Megabytes of VCF at a time: where lines and columns lie, which records say no bases, and what is put into their INFO.

Most records of a gVCF, and all whose ALT is symbolic, are passed through without an object a record; the others are taken
apart in Python, one by one.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

SLOW, SYMBOLIC, STAR, NO_ALT = range(4)
"""What a record is: one to be looked at in Python, or one whose only ALT is <NAME>, '*' or '.'."""
LINE_FEED = 10
REF_LETTERS = np.zeros(256, np.bool_)
REF_LETTERS[np.frombuffer(b"ACGTNRYSWKMBDHVacgtnryswkmbdhv", np.uint8)] = True


@dataclass(frozen=True)
class Block:
    """Whole lines of a VCF file."""

    text: bytes
    starts: np.ndarray
    """First byte of each line."""
    ends: np.ndarray
    """Behind its last, line ends left out."""
    info: np.ndarray
    """First byte and end of INFO (L, 2); 0 where a line has fewer columns."""
    kinds: np.ndarray
    first_line: int
    """Number of its first line in the file, from 1."""

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, number: int) -> bytes:
        """Give a line without its end."""
        return self.text[self.starts[number] : self.ends[number]]


@njit(nogil=True, cache=True)
def _scan(text, ref_letters, starts, ends, info, kinds):
    """Find lines, columns and kinds; return the number of lines."""
    number, at, size = 0, 0, text.size
    tabs = np.empty(8, np.int64)
    while at < size:
        starts[number] = at
        found, odd = 0, text[at] == 35  # '#'
        while at < size and text[at] != 10:
            if text[at] == 9 and found < 8:
                tabs[found] = at
                found += 1
            elif text[at] == 13 and at + 1 < size and text[at + 1] != 10:
                odd = True
            at += 1
        end = at
        at += 1
        while end > starts[number] and text[end - 1] == 13:
            end -= 1
        ends[number] = end
        kinds[number] = 0
        info[number, 0], info[number, 1] = 0, 0
        if found >= 7:
            info[number, 0], info[number, 1] = tabs[6] + 1, tabs[7] if found == 8 else end
        if found >= 7 and not odd and tabs[0] > starts[number]:
            digits = tabs[1] - tabs[0] - 1
            fits = 1 <= digits <= 9
            for place in range(tabs[0] + 1, tabs[1]):
                fits &= 48 <= text[place] <= 57
            fits &= tabs[3] > tabs[2] + 1
            for place in range(tabs[2] + 1, tabs[3]):
                fits &= ref_letters[text[place]]
            first, last = tabs[3] + 1, tabs[4] - 1
            if fits and first == last and text[first] == 42:
                kinds[number] = 2
            elif fits and first == last and text[first] == 46:
                kinds[number] = 3
            elif fits and last - first >= 2 and text[first] == 60 and text[last] == 62:
                plain = True
                for place in range(first + 1, last):
                    c = text[place]
                    plain &= c > 32 and c != 44 and c != 60 and c != 62
                if plain:
                    kinds[number] = 1
        number += 1
    return number


@njit(nogil=True, cache=True)
def _weave(text, starts, ends, info, kinds, added, lengths, prefix, out, done):
    """Write lines with what their kind adds to INFO; return bytes written, or give up at a line to be looked at in Python.

    `done` says where it stopped.
    """
    at = 0
    for number in range(starts.size):
        kind = kinds[number]
        a, b = info[number]
        if kind == 0:
            break
        # under one of our names stands something, or the INFO ends in a way that wants care
        special = a == b or text[b - 1] == 59
        for place in range(a, b - prefix.size + 1):
            same = True
            for k in range(prefix.size):
                if text[place + k] != prefix[k]:
                    same = False
                    break
            if same:
                special = True
                break
        if special:
            break
        length = lengths[kind]
        empty = b - a == 1 and text[a] == 46
        stop = a if empty and length else b
        for place in range(starts[number], stop):
            out[at] = text[place]
            at += 1
        if length and not empty:
            out[at] = 59
            at += 1
        for k in range(length):
            out[at] = added[kind, k]
            at += 1
        for place in range(b, ends[number]):
            out[at] = text[place]
            at += 1
        out[at] = 10
        at += 1
        done[0] = number + 1
    return at


def scan(text: bytes, first_line: int) -> Block:
    """Find the lines of a piece of text that ends with a line, their INFO, and what kind of record each is."""
    array = np.frombuffer(text, np.uint8)
    most = int(np.count_nonzero(array == LINE_FEED)) + 1
    starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
    info, kinds = np.empty((most, 2), np.int64), np.empty(most, np.uint8)
    number = _scan(array, REF_LETTERS, starts, ends, info, kinds)
    return Block(text, starts[:number], ends[:number], info[:number], kinds[:number], first_line)


def weave(block: Block, first: int, added: dict[int, bytes], prefix: str) -> tuple[bytes, int]:
    """Write lines from `first` on, with what each kind adds to INFO, up to one that is to be looked at in Python.

    Args:
        block: The lines.
        first: Number of the first.
        added: Text by kind; empty adds nothing.
        prefix: Records in whose INFO it stands are looked at in Python.

    Returns:
        The bytes and the number of the line where it stopped.
    """
    longest = max(len(text) for text in added.values())
    table, lengths = np.zeros((NO_ALT + 1, longest), np.uint8), np.zeros(NO_ALT + 1, np.int64)
    for kind, text in added.items():
        table[kind, : len(text)], lengths[kind] = np.frombuffer(text, np.uint8), len(text)
    done = np.zeros(1, np.int64)
    rest = slice(first, None)
    size = len(block.text) - int(block.starts[first]) + (longest + 2) * (len(block) - first)
    out = np.empty(size, np.uint8)
    written = _weave(
        np.frombuffer(block.text, np.uint8), block.starts[rest], block.ends[rest], block.info[rest], block.kinds[rest], table,
        lengths, np.frombuffer(prefix.encode(), np.uint8), out, done,
    )  # fmt: skip
    return out[:written].tobytes(), first + int(done[0])
