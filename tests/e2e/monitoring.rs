//! Alert rules and boards speak of what is exported: `promtool` tests the rules, and a real Prometheus, which collects from a running
//! coordinator and its nodes, evaluates every rule and every query of a board. What it raises reaches a webhook through a real
//! Alertmanager.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{Json, Router, extract::State, routing::post};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::{
    binaries::workspace,
    cluster::{Cluster, Shape},
    packages::{ensure_command, find_command},
    process::Process,
    python::run,
    replicas::free_port,
    setup::{get, rules},
    wait::{Seen, until},
};
use serde_json::Value;

use crate::shown::check;

const WITHIN: Duration = Duration::from_secs(60);

fn monitoring() -> PathBuf {
    workspace().join("coordinator/packaging/monitoring")
}

/// An alarm that was never seen to go off is none.
#[test]
fn every_alert_goes_off_in_its_test_and_has_a_runbook() -> Result<()> {
    let promtool = ensure_command("promtool", "prometheus")?;
    let (alerts, tests) = (monitoring().join("alerts.yml"), monitoring().join("alerts.test.yml"));
    run(&promtool, ["check".as_ref(), "rules".as_ref(), alerts.as_os_str()])?;
    run(&promtool, ["test".as_ref(), "rules".as_ref(), tests.as_os_str()])?;
    let (alerts, tests) = (fs::read_to_string(alerts)?, fs::read_to_string(tests)?);
    let names: BTreeSet<_> = values(&alerts, "- alert: ").collect();
    ensure!(names.len() > 15, "hardly an alert: {names:?}");
    // A case that expects alerts names them after the rule, in the lines up to the next case.
    let cases = tests
        .split("- eval_time:")
        .skip(1)
        .filter(|case| case.contains("exp_alerts:"));
    let fired: BTreeSet<_> = cases.filter_map(|case| values(case, "alertname: ").next()).collect();
    ensure!(
        names == fired,
        "no test lets these go off: {:?}",
        names.difference(&fired)
    );
    let runbooks = fs::read_to_string(workspace().join("coordinator/docs/runbooks.md"))?;
    let mut anchors = BTreeSet::new();
    for runbook in runbooks.split("\n## ").skip(1) {
        let heading = runbook.lines().next().unwrap_or_default();
        let (_, shown) = runbook
            .split_once("Exercised by:")
            .with_context(|| format!("nothing exercises {heading:?}"))?;
        ensure!(check(workspace(), shown)? > 0, "nothing exercises {heading:?}");
        anchors.insert(heading.to_lowercase().replace(' ', "-"));
    }
    let wanted: BTreeSet<_> = values(&alerts, "runbook: runbooks.md#").map(str::to_owned).collect();
    ensure!(
        wanted == anchors,
        "no runbook: {:?}",
        wanted.symmetric_difference(&anchors)
    );
    Ok(())
}

/// What follows a key in the lines of a text.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter_map(move |line| Some(line.trim_start().strip_prefix(key)?.trim()))
}

