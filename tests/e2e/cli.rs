//! The operator's command line and the API behind it: exit statuses, offline signing, and what bad input is told.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::{CampaignState, Problem};
use firmesh_tests::{
    binaries::workspace,
    cluster::{Cluster, Shape},
    operator::{Operator, key_file},
    setup::{NEW, client, rules, stage_release},
};
use serde_json::{Value, json};

/// Any key will do for metadata that nobody publishes.
const ONLINE_KEY: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";

/// What people sign, they sign without a network: nothing listens at the coordinator's address here.
#[test]
fn a_release_is_made_and_signed_with_no_coordinator_at_all() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let operator = Operator::offline(folder.path());
    operator.hold_ceremony(ONLINE_KEY)?;
    fs::write(folder.path().join("image.bin"), b"firmware")?;
    let staged = stage_release(&operator, "image.bin", "R1", "bmc", NEW)?;
    ensure!(staged["target"] == "firmware/acme-r1-bmc-1.1.0", "{staged}");
    operator.ok(&["release", "sign", "--key", &key_file("release", 1)])?;
    let half = operator.ok(&["trust", "show"])?;
    let complete = |shown: &Value, file: &str| {
        shown
            .as_array()
            .is_some_and(|files| files.iter().any(|f| f["file"] == file && f["complete"] == true))
    };
    ensure!(
        complete(&half, "targets.json") && !complete(&half, "releases.json"),
        "{half:#}"
    );
    operator.ok(&["release", "sign", "--key", &key_file("release", 3)])?;
    ensure!(complete(&operator.ok(&["trust", "show"])?, "releases.json"));
    operator.ok(&["artifact", "verify", "image.bin", "--dir", "trust"])?;

    // 3: a signature or a policy is in the way.
    let said = operator.refused(3, &["release", "sign", "--key", &key_file("approver", 1)])?;
    ensure!(said.contains("not listed for releases.json"), "{said}");
    let said = operator.refused(3, &["trust", "publish"])?;
    ensure!(said.contains("campaigns.json") && said.contains("signatures"), "{said}");
    fs::write(folder.path().join("image.bin"), b"f1rmware")?;
    operator.refused(3, &["artifact", "verify", "image.bin", "--dir", "trust"])?;

    // 1: a mistake or a fault, with the place and the remedy.
    let said = operator.refused(1, &["release", "publish"])?;
    ensure!(said.contains("127.0.0.1:9") && said.contains("--coordinator"), "{said}");
    let said = operator.refused(1, &["trust", "sign", "--key", "absent"])?;
    ensure!(said.contains("absent"), "{said}");
    let exposed = folder.path().join(key_file("root", 1));
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o644))?;
    let said = operator.refused(1, &["trust", "sign", "--key", &key_file("root", 1)])?;
    ensure!(said.contains("chmod 600"), "{said}");
    let said = operator.refused(1, &["key", "generate", "--unencrypted", &key_file("root", 2)])?;
    ensure!(said.contains("exists already"), "{said}");
    let said = operator.refused(1, &["key", "generate", "keys/another"])?;
    ensure!(
        said.contains("--unencrypted") && said.contains("FIRMESH_PASSPHRASE"),
        "{said}"
    );
    fs::write(folder.path().join("trust/releases.json"), b"{\"signed\": tru")?;
    let said = operator.refused(1, &["trust", "show"])?;
    ensure!(said.contains("releases.json"), "{said}");

    // 2: usage.
    operator.refused(2, &["campaign", "start"])?;
    operator.refused(
        2,
        &["release", "create", "--file", "image.bin", "--reversibility", "perhaps"],
    )?;
    Ok(())
}

#[test]
fn machines_get_json_for_errors_too_and_shells_their_completions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let operator = Operator::offline(folder.path());
    let answer = operator.run(&["campaign", "status", "spring", "--json"])?;
    let error: Value = serde_json::from_str(&answer.stderr).with_context(|| format!("{answer:?}"))?;
    ensure!(
        answer.code == 1 && error["exit_status"] == 1 && error["error"].is_string(),
        "{answer:?}"
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = operator.run(&["completions", shell])?;
        ensure!(
            script.code == 0 && script.stdout.contains("campaign"),
            "{shell}: {script:?}"
        );
    }
    let version = operator.run(&["--version"])?;
    ensure!(version.stdout.starts_with("firmesh 0."), "{version:?}");
    Ok(())
}

