"""One HTML page about a finished run: metrics, loss curves, settings, lineage. Self-contained: curves are inline SVG."""

from __future__ import annotations

import html
import json
from typing import Any

from pipelines.pretraining.history import History

_W, _H, _PAD = 560, 180, 42
_POINTS = 600
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem;color:#1c2530;background:#fbfbfa}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}.sub{color:#667}
.cards{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}.card{background:#fff;border:1px solid #e2e4e8;border-radius:8px;
padding:.6rem 1rem}.card b{display:block;font-size:1.3rem}.curves{display:grid;grid-template-columns:repeat(auto-fill,
minmax(420px,1fr));gap:1rem}.curves svg{background:#fff;border:1px solid #e2e4e8;border-radius:8px;width:100%}
.warn{background:#fff3cd;border:1px solid #e0c36a;border-radius:8px;padding:.6rem 1rem}
pre{background:#fff;border:1px solid #e2e4e8;border-radius:8px;padding:1rem;overflow:auto;font-size:12.5px}
img{image-rendering:pixelated;margin:2px;max-width:100%}
"""


def render_page(
    title: str,
    history: History,
    metrics: dict[str, float],
    lineage: dict[str, Any],
    warning: str | None = None,
    pictures: dict[str, str] | None = None,
) -> str:
    """HTML text. pictures: caption -> PNG as base64."""
    cards = "".join(
        f"<div class=card>{html.escape(k.replace('_', ' '))}<b>{v:.4g}</b></div>" for k, v in metrics.items()
    )
    keys = [k for k in _keys(history.steps) if k not in ("step", "collapse")]
    keys.sort(key=lambda k: (k != "loss", k not in ("lr",), k))
    curves = "".join(curve(k, [(r["step"], r[k]) for r in history.steps if k in r]) for k in keys)
    evaluated = "".join(
        curve(f"{k} (during the run)", [(r["step"], r[k]) for r in history.evaluations if k in r])
        for k in _keys(history.evaluations)
        if k not in ("step", "evaluated")
    )
    drawn = "".join(
        f'<figure><img alt="" src="data:image/png;base64,{v}"><figcaption>{html.escape(k)}</figcaption></figure>'
        for k, v in (pictures or {}).items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p class=sub>{html.escape(str(lineage.get('selection', '')))}</p>"
        + (f"<p class=warn>Collapse alarm: {html.escape(warning)}</p>" if warning else "")
        + f"<div class=cards>{cards}</div><h2>Training</h2><div class=curves>{curves}</div>"
        + (f"<h2>Evaluation</h2><div class=curves>{evaluated}</div>" if evaluated else "")
        + (f"<h2>Pictures</h2>{drawn}" if drawn else "")
        + f"<h2>Lineage and settings</h2><pre>{html.escape(json.dumps(lineage, indent=2, default=str))}</pre></html>"
    )


def curve(name: str, points: list[tuple[float, float]]) -> str:
    """An SVG line chart of (step, value), thinned to what a screen can show."""
    points = [p for p in points if p[1] == p[1] and abs(p[1]) != float("inf")]
    if not points:
        return ""
    points = points[:: max(1, len(points) // _POINTS)]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys), max(ys)
    span_x, span_y = (max(xs) - min(xs)) or 1, (high - low) or 1
    line = " ".join(
        f"{_PAD + (x - min(xs)) / span_x * (_W - _PAD - 10):.1f},{_H - 26 - (y - low) / span_y * (_H - 56):.1f}"
        for x, y in points
    )
    return (
        f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{html.escape(name)}" font-size="11" fill="#556">'
        f'<text x="10" y="18" font-size="13" fill="#1c2530">{html.escape(name)}</text>'
        f'<text x="{_PAD - 4}" y="36" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_PAD - 4}" y="{_H - 26}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{_PAD}" y="{_H - 8}">{min(xs):.0f}</text>'
        f'<text x="{_W - 10}" y="{_H - 8}" text-anchor="end">step {max(xs):.0f}</text>'
        f'<polyline points="{line}" fill="none" stroke="#2563a8" stroke-width="1.6"/></svg>'
    )


def _keys(rows: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
