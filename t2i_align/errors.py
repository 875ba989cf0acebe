"""The one exception a user of t2i_align is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: what is wrong, what was found, how to fix it.

    The command line prints it as one message and exits with code 2; library callers may read the three
    parts separately.

    Args:
        what: the rule that was broken, in one sentence.
        found: the offending value, path or state.
        fix: what to do about it.
    """

    def __init__(self, what: str, found: str = "", fix: str = "") -> None:
        self.what, self.found, self.fix = what, found, fix
        parts = [what, f"  found: {found}" if found else "", f"  fix:   {fix}" if fix else ""]
        super().__init__("\n".join(part for part in parts if part))