#[tokio::test]
async fn prometheus_answers_every_query_of_alerts_and_boards() -> Result<()> {
    let shape = Shape {
        racks: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        // Somebody to be told, who is not there.
        let secret = fleet.folder().join("hook.secret");
        fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        let destination = "[[notifications]]\nname = \"hook\"\n[notifications.to]\nkind = \"webhook\"\n\
                           url = \"http://127.0.0.1:9/events\"\nsecrets = [{ file = \"hook.secret\" }]\n";
        fs::write(fleet.folder().join("coordinator-more.toml"), destination)?;
        fleet.coordinator.stop(WITHIN).await?;
        fleet.restart_coordinator().await?;
        fleet.start_campaign("spring", &rules(2, (60, 15)))?;
        let ended = fleet.campaign_ends("spring", WITHIN * 3).await?;
        ensure!(ended.state == CampaignState::Completed, "{ended:?}");
        let about = format!("{}/api/v1/about", fleet.url());
        let refused = fleet.http().get(about).bearer_auth("nobody's").send().await?.status();
        ensure!(refused == 401, "{refused}");

        let prometheus = Prometheus::start(fleet, &monitoring().join("alerts.yml"), None).await?;
        names_of_deployment_managers(fleet, &prometheus).await?;
        let mut queries = prometheus.rules().await?;
        ensure!(queries.len() > 15, "{queries:?}");
        queries.extend(boards()?);
        queries.extend(service_levels()?);
        for (of, query) in &queries {
            prometheus.ask(query).await.with_context(|| of.clone())?;
        }
        for (metric, labels) in named_in(queries.iter().map(|(_, query)| query.as_str())) {
            // A label that the metric does not have is taken for an empty one.
            let labels: Vec<_> = labels.iter().map(|label| format!("{label}!=\"\"")).collect();
            let found = prometheus.ask(&format!("{metric}{{{}}}", labels.join(","))).await?;
            let exists = found["result"].as_array().is_some_and(|series| !series.is_empty());
            ensure!(exists, "nobody exports {metric} with {labels:?}");
        }
        let ended = "sum(firmesh_coordinator_attempts_ended_total{kind=\"update\",outcome=\"success\"})";
        let counted = prometheus.ask(ended).await?["result"][0]["value"][1]
            .as_str()
            .map(str::to_owned);
        ensure!(counted == Some(fleet.device_count().to_string()), "{counted:?}");

        support_bundle(fleet)?;

        fleet.coordinator.kill()?;
        prometheus.awaits("FirmeshCoordinatorDown").await
    })
    .await
}

/// The metrics that the requirements name, as Prometheus has them, after one campaign that went well.
async fn names_of_deployment_managers(fleet: &Cluster, prometheus: &Prometheus) -> Result<()> {
    let (devices, nodes) = (fleet.device_count(), fleet.nodes.len());
    let exactly = [
        ("deployments_created_total", 1),
        ("deployments_completed_total", 1),
        ("deployments_failed_total", 0),
        ("devices_updated_total", devices),
        ("devices_failed_total", 0),
        ("rollbacks_triggered_total", 0),
        // The new image and the one to go back to.
        ("firmware_downloads_total", 2 * nodes),
        ("firmware_verifications_failed_total", 0),
        ("deployment_duration_seconds_count", 1),
        ("firmware_download_duration_seconds_count", 2 * nodes),
        ("firmware_install_duration_seconds_count", devices),
        ("device_update_duration_seconds_count", devices),
        ("deployments_active", 0),
        ("devices_online", devices),
        ("devices_offline", 0),
        ("firmware_versions_active", 1),
        ("firmware_version_devices{component=\"bmc\",version=\"1.1.0\"}", devices),
    ];
    for (name, count) in exactly {
        until(&format!("{name} to be {count}"), WITHIN, async || {
            let found = prometheus.ask(name).await?;
            let is_so = found["result"][0]["value"][1] == count.to_string().as_str();
            Ok(Seen::when(is_so, || found.to_string()))
        })
        .await?;
    }
    Ok(())
}

/// An alarm that nobody hears is none either.
#[tokio::test]
async fn an_alert_reaches_a_webhook_through_alertmanager_and_is_taken_back() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        // The rules as they are, but impatient.
        let rules = fs::read_to_string(monitoring().join("alerts.yml"))?;
        let impatient = rules.lines().map(|line| match line.trim_start().starts_with("for: ") {
            true => line.split("for: ").next().unwrap_or_default().to_owned() + "for: 1s",
            false => line.to_owned(),
        });
        let file = fleet.folder().join("impatient.yml");
        fs::write(&file, impatient.collect::<Vec<_>>().join("\n"))?;
        let hook = Hook::start().await?;
        let alertmanager = Alertmanager::start(fleet, &hook.url).await?;
        let prometheus = Prometheus::start(fleet, &file, Some(&alertmanager.listen)).await?;

        fleet.coordinator.kill()?;
        prometheus.awaits("FirmeshCoordinatorDown").await?;
        let told = hook.awaits("FirmeshCoordinatorDown", "firing").await?;
        ensure!(told["labels"]["severity"] == "warning", "{told}");
        let runbook = told["annotations"]["runbook"].as_str().unwrap_or_default();
        ensure!(runbook.starts_with("runbooks.md#"), "{told}");
        node_page_without_coordinator(fleet).await?;

        fleet.restart_coordinator().await?;
        hook.awaits("FirmeshCoordinatorDown", "resolved").await.map(drop)
    })
    .await
}

