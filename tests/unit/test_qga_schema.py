"""Arguments of the guest agent's commands: what is accepted, and how QEMU words what is not."""

from __future__ import annotations

from typing import Any

import pytest

from virtagent_guest.methods.qga.schema import (
    BOOL,
    INT,
    STR,
    UINT64,
    Alternate,
    Argument,
    ArgumentError,
    Enum,
    ListOf,
    StructOf,
    check,
)

WHENCE = Alternate("GuestFileWhence", INT, Enum("QGASeek", ("set", "cur", "end")))
PROCESSORS = ListOf(
    StructOf(
        "GuestLogicalProcessor",
        (
            Argument("logical-id", INT, optional=False),
            Argument("online", BOOL, optional=False),
            Argument("can-offline", BOOL, optional=True),
        ),
    )
)


def complaint(arguments: dict[str, Any], **types: Any) -> str:
    """Check arguments that are wrong, and return what is said. A name that ends in ``_`` is optional."""
    members = tuple(Argument(name.rstrip("_"), type, name.endswith("_")) for name, type in types.items())
    with pytest.raises(ArgumentError) as caught:
        check(arguments, members)
    return str(caught.value)


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (STR, ""),
        (STR, "Zäh\t\x01\U0001f600"),
        (INT, -(2**63)),
        (INT, 2**63 - 1),
        (UINT64, 2**64 - 1),
        (BOOL, False),
        (WHENCE, 7),  # whether there is a meaning to it is the command's to say
        (WHENCE, "end"),
        (ListOf(STR), []),
        (ListOf(STR), ["a", "b"]),
        (PROCESSORS, [{"logical-id": 1, "online": True}]),
        (PROCESSORS, [{"logical-id": 1, "online": True, "can-offline": False}]),
    ],
)
def test_a_value_of_the_type_is_accepted(type: Any, value: Any) -> None:
    check({"x": value}, (Argument("x", type, optional=False),))


@pytest.mark.parametrize(
    ("type", "value", "said"),
    [
        (STR, 1, "Invalid parameter type for 'x', expected: string"),
        (STR, None, "Invalid parameter type for 'x', expected: string"),
        (STR, b"bytes", "Invalid parameter type for 'x', expected: string"),
        (STR, "a\0b", "Invalid parameter type for 'x', expected: string"),
        (STR, "\udcff", "Invalid parameter type for 'x', expected: string"),
        (INT, "1", "Invalid parameter type for 'x', expected: integer"),
        (INT, True, "Invalid parameter type for 'x', expected: integer"),
        (INT, 1.0, "Invalid parameter type for 'x', expected: integer"),
        (INT, 2**63, "Invalid parameter type for 'x', expected: integer"),
        (UINT64, -1, "Parameter 'x' expects uint64"),
        (UINT64, "1", "Parameter 'x' expects uint64"),
        (BOOL, 1, "Invalid parameter type for 'x', expected: boolean"),
        (WHENCE, "sideways", "Parameter 'x' does not accept value 'sideways'"),
        (WHENCE, None, "Invalid parameter type for 'x', expected: GuestFileWhence"),
        (ListOf(STR), "a", "Invalid parameter type for 'x', expected: array"),
        (ListOf(STR), ["a", 1], "Invalid parameter type for 'x[1]', expected: string"),
        (PROCESSORS, [1], "Invalid parameter type for 'x[0]', expected: object"),
        (PROCESSORS, [{"logical-id": 0}], "Parameter 'x[0].online' is missing"),
        (
            PROCESSORS,
            [{"logical-id": 0, "online": 1}],
            "Invalid parameter type for 'x[0].online', expected: boolean",
        ),
        (
            PROCESSORS,
            [{"logical-id": 0, "online": True, "speed": 3}],
            "Parameter 'x[0].speed' is unexpected",
        ),
    ],
)
def test_another_value_is_refused_in_qemus_words(type: Any, value: Any, said: str) -> None:
    assert complaint({"x": value}, x=type) == said


def test_what_is_missing_or_unexpected_is_named() -> None:
    assert complaint({}, path=STR) == "Parameter 'path' is missing"
    assert complaint({"path": "/x", "pth": 1}, path=STR) == "Parameter 'pth' is unexpected"
    # As QEMU does: first those that there are, in their order, then those that there should not be.
    assert complaint({"pth": 1}, path=STR) == "Parameter 'path' is missing"


def test_what_is_optional_may_be_left_out_and_nothing_else_stands_for_that() -> None:
    check({}, (Argument("count", INT, optional=True),))
    assert complaint({"count": None}, count_=INT) == "Invalid parameter type for 'count', expected: integer"
