"""A dictionary in parts says what a dictionary says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ringraft.state.spread import PARTS_MASK, Spread

steps = st.lists(st.tuples(st.sampled_from(["swap", "pop"]), st.integers(0, 200), st.integers(1, 9)), max_size=80)


@given(steps)
def test_it_says_what_a_dictionary_says(drawn: list[tuple[str, int, int]]) -> None:
    spread: Spread[int, int] = Spread()
    plain: dict[int, int] = {}
    for verb, key, value in drawn:
        if verb == "swap":
            assert spread.swap(key, value) == plain.get(key)
            plain[key] = value
        else:
            assert spread.pop(key) == plain.pop(key, None)
        assert len(spread) == len(plain)
        assert spread.get(key) == plain.get(key)
        assert (key in spread) == (key in plain)
    assert sorted(spread.items()) == sorted(plain.items())
    assert sorted(spread) == sorted(plain)
    assert sorted(spread.values()) == sorted(plain.values())
    other: Spread[int, int] = Spread()
    for key, value in reversed(plain.items()):
        other.swap(key, value)
    assert spread == other
    assert not plain or spread != Spread()


def test_no_part_holds_more_than_its_share() -> None:
    spread: Spread[str, int] = Spread()
    for number in range(64_000):
        spread.swap(f"w{number:x}-{number % 1000:x}", number)
    assert len(spread.holders()) == PARTS_MASK + 1
    assert max(len(part) for part in spread.holders()) < 1300