/// Whoever stands at the rack sees how things are while the coordinator is away.
async fn node_page_without_coordinator(fleet: &Cluster) -> Result<()> {
    let (name, node) = fleet.nodes.first_key_value().context("no node")?;
    let url = node.status_url()?;
    until("the node to notice", WITHIN, async || {
        let reachable = node.status().await?["coordinator_reachable"].clone();
        Ok(Seen::when(reachable == false, || reachable.to_string()))
    })
    .await?;
    let page = fleet.http().get(&url).send().await?.error_for_status()?;
    let policy = page
        .headers()
        .get("content-security-policy")
        .context("no policy")?
        .to_str()?
        .to_owned();
    ensure!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let page = page.text().await?;
    for shown in [
        "the coordinator does not answer",
        name,
        &format!("{name}-bmc1"),
        "1.0.0",
    ] {
        ensure!(page.contains(shown), "{shown} is not in {page}");
    }
    // What it names is its own, and there.
    for part in ["/page.css", "/page.js", "/status", "/metrics", "/health"] {
        ensure!(page.contains(part), "{page}");
        fleet
            .http()
            .get(format!("{url}{part}"))
            .send()
            .await?
            .error_for_status()?;
    }
    ensure!(!page.contains("://"), "{page}");
    Ok(())
}

/// Whoever a person would be told by.
struct Hook {
    url: String,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    async fn start() -> Result<Self> {
        let told = Arc::<Mutex<Vec<Value>>>::default();
        let take = async |State(told): State<Arc<Mutex<Vec<Value>>>>, Json(message): Json<Value>| {
            if let (Ok(mut told), Some(alerts)) = (told.lock(), message["alerts"].as_array()) {
                told.extend(alerts.iter().cloned());
            }
        };
        let router = Router::new().route("/hook", post(take)).with_state(told.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/hook", listener.local_addr()?);
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Self { url, told })
    }

    /// Waits until an alert is told of in this status.
    async fn awaits(&self, alert: &str, status: &str) -> Result<Value> {
        until(&format!("{alert} to be told as {status}"), WITHIN, async || {
            let told = self.told.lock().map(|told| told.clone()).unwrap_or_default();
            let found = told
                .iter()
                .find(|told| told["labels"]["alertname"] == alert && told["status"] == status);
            Ok(found.map_or_else(|| Seen::NotYet(format!("{told:?}")), |found| Seen::Yes(found.clone())))
        })
        .await
    }
}

/// An Alertmanager that tells one webhook, at once.
struct Alertmanager {
    _process: Process,
    listen: String,
}

impl Alertmanager {
    async fn start(fleet: &Cluster, hook: &str) -> Result<Self> {
        let folder = fleet.folder().join("alertmanager");
        fs::create_dir(&folder)?;
        let config = format!(
            "route: {{ receiver: hook, group_wait: 0s, group_interval: 1s, repeat_interval: 1h }}\n\
             receivers: [{{ name: hook, webhook_configs: [{{ url: {hook:?}, send_resolved: true }}] }}]\n"
        );
        fs::write(folder.join("alertmanager.yml"), config)?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(ensure_command("prometheus-alertmanager", "prometheus-alertmanager")?);
        command
            .arg(format!("--config.file={}", folder.join("alertmanager.yml").display()))
            .arg(format!("--storage.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={listen}"))
            // By itself: it looks for no others.
            .arg("--cluster.listen-address=");
        let process = Process::spawn("alertmanager", command, &folder.join("alertmanager.log"))?;
        until("Alertmanager to be ready", WITHIN, async || {
            let ready = fleet.http().get(format!("http://{listen}/-/ready")).send().await?;
            Ok(Seen::when(ready.status().is_success(), || ready.status().to_string()))
        })
        .await?;
        Ok(Self {
            _process: process,
            listen,
        })
    }
}

