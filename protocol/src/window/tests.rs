use std::time::Duration;

use super::*;
use proptest::prelude::*;

fn at(text: &str) -> WallTime {
    text.parse().unwrap()
}

fn night(zone: &str, days: &[Weekday]) -> Window {
    Window::weekly(zone, days, "22:00", 4 * 3_600)
}

/// What [`Timetable::check`] says for every device.
fn check(windows: &[Window], blackouts: &[Blackout], now: WallTime, span: Duration) -> Result<(), Closed> {
    Timetable::new(windows, blackouts, &[], Subject::NOBODY).check(now, span)
}

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn a_start_must_fit_the_window_with_its_whole_duration() {
    let windows = [night("Europe/Berlin", &[Weekday::Sat])];
    let may = |now: &str, span| check(&windows, &[], at(now), span);
    // 2026-11-21 is a Saturday; 22:00 in Berlin is 21:00 UTC, and the window ends on Sunday at 01:00 UTC.
    let opens = Some(at("2026-11-21T21:00:00Z"));
    assert_eq!(may("2026-11-21T20:59:59Z", HOUR), Err(Closed { opens }));
    assert_eq!(may("2026-11-21T21:00:00Z", HOUR), Ok(()));
    assert_eq!(may("2026-11-22T00:00:00Z", HOUR), Ok(()));
    let next = Some(at("2026-11-28T21:00:00Z"));
    assert_eq!(may("2026-11-22T00:00:01Z", HOUR), Err(Closed { opens: next }));
    assert_eq!(may("2026-11-21T21:00:00Z", HOUR * 5), Err(Closed { opens: None }));
}

#[test]
fn a_blackout_wins_over_a_window_and_over_no_window() {
    let blackout = Blackout {
        from: at("2026-12-24T00:00:00Z"),
        until: at("2026-12-27T00:00:00Z"),
    };
    let opens = Some(blackout.until);
    assert_eq!(
        check(&[], &[blackout], at("2026-12-23T23:30:00Z"), HOUR),
        Err(Closed { opens })
    );
    assert_eq!(check(&[], &[blackout], at("2026-12-23T23:00:00Z"), HOUR), Ok(()));
    assert_eq!(check(&[], &[blackout], at("2026-12-27T00:00:00Z"), HOUR), Ok(()));
}

#[test]
fn local_time_follows_the_clocks_through_gap_and_fold() {
    let mut window = night("Europe/Berlin", &[Weekday::Sun]);
    window.from = "02:30".to_owned();
    window.duration_s = 3_600;
    // 2026-03-29: 02:00 becomes 03:00, so 02:30 is taken as 03:30 CEST. 2026-10-25: 02:30 comes twice.
    let windows = [window];
    for (open, before) in [
        ("2026-03-29T01:30:00Z", "2026-03-29T01:29:59Z"),
        ("2026-10-25T00:30:00Z", "2026-10-25T00:29:59Z"),
    ] {
        assert_eq!(check(&windows, &[], at(open), HOUR), Ok(()));
        let opens = Some(at(open));
        assert_eq!(check(&windows, &[], at(before), HOUR), Err(Closed { opens }));
    }
}

