"""Words, numbers and names, harmless and hostile."""

from __future__ import annotations

from hypothesis import strategies as st

from tests import hostile

TEXTS = st.sampled_from(hostile.TEXTS) | st.text(max_size=12)
NUMBERS = st.sampled_from(hostile.NUMBERS) | st.integers() | st.floats()
NAMES = st.sampled_from(hostile.NAMES) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\x00"), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))
VALUES = (
    TEXTS | NUMBERS | st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(max_size=3), st.none(), max_size=2)
)
