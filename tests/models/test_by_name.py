from __future__ import annotations

import pytest

from tw_seg.errors import InputError
from tw_seg.models.by_name import import_object

THING = {"a": 1}


def test_what_stands_there_is_imported():
    assert import_object(f"{__name__}:THING", "thing", "'package.module:NAME'") == THING


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("no.such:THING", "No module named 'no'"),
        (f"{__name__}:NOTHING", "has no attribute 'NOTHING'"),
        ("THING", "No module named 'THING'"),
        (":THING", "Empty module name"),
    ],
)
def test_what_is_not_there_is_named(place, found):
    with pytest.raises(InputError, match=f"thing='{place}' must be 'package.module:NAME' and importable: .*{found}"):
        import_object(place, "thing", "'package.module:NAME'")
