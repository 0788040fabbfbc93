//! People are told: nothing is lost when the coordinator is killed while nobody takes it, an independent library finds our
//! signatures good, and mail goes through an independent server with TLS and a login, or not at all.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, body::Bytes, extract::State, http::HeaderMap};
use firmesh_protocol::api::{CampaignState, NotificationView, Page};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    operator::Operator,
    process::Process,
    python::{python_with, run},
    setup::{get, rules, start_coordinator},
    wait::{Seen, until},
};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

const WITHIN: Duration = Duration::from_secs(120);

/// Kept between runs, for pip's sake.
const VENVS: &str = env!("CARGO_TARGET_TMPDIR");

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[tokio::test]
async fn a_coordinator_killed_while_the_receiver_is_down_loses_no_notification() -> Result<()> {
    let python = python_with(Path::new(VENVS), "standardwebhooks", &["standardwebhooks==1.0.0"])?;
    let shape = Shape {
        racks: 1,
        nodes: 2,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        // Bound and not listening: whoever connects is turned away, and nobody else takes the port.
        let down = TcpSocket::new_v4()?;
        down.bind("127.0.0.1:0".parse()?)?;
        let root = fleet.folder().to_owned();
        secret(&root, "hook.secret", SECRET)?;
        let config = format!(
            "[[notifications]]\nname = \"hook\"\n[notifications.to]\nkind = \"webhook\"\n\
             url = \"http://{}/events\"\nsecrets = [{{ file = \"hook.secret\" }}]\n",
            down.local_addr()?
        );
        fs::write(root.join("coordinator-more.toml"), config)?;
        fleet.coordinator.stop(WITHIN).await?;
        fleet.restart_coordinator().await?;

        fleet.start_campaign("spring", &rules(1, (60, 15)))?;
        until("the first wave to pass", WITHIN, async || {
            let view = fleet.campaign("spring").await?;
            Ok(Seen::when(view.wave > 0, || format!("{view:?}")))
        })
        .await?;
        fleet.coordinator.kill()?;
        fleet.restart_coordinator().await?;
        let ended = fleet.campaign_ends("spring", WITHIN).await?;
        ensure!(ended.state == CampaignState::Completed, "{ended:?}");
        publish_what_nobody_signed(fleet.http(), fleet.url(), &root).await?;
        fleet.coordinator.kill()?;
        fleet.restart_coordinator().await?;

        // Nobody has taken anything yet, and the coordinator says so.
        let mut happened = happened(fleet).await?;
        ensure!(
            happened.len() >= 4,
            "scheduled, started, a wave, completed: {happened:?}"
        );
        happened.push("publication_refused".to_owned());
        let waiting = until("a failed attempt", WITHIN, async || {
            let view = hook(fleet).await?;
            Ok(match view.failing_since {
                Some(_) => Seen::Yes(view),
                None => Seen::NotYet(format!("{view:?}")),
            })
        })
        .await?;
        ensure!(
            waiting.delivered == 0 && waiting.backlog >= happened.len() as u64,
            "{waiting:?}"
        );

        let received = Received::default();
        let app = Router::new().fallback(receive).with_state(received.clone());
        tokio::spawn(axum::serve(down.listen(64)?, app).into_future());
        until("everything to arrive", WITHIN, async || {
            let view = hook(fleet).await?;
            Ok(Seen::when(view.backlog == 0, || format!("{view:?}")))
        })
        .await?;
        let all = received.all();
        let kinds = all.iter().map(|message| message.kind().to_owned());
        let told: Vec<_> = kinds.filter(|kind| happened.contains(kind)).collect();
        ensure!(told == happened, "told {told:?}, happened {happened:?}");
        let ids: BTreeSet<_> = all.iter().map(Message::id).collect();
        ensure!(
            ids.len() == all.len(),
            "something came twice, though no answer was lost"
        );

        check_signature(&python, &root, &all[0])?;

        // And again, under the same ids.
        let replay = ["notification", "replay", "hook", "--since-number", "1"];
        let replayed = fleet.operator.ok(&replay)?;
        ensure!(replayed["newest"].as_u64() >= Some(happened.len() as u64), "{replayed}");
        until("everything to arrive again", WITHIN, async || {
            let again = received.all().split_off(all.len());
            let again: BTreeSet<_> = again.iter().map(Message::id).collect();
            Ok(Seen::when(ids.is_subset(&again), || {
                format!("{} of {}", again.len(), all.len())
            }))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn mail_goes_through_a_server_with_tls_and_login_or_not_at_all() -> Result<()> {
    let python = python_with(Path::new(VENVS), "aiosmtpd", &["aiosmtpd==1.4.6"])?;
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    let names = ["127.0.0.1".to_owned()];
    for name in ["mail", "stranger"] {
        let pair = rcgen::generate_simple_self_signed(names.clone())?;
        fs::write(root.join(format!("{name}.pem")), pair.cert.pem())?;
        fs::write(root.join(format!("{name}.key")), pair.signing_key.serialize_pem())?;
    }
    fs::write(root.join("mail_server.py"), include_str!("mail_server.py"))?;
    let mut command = Command::new(&python);
    command.arg("mail_server.py").current_dir(root);
    let server = Process::spawn("the mail server", command, &root.join("mail-server.log"))?;
    let ports: Value = until("the mail server", WITHIN, async || {
        Ok(Seen::Yes(serde_json::from_slice(&fs::read(root.join("ports.json"))?)?))
    })
    .await
    .with_context(|| server.log())?;

    secret(root, "password", "mail-password\n")?;
    secret(root, "wrong", "guessed")?;
    let mail = |name: &str, port: &str, rules: &str| {
        format!(
            "[[notifications]]\nname = \"{name}\"\nevents = [\"publication_refused\"]\n[notifications.to]\nkind = \"email\"\n\
             host = \"127.0.0.1\"\nport = {}\nfrom = \"Firmesh <firmesh@example.com>\"\nto = [\"ops@example.com\", \"Bob <bob@example.com>\"]\n{rules}\n",
            ports[port]
        )
    };
    let login = "username = \"firmesh\"\npassword = { file = \"password\" }";
    let trusted = "ca_file = \"mail.pem\"";
    let config = [
        mail("starttls", "starttls", &format!("{login}\n{trusted}")),
        mail(
            "implicit",
            "implicit",
            &format!("tls = \"implicit\"\n{login}\n{trusted}\nsubject = \"{{{{ kind }}}}\\nBcc: x@y\""),
        ),
        mail("plain", "plain", "tls = \"none\""),
        mail(
            "wrong-login",
            "starttls",
            &format!("username = \"firmesh\"\npassword = {{ file = \"wrong\" }}\n{trusted}"),
        ),
        mail("stranger", "starttls", &format!("{login}\nca_file = \"stranger.pem\"")),
        // The server offers no STARTTLS: what should be encrypted is not sent in the clear.
        mail("downgraded", "plain", trusted),
    ];
    fs::write(root.join("coordinator-more.toml"), config.concat())?;
    let (coordinator, url) = start_coordinator(root, None, "90d").await?;
    let operator = Operator::offline(root).with_coordinator(&url, &root.join("coordinator/operator.token"));
    for name in ["starttls", "implicit", "plain"] {
        operator.ok(&["notification", "test", name])?;
    }
    let mails = mails(root)?;
    ensure!(mails.len() == 3, "{mails:?}");
    for (mail, is_encrypted) in mails.iter().zip([true, true, false]) {
        ensure!(mail["tls"] == is_encrypted, "{mail}");
        ensure!(mail["to"] == json!(["ops@example.com", "bob@example.com"]), "{mail}");
        ensure!(mail["headers"]["Auto-Submitted"] == "auto-generated", "{mail}");
        ensure!(
            mail["headers"]["Bcc"] == Value::Null,
            "a template made a header: {mail}"
        );
        let body = mail["body"].as_str().context("a body")?;
        ensure!(body.contains("a test of this destination"), "{mail}");
    }
    ensure!(
        mails[0]["headers"]["Subject"] == "[Firmesh] info: a test of this destination",
        "{}",
        mails[0]
    );
    ensure!(
        mails[0]["login"] == "firmesh" && mails[2]["login"] == Value::Null,
        "{mails:?}"
    );
    for (name, said) in [
        ("wrong-login", "535"),
        ("stranger", "certificate"),
        ("downgraded", "STARTTLS"),
    ] {
        let answer = operator.refused(1, &["notification", "test", name])?;
        ensure!(answer.contains(said), "{name}: {answer}");
    }
    ensure!(self::mails(root)?.len() == 3, "something was sent all the same");

    // Something happens: the mail keeps its Message-ID when it is told again.
    let about: Value = get(&firmesh_tests::setup::client()?, &format!("{url}/api/v1/about")).await?;
    operator.hold_ceremony(about["online_key"].as_str().context("an online key")?)?;
    let http = firmesh_tests::setup::client()?;
    publish_what_nobody_signed(&http, &url, root).await?;
    let ids = |mails: Vec<Value>| -> Vec<Value> {
        let mut news: Vec<_> = mails.into_iter().skip(3).collect();
        news.retain(|mail| mail["tls"] == false);
        news.into_iter()
            .map(|mail| mail["headers"]["Message-ID"].clone())
            .collect()
    };
    until("the mail about it", WITHIN, async || {
        let ids = ids(self::mails(root)?);
        Ok(Seen::when(ids.len() == 1, || format!("{ids:?}")))
    })
    .await?;
    operator.ok(&["notification", "replay", "plain", "--since", "2026-01-01T00:00:00Z"])?;
    let ids = until("the mail about it, again", WITHIN, async || {
        let ids = ids(self::mails(root)?);
        Ok(match ids.len() {
            2 => Seen::Yes(ids),
            _ => Seen::NotYet(format!("{ids:?}")),
        })
    })
    .await?;
    ensure!(ids[0] == ids[1], "{ids:?}");
    let listed = operator.ok(&["notification", "list"])?;
    let told = listed["items"].as_array().context("destinations")?;
    let plain = told.iter().find(|view| view["name"] == "plain").context("plain")?;
    ensure!(plain["delivered"] == 2 && plain["backlog"] == 0, "{plain}");
    drop(coordinator);
    Ok(())
}

/// What the audit log says has happened to campaigns, as notices are called.
async fn happened(fleet: &Cluster) -> Result<Vec<String>> {
    let log: Value = get(fleet.http(), &format!("{}/api/v1/audit/entries?from=0", fleet.url())).await?;
    let mut kinds = Vec::new();
    for item in log["items"].as_array().context("entries")? {
        let entry: Value = serde_json::from_str(item["entry"].as_str().context("an entry is a text")?)?;
        let event = &entry["event"];
        let word = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        match (word("kind").as_str(), word("state").as_str(), word("verdict").as_str()) {
            ("campaign", "active", _) => kinds.push("campaign_started".to_owned()),
            ("campaign", state, _) => kinds.push(format!("campaign_{state}")),
            ("gate", _, "pass") => kinds.push("wave_passed".to_owned()),
            _ => {}
        }
    }
    Ok(kinds)
}

async fn hook(fleet: &Cluster) -> Result<NotificationView> {
    let page: Page<NotificationView> = get(fleet.http(), &format!("{}/api/v1/notifications", fleet.url())).await?;
    page.items.into_iter().next().context("there is one destination")
}

/// Releases of another version under the signatures of this one.
async fn publish_what_nobody_signed(http: &reqwest::Client, url: &str, root: &Path) -> Result<()> {
    let mut metadata = serde_json::Map::new();
    for (role, file) in [
        ("root", "1.root.json"),
        ("targets", "targets.json"),
        ("releases", "releases.json"),
        ("campaigns", "campaigns.json"),
    ] {
        let text = fs::read_to_string(root.join("trust").join(file)).with_context(|| file.to_owned())?;
        metadata.insert(role.to_owned(), text.into());
    }
    let mut releases: Value = serde_json::from_str(metadata["releases"].as_str().context("a text")?)?;
    releases["signed"]["version"] = json!(999);
    metadata["releases"] = releases.to_string().into();
    let token = fs::read_to_string(root.join("coordinator/operator.token"))?;
    let request = http
        .post(format!("{url}/api/v1/metadata"))
        .bearer_auth(token.trim())
        .json(&json!({ "metadata": metadata }));
    let problem: Value = request.send().await?.json().await?;
    ensure!(problem["refused"] == true, "{problem}");
    Ok(())
}

fn mails(root: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(root.join("mails.jsonl"))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn secret(root: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(root.join(name), text)?;
    Ok(fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o600))?)
}

/// The reference library believes the signature, and no other bytes.
fn check_signature(python: &Path, root: &Path, message: &Message) -> Result<()> {
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let text = |name: &&str| Some(((*name).to_owned(), message.headers.get(*name)?.to_str().ok()?.into()));
    let headers: serde_json::Map<String, Value> = names.iter().filter_map(text).collect();
    fs::write(root.join("body"), &message.body)?;
    fs::write(root.join("headers.json"), json!(headers).to_string())?;
    let script = "import json, sys\nfrom standardwebhooks import Webhook, WebhookVerificationError\n\
        headers, body = json.load(open(sys.argv[1])), open(sys.argv[2], 'rb').read()\n\
        hook = Webhook(sys.argv[3])\nhook.verify(body, headers)\n\
        try:\n    hook.verify(body.replace(b'spring', b'autumn'), headers)\n\
        except WebhookVerificationError:\n    print('good')\n";
    let path = |name: &str| root.join(name).display().to_string();
    let said = run(python, ["-c", script, &path("headers.json"), &path("body"), SECRET])?;
    ensure!(said.stdout == b"good\n", "{said:?}");
    Ok(())
}

#[derive(Clone)]
struct Message {
    headers: HeaderMap,
    body: Bytes,
    event: Value,
}

impl Message {
    fn id(&self) -> String {
        self.headers
            .get("webhook-id")
            .map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned())
            .unwrap_or_default()
    }

    fn kind(&self) -> &str {
        self.event["data"]["kind"].as_str().unwrap_or_default()
    }
}

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Message>>>);

impl Received {
    fn all(&self) -> Vec<Message> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn receive(State(received): State<Received>, headers: HeaderMap, body: Bytes) {
    let event = serde_json::from_slice(&body).unwrap_or_default();
    let mut all = received.0.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(Message { headers, body, event });
}
