"""The commands that arlat-diag adds: sub-command -> (help line, "module:function")."""

COMMANDS = {
    "demo": {"": ("speech to a report, in one command", "arlat_diag.demo:main")},
    "diag": {
        "battery": ("run the battery on a latent store", "arlat_diag.battery:main"),
        "calibrate": ("prove the battery on processes with known answers", "arlat_diag.calibration:main"),
        "decide": ("apply the decision rules to any number of runs", "arlat_diag.decision_command:main"),
        "report": ("write one report of any number of runs", "arlat_diag.report:main"),
    },
}
