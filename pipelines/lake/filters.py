"""SQL conditions that people and requests write: bounded before any parser sees them, and split between two tables.

    text ──bounded──▶ Lance's own parser and planner ──filter_errors──▶ rows, or one sentence

Lance plans by recursion on a stack of 2 MB that nobody can enlarge: some 400 operators in a row (`width + 1 + 1 ...`) end the
process by SIGSEGV, 36 nested NOTs take seconds and 40 minutes, and a placeholder (`$1`) is a panic. So every condition that
reaches Lance, from a request, a command line, a recipe or `Lake.read`, passes `bounded` first. That needs no grammar to be
right: a parser's tree can't be deeper than there are tokens on the longest way into it, and those are counted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from vfm_ops.errors import UsageError

# Measured with Lance 14, one kind of operator in a row: 398 tokens on one way ended a process, 36 brackets took seconds, and
# 39,000 ANDs or ORs, which Lance takes apart in a loop, ended a process too.
MOST_ON_A_WAY = 128
MOST_BRACKETS = 12
MOST_JOINED = 1000
MOST_TOKENS = 5000  # a list of literals is one; ten thousand expressions in a list take half a minute to plan
MOST_CHARACTERS = 8 << 20  # lists of ids that this package writes itself are long
# Their results may have any size: one row could take all memory.
UNBOUNDED = frozenset({"repeat", "lpad", "rpad", "array_repeat", "array_resize", "range", "generate_series"})

_TEXT = r"'(?:[^']|'')*+'"
_NUMBER = r"(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?"
_LITERAL = rf"(?:{_TEXT}|-?{_NUMBER})"
# A list of literals is one token, so that twenty thousand ids are read at the speed of `re`.
_TOKEN = re.compile(
    rf"""(?P<space>\s++) | (?P<list>\(\s*+{_LITERAL}(?:\s*+,\s*+{_LITERAL})*+\s*+\)) | (?P<text>{_TEXT})
    | (?P<number>{_NUMBER}) | (?P<quoted>`[\w.\- ]++`) | (?P<word>[^\W\d][\w.]*+) | (?P<comment>--|/\*)
    | (?P<sign><=|>=|<>|!=|==|::|\|\||[=<>+*/%-]) | (?P<bracket>[()\[\]]) | (?P<comma>,)""",
    re.VERBOSE,
)
_RESERVED = """and or not in is null true false like ilike between escape case when then else end cast try_cast as
regexp distinct from date timestamp interval string int integer bigint smallint tinyint float double boolean decimal asc desc"""
_KEYWORDS = frozenset(_RESERVED.split())
_QUOTES = re.compile('["“”„‘’‚]([^"“”„‘’\']*)["“”’\']?')
# What Lance says when it is the condition that is wrong, and not the store.
_OF_FILTER = ("Execution error", "Not supported", "Task was aborted", "Schema error", "planning")
_OF_STORE = ("LanceError(IO)", "Generic ", "os error", "Object at location")
_NOISE = re.compile(
    "(External error|Invalid user input|LanceError\\(Schema\\)|Schema error|Error during planning|Query Execution error"
    "|Error applying filter expression to batch|Arrow error|Execution error): "
)


@dataclass(frozen=True)
class Token:
    """A piece of a condition. kind: list (of literals, in brackets), text, number, quoted, word, sign, bracket, comma.

    level: how many brackets it lies in. joins: it is an AND or OR between conditions (not the AND of a BETWEEN).
    """

    kind: str
    text: str
    at: int
    level: int = 0
    joins: bool = False

    @property
    def word(self) -> str:
        """A word in lower case; '' for anything else."""
        return self.text.lower() if self.kind == "word" else ""

    @property
    def opens(self) -> bool:
        """Whether a bracket, or a list of literals, begins here."""
        return self.text[0] == "(" and self.kind in ("bracket", "list")


def bounded(where: str) -> str:
    """The condition itself, when it is safe to be planned. UsageError for what no parser should see: nesting or chains without
    end, comments, placeholders, text in double quotes, functions whose results may have any size."""
    read_tokens(where)
    return where


def read_tokens(where: str) -> list[Token]:
    """Tokens of a condition, white space left out. UsageError as `bounded` says."""
    if len(where) > MOST_CHARACTERS:
        raise UsageError(
            f"the filter has {len(where):,} characters, over the limit of {MOST_CHARACTERS:,}: say it shorter"
        )
    if not where.isascii() and any("\ud800" <= c <= "\udfff" for c in where):
        raise UsageError("the filter has half of a UTF-16 pair in it, which is no text: leave it out")
    tokens = _nested(where, list(_scan(where)))
    for token, after in pairwise(tokens):
        if token.word in UNBOUNDED and after.opens:
            raise UsageError(f"{_shown(where)} calls {token.word}(), whose result may have any size: leave it out")
        # To a parser, E'...' and its like are texts with other rules for where they end.
        if token.kind == "word" and after.kind == "text" and after.at == token.at + len(token.text):
            raise UsageError(f"{_shown(where)} has {token.text} right before a quote: put a space between them")
    return tokens


def _scan(where: str) -> Iterator[Token]:
    at = 0
    while at < len(where):
        match = _TOKEN.match(where, at)
        if match is None:
            raise UsageError(_stray(where, at))
        if match.lastgroup == "comment":
            raise UsageError(f"{_shown(where)} has a comment in it, which is not allowed")
        if match.lastgroup != "space":
            yield Token(str(match.lastgroup), match.group(), at)
        at = match.end()


def _stray(where: str, at: int) -> str:
    """What is said of a character that begins no token."""
    if where[at] == "'":
        return f"{_shown(where)} has a quote or bracket too many"
    if (quoted := _QUOTES.match(where, at)) is not None:
        inside = quoted[1] if quoted[1].isprintable() and 0 < len(quoted[1]) <= 40 else "text"
        return f"{_shown(where)} has {where[at]} at position {at}: write text in single quotes, '{inside}'"
    return f"{_shown(where)} has {where[at]!r} at position {at}, which is not allowed: compare columns with values"


@dataclass
class _Level:
    """What is open between two brackets. part: tokens of the piece between two commas, ANDs or ORs, and the longest way
    below it; longest: of the pieces before."""

    closes: str
    part: int = 0
    below: int = 0
    longest: int = 0
    betweens: int = 0

    def end_part(self) -> int:
        self.longest = max(self.longest, self.part + self.below)
        self.part = self.below = 0
        return self.longest


def _nested(where: str, tokens: list[Token]) -> list[Token]:
    """The same tokens, with their level and whether they join. UsageError for brackets that don't fit, or too much of it."""
    if len(tokens) > MOST_TOKENS:
        raise UsageError(
            f"{_shown(where)} has over {MOST_TOKENS:,} operators and names: say it with IN and plain values"
        )
    levels, joined, found = [_Level("")], 0, []
    for token in tokens:
        level = levels[-1]
        word = token.word
        joins = word == "or" or (word == "and" and not level.betweens)
        found.append(Token(token.kind, token.text, token.at, len(levels) - 1, joins))
        if token.text in ("(", "[") or word == "case":
            level.part += 1
            levels.append(_Level({"(": ")", "[": "]"}.get(token.text, "end")))
        elif token.text in (")", "]") or word == "end":
            if level.closes != (word or token.text):
                raise UsageError(f"{_shown(where)} has a quote or bracket too many")
            levels.pop()
            levels[-1].below = max(levels[-1].below, level.end_part())
        elif joins or token.kind == "comma":
            level.end_part()
            joined += joins
        elif token.kind in ("word", "sign", "quoted"):
            level.part += 1 + token.text.count(".")
            level.betweens += (word == "between") - (word == "and")
        if len(levels) > MOST_BRACKETS + 1:
            raise UsageError(f"{_shown(where)} nests brackets deeper than {MOST_BRACKETS}: say it flatter")
    if len(levels) > 1:
        raise UsageError(f"{_shown(where)} has an open bracket")
    if levels[0].end_part() > MOST_ON_A_WAY:
        raise UsageError(
            f"{_shown(where)} has over {MOST_ON_A_WAY} operators and names in a row: say it shorter, or with IN"
        )
    if joined > MOST_JOINED:
        raise UsageError(f"{_shown(where)} has over {MOST_JOINED:,} ANDs and ORs: say it with IN (...)")
    return found


