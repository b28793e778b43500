"""The style sheet of a run's page, light and dark."""

STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--soft:#667085;--line:#e3e6ea;--card:#f7f8fa;--bad:#b42318;
--c0:#2563b8;--c1:#d9730d;--c2:#2e8b57;--c3:#b8336a;--c4:#7450b5;--c5:#12868f;--c6:#8a6d1b}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e6e8eb;--soft:#98a1ad;--line:#2b3138;
--card:#1c2026;--bad:#ff8a7a;--c0:#6ea8ff;--c1:#ffab5c;--c2:#69c98f;--c3:#f583ae;--c4:#b79cf0;
--c5:#5cc8d0;--c6:#d9bd62}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px;max-width:1480px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:22px;margin:0;overflow-wrap:anywhere}
h2{font-size:17px;margin:32px 0 10px;padding-top:18px;border-top:1px solid var(--line)}
p{margin:6px 0;color:var(--soft)}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin-top:16px}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:8px 14px;color:var(--soft);font-size:13px}
.tiles b{display:block;color:var(--fg);font-size:18px;font-weight:600}
.charts,.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(380px,1fr));gap:14px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px}
figcaption{font-size:13px;font-weight:600;margin-bottom:4px}
svg{width:100%;height:auto;display:block}
svg text{font-size:11px;fill:var(--soft)}
svg .end{text-anchor:end}
svg .mid{text-anchor:middle}
svg .grid{stroke:var(--line);stroke-width:1}
svg polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:12px;color:var(--soft);margin-top:4px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
.legend b{color:var(--fg);font-weight:600}
.bar{display:flex;height:26px;border-radius:6px;overflow:hidden;margin-bottom:8px}
.bar i{display:block;height:100%}
.pictures img{width:100%;height:auto;display:block;image-rendering:auto}
.pictures figcaption{margin:6px 0 0;font-weight:400;color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:4px 18px 4px 0;border-bottom:1px solid var(--line);
overflow-wrap:anywhere}
th{color:var(--soft);font-weight:600}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;
font-size:12px;overflow:auto;max-height:420px}
.none{font-style:italic}
.warning{color:var(--bad);border:1px solid var(--bad);border-radius:8px;padding:8px 14px;
margin-top:14px}
.bad{color:var(--bad)}
"""