/// Whoever helps gets all of it in one file, and no secret.
fn support_bundle(fleet: &Cluster) -> Result<()> {
    let node = fleet.nodes.values().next().context("no node")?.status_url()?;
    let said = fleet
        .operator
        .ok(&["support", "bundle", "--out", "support.tar.gz", "--node", &node])?;
    let missing = said["missing"].as_array().context("it does not say what is missing")?;
    // Not every machine has a journal, or such programs.
    let of_fleet = |name: &Value| {
        name.as_str()
            .is_some_and(|name| name.starts_with("coordinator/") || name.starts_with("node/"))
    };
    ensure!(!missing.iter().any(of_fleet), "{missing:?}");
    let file = fleet.folder().join("support.tar.gz");
    let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let tar = find_command("tar").context("there is no tar here")?;
    let text = run(
        &tar,
        [
            "--extract".as_ref(),
            "--to-stdout".as_ref(),
            "--file".as_ref(),
            file.as_os_str(),
        ],
    )?
    .stdout;
    let text = String::from_utf8_lossy(&text);
    for wanted in [
        "firmesh_coordinator_epoch",
        "firmesh_node_peers_connected",
        "\"spring\"",
        "coordinator_reachable",
    ] {
        ensure!(text.contains(wanted), "the bundle does not have {wanted}");
    }
    let token = fs::read_to_string(fleet.folder().join("coordinator/operator.token"))?;
    ensure!(!text.contains(token.trim()), "the bundle has the operator's token");
    Ok(())
}

/// The metrics that queries name, each with the labels that it is picked by.
fn named_in<'a>(queries: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for query in queries {
        for (at, _) in query.match_indices("firmesh_") {
            let (query, rest) = (&query[at..], &query[at..]);
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let labels = found.entry(&query[..end]).or_default();
            let matchers = rest[end..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
            for matcher in matchers.into_iter().flat_map(|(inside, _)| inside.split("\",")) {
                labels.extend(matcher.split(['=', '!']).next().map(str::trim));
            }
        }
    }
    found
}

/// Every query of every board, with where it stands.
fn boards() -> Result<Vec<(String, String)>> {
    let (mut queries, mut uids) = (Vec::new(), BTreeSet::new());
    for entry in fs::read_dir(monitoring().join("boards"))? {
        let path = entry?.path();
        let board: Value = serde_json::from_slice(&fs::read(&path)?).with_context(|| path.display().to_string())?;
        ensure!(
            uids.insert(board["uid"].to_string()),
            "two boards have the uid {}",
            board["uid"]
        );
        let panels = board["panels"].as_array().context("a board without panels")?;
        let mut places = BTreeSet::new();
        for panel in panels {
            let place = |field: &str| panel["gridPos"][field].as_u64().context("a panel without a place");
            let (x, y, w, h) = (place("x")?, place("y")?, place("w")?, place("h")?);
            let mut cells = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y)));
            ensure!(
                x + w <= 24 && cells.all(|cell| places.insert(cell)),
                "{} overlaps",
                panel["title"]
            );
            let targets = panel["targets"].as_array().filter(|targets| !targets.is_empty());
            for target in targets.context("a panel without queries")? {
                let query = target["expr"].as_str().context("a target without a query")?;
                queries.push((format!("{}: {}", path.display(), panel["title"]), query.to_owned()));
            }
        }
    }
    ensure!(uids.len() == 4, "{uids:?}");
    Ok(queries)
}

