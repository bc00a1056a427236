"""DESIGN's table of imports, checked by the ast."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "kernels": set(),
    "core": {"kernels"},
    "data": {"kernels", "core"},
    "vae": {"kernels", "core", "data"},
    "dynamics": {"kernels", "core", "data"},
    "score": {"kernels", "core", "data"},
    "diag": {"kernels", "core", "data", "dynamics"},
}


def sources(name: str) -> list[Path]:
    folder = ROOT / "kernels" if name == "kernels" else ROOT / "packages" / f"arlat-{name}"
    return [*(folder / "src").rglob("*.py"), *(folder / "tests").rglob("*.py")]


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            modules = [node.module or ""]
        found |= {module.split(".")[0].removeprefix("arlat_") for module in modules if module.startswith("arlat_")}
    return found


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_package_imports_only_its_layers(name: str) -> None:
    files = sources(name)
    assert files, f"no sources of {name}"
    for path in files:
        extra = imported(ast.parse(path.read_text(encoding="utf-8"))) - ALLOWED[name] - {name}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}, which arlat-{name} may not"


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_no_pickle_and_no_vague_module_names(name: str) -> None:
    vague = {"utils", "util", "common", "misc", "helpers", "phase", "tier"}
    for path in sources(name):
        assert path.stem not in vague, f"{path.relative_to(ROOT)} says when or nothing, not what"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "cPickle", "joblib", "dill"}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"
