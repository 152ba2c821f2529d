"""The style sheet of the report's page: light and dark, from 320 pixels to wide screens, no font fetched."""

PAGE_CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1a2028;--muted:#5d6875;--line:#d5dbe2;--track:#f4f6f8;--card:#f7f8fa;
--good:#00704a;--bad:#b3261e;--open:#7a5a00;--warn:#fff6e0;--warnline:#d9a514}
@media (prefers-color-scheme:dark){:root{--paper:#12161b;--ink:#e8ecf1;--muted:#a0abb8;--line:#333c47;--track:#1a2027;
--card:#1a2027;--good:#4cd39b;--bad:#ff8a80;--open:#f0c24b;--warn:#2a2410;--warnline:#9a7410}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1152px;margin:0 auto;padding:28px 16px 56px}
h1{font-size:clamp(24px,4.5vw,36px);line-height:1.15;margin:0 0 20px;letter-spacing:-.01em}
h2{font-size:20px;line-height:1.25;margin:0 0 6px}
h3{font-size:17px;margin:28px 0 2px}
p{margin:0 0 8px}
section{margin:0 0 40px}
figure{margin:0}
.kicker{color:var(--muted);font-size:14px;margin-bottom:4px}
.prose{max-width:78ch}
.verdicts{display:grid;gap:12px}
.card{border-left:5px solid var(--tone);background:var(--card);padding:12px 16px;border-radius:0 6px 6px 0}
.card p{margin:0;max-width:90ch}
.card .label{font-size:19px;font-weight:650;color:var(--tone);margin-bottom:2px}
.good{--tone:var(--good)}.bad{--tone:var(--bad)}.open{--tone:var(--open)}
details{color:var(--muted);font-size:15px}
summary{cursor:pointer}
.warnings{background:var(--warn);border:1px solid var(--warnline);border-radius:6px;padding:12px 16px}
.warnings ul,.notes ul{margin:0;padding-left:20px}
.figures{display:flex;flex-wrap:wrap;gap:40px;align-items:flex-start}
.figures figcaption p{color:var(--muted);font-size:15px}
.beside{display:grid;gap:32px;max-width:430px}
.reading{font-size:15px}
@media (max-width:1119px){.beside{max-width:650px}}
.narrow{display:none}
@media (max-width:720px){.wide{display:none}.narrow{display:block}}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;max-width:960px;font-size:15px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:4px 12px 4px 0;vertical-align:baseline;font-weight:400}
thead th{color:var(--muted);border-bottom:1px solid var(--line)}
tbody tr+tr{border-top:1px solid var(--track)}
tbody .group th{padding-top:16px;border-bottom:1px solid var(--line)}
td{white-space:nowrap}
.asked{color:var(--muted)}
.interval,.n,.none{color:var(--muted)}
.order{margin:10px 0 6px}
.films{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px 18px}
.film img{display:block;width:100%;height:auto;image-rendering:pixelated;border-radius:3px;background:#fff}
.film figcaption{font-size:14px;line-height:1.4;padding-top:4px}
.mark{color:var(--tone);font-weight:700}
.settings{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:10px 24px;margin:0}
.settings dt{color:var(--muted);font-size:14px}
.settings dd{margin:0;overflow-wrap:anywhere}
@media (max-width:480px){th,td{padding-right:8px}table{font-size:14px}.interval{display:block;font-size:12px}}
@media print{.card,.film{break-inside:avoid}}
"""
