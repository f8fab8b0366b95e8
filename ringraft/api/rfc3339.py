"""Times as text, RFC 3339, to and from milliseconds since 1970 UTC."""

from __future__ import annotations

import re

TEXT_CHARS_MAX = 64

_FORM = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,30}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))\Z"
)
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def wall_ms(text: str) -> int | None:
    """The time in milliseconds since 1970 UTC, negative before; None when the text has another form.

    Years 0000 to 9999, any offset, and the leap second :60 (counted as the end of :59), as the RFC
    allows; the standard library's datetime takes none of the edges.
    """
    found = _FORM.match(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    if not 1 <= month <= 12 or hour > 23 or minute > 59 or second > 60:
        return None
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= day <= _MONTH_DAYS[month - 1] + leap:
        return None
    ms = int((found[7] or "0")[:3].ljust(3, "0"))
    if second == 60:
        second, ms = 59, 999
    offset_minutes = 0
    if found[8]:
        if int(found[9]) > 23 or int(found[10]) > 59:
            return None
        offset_minutes = (int(found[9]) * 60 + int(found[10])) * (1 if found[8] == "+" else -1)
    seconds = _days(year, month, day) * 86_400 + hour * 3600 + (minute - offset_minutes) * 60 + second
    return seconds * 1000 + ms


def text(ms: int) -> str:
    """Milliseconds since 1970 UTC as ``2026-01-31T12:00:00.000Z``."""
    days, rest = divmod(ms, 86_400_000)
    year, month, day = _date(days)
    seconds, ms = divmod(rest, 1000)
    hour, seconds = divmod(seconds, 3600)
    minute, second = divmod(seconds, 60)
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}.{ms:03d}Z"


def _days(year: int, month: int, day: int) -> int:
    # Days since 1970-01-01 in the proleptic Gregorian calendar; the year begins in March, so that the
    # leap day is its last.
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def _date(days: int) -> tuple[int, int, int]:
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, day