#[test]
fn windows_are_previewed_before_anybody_signs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let operator = Operator::offline(folder.path());
    let file = r#"
id = "spring"
expires = "2099-01-01T00:00:00Z"
releases = []
strategy = { kind = "direct" }
caps = { per_rack = 1, total = 1 }
deadlines = { attempt = "PT1H", back = "PT5M" }
[[constraints.windows]]
zone = "Europe/Berlin"
duration_s = 14400
recurs = { dtstart = "2027-01-12T23:00:00", rrule = "FREQ=MONTHLY;BYDAY=2TU" }
[[constraints.blackout_calendars]]
name = "spring sale"
zone = "Europe/Berlin"
duration_s = 604800
recurs = { dtstart = "2027-02-07T00:00:00", rrule = "FREQ=YEARLY" }
"#;
    fs::write(folder.path().join("spring.toml"), file)?;
    let asked = [
        "window",
        "preview",
        "--file",
        "spring.toml",
        "--at",
        "2027-01-13T03:00:00Z",
    ];
    let told = operator.ok(&[&asked[..], &["--count", "3"]].concat())?;
    let at = |number: usize, field: &str| told["openings"][number][field].clone();
    ensure!(at(0, "from") == "2027-02-09T22:00:00Z", "{told}");
    ensure!(at(0, "blackouts") == serde_json::json!(["spring sale"]), "{told}");
    ensure!(
        at(1, "from") == "2027-03-09T22:00:00Z" && at(1, "until") == "2027-03-10T02:00:00Z",
        "{told}"
    );
    ensure!(at(2, "from") == "2027-04-13T21:00:00Z", "summer time has begun: {told}");
    ensure!(told["next_start"] == "2027-03-09T22:00:00Z", "{told}");
    let lines = operator.run(&[&asked[..], &["--zone", "America/New_York"]].concat())?;
    ensure!(lines.stdout.contains("Tue 2027-03-09 17:00:00"), "{lines:?}");
    let wrong = file.replace("2TU", "2XX");
    fs::write(folder.path().join("spring.toml"), wrong)?;
    let said = operator.refused(1, &asked)?;
    ensure!(said.contains("2XX"), "{said}");
    Ok(())
}

/// A README that names a command that is not there costs every reader a minute.
#[test]
fn every_command_the_readme_names_exists() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let operator = Operator::offline(folder.path());
    let readme = fs::read_to_string(workspace().join("README.md"))?;
    let mut tried = 0;
    for block in readme.split("```").skip(1).step_by(2) {
        for command in block
            .split(['\n', ';'])
            .flat_map(|line| line.split("&&"))
            .map(str::trim)
        {
            let command = command
                .trim_start_matches("do ")
                .split('#')
                .next()
                .unwrap_or_default()
                .trim();
            let Some(words) = command.strip_prefix("firmesh ") else {
                continue;
            };
            let words: Vec<&str> = words
                .split(' ')
                .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
                .collect();
            let words = &words[..words.len().min(2)];
            let answer = operator.run(&[words, &["--help"]].concat())?;
            ensure!(answer.code == 0, "the README says `{command}`: {answer:?}");
            tried += 1;
        }
    }
    ensure!(tried >= 8, "only {tried} commands were found in the README");
    Ok(())
}

