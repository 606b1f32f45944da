"""What the syntax of a chat template tells: whether it takes the content of a message apart.

vLLM decides by the same question. A template that loops over `message['content']` (over a slice, a filter or a test of
it, under whatever name) takes a list of parts, any other one a string.
"""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes


def loops_over_content(template: nodes.Template) -> bool:
    """Whether some loop runs over the content of a message."""
    messages = _aliases(template, {"messages"})
    items = {
        loop.target.name
        for loop in template.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and any(_refers(loop.iter, name) for name in messages)
    }
    return any(_refers(loop.iter, name, "content") for loop in template.find_all(nodes.For) for name in items)


def _aliases(template: nodes.Template, names: set[str]) -> set[str]:
    """The names, and those that one of them is assigned to, however often."""
    known: set[str] = set()
    found = set(names)
    while found - known:
        known |= found
        found |= set(_assigned(template, known))
    return known


def _assigned(template: nodes.Template, names: set[str]) -> Iterator[str]:
    for assignment in template.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and any(_refers(assignment.node, name) for name in names):
            yield assignment.target.name


def _refers(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Whether the node is the variable, or its member `key`, possibly filtered, tested or sliced."""
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if key is not None:
        if isinstance(node, nodes.Getitem):
            if not isinstance(node.arg, nodes.Const) or node.arg.value != key:
                return False
        elif not isinstance(node, nodes.Getattr) or node.attr != key:
            return False
        node = node.node
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