/// The queries of the service levels that are promised.
fn service_levels() -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(workspace().join("coordinator/docs/monitoring.md"))?;
    let (_, table) = text
        .split_once("## Service levels")
        .context("there is no table of service levels")?;
    let queries = table
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|span| span.contains("firmesh_"));
    let queries: Vec<_> = queries
        .map(|query| ("a service level".to_owned(), query.to_owned()))
        .collect();
    ensure!(queries.len() > 3, "{queries:?}");
    Ok(queries)
}

/// A Prometheus that collects from a fleet every second.
struct Prometheus {
    _process: Process,
    http: reqwest::Client,
    api: String,
}

impl Prometheus {
    async fn start(fleet: &Cluster, rules: &Path, alertmanager: Option<&str>) -> Result<Self> {
        let folder = fleet.folder().join("prometheus");
        fs::create_dir(&folder)?;
        let host = |url: &str| url.trim_start_matches("http://").to_owned();
        let nodes = fleet.nodes.values().map(|node| Ok(host(&node.status_url()?)));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{:?}]\n\
             alerting: {{ alertmanagers: [{{ static_configs: [{{ targets: {:?} }}] }}] }}\nscrape_configs:\n\
             - {{ job_name: firmesh-coordinator, static_configs: [{{ targets: {:?} }}] }}\n\
             - {{ job_name: firmesh-node, static_configs: [{{ targets: {nodes:?} }}] }}\n",
            rules,
            alertmanager.into_iter().collect::<Vec<_>>(),
            [host(fleet.url())],
        );
        fs::write(folder.join("prometheus.yml"), config)?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(ensure_command("prometheus", "prometheus")?);
        command
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={listen}"));
        let prometheus = Self {
            _process: Process::spawn("prometheus", command, &folder.join("prometheus.log"))?,
            http: fleet.http().clone(),
            api: format!("http://{listen}/api/v1"),
        };
        let targets = 1 + fleet.nodes.len();
        until("Prometheus to collect from everybody", WITHIN, async || {
            let up = prometheus.ask("sum(up)").await?;
            Ok(Seen::when(
                up["result"][0]["value"][1] == targets.to_string().as_str(),
                || up.to_string(),
            ))
        })
        .await?;
        Ok(prometheus)
    }

    /// The value of a query now.
    async fn ask(&self, query: &str) -> Result<Value> {
        let url = format!("{}/query", self.api);
        let answer: Value = self
            .http
            .get(url)
            .query(&[("query", query)])
            .send()
            .await?
            .json()
            .await?;
        ensure!(answer["status"] == "success", "{query}: {}", answer["error"]);
        Ok(answer["data"].clone())
    }

    /// The name and the query of every rule, once each was evaluated.
    async fn rules(&self) -> Result<Vec<(String, String)>> {
        until("every rule to be evaluated", WITHIN, async || {
            let answer: Value = get(&self.http, &format!("{}/rules", self.api)).await?;
            let groups = answer["data"]["groups"].as_array().context("no groups")?;
            let rules: Vec<_> = groups
                .iter()
                .filter_map(|group| group["rules"].as_array())
                .flatten()
                .collect();
            if let Some(rule) = rules.iter().find(|rule| rule["health"] != "ok") {
                return Ok(Seen::NotYet(format!("{}: {}", rule["name"], rule["lastError"])));
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            Ok(Seen::Yes(
                rules
                    .iter()
                    .map(|rule| (text(&rule["name"]), text(&rule["query"])))
                    .collect(),
            ))
        })
        .await
    }

    /// Waits until an alert is on its way: it goes off when its time is over.
    async fn awaits(&self, alert: &str) -> Result<()> {
        until(&format!("{alert} to be pending"), WITHIN, async || {
            let answer: Value = get(&self.http, &format!("{}/alerts", self.api)).await?;
            let mut alerts = answer["data"]["alerts"].as_array().context("no alerts")?.iter();
            let is_there = alerts.any(|found| found["labels"]["alertname"] == alert);
            Ok(Seen::when(is_there, || answer.to_string()))
        })
        .await
    }
}