#[tokio::test]
async fn an_operator_sees_and_steers_a_campaign() -> Result<()> {
    let shape = Shape {
        racks: 2,
        nodes: 1,
        bmcs: 1,
        hosts: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let operator = fleet.operator.clone();
        let findings = operator.ok(&["doctor"])?;
        ensure!(!findings.to_string().contains("\"failure\""), "{findings:#}");
        ensure!(
            operator.ok(&["artifact", "list"])?["items"]
                .as_array()
                .is_some_and(|items| items.len() == 2)
        );
        ensure!(
            operator.ok(&["release", "list"])?["items"]
                .as_array()
                .is_some_and(|items| items.len() == 4)
        );
        ensure!(operator.ok(&["node", "list"])?.to_string().contains("r2-n1"));

        fleet.approve_campaign("spring", &rules(1, (120, 20)))?;
        ensure!(operator.ok(&["campaign", "status", "spring"])?["state"] == "scheduled");
        ensure!(operator.ok(&["campaign", "start", "spring"])?["state"] == "active");
        operator.refused(3, &["campaign", "start", "spring"])?;
        ensure!(operator.ok(&["campaign", "pause", "spring"])?["state"] == "paused");
        ensure!(operator.ok(&["campaign", "resume", "spring"])?["state"] == "active");
        let watched = operator.run(&["campaign", "watch", "spring"])?;
        ensure!(watched.code == 0 && watched.stdout.contains("completed"), "{watched:?}");
        ensure!(fleet.running(NEW).await? == fleet.device_count());
        let shown = operator.run(&["device", "show", "r1-n1-bmc1"])?;
        ensure!(shown.code == 0 && shown.stdout.contains(NEW), "{shown:?}");

        // The same device again: there is nothing left to do for it, and the plan says so.
        fleet.approve_campaign("summer", &rules(1, (120, 20)))?;
        operator.ok(&["campaign", "start", "summer"])?;
        let view = fleet.campaign_ends("summer", Duration::from_secs(60)).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        let cancelled = fleet.approve_campaign("autumn", &rules(1, (120, 20)));
        cancelled?;
        ensure!(operator.ok(&["campaign", "cancel", "autumn"])?["state"] == "cancelled");
        operator.refused(4, &["campaign", "watch", "autumn"])?;

        let events = fleet.device_events().await?;
        let begun = events.iter().filter(|event| event["event"] == "update_begun").count();
        ensure!(begun == fleet.device_count(), "a device was updated twice: {begun}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_api_answers_bad_bodies_and_strangers_with_a_problem_and_changes_nothing() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 1,
        hosts: 0,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let (http, url) = (client()?, fleet.url().to_owned());
        let token = fs::read_to_string(fleet.folder().join("coordinator/operator.token"))?;
        let before = fleet.operator.ok(&["release", "list"])?;
        for (path, body) in [
            ("/api/v1/metadata", "not json"),
            (
                "/api/v1/metadata",
                "{\"metadata\": {\"targets\": \"{}\"}, \"hurry\": true}",
            ),
            ("/api/v1/metadata", "{\"metadata\": {\"timestamp\": \"{}\"}}"),
            ("/api/v1/nodes", "{\"node\": \"../../etc\", \"path\": \"a/b/c\"}"),
            ("/api/v1/plans", "{\"manifest\": {}}"),
            ("/api/v1/campaigns/absent/start", "{}"),
            ("/api/v1/campaigns/..%2f..%2fetc/start", "{}"),
            ("/api/v1/devices/absent/clear", "{}"),
        ] {
            let request = http
                .post(format!("{url}{path}"))
                .header("content-type", "application/json")
                .body(body);
            let answer = request.bearer_auth(token.trim()).send().await?;
            let (status, text) = (answer.status(), answer.text().await?);
            ensure!(status.is_client_error(), "{path} {body}: {status} {text}");
            let problem: Problem = serde_json::from_str(&text).with_context(|| format!("{path} {body}: {text}"))?;
            ensure!(
                problem.status == status.as_u16() && !problem.detail.is_empty(),
                "{path}: {problem:?}"
            );
        }
        // Too long for anything that is signed.
        let endless = vec![b' '; 300 << 20];
        let sent = http
            .post(format!("{url}/api/v1/metadata"))
            .bearer_auth(token.trim())
            .body(endless)
            .send()
            .await;
        ensure!(
            sent.is_err() || sent.is_ok_and(|answer| answer.status().is_client_error()),
            "300 MiB were taken"
        );
        // Without the token nothing changes.
        for token in ["", "0000000000000000000000000000000000000000000000000000000000000000"] {
            let node = json!({ "node": "n9", "path": "eu/s/r/n9" });
            let answer = http
                .post(format!("{url}/api/v1/nodes"))
                .bearer_auth(token)
                .json(&node)
                .send()
                .await?;
            ensure!([401, 403].contains(&answer.status().as_u16()), "{}", answer.status());
        }
        ensure!(fleet.operator.ok(&["release", "list"])? == before);
        for path in ["/", "/health", "/metrics"] {
            let answer = http.get(format!("{url}{path}")).send().await?;
            ensure!(
                answer.status().is_success() && !answer.text().await?.is_empty(),
                "{path}"
            );
        }
        let log = fleet.coordinator.log();
        ensure!(!log.contains("panicked"), "{log}");
        Ok(())
    })
    .await
}
