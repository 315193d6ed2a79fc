"""A result on the wire: what every client in every language reads."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from schemas.records import Source
from schemas.results import Label, Result, encode_result

PLACE = Source("reviews.requests", 2, 7)


def test_a_result_is_this_json() -> None:
    result = Result(
        id="a1",
        outputs={"verdict": [Label("GOOD", 0.75), Label("BAD", 0.25)], "vector": [0.5, -0.25, 0.0]},
        tokens=12,
        truncated=False,
        chunks=1,
        source=PLACE,
    )
    assert encode_result(result) == (
        b'{"id":"a1",'
        b'"outputs":{"verdict":[{"label":"GOOD","score":0.75},{"label":"BAD","score":0.25}],"vector":[0.5,-0.25,0.0]},'
        b'"tokens":12,"truncated":false,"chunks":1,'
        b'"source":{"topic":"reviews.requests","partition":2,"offset":7}}'
    )


@given(
    id=st.text(), name=st.text(), label=st.text(), numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False))
)
def test_a_result_is_one_line_that_any_json_reader_reads_back(
    id: str, name: str, label: str, numbers: list[float]
) -> None:
    line = encode_result(
        Result(
            id, {"a" + name: [Label(label, 1.0)], "b" + name: numbers}, tokens=1, truncated=True, chunks=2, source=PLACE
        )
    )
    assert b"\n" not in line
    assert json.loads(line) == {
        "id": id,
        "outputs": {"a" + name: [{"label": label, "score": 1.0}], "b" + name: numbers},
        "tokens": 1,
        "truncated": True,
        "chunks": 2,
        "source": {"topic": "reviews.requests", "partition": 2, "offset": 7},
    }
