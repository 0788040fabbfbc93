use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::{Component, Sha256},
    rehearsal::{
        Assumptions, Ending, InFlight, REHEARSAL_SCHEMA, RehearsedWave, Scenario, Source, Spread, StepTime, Wires,
    },
};

use super::*;

#[test]
fn the_page_needs_nothing_from_elsewhere_and_escapes_what_it_names() {
    let page = html::page(&rehearsal());
    for outside in [
        "http:", "https:", "//", "src=", "href=", "url(", "@import", "<script", "<link", "<iframe",
    ] {
        assert!(!page.contains(outside), "{outside} in {page}");
    }
    assert!(!page.contains("<b>") && page.contains("R1 &lt;b&gt;&quot;"), "{page}");
    assert!(page.contains("prefers-color-scheme: dark") && page.contains(&rehearsal().sha256().to_string()));
    assert_eq!(page.matches("<svg").count(), 4, "waves, in flight, scenarios, bytes");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(page.contains("the image bricks 2 %") && page.contains("rack eu/s1/r1"));
}

#[test]
fn the_text_fits_a_terminal_and_says_what_an_approver_asks() {
    let lines = text::lines(&rehearsal());
    for line in &lines {
        assert!(line.chars().count() <= 100, "{}: {line}", line.chars().count());
    }
    let said = lines.join("\n");
    for wanted in [
        "rehearsal of spring, sha256",
        "10m00s/15m00s",
        "100.0 MiB",
        "the image bricks 2 %",
        "rolled back (20), waits for a person (5), after 33m20s",
        "wave 0 (20), wave 1 (5)",
        "learned from 12 attempts of this release",
    ] {
        assert!(said.replace("\n    ", " ").contains(wanted), "{wanted}: {said}");
    }
}

#[test]
fn spans_and_bytes_are_said_as_people_say_them() {
    assert_eq!(
        [0, 59, 61, 3_720, 90_000].map(span),
        ["0 s", "59 s", "1 min 01 s", "1 h 02 min", "1 d 01 h"]
    );
    assert_eq!(
        [0, 1_023, 1_536, 5 << 30].map(bytes),
        ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    );
    assert_eq!(bytes(u64::MAX), "16383.9 PiB");
    assert_eq!(assumption("install=600s"), Ok((Step::Install, 600)));
    assert_eq!(assumption("restore=5"), Ok((Step::Restore, 5)));
    for bad in ["install", "install=", "install=-1", "melt=1s", "install=1m"] {
        assert!(assumption(bad).is_err(), "{bad}");
    }
}

fn rehearsal() -> Rehearsal {
    let even = |value| Spread {
        p50: value,
        p95: value,
        max: value,
    };
    let share = firmesh_protocol::units::BasisPoints::new(200).unwrap();
    let place = |text: &str| text.parse::<firmesh_protocol::ids::TopologyPath>().unwrap();
    let scenario = |fault| Scenario {
        fault,
        endings: BTreeMap::from([(Ending::RolledBack, 20), (Ending::Waits, 5)]),
        stopped_in: BTreeMap::from([(0, 20), (1, 5)]),
        stopped_s: Some(even(1_800)),
        exposed: Spread {
            p50: 4,
            p95: 5,
            max: 20,
        },
        harmed: even(1),
        went_back: even(3),
        updated: even(0),
        ends_s: even(2_000),
        reason: "4 devices went back".to_owned(),
    };
    Rehearsal {
        schema: REHEARSAL_SCHEMA.to_owned(),
        version: "0.1.0 (abc)".to_owned(),
        campaign: "spring".parse().unwrap(),
        rules_sha256: Sha256::of(b"rules"),
        plan_sha256: Sha256::of(b"plan"),
        seed: 1,
        runs: 25,
        starts: "2026-11-22T12:00:00Z".parse().unwrap(),
        devices: 40,
        held: 2,
        nodes: 4,
        cap_per_rack: 1,
        cap_total: 10,
        assumptions: Assumptions {
            permit_ttl_s: 900,
            sync_s: 5,
            wire_per_10000: 10_600,
            steps: vec![StepTime {
                // A model is what a device says of itself.
                model: "R1 <b>\"'&".to_owned(),
                component: Component::new("bmc").unwrap(),
                release: "firmware/acme-r1-bmc-1.1.0".to_owned(),
                step: Step::Install,
                source: Source::Release,
                samples: 12,
                seconds: even(300),
            }],
            notes: vec!["a note that is as long as notes are, so that it does not fit into one line of a terminal of a hundred columns".to_owned()],
        },
        waves: vec![RehearsedWave {
            wave: 0,
            devices: 4,
            passed: 25,
            opens_s: Some(even(0)),
            takes_s: Some(Spread { p50: 600, p95: 900, max: 1_000 }),
            ended_s: Some(even(900)),
            in_flight: InFlight {
                total: 4,
                sites: BTreeMap::from([(place("eu/s1"), 4)]),
                racks: BTreeMap::from([(place("eu/s1/r1"), 1)]),
            },
            bytes: Wires {
                sites: BTreeMap::from([(place("eu/s1"), 100 << 20)]),
                racks: BTreeMap::from([(place("eu/s1/r1"), 100 << 20)]),
            },
        }],
        scenarios: vec![scenario(None), scenario(Some(Fault::Brick { share }))],
        timeline: vec![(0, 4), (300, 2), (900, 0)],
    }
}
