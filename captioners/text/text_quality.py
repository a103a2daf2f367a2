"""The form of a caption's text: refusals, openers, repetition, cut-off, prompt echo, language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from captioners.text.claims import sentences

REFUSAL = re.compile(
    r"\b(?:I(?:'|’)?m sorry|I am sorry|I (?:can(?:no|')?t|am unable to|am not able to|won't|will not)|as an AI|"
    r"language model|I apologi[sz]e|unable to (?:view|see|process|describe)|no (?:video|images?|frames) (?:was|were) )",
    re.IGNORECASE,
)
OPENER = re.compile(
    r"^(?:here(?:'s| is) (?:a|the) (?:\w+ )?(?:caption|description)[^:]*:\s*"
    r"|(?:sure|certainly|of course)[,!.]\s*"
    r"|(?:in|throughout) (?:this|the) (?:short |brief )?(?:video|clip|footage|scene|image|frame|sequence)s?,?\s+"
    r"(?:we (?:can )?see\s+)?"
    r"|(?:this|the) (?:short |brief )?(?:video|clip|footage|scene|image|frame|sequence)s? "
    r"(?:begins with|starts with|opens with|opens on|shows|depicts|features|displays|captures|presents|portrays|"
    r"showcases|is of|is about|illustrates)\s+(?:that\s+)?"
    r"|(?:we|you) (?:can )?see\s+)",
    re.IGNORECASE,
)
DEBRIS = re.compile(r"```|^\s*[{\[]|\"\s*:\s*[\"\[{]|<\|?[a-z_]+\|?>|\bhttps?://", re.IGNORECASE)
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
FUNCTION = frozenset(  # English words by which a text is recognised as English
    """
    a an the and or but of in on at to from with without by for as is are was were be been being it its this
    that these those he she they him his her their there then while into onto over under through across along
    up down out off near around behind before after between against toward towards who which what when where not
    no one two
    """.split()  # noqa: SIM905
)
CONNECTIVE = re.compile(
    r"\b(?:then|after|afterwards|before|next|finally|while|until|first|later|eventually|followed by|when"
    r"|as (?:it|he|she|they|the)|begins?|starts?|stops?|suddenly|meanwhile|once|at the end|by the end)\b",
    re.IGNORECASE,
)
ORDER = re.compile(r"\b(?:then|after|before|until|finally|first|later|begins?|starts?|stops?)\b", re.IGNORECASE)
LONGEST_WORDS = 320
REPEAT_SPAN = 4  # words in a span that is counted to detect loops
REPEAT_TIMES = 4  # occurrences of a span from which it is a loop
LETTER_SPAN = 8  # letters in such a span, for scripts without spaces
LETTERS_A_SPACE = 20  # letters per space from which a script has no spaces between words
ENDS = (".", "!", "?", '"', ".)", "”", "。", "！", "？", "…", "।", "؟", "」", "»")  # endings of a complete sentence
ECHO = 8  # consecutive words of the prompt that count as an echo


@dataclass(frozen=True)
class TextCheck:
    """A text after repair, its defects, and why it cannot be used (None if it can)."""

    text: str
    defects: tuple[str, ...] = ()
    rejected: str | None = None


def check_form(text: str, prompt: str = "", cut_off: bool = False, english: bool = True) -> TextCheck:
    """Check a text and repair it without adding content: remove an opener, repeated sentences and an unfinished last
    sentence. Refusals, loops, debris and echoes of `prompt` are rejected, and another language if the text must be
    `english`."""
    text = " ".join(text.split())
    why = unusable(text, prompt, english)
    if why:
        return TextCheck(text, (f"form: {why}",), why)
    defects = []
    while (rest := OPENER.sub("", text, count=1)) not in (text, ""):
        defects.append(f"form: opener {text[: len(text) - len(rest)].strip()!r} removed")
        text = rest[0].upper() + rest[1:]
    parts = sentences(text)
    distinct = list(dict.fromkeys(parts))
    if len(distinct) < len(parts):
        defects.append(f"form: {len(parts) - len(distinct)} repeated sentence(s) removed")
    if not distinct[-1].endswith(ENDS):
        if len(distinct) > 1:
            defects.append("form: unfinished last sentence removed")
            distinct.pop()
        elif cut_off or len(distinct[-1].split()) > 60:
            return TextCheck(text, (*defects, "form: cut off"), "cut off")
        else:
            distinct[-1] += "."
    text = " ".join(distinct)
    if len(text.split()) > LONGEST_WORDS:
        defects.append(f"form: {len(text.split())} words, cut to {LONGEST_WORDS}")
        text = _first_words(distinct, LONGEST_WORDS)
    why = unusable(text, prompt, english)
    return TextCheck(text, (*defects, f"form: {why}") if why else tuple(defects), why)


def unusable(text: str, prompt: str = "", english: bool = True) -> str | None:
    """Return why the form of a text rules it out as a caption; None if it does not. In languages other than English a
    text may have no spaces between its words."""
    bare = text.replace(" ", "").rstrip(".!?")
    if not bare:
        return "empty"
    if REFUSAL.search(text):
        return "refusal"
    if DEBRIS.search(text):
        return "markup in the text"
    if echoes(text, prompt):
        return "repeats the prompt"
    if english and not is_english(text):
        return "not English"
    words = WORD.findall(text) if english else tokens(text)
    letters = sum(c.isalpha() or unicodedata.category(c).startswith("M") for c in bare)
    if len(words) < 2 or letters < 0.6 * len(bare):
        return "not words"
    return "repeats itself" if loops(text) else None


def is_english(text: str) -> bool:
    """Return whether letters are mostly Latin and, in 8 words or more, one in eight is an English function word."""
    letters = [c for c in text if c.isalpha()]
    if sum(c.isascii() for c in letters) < 0.9 * len(letters) or not letters:
        return False
    words = [w.lower() for w in WORD.findall(text)]
    return len(words) < 8 or sum(w in FUNCTION for w in words) >= len(words) / 8


def loops(text: str) -> bool:
    """Return whether a span of REPEAT_SPAN words occurs REPEAT_TIMES times or more."""
    words = tokens(text)
    size = REPEAT_SPAN if len(max(words, key=len, default="")) > 1 else LETTER_SPAN
    spans = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return bool(spans) and max(spans.values()) >= REPEAT_TIMES


def tokens(text: str) -> list[str]:
    """Return words in lower case; for a script without spaces between words, letters."""
    letters = [c for c in text if c.isalpha()]
    if len(letters) >= LETTER_SPAN and text.count(" ") * LETTERS_A_SPACE < len(letters):
        return letters
    return [w.lower() for w in WORD.findall(text)]


def echoes(text: str, prompt: str) -> bool:
    """Return whether `text` repeats ECHO consecutive words of `prompt`."""
    prompt_words = [w.lower() for w in WORD.findall(prompt)]
    text_words = [w.lower() for w in WORD.findall(text)]
    spans = {tuple(prompt_words[i : i + ECHO]) for i in range(len(prompt_words) - ECHO + 1)}
    return any(tuple(text_words[i : i + ECHO]) in spans for i in range(len(text_words) - ECHO + 1))


def tells_order(text: str) -> bool:
    """Return whether the text states an order of events."""
    return CONNECTIVE.search(text) is not None


def _first_words(parts: list[str], most: int) -> str:
    kept: list[str] = []
    for sentence in parts:
        if kept and sum(len(s.split()) for s in kept) + len(sentence.split()) > most:
            break
        kept.append(sentence)
    return " ".join(" ".join(kept).split()[:most])
