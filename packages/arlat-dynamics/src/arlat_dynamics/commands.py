"""The commands that arlat-dynamics adds: sub-command -> (help line, "module:function")."""

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {"dynamics": {}}
