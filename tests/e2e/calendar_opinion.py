"""Recurrence rules by python-dateutil, in the zones of Python's own library: one JSON line in, one out.

A line is [zone, dtstart, rrule, rdate, exdate, from, to], local times but for the last two, which are seconds since 1970.
The answer is the list of the starts in that span, in seconds since 1970.
"""

import datetime
import json
import sys
import zoneinfo

import dateutil.rrule

UTC = datetime.timezone.utc


def starts(zone, dtstart, rrule, rdate, exdate, begins, ends):
    zone = zoneinfo.ZoneInfo(zone)
    at = lambda text: datetime.datetime.fromisoformat(text).replace(tzinfo=zone)
    rule = dateutil.rrule.rrulestr(rrule, dtstart=at(dtstart))
    left_out = set(exdate)
    found = set()
    for start in rule:
        moment = int(start.astimezone(UTC).timestamp())
        if moment > ends + 3 * 86400:
            break
        if start.replace(tzinfo=None).isoformat() not in left_out:
            found.add(moment)
    found.update(int(at(text).astimezone(UTC).timestamp()) for text in rdate if text not in left_out)
    return sorted(moment for moment in found if begins <= moment < ends)


for line in sys.stdin:
    print(json.dumps(starts(*json.loads(line))))