# -- what Lance says ---------------------------------------------------------------------------------------------------


@contextmanager
def filter_errors(table: str, where: str | None, *, always: bool = False) -> Iterator[None]:
    """Turns what Lance raises about a condition (or panics with) into a UsageError that names it; a store's errors pass.

    always: nothing is read, so that whatever is wrong is the condition.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as e:
        if where is None or not (always or _is_of_filter(str(e))):
            raise
        raise UsageError(f"{_shown(where)} does not fit table {table}: {_reason(e)}") from e
    except BaseException as e:
        # A panic in Rust is no Exception: it would end a server's thread, or a command with a traceback.
        if where is None or type(e).__name__ != "PanicException":
            raise
        raise UsageError(f"{_shown(where)} does not fit table {table}: it can't be planned ({_reason(e)})") from e


def _is_of_filter(text: str) -> bool:
    if "Invalid user input" in text:
        return True
    return any(sign in text for sign in _OF_FILTER) and not any(sign in text for sign in _OF_STORE)


def _reason(error: BaseException) -> str:
    """The part of Lance's message that speaks of the condition."""
    text = " ".join(str(error).split("\n")).strip()
    text = _NOISE.sub("", text).split(", /")[0].split(", rust/")[0]
    if text == "Task was aborted":
        return "it can't be planned"
    return text[:200].rstrip(". ")


