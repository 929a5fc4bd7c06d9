"""The extensions of this agent, as methods that come and go.

The directory is looked at whenever somebody asks for the methods: a few system calls as long as nothing in it
has changed. SIGHUP reads every file again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from virtagent_protocol.registry import Call, Method, Parameter
from virtagent_protocol.signature import ANY, Signature
from virtagent_protocol.values import Value

from .directory import Contents, Directory
from .extension import Extension

log = logging.getLogger("virtagent.extensions")


class Extensions:
    """All extensions; none before `open`."""

    def __init__(self) -> None:
        self._directory = Directory("")
        self._contents = Contents()
        self._methods: dict[str, Method] = {}

    def open(self, directory: str) -> None:
        """Look at a directory from now on; empty: at none."""
        self._directory = Directory(directory)
        self.methods()

    def reload(self) -> None:
        """Read every file again, and tell of all problems anew."""
        self._directory.forget()
        self._contents = Contents()
        self.methods()

    def methods(self) -> Mapping[str, Method]:
        """Return the methods that there are now, by name."""
        contents = self._directory.look()
        if contents is not self._contents:
            for problem in contents.problems:
                if problem not in self._contents.problems:
                    log.warning("no extension: %s", problem)
            if contents.extensions or self._methods:
                log.info("extensions: %s", ", ".join(contents.extensions) or "none")
            self._contents = contents
            self._methods = {name: _method(found) for name, found in contents.extensions.items()}
        return self._methods


def _method(extension: Extension) -> Method:
    signature = extension.signature

    async def handler(call: Call, *params: Value) -> Value:
        from .running import run

        return await run(extension, signature.complete(params))

    return Method(extension.name, handler, _parameters(signature), signature.returns, extension.text)


def _parameters(signature: Signature) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(field.name, None if field.type == ANY else field.type, field.optional, field.nullable)
        for field in signature.fields
    )


#: The extensions of this agent.
EXTENSIONS = Extensions()
