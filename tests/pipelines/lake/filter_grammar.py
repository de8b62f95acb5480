"""Conditions from a grammar over every operator and function that Lance's planner knows, and some that only a parser does:
right ones, deep ones, endless ones, and ones that are no SQL. The same ones every time for a seed."""

from __future__ import annotations

import random

COLUMNS = (
    "width",
    "height",
    "pts_s",
    "frame_index",
    "frame_id",
    "asset_id",
    "quality.sharpness",
    "salvaged",
    "`width`",
)
FOREIGN = ("media_type", "uri", "nothing", "jpeg", "emb_x", "_rowid", "ширина", "a.b.c.d")
_NAMES = """abs acos array_length array_has ascii btrim ceil character_length chr coalesce concat contains cos date_part
date_trunc degrees ends_with exp factorial floor greatest initcap isnan least left length ln log10 lower lpad
ltrim md5 nanvl now nullif octet_length power radians random regexp_like regexp_match regexp_replace repeat
replace reverse right round rpad rtrim sha256 signum split_part sqrt starts_with strpos substr to_hex
to_timestamp translate trim trunc upper uuid range json_get cast try_cast not_a_function array_repeat
generate_series"""
FUNCTIONS = _NAMES.split()
BINARY = ("=", "<>", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "||", "AND", "OR", "==", "IS DISTINCT FROM")
STRANGE = (
    "&",
    "|",
    "^",
    "<=>",
    "~",
    "~*",
    "!~",
    "XOR",
    "->",
    "@>",
    "RLIKE",
    "SIMILAR TO",
    "COLLATE",
    "AT TIME ZONE",
    "DIV",
)
TYPES = ("int", "bigint", "double", "string", "boolean", "date", "timestamp", "decimal(10,2)", "tinyint", "binary", "x")
PATTERNS = (
    "%",
    "_",
    "%%%%",
    "%a%b%c%",
    "\\%",
    "\\",
    "a\\",
    "[a-z]+",
    "(((",
    "(a+)+$",
    "%" * 60,
    "_" * 60,
    "é%",
    "\x00%",
    "''",
)
NUMBERS = (
    "0",
    "1",
    "-1",
    "2147483648",
    "-9223372036854775808",
    "99999999999999999999999",
    "1e308",
    "1e400",
    ".5",
    "1_0",
    "0x1F",
)
JUNK = (
    "$1",
    "?",
    ":a",
    "@a",
    ";",
    "--",
    "/*",
    "*/",
    '"',
    "“x”",
    "#",
    "\\",
    "{",
    "}",
    "E'\\''",
    "X'ab'",
    "N'a'",
    "$$",
    "`",
    "'",
    "\x00",
)

LINKS = (
    "+1",
    "*1",
    "-1",
    "||'a'",
    "::int",
    "[1]",
    ".a",
    " IS NOT NULL",
    " IS TRUE",
    " LIKE 'a'",
    " = true",
    " AND width>1",
)
LINKS += (
    " OR width=1",
    " AND height BETWEEN 1 AND 2",
    " COLLATE a",
    " AT TIME ZONE 'UTC'",
    " IS DISTINCT FROM 1",
    " XOR true",
)
LINKS += (" NOT IN (1)", " BETWEEN 1 AND 2", " ESCAPE '!'", " OVERLAPS 1")


def make_filter(rng: random.Random) -> str:
    """One condition."""
    kind = rng.random()
    if kind < 0.25:
        return " AND ".join(_typed(rng) for _ in range(rng.randrange(1, 4)))
    if kind < 0.45:
        return _condition(rng, rng.randrange(1, 5))
    if kind < 0.6:
        return _chain(rng)
    if kind < 0.75:
        return _nest(rng)
    if kind < 0.82:
        return _list(rng)
    return _broken(rng)


def _typed(rng: random.Random) -> str:
    """One that a person would write."""
    number, text = (
        rng.choice(("width", "height", "pts_s", "quality.sharpness")),
        rng.choice(("frame_id", "asset_id", "shot_id")),
    )
    value = rng.randrange(-5, 900)
    return rng.choice(
        (
            f"{number} {rng.choice(('<', '<=', '=', '<>', '>'))} {value}",
            f"{number} {rng.choice(('', 'NOT '))}BETWEEN {value} AND {value + 50}",
            f"({number} > {value} OR {text} LIKE '%{value}%')",
            f"{text} IN ('a1:0', 'a{value}:0')",
            f"NOT {number} = {value}",
            f"lower({text}) = 'a{value}:0'",
            f"abs({number} - {value}) + 1 < length({text}) * 9",
            f"{text} IS {rng.choice(('', 'NOT '))}NULL",
            f"starts_with({text}, 'a{value % 10}')",
            f"(({number} + {value}) / 7 > 3 AND NOT {text} LIKE 'b%')",
        )
    )


