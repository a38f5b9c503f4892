"""Results as JSON, which has every launch and is extended by later runs, and as Markdown made from the JSON."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.harness import Outcome, launch

RESULTS = Path(__file__).parent / "results"
_HEADINGS = ("side", "rate", "unit", "ratio", "range", "of peak", "beside")


def machine() -> dict[str, Any]:
    """Description of this machine, with its measured rates of matrix products."""
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **launch("bench.peak", {}),
    }


class Results:
    """`results/<name>.json` and `.md`: rows of one machine. A row that is measured again replaces the old one."""

    def __init__(self, name: str, described: dict[str, Any], command: str, folder: Path = RESULTS) -> None:
        """Raises SystemExit when the file has rows of another machine, because they cannot be compared."""
        self._json, self.markdown = folder / f"{name}.json", folder / f"{name}.md"
        self._document: dict[str, Any] = {"machine": described, "rows": []}
        self._source = {"command": command, "date": described["date"]}
        if self._json.exists():
            kept = json.loads(self._json.read_text(encoding="utf-8"))
            for key in ("processor", "device", "torch", "threads"):
                if kept["machine"][key] != described[key]:
                    raise SystemExit(
                        f"bench: {self._json} holds rows of {key} {kept['machine'][key]}, this is {described[key]};"
                        " choose another name with --save"
                    )
            self._document["rows"] = kept["rows"]

    def add(self, outcome: Outcome) -> None:
        """Add a row and write both files, so that an interrupted run keeps its finished rows."""
        row = {**outcome.to_json(), **self._source}
        rows = self._document["rows"]
        places = [place for place, known in enumerate(rows) if known["name"] == row["name"]]
        if places:
            rows[places[0]] = row
        else:
            rows.append(row)
        self._json.parent.mkdir(exist_ok=True)
        self._json.write_text(json.dumps(self._document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.markdown.write_text(render(self._document), encoding="utf-8")


def render(document: dict[str, Any]) -> str:
    """The Markdown page of a results file."""
    described = document["machine"]
    peaks = f"{described['matmul_fp32_tflops']:.3g} TFLOP/s in fp32, {described['matmul_bf16_tflops']:.3g} in bf16"
    head = [
        "# Benchmarks",
        "",
        f"{described['processor']}, device {described['device']}, {described['threads']} threads, torch"
        f" {described['torch']}, Python {described['python']}. Matrix product peak on {described['date']}: {peaks}.",
        "",
        "Rates are medians of fresh launches, the sides in turn. The ratio is to the first side, round by round: median"
        " and range. Where a row says so, the most that a ratio could be is 1 / the first side's share of the peak.",
        "",
    ]
    return "\n".join([*head, *(line for row in document["rows"] for line in _section(row))])


def _section(row: dict[str, Any]) -> list[str]:
    lines = [
        f"## {row['name']}",
        "",
        *_summary(row),
        f"`{row['command']}`, {row['date']}.",
        "",
        "| " + " | ".join(_HEADINGS) + " |",
    ]
    lines.append("|" + " --- |" * len(_HEADINGS))
    for name, side in row["sides"].items():
        lines.append("| " + " | ".join((name, *_cells(row, side))) + " |")
    return [*lines, ""]


def _summary(row: dict[str, Any]) -> list[str]:
    """Target and ceiling of a comparison, or the gain of each part."""
    sides = list(row["sides"].values())
    bound = row.get("ceiling")
    if row["parts"]:
        gains = [
            f"{name.removeprefix('without ')} {1 / side['ratio_median'] - 1:+.0%}"
            for name, side in list(row["sides"].items())[1:]
            if "skipped" not in side
        ]
        return ["Speed that each part adds to the rest: " + ", ".join(gains) + ".", ""]
    if row["target_ratio"] is None:
        return []
    compared = [side for name, side in list(row["sides"].items())[1:] if name != bound]
    ratios = [side["ratio_median"] for side in compared if side.get("ratio_median")]
    if not ratios:
        return [f"Aim {row['target_ratio']:g}.", ""]
    reached = f"Aim {row['target_ratio']:g}, reached {max(ratios):.2f}"
    share = sides[0].get("share_of_peak")
    ceiling = f"; {1 / share:.2f} if all but the products took no time" if share else ""
    if bound and row["sides"][bound].get("ratio_median"):
        ceiling += f", {row['sides'][bound]['ratio_median']:.2f} if they took what they take alone at their own shapes"
    return [f"{reached}{ceiling}.", ""]


def _cells(row: dict[str, Any], side: dict[str, Any]) -> tuple[str, ...]:
    if "skipped" in side:
        return ("-", row["unit"], "-", "-", "-", side["skipped"])
    compared = side["ratio_range"] is not None
    return (
        f"{side['median']:.4g}",
        row["unit"],
        f"{side['ratio_median']:.2f}" if compared else "-",
        "{:.2f} to {:.2f}".format(*side["ratio_range"]) if compared else "-",
        f"{side['share_of_peak']:.0%}" if side["share_of_peak"] else "",
        ", ".join(f"{key} {value}" for key, value in side["beside"].items()),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {len(models)} cores"