#[test]
fn what_is_no_window_is_named() {
    let good = night("Asia/Kolkata", &[Weekday::Mon, Weekday::Sun]);
    assert_eq!(good.problem(), None);
    for bad in [
        Window {
            zone: "Mars/Olympus".to_owned(),
            ..good.clone()
        },
        Window {
            days: Vec::new(),
            ..good.clone()
        },
        Window {
            days: vec![Weekday::Mon, Weekday::Mon],
            ..good.clone()
        },
        Window {
            from: "24:00".to_owned(),
            ..good.clone()
        },
        Window {
            from: "9:00".to_owned(),
            ..good.clone()
        },
        Window {
            duration_s: 0,
            ..good.clone()
        },
        Window {
            duration_s: WINDOW_SECONDS_MAX + 1,
            ..good.clone()
        },
    ] {
        assert!(bad.problem().is_some(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn the_announced_opening_is_one(now in 1_700_000_000_i64..2_000_000_000, zone in 0..4_usize, hours in 1..6_u64) {
        let zone = ["America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"][zone];
        let windows = [night(zone, &[Weekday::Tue, Weekday::Fri])];
        let (now, span) = (WallTime::from_unix_seconds(now), HOUR * u32::try_from(hours).unwrap());
        if let Err(closed) = check(&windows, &[], now, span) {
            prop_assert_eq!(closed.opens.is_some(), hours <= 4);
            if let Some(opens) = closed.opens {
                prop_assert!(opens > now && check(&windows, &[], opens, span).is_ok());
                prop_assert!(check(&windows, &[], WallTime::from_unix_seconds(opens.unix_seconds() - 1), span).is_err());
            }
        }
    }
}

fn recurs(dtstart: &str, rrule: &str) -> Recurrence {
    Recurrence {
        dtstart: dtstart.to_owned(),
        rrule: rrule.to_owned(),
        rdate: Vec::new(),
        exdate: Vec::new(),
    }
}

/// The first starts of a recurrence after a moment.
fn starts(zone: &str, recurs: Recurrence, after: &str, count: usize) -> Vec<String> {
    let window = Window::recurring(zone, recurs, 1);
    assert_eq!(window.problem(), None);
    let openings = Timetable::of_windows(&[window]).openings(at(after), count);
    openings.iter().map(|opening| opening.from.to_string()).collect()
}

/// Windows that were signed before there were others keep their bytes.
#[test]
fn a_weekly_window_keeps_the_bytes_it_was_signed_with() {
    let signed = r#"{"zone":"Europe/Berlin","days":["sat","sun"],"from":"22:00","duration_s":14400}"#;
    let window: Window = serde_json::from_str(signed).unwrap();
    assert_eq!(window, night("Europe/Berlin", &[Weekday::Sat, Weekday::Sun]));
    assert_eq!(serde_json::to_string(&window).unwrap(), signed);
}

#[test]
fn rules_of_the_rfc_mean_what_it_says() {
    // Microsoft's second Tuesday, and the night after it is left out once.
    let mut patch_day = recurs("2026-01-13T23:00:00", "FREQ=MONTHLY;BYDAY=2TU");
    patch_day.exdate = vec!["2026-03-10T23:00:00".to_owned()];
    patch_day.rdate = vec!["2026-03-12T23:00:00".to_owned()];
    assert_eq!(
        starts("Europe/Berlin", patch_day, "2026-01-14T00:00:00Z", 4),
        [
            "2026-02-10T22:00:00Z",
            "2026-03-12T22:00:00Z",
            "2026-04-14T21:00:00Z",
            "2026-05-12T21:00:00Z"
        ]
    );
    // The last working day of the quarter.
    let quarter = recurs(
        "2026-01-01T20:00:00",
        "FREQ=MONTHLY;BYMONTH=3,6,9,12;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1",
    );
    assert_eq!(
        starts("UTC", quarter, "2026-01-01T00:00:00Z", 3),
        ["2026-03-31T20:00:00Z", "2026-06-30T20:00:00Z", "2026-09-30T20:00:00Z"]
    );
    let leap = recurs("2024-02-29T01:00:00", "FREQ=YEARLY");
    assert_eq!(
        starts("UTC", leap, "2096-03-01T00:00:00Z", 2),
        ["2104-02-29T01:00:00Z"],
        "eight years ahead are within the horizon, twelve are not"
    );
    let counted = recurs("2026-01-01T01:00:00", "FREQ=DAILY;INTERVAL=10;COUNT=3");
    assert_eq!(
        starts("UTC", counted, "2026-01-05T00:00:00Z", 9),
        ["2026-01-11T01:00:00Z", "2026-01-21T01:00:00Z"]
    );
    let until = recurs("2026-01-01T01:00:00", "FREQ=WEEKLY;UNTIL=20260115T010000Z;BYDAY=TH");
    assert_eq!(
        starts("UTC", until, "2026-01-02T00:00:00Z", 9),
        ["2026-01-08T01:00:00Z", "2026-01-15T01:00:00Z"]
    );
    let mut listed = recurs("2026-05-01T01:00:00", "");
    listed.rdate = vec!["2026-04-01T01:00:00".to_owned(), "2026-06-01T01:00:00".to_owned()];
    assert_eq!(
        starts("UTC", listed, "2026-01-01T00:00:00Z", 9),
        ["2026-04-01T01:00:00Z", "2026-05-01T01:00:00Z", "2026-06-01T01:00:00Z"]
    );
}

/// Zone, local time of a daily start, the moment it becomes on the day of a gap, of a fold, or of something stranger.
/// The moments are those of the IANA database, worked out by hand from the offsets before and after.
const CHANGES: [(&str, &str, &str); 44] = [
    ("America/New_York", "2026-03-08T02:30:00", "2026-03-08T07:30:00Z"),
    ("America/New_York", "2026-11-01T01:30:00", "2026-11-01T05:30:00Z"),
    ("America/Chicago", "2026-03-08T02:00:00", "2026-03-08T08:00:00Z"),
    ("America/Chicago", "2026-11-01T01:00:00", "2026-11-01T06:00:00Z"),
    ("America/Denver", "2026-03-08T02:59:59", "2026-03-08T09:59:59Z"),
    ("America/Denver", "2026-11-01T01:59:59", "2026-11-01T07:59:59Z"),
    ("America/Los_Angeles", "2026-03-08T02:30:00", "2026-03-08T10:30:00Z"),
    ("America/Los_Angeles", "2026-11-01T01:30:00", "2026-11-01T08:30:00Z"),
    ("America/Halifax", "2026-03-08T02:30:00", "2026-03-08T06:30:00Z"),
    ("America/Halifax", "2026-11-01T01:30:00", "2026-11-01T04:30:00Z"),
    // Half an hour off the others.
    ("America/St_Johns", "2026-03-08T02:30:00", "2026-03-08T06:00:00Z"),
    ("America/St_Johns", "2026-11-01T01:30:00", "2026-11-01T04:00:00Z"),
    // At midnight.
    ("America/Havana", "2026-03-08T00:30:00", "2026-03-08T05:30:00Z"),
    ("America/Havana", "2026-11-01T00:30:00", "2026-11-01T04:30:00Z"),
    ("America/Sao_Paulo", "2018-11-04T00:30:00", "2018-11-04T03:30:00Z"),
    ("America/Sao_Paulo", "2018-02-17T23:30:00", "2018-02-18T01:30:00Z"),
    // The day before, in the evening.
    ("America/Nuuk", "2024-03-30T23:30:00", "2024-03-31T01:30:00Z"),
    ("America/Nuuk", "2024-10-26T23:30:00", "2024-10-27T00:30:00Z"),
    ("Europe/London", "2026-03-29T01:30:00", "2026-03-29T01:30:00Z"),
    ("Europe/London", "2026-10-25T01:30:00", "2026-10-25T00:30:00Z"),
    ("Europe/Berlin", "2026-03-29T02:30:00", "2026-03-29T01:30:00Z"),
    ("Europe/Berlin", "2026-10-25T02:30:00", "2026-10-25T00:30:00Z"),
    ("Europe/Athens", "2026-03-29T03:30:00", "2026-03-29T01:30:00Z"),
    ("Europe/Athens", "2026-10-25T03:30:00", "2026-10-25T00:30:00Z"),
    // Two hours at once.
    ("Antarctica/Troll", "2026-03-29T02:30:00", "2026-03-29T02:30:00Z"),
    ("Antarctica/Troll", "2026-10-25T01:30:00", "2026-10-24T23:30:00Z"),
    // Summer time ends for Ramadan and comes back after it.
    ("Africa/Casablanca", "2026-02-15T02:30:00", "2026-02-15T01:30:00Z"),
    ("Africa/Casablanca", "2026-03-22T02:30:00", "2026-03-22T02:30:00Z"),
    ("Africa/Cairo", "2026-04-24T00:30:00", "2026-04-23T22:30:00Z"),
    ("Africa/Cairo", "2026-10-29T23:30:00", "2026-10-29T20:30:00Z"),
    ("Asia/Beirut", "2026-03-29T00:30:00", "2026-03-28T22:30:00Z"),
    ("Asia/Beirut", "2026-10-24T23:30:00", "2026-10-24T20:30:00Z"),
    ("Asia/Jerusalem", "2026-03-27T02:30:00", "2026-03-27T00:30:00Z"),
    ("Asia/Jerusalem", "2026-10-25T01:30:00", "2026-10-24T22:30:00Z"),
    ("Asia/Tehran", "2021-03-22T00:30:00", "2021-03-21T21:00:00Z"),
    ("Asia/Tehran", "2021-09-21T23:30:00", "2021-09-21T19:00:00Z"),
    // Half an hour only.
    ("Australia/Lord_Howe", "2026-10-04T02:15:00", "2026-10-03T15:45:00Z"),
    ("Australia/Lord_Howe", "2026-04-05T01:45:00", "2026-04-04T14:45:00Z"),
    ("Australia/Sydney", "2026-10-04T02:30:00", "2026-10-03T16:30:00Z"),
    ("Australia/Sydney", "2026-04-05T02:30:00", "2026-04-04T15:30:00Z"),
    ("Pacific/Auckland", "2026-09-27T02:30:00", "2026-09-26T14:30:00Z"),
    ("Pacific/Chatham", "2026-09-27T03:00:00", "2026-09-26T14:15:00Z"),
    ("Pacific/Chatham", "2026-04-05T03:00:00", "2026-04-04T13:15:00Z"),
    // The whole 30th of December 2011 did not happen: it is taken as the same time of the 31st.
    ("Pacific/Apia", "2011-12-30T10:00:00", "2011-12-30T20:00:00Z"),
];

#[test]
fn local_times_follow_the_clocks_of_over_twenty_zones() {
    let zones: BTreeSet<_> = CHANGES.iter().map(|(zone, ..)| zone).collect();
    assert!(zones.len() >= 20, "{}", zones.len());
    for (zone, local, moment) in CHANGES {
        let opens = at(moment);
        let before = WallTime::from_unix_seconds(opens.unix_seconds() - 1);
        // The same start by a rule, by a list, and by the week.
        let day: DateTime = local.parse().unwrap();
        let weekday = [
            Weekday::Mon,
            Weekday::Tue,
            Weekday::Wed,
            Weekday::Thu,
            Weekday::Fri,
            Weekday::Sat,
            Weekday::Sun,
        ];
        let weekday = weekday.into_iter().find(|weekday| weekday.is(day.date())).unwrap();
        let dtstart = day.checked_sub(jiff::ToSpan::days(60)).unwrap().to_string();
        let rule = Window::recurring(zone, recurs(&dtstart, "FREQ=DAILY"), 60);
        let listed = Window::recurring(zone, recurs(local, ""), 60);
        let weekly = Window::weekly(zone, &[weekday], &local[11..16], 60);
        // Windows of the week know no seconds.
        let has_seconds = day.second() != 0;
        for window in [Some(rule), Some(listed), (!has_seconds).then_some(weekly)]
            .into_iter()
            .flatten()
        {
            assert_eq!(window.problem(), None);
            let windows = [window];
            let span = Duration::from_secs(60);
            assert_eq!(check(&windows, &[], opens, span), Ok(()), "{zone} {local} {windows:?}");
            assert_eq!(
                check(&windows, &[], before, span),
                Err(Closed { opens: Some(opens) }),
                "{zone} {local} {windows:?}"
            );
        }
    }
}

#[test]
fn a_blackout_calendar_recurs_in_its_zone_and_only_for_those_it_is_for() {
    let freeze = BlackoutCalendar {
        name: "year's end".to_owned(),
        zone: "America/New_York".to_owned(),
        duration_s: 20 * 86_400,
        recurs: recurs("2020-12-18T00:00:00", "FREQ=YEARLY"),
        only: Some(AppliesTo {
            paths: vec!["us".parse().unwrap()],
            ..AppliesTo::default()
        }),
    };
    assert_eq!(freeze.problem(), None);
    let device = DeviceId::new("d").unwrap();
    let check = |path: &str, now: &str| {
        let path: TopologyPath = path.parse().unwrap();
        let table = Timetable::new(
            &[],
            &[],
            std::slice::from_ref(&freeze),
            Subject::new(&device, &path, "R1"),
        );
        table.check(at(now), HOUR)
    };
    let opens = Some(at("2027-01-07T05:00:00Z"));
    assert_eq!(check("us/nyc/r1", "2026-12-18T04:00:00Z"), Ok(()));
    assert_eq!(check("us/nyc/r1", "2026-12-18T04:00:01Z"), Err(Closed { opens }));
    assert_eq!(check("us/nyc/r1", "2027-01-07T04:59:59Z"), Err(Closed { opens }));
    assert_eq!(check("eu/ber/r1", "2026-12-24T00:00:00Z"), Ok(()));
}

#[test]
fn a_device_uses_the_windows_that_are_for_it_and_none_means_never() {
    let only = |models: &[&str]| {
        Some(AppliesTo {
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            ..AppliesTo::default()
        })
    };
    let windows = [
        Window {
            only: only(&["R1"]),
            ..night("UTC", &[Weekday::Mon])
        },
        Window {
            only: only(&["R1", "R2"]),
            ..night("UTC", &[Weekday::Thu])
        },
    ];
    let (device, path) = (DeviceId::new("d").unwrap(), "eu/ber/r1".parse().unwrap());
    let opens = |model: &str| {
        let table = Timetable::new(&windows, &[], &[], Subject::new(&device, &path, model));
        table.check(at("2026-11-22T00:00:00Z"), HOUR).unwrap_err().opens
    };
    assert_eq!(opens("R1"), Some(at("2026-11-23T22:00:00Z")));
    assert_eq!(opens("R2"), Some(at("2026-11-26T22:00:00Z")));
    assert_eq!(opens("R3"), None);
}

#[test]
fn a_rule_that_is_none_is_named_and_a_hostile_one_costs_little() {
    for (rrule, why) in [
        ("FREQ=SECONDLY", "FREQ=DAILY"),
        ("FREQ=HOURLY;COUNT=4294967295", "FREQ=DAILY"),
        ("FREQ=DAILY;COUNT=4294967295", "COUNT"),
        ("FREQ=DAILY;COUNT=0", "COUNT"),
        ("FREQ=DAILY;COUNT=2;UNTIL=20270101T000000Z", "both"),
        ("FREQ=DAILY;INTERVAL=-1", "INTERVAL"),
        ("FREQ=DAILY;UNTIL=20270101", "UNTIL"),
        ("FREQ=DAILY;UNTIL=20271301T000000Z", "UNTIL"),
        ("FREQ=DAILY;FREQ=DAILY", "twice"),
        ("FREQ=DAILY;BYSECOND=1", "BYSECOND"),
        ("FREQ=DAILY;", "NAME=VALUE"),
        ("FREQ=WEEKLY;BYDAY=2TU", "only a month or a year"),
        ("FREQ=WEEKLY;BYDAY=é", "BYDAY"),
        ("FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY"),
        ("FREQ=MONTHLY;BYMONTHDAY=0", "BYMONTHDAY"),
        ("FREQ=MONTHLY;BYMONTHDAY=32", "BYMONTHDAY"),
        ("FREQ=MONTHLY;BYSETPOS=1", "nothing to choose"),
        ("FREQ=MONTHLY;BYYEARDAY=1", "BYYEARDAY"),
        ("FREQ=YEARLY;BYWEEKNO=1", "plain weekdays"),
        (
            "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;COUNT=1",
            "not over within 20 years",
        ),
        (
            "FREQ=DAILY;BYHOUR=0,1,2,3;BYMINUTE=0,1,2,3,4,5,6,7,8,9,10,11,12",
            "48 starts",
        ),
    ] {
        let window = Window::recurring("UTC", recurs("1970-01-01T00:00:00", rrule), 60);
        let problem = window.problem().unwrap_or_else(|| panic!("{rrule} was accepted"));
        assert!(problem.contains(why), "{rrule}: {problem}");
    }
    let long = format!("FREQ=DAILY;BYHOUR={}", "1,".repeat(300));
    assert!(
        Window::recurring("UTC", recurs("1970-01-01T00:00:00", &long), 60)
            .problem()
            .is_some()
    );
    for dtstart in [
        "2027-01-31T22:00:00.5",
        "1970-01-01",
        "1970-01-01T00:00",
        "9999-01-01T00:00:00",
        "1970-01-01T00:00:00Z",
        "",
    ] {
        assert!(
            Window::recurring("UTC", recurs(dtstart, ""), 60).problem().is_some(),
            "{dtstart}"
        );
    }
    // Never on any day, in every one of the windows and calendars that there may be.
    let never = recurs(
        "1970-01-01T00:00:00",
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=1,2,3;BYSETPOS=-1,5",
    );
    let windows = vec![Window::recurring("America/St_Johns", never.clone(), 600); WINDOWS_MAX];
    let calendar = BlackoutCalendar {
        name: "never".to_owned(),
        zone: "Africa/Casablanca".to_owned(),
        duration_s: CALENDAR_SECONDS_MAX,
        recurs: never,
        only: None,
    };
    let table = Timetable::new(&windows, &[], &vec![calendar; WINDOWS_MAX], Subject::NOBODY);
    assert_eq!(
        table.check(at("2026-01-01T00:00:00Z"), HOUR / 60),
        Err(Closed { opens: None })
    );
}

fn any_rule() -> impl Strategy<Value = String> {
    prop_oneof![
        (1..9_u32, prop::sample::subsequence(vec!["MO", "TU", "FR", "SU"], 1..4))
            .prop_map(|(interval, days)| format!("FREQ=WEEKLY;INTERVAL={interval};BYDAY={}", days.join(","))),
        (-3..4_i16, 1..4_u32).prop_map(|(which, interval)| {
            let which = if which == 0 { 1 } else { which };
            format!("FREQ=MONTHLY;INTERVAL={interval};BYDAY={which}WE,{which}SA;BYHOUR=1,2,23")
        }),
        (1..400_u32).prop_map(|interval| format!("FREQ=DAILY;INTERVAL={interval}")),
        (1..13_u32, -31..0_i32).prop_map(|(month, day)| format!("FREQ=YEARLY;BYMONTH={month};BYMONTHDAY={day}")),
        (1..20_u32).prop_map(|count| format!("FREQ=DAILY;COUNT={count};BYDAY=MO,SU")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_opening_of_any_rules_is_the_first_one(
        rules in prop::collection::vec((any_rule(), 600_u32..=200_000), 0..3),
        blackouts in prop::collection::vec((any_rule(), 600_u32..=400_000), 0..3),
        now in 1_770_000_000_i64..1_790_000_000,
        zone in prop::sample::select(vec!["America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca", "Antarctica/Troll", "UTC"]),
        span in 1..4_000_u64,
    ) {
        let dtstart = "2025-12-30T02:15:00";
        let windows: Vec<_> = rules.iter().map(|(rule, lasts)| Window::recurring(zone, recurs(dtstart, rule), *lasts)).collect();
        let calendar = |(rule, duration_s): &(String, u32)| BlackoutCalendar {
            name: rule.clone(),
            zone: zone.to_owned(),
            duration_s: *duration_s,
            recurs: recurs(dtstart, rule),
            only: None,
        };
        let calendars: Vec<_> = blackouts.iter().map(calendar).collect();
        let (now, span) = (WallTime::from_unix_seconds(now), Duration::from_secs(span));
        let table = Timetable::new(&windows, &[], &calendars, Subject::NOBODY);
        // The long way round: all spans of every rule for four months, and every moment at which one begins to fit.
        let spans = |windows: &[Window]| -> Vec<(WallTime, WallTime)> {
            let all = Timetable::of_windows(windows).openings(WallTime::from_unix_seconds(now.unix_seconds() - 1_000_000), 2_000);
            all.into_iter().map(|opening| (opening.from, opening.until)).collect()
        };
        let open = spans(&windows);
        let as_window = |calendar: &BlackoutCalendar| Window::recurring(zone, calendar.recurs.clone(), calendar.duration_s);
        let closed: Vec<_> = calendars.iter().flat_map(|calendar| spans(&[as_window(calendar)])).collect();
        let fits = |at: WallTime| {
            let end = at + span;
            (windows.is_empty() || open.iter().any(|(from, until)| *from <= at && end <= *until))
                && closed.iter().all(|(from, until)| end <= *from || at >= *until)
        };
        let moments = open.iter().map(|(from, _)| *from).chain(closed.iter().map(|(_, until)| *until)).chain([now]);
        let first = moments.filter(|at| *at >= now && fits(*at)).min();
        let told = match table.check(now, span) {
            Ok(()) => Some(now),
            Err(closed) => closed.opens,
        };
        // Far ahead the lists end, or the search does.
        let near = WallTime::from_unix_seconds(now.unix_seconds() + 120 * 86_400);
        if first.is_some_and(|at| at < near) || told.is_some_and(|at| at < near) {
            prop_assert_eq!(told, first);
        }
        if let Some(opens) = told.filter(|at| *at > now) {
            prop_assert!(table.check(opens, span).is_ok());
            prop_assert!(table.check(WallTime::from_unix_seconds(opens.unix_seconds() - 1), span).is_err());
        }
    }
}