def _condition(rng: random.Random, depth: int) -> str:
    if depth <= 0:
        return rng.choice(("salvaged", "true", "false", "NULL", f"{_value(rng, 0)} = {_value(rng, 0)}"))
    inner = depth - 1
    made = rng.randrange(9)
    if made == 0:
        return f"({_condition(rng, inner)}) {rng.choice(('AND', 'OR'))} ({_condition(rng, inner)})"
    if made == 1:
        return f"NOT {_condition(rng, inner)}"
    if made == 2:
        return (
            f"{_value(rng, inner)} {rng.choice(('LIKE', 'ILIKE', 'NOT LIKE', 'RLIKE'))} {_text(rng.choice(PATTERNS))}"
        )
    if made == 3:
        return f"{_value(rng, inner)} {rng.choice(('', 'NOT '))}BETWEEN {_value(rng, 0)} AND {_value(rng, 0)}"
    if made == 4:
        listed = ", ".join(_value(rng, 0) for _ in range(rng.randrange(6)))
        return f"{_value(rng, inner)} {rng.choice(('', 'NOT '))}IN ({listed})"
    if made == 5:
        return f"{_value(rng, inner)} IS {rng.choice(('', 'NOT '))}{rng.choice(('NULL', 'TRUE', 'FALSE', 'UNKNOWN'))}"
    if made == 6:
        return f"CASE WHEN {_condition(rng, inner)} THEN {_condition(rng, 0)} ELSE {_condition(rng, 0)} END"
    if made == 7:
        return f"{_value(rng, inner)} LIKE '%' ESCAPE {_text(rng.choice(('!', '', 'ab', chr(92))))}"
    return f"{_value(rng, inner)} {rng.choice(BINARY[:7] + STRANGE)} {_value(rng, inner)}"


def _value(rng: random.Random, depth: int) -> str:
    if depth <= 0:
        return rng.choice(
            (rng.choice(COLUMNS), rng.choice(COLUMNS + FOREIGN), rng.choice(NUMBERS), _text(rng.choice(PATTERNS)))
        )
    inner = depth - 1
    made = rng.randrange(6)
    if made == 0:
        return f"({_value(rng, inner)} {rng.choice(BINARY[7:13])} {_value(rng, inner)})"
    if made <= 2:
        arguments = ", ".join(_value(rng, inner) for _ in range(rng.randrange(4)))
        return f"{rng.choice(FUNCTIONS)}({arguments})"
    if made == 3:
        return f"CAST({_value(rng, inner)} AS {rng.choice(TYPES)})"
    if made == 4:
        return f"{_value(rng, inner)}{rng.choice(('::' + rng.choice(TYPES), '[1]', '[0]', ' + INTERVAL ' + _text('1 day')))}"
    return f"-{_value(rng, inner)}"


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _chain(rng: random.Random) -> str:
    """Many of one thing in a row."""
    count = rng.choice((20, 60, 150, 700, 5000))
    link = rng.choice(LINKS)
    begin = rng.choice(("width", "frame_id", "(width>1)", "width > 1"))
    return begin + link * count + rng.choice(("", ">1", " = 'a'"))


def _nest(rng: random.Random) -> str:
    """One thing inside of itself, many times."""
    count = rng.choice((3, 10, 13, 20, 45, 60, 400, 3000))
    before, inner, after = rng.choice(
        (
            ("(", "width>1", ")"),
            ("NOT ", "width>1", ""),
            ("NOT (", "width>1", ")"),
            ("-", "width>1", ""),
            ("- ", "width>1", ""),
            ("lower(", "frame_id", ")"),
            ("CAST(", "width", " AS int)"),
            ("TRY_CAST(", "width", " AS int)"),
            ("CASE WHEN width=1 THEN ", "true", " ELSE false END"),
            ("width IN (", "1", ")"),
            ("width BETWEEN 1 AND (", "2", ")"),
            ("[", "1", "]"),
            ("INTERVAL ", "'1' day", ""),
            ("(width = 1 OR (height = 2 AND ", "salvaged", "))"),
            ("EXISTS (SELECT ", "1", ")"),
            ("coalesce(1, ", "width", ")"),
            ("/*", "", "*/"),
            ("PRIOR ", "width", ""),
        )
    )
    return before * count + inner + after * count + rng.choice(("", " > 1", " IS NULL"))


def _list(rng: random.Random) -> str:
    count = rng.choice((0, 1, 100, 3000, 30_000))
    made = rng.randrange(4)
    items = (
        (str(i) for i in range(count)),
        (f"'a{i}:0'" for i in range(count)),
        (f"height+{i}" for i in range(count)),
        (f"({i})" for i in range(count)),
    )[made]
    column = "frame_id" if made == 1 else "width"
    return f"{column} {rng.choice(('', 'NOT '))}IN ({', '.join(items)})"


def _broken(rng: random.Random) -> str:
    """A condition with something put in, cut off, doubled or put elsewhere; or letters from anywhere."""
    text = rng.choice((_condition, _condition, _value))(rng, rng.randrange(1, 4))
    at = rng.randrange(len(text) + 1)
    made = rng.randrange(5)
    if made == 0:
        return text[:at] + rng.choice(JUNK) + text[at:]
    if made == 1:
        return text[:at]
    if made == 2:
        return text[at:] + text[:at]
    if made == 3:
        tokens = text.split(" ")
        rng.shuffle(tokens)
        return " ".join(tokens)
    letters = "ab '\"()[]`,.;:-+*/%=<>!|&^~$?@#\\{}\x00\x1b\u202e\ud800\U0001f600é\n\t0 1 AND OR NOT"
    return "".join(rng.choice(letters) for _ in range(rng.randrange(80)))
