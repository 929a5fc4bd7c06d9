"""The function of a Python file that is a method: annotations are its signature, the docstring its help.

::

    def df(path: str = "/", inodes: bool = False) -> dict:
        \"""Say how full the file system is that a path is on.\"""

The rules:

1. The function has the name of the file. Whatever else is in the file is the file's own business.
2. The file is parsed here, and not run: that happens in a process of its own, when the method is called.
3. A line ``# timeout: SECONDS`` in the comment at the top of the file sets the time.
"""

from __future__ import annotations

import ast
import re
import warnings

from virtagent_protocol.signature import ANY, NAME, TIMEOUT, TIMEOUT_MAX, Field, Signature, fault_of

from .extension import TYPE_WORDS, Unusable, check_size, json_equal, make_field

#: Bytes of a file. Parsing takes some hundred times as much memory, for a moment.
PYTHON_MAX = 64 * 1024

_TIMEOUT = re.compile(r"#\s*timeout\s*:\s*(\S*)\s*")


def parse_function(method: str, name: str, source: bytes) -> tuple[Signature, str]:
    """Return the signature and the help of a file's function.

    Args:
        method: the name of the method.
        name: that of the function.
        source: the whole file.

    Raises:
        Unusable: there is no such function, or none that can be a method.
    """
    try:
        with warnings.catch_warnings():
            # They are of interest where the file is run.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        raise Unusable(f"this is not Python: {error.msg}", error.lineno) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unusable(f"this is not Python: {error}") from None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not functions:
        for node in tree.body:
            if isinstance(node, ast.AsyncFunctionDef) and node.name == name:
                raise Unusable(f"{name} must be a plain function, not an async one", node.lineno)
        raise Unusable(f"there is no function of the file's name: def {name}(...)")
    # As for Python, the last one counts.
    function = functions[-1]
    returns = "any" if function.returns is None else _type(function.returns, "the result", result=True)[0]
    signature = Signature(method, _fields(function), returns, _timeout(source))
    if fault := fault_of(signature):
        raise Unusable(fault, function.lineno)
    check_size(signature, function.lineno)
    summary = ast.get_docstring(function)
    if not summary:
        raise Unusable(f"{name} has no docstring, which says what it does", function.lineno)
    return signature, summary


def _fields(function: ast.FunctionDef) -> tuple[Field, ...]:
    given = function.args
    if given.posonlyargs or given.vararg or given.kwarg:
        raise Unusable("parameters are given by name: no '/', '*args' or '**kwargs'", function.lineno)
    without = [None] * (len(given.args) - len(given.defaults))
    pairs = [*zip(given.args, [*without, *given.defaults], strict=True)]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    # Calls name their arguments, so that is how their order may change.
    pairs.sort(key=lambda pair: pair[1] is not None)
    return tuple(_field(argument, default) for argument, default in pairs)


def _field(argument: ast.arg, default: ast.expr | None) -> Field:
    line, name = argument.lineno, argument.arg
    if not NAME.fullmatch(name):
        raise Unusable(f"parameter '{name}' must be of small letters, digits and _, 32 at most", line)
    word, nullable = (ANY, True) if argument.annotation is None else _type(argument.annotation, f"'{name}'")
    if default is None:
        return make_field(name, word, None, line)
    try:
        value = ast.literal_eval(default)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = ...
    if not json_equal(value):
        raise Unusable(f"the default of '{name}' must be a constant that JSON carries", line)
    if value is None and not nullable:
        raise Unusable(f"'{name}' may be None: annotate it with '| None'", line)
    return make_field(name, word, (value,), line)


def _type(node: ast.expr, what: str, *, result: bool = False) -> tuple[str, bool]:
    """Return the type that an annotation means, and whether it may be None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _type(ast.parse(node.value, mode="eval").body, what, result=result)
        except SyntaxError:
            raise _no_type(node, what) from None
    members = _members(node)
    others = [member for member in members if not _is_none(member)]
    if len(others) > 1:
        return ANY, True
    if not others:
        if result:
            return "nil", True
        raise _no_type(node, what)
    (member,) = others
    if isinstance(member, ast.Subscript):  # list[str]
        member = member.value
    word = member.attr if isinstance(member, ast.Attribute) else getattr(member, "id", "")
    word = word.lower() if word in ("Dict", "List") else word  # as typing has them
    if word not in TYPE_WORDS:
        raise _no_type(node, what)
    nullable = len(others) < len(members)
    # A result that may be None has no one type.
    return (ANY if result and nullable else TYPE_WORDS[word]), nullable or word == "Any"


def _members(node: ast.expr) -> list[ast.expr]:
    """Return what a union is of, however it is written."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_members(node.left), *_members(node.right)]
    if isinstance(node, ast.Subscript):
        base = node.value
        word = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if word == "Optional":
            return [*_members(node.slice), ast.Constant(None)]
        if word == "Union":
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return [member for part in parts for member in _members(part)]
    return [node]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _no_type(node: ast.expr, what: str) -> Unusable:
    return Unusable(
        f"the annotation of {what} must be of str, int, float, bool, list, dict, Any", node.lineno
    )


def _timeout(source: bytes) -> int:
    for number, line in enumerate(source.decode(errors="replace").split("\n"), 1):
        if not line.startswith("#"):
            break
        if found := _TIMEOUT.fullmatch(line.rstrip("\r")):
            if not re.fullmatch(r"[1-9][0-9]{0,3}", found[1]) or int(found[1]) > TIMEOUT_MAX:
                raise Unusable(f"the timeout must be of 1 to {TIMEOUT_MAX} whole seconds", number)
            return int(found[1])
    return TIMEOUT
