"""Define the HTML frame and the CSS of all reports, for light and dark mode, wide and narrow screens."""

# The security policy forbids to load or execute anything; the report needs neither.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
{title}
<style>{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

CSS = """
:root { --paper: #fff; --ink: #1c1e21; --faint: #5f6670; --line: #d9dce1;
  --tint: #e3f2ea; --block: #f5f6f8; --shade: #0003; --right: #57b894; --wrong: #e0875a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --ink: #e6e8eb; --faint: #9aa2ad; --line: #33383f;
    --tint: #1d3a2c; --block: #1e2125; --shade: #fff3; --right: #2c7a5b; --wrong: #a3532b; }
  figure svg { filter: invert(.92) hue-rotate(180deg); } /* charts are drawn dark on white */
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.2rem; }
.summary { margin: 0; font-size: 1.1rem; max-width: 48rem; overflow-wrap: anywhere; }
.note, figcaption, small, caption { color: var(--faint); font-size: .85rem; }
.note { max-width: 56rem; margin: .5rem 0; }
/* A shadow at the right edge shows that the table can be scrolled; at the end of the content it is covered. */
.scroll { overflow-x: auto; background: linear-gradient(to left, var(--paper) 1rem, transparent 2rem) right / 2rem 100%,
  linear-gradient(to left, var(--shade), transparent) right / .8rem 100%; background-repeat: no-repeat;
  background-attachment: local, scroll; width: fit-content; max-width: 100%; }
.grid > .scroll { width: auto; min-width: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--faint); font-size: .85rem; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
td strong { background: var(--tint); border-radius: .25rem; padding: .1rem .4rem; margin-right: -.4rem; }
caption { text-align: left; padding-bottom: .25rem; }
tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 8.5rem; max-width: 24rem; }
.measures th { white-space: normal; min-width: 4rem; }
.measures tbody th { min-width: 12rem; max-width: 40rem; }
.measures small { display: block; font-weight: 400; }
.pairs { width: 100%; }
.pairs td { white-space: normal; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: .2em; }
.swatch { outline: 1px solid var(--line); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
figure { margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { overflow-wrap: anywhere; margin-bottom: .25rem; }
figcaption b { color: var(--ink); }
.confusion td { text-align: center; padding: .25rem .5rem; }
.confusion th, .confusion tbody th { padding: .25rem .5rem; min-width: 0; white-space: nowrap; }
.example { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; font-size: .85rem; min-width: 0; }
.example img { width: 6rem; image-rendering: pixelated; display: block; margin-bottom: .5rem; }
.example blockquote { margin: 0 0 .5rem; color: var(--faint); overflow-wrap: anywhere; }
pre { background: var(--block); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem;
  overflow-x: auto; font-size: .85rem; line-height: 1.45; }
.command { user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  th, td { padding: .35rem .45rem; font-size: .9rem; }
  .swatch { margin-right: .3em; }
}
"""
