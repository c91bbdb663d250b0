"""How much memory a model will take, from what stands in its graph's file."""

from edgeslm.runtime.graph_facts import GraphFacts, OperationFacts, SubgraphFacts, TensorFacts
from edgeslm.runtime.memory import predict

GATHER, FULLY_CONNECTED, ADD = 36, 9, 0
TABLE_BYTES, MATRIX_BYTES, FILE_BYTES = 190_000_000, 100_000_000, 300_000_000


def need(*operations: OperationFacts, in_place: bool = True):
    tensors = (
        TensorFacts(40, None), TensorFacts(TABLE_BYTES, 1), TensorFacts(4, None), TensorFacts(2560, None),
        TensorFacts(MATRIX_BYTES, 2),
    )  # fmt: skip
    graph = SubgraphFacts(tensors=tensors, operations=operations, inputs=(2,), outputs=(3,))
    return predict(GraphFacts(FILE_BYTES, (graph,), {"decode": (0, {})}), 0, in_place=in_place)


LOOK_UP = OperationFacts(GATHER, None, (1, 2), (0,))
MULTIPLY = OperationFacts(FULLY_CONNECTED, None, (0, 4), (3,))


def test_of_a_table_only_the_rows_come_in_that_are_looked_up():
    found = need(LOOK_UP, MULTIPLY)
    assert found.packed_bytes == MATRIX_BYTES
    assert found.graph_bytes == FILE_BYTES - TABLE_BYTES - MATRIX_BYTES
    assert need(LOOK_UP, MULTIPLY, in_place=False).graph_bytes == FILE_BYTES - TABLE_BYTES


def test_a_table_that_is_read_otherwise_as_well_comes_in_whole():
    added = need(LOOK_UP, OperationFacts(ADD, None, (0, 1), (0,)), MULTIPLY)
    assert added.graph_bytes == FILE_BYTES - MATRIX_BYTES
    # A table that is the head too is packed like any matrix, and not counted a second time.
    tied = need(LOOK_UP, OperationFacts(FULLY_CONNECTED, None, (0, 1), (3,)))
    assert (tied.packed_bytes, tied.graph_bytes) == (TABLE_BYTES, FILE_BYTES - TABLE_BYTES)
