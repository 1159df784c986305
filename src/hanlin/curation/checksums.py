"""Check digits and number ranges of identity documents, cards and companies: what tells a number from a look-alike."""

from datetime import date

# GB/T 2260: the first two digits of a resident ID name a province; 81 to 83 are residence permits for people from
# Hong Kong, Macau and Taiwan.
PROVINCES = frozenset(
    map(str, (*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71))
) | {"81", "82", "83"}

_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECK = "10X98765432"
_COMPANY = "0123456789ABCDEFGHJKLMNPQRTUWXY"
_TAIWAN = "ABCDEFGHJKLMNPQRSTUVXYWZIO"  # in this order the letters stand for 10, 11, ... 35


def is_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for index, char in enumerate(reversed(digits)):
        value = int(char) * (2 if index % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card_issuer(digits: str) -> bool:
    """Whether a payment network gives out cards with this beginning and length (ISO/IEC 7812; UnionPay's BIN table).

    UnionPay's own range is 62; its members' older debit cards begin with 4, 5, 60, 68, 69 or 95588 like others' do.
    """
    size, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[:2] in ("62", "81"):
        return 16 <= size <= 19
    if digits.startswith(("955880", "955881", "955882", "955888")):
        return size == 19
    if two in (34, 37):
        return size == 15
    if digits[0] == "4":
        return size in (16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720 or 3528 <= four <= 3589:
        return size == 16
    if four == 6011 or 644 <= three <= 659:
        return size in (16, 19)
    if two in (36, 38, 39) or 300 <= three <= 305:
        return size == 14
    return two in (60, 68, 69) and size in (16, 17, 18, 19)


def is_resident_id(number: str) -> bool:
    """GB 11643-1999: province, a birth date that can be, and the check character of ISO 7064 MOD 11-2."""
    number = number.upper()
    if number[:2] not in PROVINCES or not is_birth_date(number[6:14]):
        return False
    total = sum(int(char) * weight for char, weight in zip(number, _ID_WEIGHTS, strict=False))
    return _ID_CHECK[total % 11] == number[17]


def is_birth_date(digits: str) -> bool:
    """Eight digits YYYYMMDD of a day from 1900 to this century's middle: no clock, so that verdicts never change."""
    try:
        return 1900 <= date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).year <= 2050
    except ValueError:
        return False


def is_company_code(code: str) -> bool:
    """GB 32100-2015, the unified social credit code: department, region, and a check character modulo 31."""
    if code[0] not in "123456789ANY" or code[2:4] not in PROVINCES | {"10"}:
        return False
    total = sum(_COMPANY.index(char) * pow(3, index, 31) for index, char in enumerate(code[:17]))
    return _COMPANY[-total % 31] == code[17]


def is_taiwan_id(number: str) -> bool:
    """A letter for the county, a digit for the sex (8, 9: foreign residents), a weighted check digit."""
    letter = _TAIWAN.index(number[0]) + 10
    digits = (letter // 10, letter % 10, *map(int, number[1:]))
    return (
        sum(digit * weight for digit, weight in zip(digits, (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1), strict=True)) % 10 == 0
    )


def is_hong_kong_id(letters: str, digits: str, check: str) -> bool:
    """Letters count from A = 10 (a missing first one is 36), weights go from 9 down to 2, modulo 11 with A for 10."""
    values = [36, *(ord(char) - 55 for char in letters)][-2:] + [int(char) for char in digits]
    total = sum(value * weight for value, weight in zip(values, range(9, 1, -1), strict=True))
    return "0123456789A"[-total % 11] == check


# ITU-T E.164 and the countries' own plans: how many digits follow a country code.
_NATIONAL_DIGITS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("1", "7", "58", "90", "91", "98", "234"), (10, 10)),
    **dict.fromkeys(("27", "31", "33", "34", "40", "41", "48", "61", "351", "380", "420"), (9, 9)),
    **dict.fromkeys(("45", "47", "65", "852", "853"), (8, 8)),
    **dict.fromkeys(("32", "36", "66", "886", "966", "971", "972"), (8, 9)),
    **dict.fromkeys(("20", "44", "63", "81", "84"), (9, 10)),
    **dict.fromkeys(("52", "54", "55"), (10, 11)),
    **dict.fromkeys(("60", "62", "64", "82"), (8, 11)),
}


def is_phone_abroad(code: str, national: str) -> bool:
    """Whether a country with this code gives out numbers of this length; a leading zero is for calls within it."""
    fewest, most = _NATIONAL_DIGITS.get(code, (9 - len(code), 14 - len(code)))
    return fewest <= len(national) <= most or (national[:1] == "0" and fewest <= len(national) - 1 <= most)
