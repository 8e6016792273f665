"""Elements of SVG as escaped text."""

from collections.abc import Sequence

from markupsafe import Markup, escape

__all__ = ["picture", "short", "tag"]


def picture(width: float, height: float, label: str, parts: Sequence[Markup], *, natural: bool = False) -> Markup:
    """A whole picture, which says in words what it shows; of its natural size, or as wide as its place."""
    size = {"width": width, "height": height} if natural else {}
    box = f"0 0 {short(width)} {short(height)}"
    return tag("svg", *parts, viewBox=box, class_="plot", role="img", aria_label=label, **size)


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element. In names of attributes `_` stands for `-`, and one at the end for nothing.

    >>> tag("text", "a < b", text_anchor="end", x=1.0)
    Markup('<text text-anchor="end" x="1">a &lt; b</text>')
    """
    told = "".join(
        f' {key if key == "viewBox" else key.rstrip("_").replace("_", "-")}="{escape(short(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{told}>{''.join(map(escape, children))}</{name}>")


def short(value: object) -> object:
    """A number with two decimals at most; whatever else as it is."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
