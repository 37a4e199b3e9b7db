"""Texts as flat arrays of words and sentences, so that a hundred thousand of them can be mined with numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

# Sentences end at . ! ? with closing quotes (2019 and 201D the curly ones), line breaks, semicolons and lone dashes.
_CLOSING = r"[\"')\]\x{201D}\x{2019}*]*"
_SENTENCE_END = (
    rf"[.!?\x{{2026}}]+{_CLOSING}\s+|[.!?\x{{2026}}]+{_CLOSING}$|\s*\n\s*|;\s+|\s+[-\x{{2013}}\x{{2014}}]+\s+"
)
_NOT_WORD = r"[^\p{L}\p{N}\p{M}']+"
HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Encoded:
    """Texts as flat arrays of words. word, sentence (T,): vocabulary code and sentence of each word, in order;
    document (S,): text of each sentence; surface: the S sentences as written; vocabulary with hashes of its content."""

    word: np.ndarray
    sentence: np.ndarray
    document: np.ndarray
    surface: pa.Array
    vocabulary: list[str]
    hashes: np.ndarray
    n_documents: int

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, hashes) of all runs of n words inside a sentence."""
        stop = max(0, len(self.word) - n + 1)
        positions = np.flatnonzero(self.sentence[:stop] == self.sentence[n - 1 : n - 1 + stop])
        hashed = np.zeros(len(positions), dtype=np.uint64)
        for offset in range(n):
            hashed = hashed * HASH_MULTIPLIER + self.hashes[self.word[positions + offset]]
        return positions, hashed

    @cached_property
    def starts(self) -> np.ndarray:
        """First word of each sentence, and the end: (S + 1,)."""
        return np.searchsorted(self.sentence, np.arange(len(self.document) + 1))

    @property
    def lengths(self) -> np.ndarray:
        """Words in each text."""
        return np.bincount(self.document[self.sentence], minlength=self.n_documents)

    def words_at(self, position: int, n: int) -> str:
        return " ".join(self.vocabulary[code] for code in self.word[position : position + n])


def encode(texts: Sequence[str]) -> Encoded:
    """Split texts into sentences and lower-case words; in Arrow, since texts come by the hundred thousand."""
    column = pa.array([text.replace("\u2019", "'") for text in texts], type=pa.large_string())
    by_text = pc.split_pattern_regex(column, _SENTENCE_END)
    surface = by_text.flatten()
    by_sentence = pc.split_pattern_regex(pc.utf8_lower(surface), _NOT_WORD)
    tokens = by_sentence.flatten().dictionary_encode()
    stripped = np.array([word.strip("'") for word in tokens.dictionary.to_pylist()], dtype=object)
    renumber, vocabulary = pd.factorize(stripped)
    word = renumber[tokens.indices.to_numpy()]
    sentence = np.repeat(np.arange(len(surface)), pc.list_value_length(by_sentence).to_numpy())
    real = (stripped != "")[tokens.indices.to_numpy()]
    return Encoded(
        word=word[real],
        sentence=sentence[real],
        document=np.repeat(np.arange(len(texts)), pc.list_value_length(by_text).to_numpy()),
        surface=surface,
        vocabulary=list(vocabulary),
        hashes=pd.util.hash_array(np.asarray(vocabulary, dtype=object)),
        n_documents=len(texts),
    )


def word_sets(text: Encoded, sentences: np.ndarray) -> sparse.csr_matrix:
    """Zeros and ones, (len(sentences), vocabulary): the words of each of those sentences."""
    lengths = text.starts[sentences + 1] - text.starts[sentences]
    row_ends = np.concatenate([[0], np.cumsum(lengths)])
    at = np.arange(row_ends[-1]) + np.repeat(text.starts[sentences] - row_ends[:-1], lengths)
    matrix = sparse.csr_matrix(
        (np.ones(len(at), dtype=np.int32), text.word[at], row_ends), shape=(len(sentences), len(text.vocabulary))
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
