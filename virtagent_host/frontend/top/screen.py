"""Rows → what is drawn, by the library rich.

The rules:

1. What comes from elsewhere is drawn as it is, never as markup, with control characters made visible.
2. Curves of shares reach from 0 to 100 %; those of traffic from 0 to the most that the curve holds.
3. A VM that has no figures has a line below the table that says why.
"""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from virtagent_protocol.text import visible_line

from ..units import percent, size
from .figures import Row, in_order
from .spark import BLOCKS, PLAIN, sparkline

_SHARES = ("cpu", "memory", "pressure")
_TITLES = {"cpu": "CPU", "memory": "MEMORY", "pressure": "PRESSURE", "disk": "DISK", "network": "NETWORK"}
_FIGURES = tuple(_TITLES)
#: From this share on it is shown in yellow, and in red.
_HIGH, _FULL = 0.7, 0.9
#: Bytes a second that fill a curve of traffic, at least: below, it is noise.
_TRAFFIC_MIN = 64 * 1024.0
#: Characters of a number, of the columns before the figures with their gaps, and of the longest curve.
_NUMBER, _FRONT, _CURVE_MAX = 6, 36, 40
#: Seconds without a sample, beyond two intervals, after which figures are said to be old.
_OLD = 5.0
_STATE_STYLES = {"ready": "green", "no-port": "red", "not there": "red", "broken": "red"}


def frame(
    rows: list[Row],
    *,
    width: int,
    height: int | None,
    order: str,
    turned: bool = False,
    first: int = 0,
    plain: bool = False,
    empty: str = "no VM is attached",
) -> RenderableType:
    """Return one screen.

    Args:
        rows: of all VMs.
        width: characters of a line.
        height: lines; None: as many as it takes.
        order: one of `figures.ORDERS`.
        turned: whether the order is turned round.
        first: how many rows have been scrolled past.
        plain: whether curves are drawn without special characters.
        empty: what to say if there are no rows.
    """
    found = in_order(rows, order, turned=turned)
    notes = [(row.name, why) for row in found if (why := _why(row))]
    if height is not None:
        room = max(height - 3, 1)
        # Figures are what one looks at; the reasons get a third of the screen, if there is not enough.
        told = min(len(notes), max(room - len(found), room // 3))
        found = found[first : first + room - told]
        notes = notes[:told]
    header = Text(
        f"va-host top  {time.strftime('%H:%M:%S')}  ", style="bold", overflow="ellipsis", no_wrap=True
    )
    header.append(
        f"{len(rows)} VM{'s' * (len(rows) != 1)}, by {order}{' (turned)' if turned else ''}",
        style="not bold dim",
    )
    parts: list[RenderableType] = [header]
    parts.append(_table(found, width, plain) if rows else Text(visible_line(empty)))
    parts += [
        # Where nobody counts lines, all of it can be read.
        Text(f"{name}: {visible_line(why)}", style="yellow", overflow="ellipsis", no_wrap=height is not None)
        for name, why in notes
    ]
    return Group(*parts)


def _table(rows: list[Row], width: int, plain: bool) -> Table:
    curve = min(max((width - _FRONT) // len(_FIGURES) - _NUMBER - 3, 0), _CURVE_MAX)
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("NAME", no_wrap=True, max_width=20, overflow="ellipsis")
    table.add_column("STATE", no_wrap=True, min_width=11)
    for name in _FIGURES:
        table.add_column(_TITLES[name], no_wrap=True, justify="right")
    for row in rows:
        state = Text(visible_line(row.state or "…"), style=_STATE_STYLES.get(row.state, "yellow"))
        table.add_row(Text(row.name), state, *(_cell(row, name, curve, plain) for name in _FIGURES))
    return table


def _cell(row: Row, name: str, curve: int, plain: bool) -> Text:
    past = row.past.get(name, ())
    now = row.now.get(name)
    is_share = name in _SHARES
    top = 1.0 if is_share else max([_TRAFFIC_MIN, *list(past)[-curve:]] if curve else [_TRAFFIC_MIN])
    number = "-" if now is None else percent(now) if is_share else f"{size(now)}/s"
    style = ""
    if is_share and now is not None:
        style = "red" if now >= _FULL else "yellow" if now >= _HIGH else ""
    cell = Text(sparkline([*past], curve, top, PLAIN if plain else BLOCKS), style="cyan")
    cell.append(f" {number:>{_NUMBER + (0 if is_share else 2)}}", style=style)
    return cell


def _why(row: Row) -> str:
    """Return why a row has no figures, or old ones; nothing if there is nothing to say."""
    if row.state not in ("", "ready"):
        return f"{row.state}: {row.reason}"
    if row.note:
        return row.note
    old = time.monotonic() - row.sampled
    return f"no sample for {old:.0f} s" if row.sampled and old > row.interval * 2 + _OLD else ""
