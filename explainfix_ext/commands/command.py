"""Defines Command, a command of typer whose help has its options in groups, without a line between them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Command(TyperCommand):
    """Is a command whose help fits a screen: each option stands under its `rich_help_panel`, in the order of both."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options, those without a group first."""
        groups: dict[str, list[tuple[str, str]]] = {}
        parameter: Any
        for parameter in self.get_params(ctx):
            name, text = parameter.get_help_record(ctx)
            name = parameter.metavar if parameter.param_type_name == "argument" else name
            group = getattr(parameter, "rich_help_panel", None) or ("Output" if parameter.name == "help" else "Options")
            groups.setdefault(group, []).append((name, text))
        width = max(len(name) for rows in groups.values() for name, _ in rows)
        formatter.write_paragraph()
        for group, rows in groups.items():
            formatter.write_heading(group)
            with formatter.indentation():
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])
