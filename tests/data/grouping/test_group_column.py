from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tw_seg.data.grouping.group_column import group_by_column
from tw_seg.data.grouping.join import join_groups
from tw_seg.errors import DataError


def test_images_of_one_value_are_a_group_and_those_without_one_are_alone(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image;patient\na.png;p1\nb;p2\nc;p1\nd;\ne;\n")
    assert group_by_column(path, "patient", ["c", "b", "a", "e", "d"]).tolist() == [0, 1, 0, 2, 3]
    with pytest.raises(DataError, match=r"no row for 1 of 2 images \(f\)"):
        group_by_column(path, "patient", ["a", "f"])
    with pytest.raises(DataError, match="no column 'tile'; found image, patient"):
        group_by_column(path, "tile", ["a"])


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=12))
def test_joined_groups_are_the_connected_parts_of_a_graph(pairs):
    groups, others = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(pairs)))
    graph.add_edges_from(
        (i, j) for i in range(len(pairs)) for j in range(i) if groups[i] == groups[j] or others[i] == others[j]
    )
    joined = join_groups(groups, others).tolist()
    parts = {frozenset(i for i, found in enumerate(joined) if found == group) for group in joined}
    assert parts == set(map(frozenset, networkx.connected_components(graph)))
    assert list(dict.fromkeys(joined)) == list(range(len(set(joined))))
