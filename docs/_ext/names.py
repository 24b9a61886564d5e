"""Names between backticks lead to their place in the reference.

In docstrings a name of the library that does not exist is a warning (``daskdmed.`` before it);
what is a parameter, or belongs to another library, is shown as it is. In pages a word of code
that is the name of a public class becomes a link; functions do with ``daskdmed.`` before them,
because others have a ``predict``, too.
"""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def documented(env: BuildEnvironment, name: str) -> tuple[str, str, str] | None:
    """(page, anchor, full name) of the one class or function of a name, in whatever module.

    Not of attributes: `level` is a parameter in one place, and an attribute in many.
    """
    objects = env.get_domain("py").objects  # type: ignore[attr-defined]
    names = [
        full
        for full, found in objects.items()
        if full.endswith(f".{name}")
        and ("." in name or found.objtype in ("class", "exception", "function", "data"))
    ]
    if len(names) != 1:
        return None
    return objects[names[0]].docname, objects[names[0]].node_id, names[0]


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """What Sphinx did not find: by the end of its name, or as it is."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    name = node["reftarget"]
    found = documented(env, name)
    if found is not None and node.get("refdoc") is not None:
        page, anchor, full = found
        uri = app.builder.get_relative_uri(node["refdoc"], page)
        return nodes.reference(
            "", "", contnode, internal=True, refuri=f"{uri}#{anchor}", reftitle=full
        )
    is_ours = name.split(".")[0] == "daskdmed"
    return None if is_ours and not exists(name) else contnode


class LinkNames(SphinxTransform):
    """Words of code in Markdown pages that are public names."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        import daskdmed

        if self.document.get("source", "").endswith(".rst"):
            return
        for node in list(self.document.findall(nodes.literal)):
            said = node.astext()
            if said.startswith(("tests/", "::test")):
                node["classes"].append("name-of-a-test")
            name = said.removeprefix("daskdmed.")
            is_meant = said != name or not name.islower()
            if name not in daskdmed.__all__ or not is_meant:
                continue
            if isinstance(node.parent, nodes.title | nodes.reference):
                continue
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=f"daskdmed.{name}", refwarn=True
            )
            link["refdoc"] = self.env.docname
            node.replace_self(link)
            link += node


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(LinkNames)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