def _shown(where: str) -> str:
    return (
        f"the filter {where!r}" if len(where) <= 200 else f"the filter {where[:160]!r}... ({len(where):,} characters)"
    )


# -- two tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitFilter:
    """Conditions that must both hold; None where nothing is asked of a table."""

    frames: str | None = None
    assets: str | None = None


def split_filter(where: str | None, frames: Collection[str], assets: Collection[str]) -> SplitFilter:
    """Splits `where` at its outermost ANDs by the columns that each part names; a column of both tables is that of frames.

    frames, assets: the tables' column names. UsageError for an unknown column, for what `bounded` refuses, and for a part
    that mixes the tables (in an OR, say), which no single table can answer.
    """
    if where is None or not where.strip():
        return SplitFilter()
    parts: dict[bool, list[str]] = {True: [], False: []}
    for part, tokens in _conjuncts(where):
        columns = list(columns_of(tokens))
        for name in columns:
            if name not in frames and name not in assets:
                near = difflib.get_close_matches(name, [*frames, *assets], n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*frames, *assets])}"
                raise UsageError(f"{_shown(where)} names the unknown column {name}; {hint}")
        of_frames = {name in frames for name in columns} or {True}
        if len(of_frames) > 1:
            raise UsageError(
                f"the filter's part {part.strip()!r} mixes columns of frames and of assets: join them with AND instead"
            )
        parts[of_frames.pop()].append(part.strip())
    frames_sql, assets_sql = (" AND ".join(f"({p})" for p in parts[key]) or None for key in (True, False))
    return SplitFilter(frames_sql, assets_sql)


def _conjuncts(where: str) -> Iterator[tuple[str, list[Token]]]:
    """The parts between the outermost ANDs, as text and as tokens; all of it where an outermost OR joins them."""
    tokens = read_tokens(where)
    outermost = [i for i, t in enumerate(tokens) if t.joins and t.level == 0]
    if any(tokens[i].word == "or" for i in outermost):
        outermost = []
    begin = 0
    for i in [*outermost, len(tokens)]:
        end = tokens[i].at if i < len(tokens) else len(where)
        own = tokens[begin:i]
        if not own:
            raise UsageError(f"{_shown(where)} has an AND with nothing beside it")
        yield where[own[0].at : end], own
        begin = i + 1


def columns_of(tokens: list[Token]) -> Iterator[str]:
    """Names of the columns in a condition, or in a part of one; of a field of a struct, the struct's."""
    for token, after in zip(tokens, [*tokens[1:], Token("end", " ", 0)]):
        if token.kind == "quoted":
            yield token.text.strip("`").split(".")[0]
        elif token.kind == "word" and token.word not in _KEYWORDS and not after.opens:
            yield token.text.split(".")[0]
