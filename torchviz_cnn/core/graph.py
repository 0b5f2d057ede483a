"""The graph that autograd keeps of a computation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def graph_nodes(output: Any, but_not_through: Any = None) -> Iterator[Any]:
    """Every node, once, of the graph by which the tensors in an output were computed, by ways around one node."""
    visited: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tree_leaves(output) if isinstance(tensor, Tensor)]
    while waiting:
        node = waiting.pop()
        if node is not None and node is not but_not_through and node not in visited:
            visited.add(node)
            yield node
            waiting.extend(parent for parent, _ in node.next_functions)
