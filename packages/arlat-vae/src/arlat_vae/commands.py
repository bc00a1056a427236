"""The commands that arlat-vae adds: sub-command -> (help line, "module:function")."""

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {"vae": {}}
