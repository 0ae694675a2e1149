"""How readable the code is, in numbers: python docs/measure_code.py [--list].

Cyclomatic complexity of every function (1, and one for each branch, loop, handler, assertion, comprehension, condition in
one, and boolean operator: what radon counts); words `Any` a thousand lines; the longest files and functions.
"""

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("dna_mamba", "kernels", "pipelines")
COMPLEX, LONG_FUNCTION, LONG_FILE = 15, 60, 450
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.comprehension)


class Function(NamedTuple):
    """One function, what is nested in it counted with it."""

    where: str
    complexity: int
    lines: int


def complexity(function: ast.AST) -> int:
    """Count the ways through a function. Source: McCabe 1976, A complexity measure."""
    total = 1
    for node in ast.walk(function):
        if isinstance(node, BRANCHES):
            total += 1 + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.match_case):
            total += 1
    return total


def files() -> list[Path]:
    """Give all files of the package; the links to kernels and pipelines are not followed twice."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return list({path.resolve(): path for path in found}.values())


def functions(path: Path) -> list[Function]:
    """Give the functions and methods of a file, those inside others left to them."""
    found = []

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                where = f"{path.relative_to(ROOT)}:{child.lineno} {child.name}"
                found.append(Function(where, complexity(child), (child.end_lineno or child.lineno) - child.lineno + 1))
            elif isinstance(child, ast.ClassDef | ast.If | ast.Try):
                walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


def main() -> None:
    """Print the table; with --list, name what is above a limit."""
    all_files = files()
    texts = {path: path.read_text(encoding="utf-8") for path in all_files}
    lines = {path: text.count("\n") for path, text in texts.items()}
    all_functions = [function for path in all_files for function in functions(path)]
    total, number = sum(lines.values()), len(all_functions)
    num_any = sum(len(re.findall(r"\bAny\b", text)) for text in texts.values())
    # names for it, where they stand for a type: values.Json and tasks.AnyTask
    names = r"(?<![.\w])(Json|AnyTask)(?=[\],\s|)=:])"
    num_named = sum(
        len(re.findall(names, "\n".join(line for line in text.splitlines() if "import" not in line)))
        for path, text in texts.items()
        if path.name != "options.py"
    )
    num_imports = sum(len(re.findall(r"^from typing import .*\bAny\b", text, re.MULTILINE)) for text in texts.values())
    complex_ones = sorted((f for f in all_functions if f.complexity > COMPLEX), key=lambda f: -f.complexity)
    long_ones = sorted((f for f in all_functions if f.lines > LONG_FUNCTION), key=lambda f: -f.lines)
    long_files = sorted(((n, path) for path, n in lines.items() if n > LONG_FILE), reverse=True)
    print(f"{len(all_files)} files, {total:,} lines, {number:,} functions")
    print(f"complexity over {COMPLEX}: {len(complex_ones)} functions, {len(complex_ones) / number:.1%}")
    print(f"over {LONG_FUNCTION} lines: {len(long_ones)} functions, {len(long_ones) / number:.1%}")
    print(
        f"Any, imports left out: {num_any - num_imports}, {1000 * (num_any - num_imports) / total:.1f} a thousand lines"
    )
    thousand = (num_any - num_imports + num_named) * 1000 / total
    print(f"names that stand for it: {num_named}, in all {thousand:.1f} a thousand lines")
    print(f"files over {LONG_FILE} lines: {len(long_files)}")
    if "--list" in sys.argv:
        for function in complex_ones:
            print(f"  complexity {function.complexity:3} {function.where}")
        for function in long_ones:
            print(f"  lines {function.lines:3} {function.where}")
        for count, path in long_files:
            print(f"  lines {count:4} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
