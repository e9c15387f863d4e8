"""The order of a graph's nodes, in protobuf: what each one reads, and sorting them so that it was computed before."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import onnx

__all__ = ["names_read_by", "sort_nodes"]


def names_read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, from inside its subgraphs as well."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            local = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            made = {name for inner in graph.node for name in inner.output}
            for inner in graph.node:
                yield from (name for name in names_read_by(inner) if name not in local and name not in made)
            yield from (output.name for output in graph.output if output.name not in local and output.name not in made)


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Sorts the nodes of one graph, its subgraphs aside, so that each follows those whose results it reads.

    onnxruntime takes nodes in any order, and some converters (its own to float16 among them) append nodes to the end.
    The order stays where it can: of the nodes that may come next, the first one does.

    Returns:
        Whether anything moved. A graph that is sorted already, or has a cycle, is left as it is.
    """
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    reads = [{maker[name] for name in names_read_by(node) if name in maker} for node in graph.node]
    if all(max(read, default=-1) < index for index, read in enumerate(reads)):
        return False
    readers: list[list[int]] = [[] for _ in reads]
    for index, read in enumerate(reads):
        for source in read:
            readers[source].append(index)
    missing = [len(read) for read in reads]
    ready = [index for index, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(reads):
        return False
    nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True
