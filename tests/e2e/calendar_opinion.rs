//! Windows open when others say so too: python-dateutil, which shares no code with us, expands the same rules in the zones
//! of Python's library.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    time::WallTime,
    window::{Recurrence, Timetable, Window},
};
use firmesh_tests::python::{PYTHON_DATEUTIL, python_with};

/// Kept between runs, for pip's sake.
const VENVS: &str = env!("CARGO_TARGET_TMPDIR");

/// Rules that are compared; some thousand take Python a few seconds.
const RULES: usize = 3_000;

/// Zones whose past both libraries know alike, however old their databases are.
const ZONES: [&str; 12] = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/St_Johns",
    "America/Sao_Paulo",
    "Africa/Casablanca",
    "Antarctica/Troll",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Chatham",
];

struct Case {
    zone: &'static str,
    recurs: Recurrence,
    from: i64,
    to: i64,
}

#[test]
fn python_dateutil_expands_thousands_of_rules_to_the_same_moments() -> Result<()> {
    let python = python_with(Path::new(VENVS), "dateutil", &PYTHON_DATEUTIL)?;
    let mut dice = fastrand::Rng::with_seed(5545);
    let cases: Vec<_> = (0..RULES).map(|_| any_case(&mut dice)).collect();
    let mut asked = String::new();
    for Case { zone, recurs, from, to } in &cases {
        let Recurrence {
            dtstart,
            rrule,
            rdate,
            exdate,
        } = recurs;
        let line = serde_json::json!([zone, dtstart, rrule, rdate, exdate, from, to]);
        asked.push_str(&format!("{line}\n"));
    }
    let mut child = Command::new(python)
        .args(["-c", include_str!("calendar_opinion.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a piped input")?;
    let writing = std::thread::spawn(move || stdin.write_all(asked.as_bytes()));
    let said = child.wait_with_output()?;
    writing.join().expect("the writer does not panic")?;
    ensure!(said.status.success(), "Python failed: {}", said.status);

    let said = String::from_utf8(said.stdout)?;
    let (mut compared, mut starts) = (0, 0);
    for (case, theirs) in cases.iter().zip(said.lines()) {
        let theirs: Vec<i64> = serde_json::from_str(theirs)?;
        let ours = our_starts(case)?;
        ensure!(
            ours == theirs,
            "{} {:?} between {} and {}: ours {ours:?}, theirs {theirs:?}",
            case.zone,
            case.recurs,
            case.from,
            case.to
        );
        compared += 1;
        starts += ours.len();
    }
    ensure!(compared == RULES, "{compared} answers for {RULES} rules");
    // Otherwise the rules would say nothing.
    ensure!(starts > 10 * RULES, "{starts} starts of {RULES} rules");
    println!("{compared} rules with {starts} starts, the same to the second");
    Ok(())
}

fn our_starts(case: &Case) -> Result<Vec<i64>> {
    let window = Window::recurring(case.zone, case.recurs.clone(), 1);
    if let Some(problem) = window.problem() {
        anyhow::bail!("{:?} {problem}", case.recurs);
    }
    let openings = Timetable::of_windows(&[window]).openings(WallTime::from_unix_seconds(case.from), 100_000);
    let starts = openings.iter().map(|opening| opening.from.unix_seconds());
    Ok(starts.filter(|at| *at < case.to).collect())
}

/// A rule of any kind that both understand, and a span of a year and a half after it has begun.
fn any_case(dice: &mut fastrand::Rng) -> Case {
    const WEEKDAYS: [&str; 7] = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"];
    let pick = |dice: &mut fastrand::Rng, from: i32, to: i32, most: usize| {
        let count = dice.usize(1..=most);
        let mut all: Vec<i32> = (0..count).map(|_| dice.i32(from..=to)).filter(|n| *n != 0).collect();
        all.push(if from > 0 { from } else { to });
        all.sort_unstable();
        all.dedup();
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let weekdays = |dice: &mut fastrand::Rng| {
        let mut days: Vec<_> = WEEKDAYS.into_iter().filter(|_| dice.u8(0..3) == 0).collect();
        if days.is_empty() {
            days.push("SA");
        }
        days
    };
    let (year, month, day) = (dice.i32(2001..=2018), dice.i32(1..=12), dice.i32(1..=28));
    let (hour, minute) = (dice.i32(0..=23), dice.i32(0..=3) * 15);
    let mut dtstart = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:00");
    let frequency = ["DAILY", "WEEKLY", "MONTHLY", "YEARLY"][dice.usize(0..4)];
    let mut parts = vec![format!("FREQ={frequency}")];
    if dice.bool() {
        // None of the daily ones is a number of weeks: Python would look for a weekday that never comes till the year 9999.
        let interval = match frequency {
            "DAILY" => [2, 3, 5, 11, 31, 89][dice.usize(0..6)],
            _ => dice.i32(1..=6),
        };
        parts.push(format!("INTERVAL={interval}"));
    }
    let has_positions = dice.u8(0..4) == 0;
    // Python counts the positions of a week that has begun from its beginning: there all weeks begin at theirs.
    let monday = has_positions && frequency == "WEEKLY";
    if monday {
        let first = seconds(&dtstart);
        // The first of January 1970 was a Thursday.
        let ahead = (-(first.div_euclid(86_400) + 3)).rem_euclid(7);
        let first = WallTime::from_unix_seconds(first + ahead * 86_400).to_string();
        dtstart = first.trim_end_matches('Z').to_owned();
    } else if dice.u8(0..3) == 0 {
        parts.push(format!("WKST={}", WEEKDAYS[dice.usize(0..7)]));
    }
    let choice = dice.u8(0..4);
    let may_miss = (frequency == "MONTHLY" && parts.len() > 1) || (frequency == "YEARLY" && choice > 1);
    if dice.u8(0..3) == 0 && !may_miss {
        parts.push(format!("BYMONTH={}", pick(dice, 1, 12, 4)));
    }
    match (frequency, choice) {
        ("DAILY", 0) | ("WEEKLY", 0 | 1) => parts.push(format!("BYDAY={}", weekdays(dice).join(","))),
        ("DAILY", 1) | ("MONTHLY" | "YEARLY", 0) => parts.push(format!("BYMONTHDAY={}", pick(dice, -31, 31, 5))),
        ("MONTHLY" | "YEARLY", 1) => {
            // All with a number or none: of a mixture Python takes only the days that are both.
            let is_numbered = dice.bool();
            let which = |dice: &mut fastrand::Rng| match is_numbered {
                true => ["1", "2", "-1", "-2", "5"][dice.usize(0..5)],
                false => "",
            };
            let days: Vec<_> = weekdays(dice)
                .into_iter()
                .map(|day| format!("{}{day}", which(dice)))
                .collect();
            parts.push(format!("BYDAY={}", days.join(",")));
        }
        ("YEARLY", 2) => parts.push(format!("BYYEARDAY={}", pick(dice, -366, 366, 6))),
        ("YEARLY", 3) => {
            // Python counts 53 weeks in some years that have 52, such as 2010.
            parts.push(format!("BYWEEKNO={}", pick(dice, 1, 51, 5)));
            parts.push(format!("BYDAY={}", weekdays(dice).join(",")));
        }
        _ => {}
    }
    if dice.u8(0..4) == 0 {
        parts.push(format!("BYHOUR={}", pick(dice, 1, 23, 3)));
    }
    if dice.u8(0..4) == 0 {
        parts.push(format!("BYMINUTE={}", pick(dice, 1, 59, 2)));
    }
    let is_selective = parts.iter().any(|part| part.starts_with("BY"));
    if has_positions && is_selective {
        parts.push(format!(
            "BYSETPOS={}",
            ["1", "-1", "1,-1", "-1,2", "-2,1,3"][dice.usize(0..5)]
        ));
    }
    match dice.u8(0..8) {
        0 if frequency == "DAILY" && !is_selective => parts.push(format!("COUNT={}", dice.i32(1..=80))),
        0 if frequency == "WEEKLY" => parts.push(format!("COUNT={}", dice.i32(1..=9))),
        1 | 2 => parts.push(format!(
            "UNTIL={:04}{:02}{:02}T113000Z",
            year + dice.i32(1..=6),
            month,
            day
        )),
        _ => {}
    }
    let from = seconds(&dtstart) + dice.i64(-40..=1_500) * 86_400 + dice.i64(0..86_400);
    let date = |dice: &mut fastrand::Rng| {
        format!(
            "{:04}-{:02}-{:02}T{hour:02}:{minute:02}:00",
            year + dice.i32(0..=4),
            dice.i32(1..=12),
            dice.i32(1..=28)
        )
    };
    let rdate = (0..dice.usize(0..3)).map(|_| date(dice)).collect();
    let exdate = (0..dice.usize(0..40)).map(|_| date(dice)).collect();
    Case {
        zone: ZONES[dice.usize(0..ZONES.len())],
        recurs: Recurrence {
            dtstart,
            rrule: parts.join(";"),
            rdate,
            exdate,
        },
        from,
        to: from + 550 * 86_400,
    }
}

/// A local time as if it were of UTC.
fn seconds(local: &str) -> i64 {
    let at: WallTime = format!("{local}Z").parse().expect("a local time of our own");
    at.unix_seconds()
}
