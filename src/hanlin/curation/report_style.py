"""The look of report.html."""

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f5;--card:#fff;--ink:#1c2321;--soft:#66716c;--line:#e2e6e3;
--kept:#2f8f6b;--drop:#cf5a49;--aside:#8d96a0;--edit:#4273c8;--flag:#d39a2d}
@media(prefers-color-scheme:dark){:root{--page:#141816;--card:#1c211f;--ink:#e6ebe8;--soft:#98a39d;--line:#2f3633;
--kept:#4fb98f;--drop:#e4776a;--aside:#7c8690;--edit:#7ba3ec;--flag:#e0b04f}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
main{max-width:64rem;margin:0 auto;padding:2rem 1.25rem 3rem}
body>input{position:absolute;opacity:0;pointer-events:none}
#zh:checked~main [lang=en],#en:checked~main [lang=zh]{display:none}
header{display:flex;justify-content:space-between;align-items:center;gap:1rem;flex-wrap:wrap;margin-bottom:1.25rem}
h1{font-size:1.75rem;margin:0}h2{font-size:1.15rem;margin:0}h3{font-size:1rem;margin:0 0 .75rem}
small{color:var(--soft);font-weight:400}p,footer{color:var(--soft);margin:.15rem 0 0;font-size:.875rem}
nav{display:flex;border:1px solid var(--line);border-radius:99px;overflow:hidden;background:var(--card)}
nav label{padding:.25rem .9rem;cursor:pointer;font-size:.875rem}
#zh:checked~main label[for=zh],#en:checked~main label[for=en]{background:var(--ink);color:var(--card)}
#zh:focus-visible~main nav,#en:focus-visible~main nav{outline:2px solid var(--edit)}
section,.tiles>div{background:var(--card);border:1px solid var(--line);border-radius:12px}
section{padding:1.25rem;margin-top:1rem}
.tiles,.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr))}
.tiles>div{padding:1rem 1.25rem;color:var(--soft)}
.tiles b{display:block;font-size:1.7rem;line-height:1.2;color:var(--ink);font-variant-numeric:tabular-nums}
.wide{overflow-x:auto;margin-top:.75rem}table{border-collapse:collapse;width:100%}
th{color:var(--soft);font-weight:500;font-size:.8125rem;text-align:left;white-space:nowrap}
td,th{padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--line)}tr:last-child td{border-bottom:0}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td.plot{width:32%;min-width:6rem}td.t{word-break:keep-all;overflow-wrap:anywhere}td:first-child{min-width:8.5rem}
.bar{display:block;height:.6rem;border-radius:3px;width:max(2px,var(--v));background:var(--edit)}
code{font:.8125em ui-monospace,monospace;color:var(--soft)}
.strip{display:flex;gap:2px;height:1rem;border-radius:6px;overflow:hidden;margin-top:1rem}
.key{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin-top:.5rem;font-size:.8125rem;color:var(--soft)}
.key i{display:inline-block;width:.65rem;height:.65rem;border-radius:3px;margin-right:.35rem}
i.kept,.Han{background:var(--kept)}i.drop{background:var(--drop)}i.aside,.none{background:var(--aside)}
i.flag{background:var(--flag)}.Latin{background:var(--edit)}
.chip{font-size:.75rem;font-weight:600;padding:.1rem .5rem;border-radius:99px;white-space:nowrap;color:var(--edit);
background:color-mix(in srgb,currentColor 13%,transparent)}.chip.drop{color:var(--drop)}.chip.flag{color:var(--flag)}
.cards{grid-template-columns:repeat(auto-fit,minmax(12.5rem,1fr));gap:2rem;margin-top:1rem}
.columns{display:flex;gap:4px;text-align:center}.columns div{flex:1}.columns small{font-size:.7rem}
.columns div{display:grid;grid-template-rows:5rem auto;align-items:end}
.columns b{height:var(--v);min-height:1px;background:var(--kept);border-radius:3px 3px 0 0}
.card .strip{height:.6rem;margin-top:.5rem}
details{border-bottom:1px solid var(--line);padding:.5rem 0}details:last-child{border:0}summary{cursor:pointer}
ul{list-style:none;margin:.5rem 0;padding:0}
li{padding:.5rem 0 .5rem 1rem;border-left:2px solid var(--line);margin:.25rem 0}
q{quotes:none;font-family:ui-monospace,monospace;font-size:.85em;background:var(--page);padding:.1rem .3rem;
border-radius:4px;overflow-wrap:anywhere;white-space:pre-wrap}
footer{text-align:center;margin-top:1.5rem}
@media(max-width:36rem){main{padding:1rem .75rem}section{padding:1rem}
.plot{display:none}td code{display:block}td,th{padding-right:.4rem;font-size:.8125rem}td:first-child{min-width:7.5rem}
.tiles{grid-template-columns:1fr 1fr}}
@media print{body{background:#fff}nav{display:none}section{break-inside:avoid}}
"""
