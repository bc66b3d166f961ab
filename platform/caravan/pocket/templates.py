"""Prompt templates that can be written and read back.

>>> t = Template("{name} has {a} {thing}s.")
>>> t.write(name="Ada", a=3, thing="kite")
'Ada has 3 kites.'
>>> t.read("Ada has 3 kites.")
{'name': 'Ada', 'a': '3', 'thing': 'kite'}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_FIELD = re.compile(r"\{(\w+)\}")
_NUMBERS = frozenset("abcn")


@dataclass(frozen=True)
class Template:
    """A text with `{fields}`; a field of one letter is a number, any other a word.

    A field named `text...` takes anything up to a full stop or line break.
    """

    text: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        pattern, position = "", 0
        seen: set[str] = set()
        for match in _FIELD.finditer(self.text):
            pattern += re.escape(self.text[position : match.start()])
            field = match.group(1)
            if field in seen:
                pattern += f"(?P={field})"
            elif field in _NUMBERS:
                pattern += rf"(?P<{field}>\d+)"
            elif field.startswith("text"):
                pattern += rf"(?P<{field}>[^\n.]+)"
            else:
                pattern += rf"(?P<{field}>[A-Za-z]+)"
            seen.add(field)
            position = match.end()
        return re.compile(pattern + re.escape(self.text[position:]))

    def write(self, **fields: object) -> str:
        return self.text.format(**fields)

    def read(self, text: str) -> dict[str, str] | None:
        """The fields of `text`, or None where it is not an instance of the template."""
        match = self._pattern.fullmatch(text)
        return match.groupdict() if match else None

    def find(self, text: str) -> dict[str, str] | None:
        """The fields of the first instance within `text`."""
        match = self._pattern.search(text)
        return match.groupdict() if match else None
