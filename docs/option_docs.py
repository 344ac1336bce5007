"""Griffe extension: document the fields of configurations with their help.

A field that is declared with `option(default, help=...)` is documented by its help and, if there is
one, by its docstring. mkdocs.yml loads this file.
"""

from __future__ import annotations

import ast
from html import escape
from typing import Any

import griffe


class OptionDocs(griffe.Extension):
    """Replace `option(...)` by the default, and put the help before the docstring."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any
    ) -> None:
        """Handle an attribute that was just read."""
        call = getattr(node, "value", None)
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "option"):
            return
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        text = str(ast.literal_eval(keywords["help"]))
        if "unset" in keywords:
            # It may contain placeholders such as <data>.
            text += f" Default: {escape(ast.literal_eval(keywords['unset']), quote=False)}."
        if attr.docstring is not None:
            text += f"\n\n{attr.docstring.value}"
        attr.docstring = griffe.Docstring(text, parent=attr)
        attr.value = ast.unparse(call.args[0]) if call.args else None
