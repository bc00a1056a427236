"""The commands that arlat-score adds: sub-command -> (help line, "module:function")."""

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {"score": {}}
