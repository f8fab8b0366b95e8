"""A warning that repeats is said once."""

import logging

from ringraft.membership.once import SUBJECTS_MAX, Once


def test_only_news_is_a_warning(caplog):
    once, log = Once(), logging.getLogger("once")
    with caplog.at_level(logging.DEBUG):
        for reason in ("stale", "stale", "foreign"):
            once.log(log, "w1", "refused reason=%s", reason)
        once.forget("w1")
        once.log(log, "w1", "refused reason=%s", "foreign")
    assert [record.levelno for record in caplog.records] == [
        logging.WARNING,
        logging.DEBUG,
        logging.WARNING,
        logging.WARNING,
    ]


def test_subjects_are_bounded():
    once, log = Once(), logging.getLogger("once")
    for number in range(SUBJECTS_MAX + 10):
        once.log(log, f"w{number}", "refused")
    assert len(once._said) <= SUBJECTS_MAX
