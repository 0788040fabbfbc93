//! `firmesh baseline`: which release each device is to run, who is behind, and the way back.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use firmesh_coordinator::ceremony::read_bounded;
use firmesh_protocol::{
    api::{
        BaselineEdit, BaselineView, ComplianceView, DriftState, DriftView, NewBaseline, Page, Reconciled,
        Reconciliation,
    },
    ids::GroupId,
    limits::MANIFEST_BYTES_MAX,
};
use reqwest::{Method, header};
use serde_json::{Value, json};

use crate::{Global, client::Client, output::Output};

const EXAMPLE: &str = r#"Rules for campaigns that bring devices back (--reconcile rules.toml); approvers sign each of them:

  strategy = { kind = "canary", shares = [1000, 10000] }
  caps = { per_rack = 1, total = 20 }
  gate = { advance = 9900, rollback = 9500, sample_min = 1, soak_s = 600 }
  deadlines = { attempt_s = 1800, back_s = 300 }
  automatic_rollback = true
  every_s = 3600       # looked after by itself; without it, when somebody says: firmesh baseline reconcile
  # ahead = true       # devices that run something newer are brought back as well"#;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the baselines.
    List,
    /// Shows a baseline.
    Show {
        /// The baseline.
        baseline: GroupId,
    },
    /// Makes a baseline.
    #[command(after_help = EXAMPLE)]
    Create {
        /// The baseline.
        baseline: GroupId,
        #[command(flatten)]
        content: Content,
    },
    /// Makes a baseline another one, unless somebody else changes it at the same time.
    #[command(after_help = EXAMPLE)]
    Set {
        /// The baseline.
        baseline: GroupId,
        #[command(flatten)]
        content: Content,
    },
    /// Removes a baseline; its devices stay what they are.
    Delete {
        /// The baseline.
        baseline: GroupId,
    },
    /// Lists its devices, each with how it stands to it.
    Drift {
        /// The baseline.
        baseline: GroupId,
        /// Only those.
        #[arg(long, value_enum)]
        state: Option<State>,
    },
    /// Has a campaign drafted that brings devices back, unless there is one. Approvers adopt and sign it.
    Reconcile {
        /// The baseline.
        baseline: GroupId,
    },
    /// Shows all baselines in numbers.
    Compliance {
        /// As CSV, by site.
        #[arg(long)]
        csv: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Content {
    /// A published release (repeat).
    #[arg(long, required = true, value_name = "firmware/NAME")]
    release: Vec<String>,
    /// What it is for, for a person.
    #[arg(long, default_value = "")]
    description: String,
    /// The devices it is for, such as 'model == "R1" and path under "eu/ber"'; all, if absent.
    #[arg(long)]
    filter: Option<String>,
    /// By which rules devices that drift are brought back (TOML).
    #[arg(long, value_name = "rules.toml")]
    reconcile: Option<PathBuf>,
}

/// How a device stands to a baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    /// It runs what it is to run.
    Compliant,
    /// It runs something older.
    Behind,
    /// It runs something newer.
    Ahead,
    /// It does not answer.
    Unknown,
    /// The baseline has no release for it.
    NotCovered,
}

impl From<State> for DriftState {
    fn from(state: State) -> Self {
        match state {
            State::Compliant => Self::Compliant,
            State::Behind => Self::Behind,
            State::Ahead => Self::Ahead,
            State::Unknown => Self::Unknown,
            State::NotCovered => Self::NotCovered,
        }
    }
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Command::List => {
            let page = client.list::<BaselineView>("/api/v1/baselines", &[]).await?;
            let rows: Vec<_> = page.items.iter().map(row).collect();
            output.show(&page, || Output::table(["BASELINE", "RELEASES", "FOR"], &rows))
        }
        Command::Show { baseline } => {
            let view: BaselineView = client.get(&path(&baseline)).await?;
            output.show(&view, || lines(&view))
        }
        Command::Create { baseline, content } => {
            let reconcile = content.rules()?;
            let new = NewBaseline {
                id: baseline,
                description: content.description,
                filter: content.filter,
                releases: content.release,
                reconcile,
            };
            let view: BaselineView = client.post("/api/v1/baselines", &new).await?;
            output.show(&view, || lines(&view))
        }
        Command::Set { baseline, content } => {
            let reconcile = content.rules()?;
            let edit = BaselineEdit {
                description: content.description,
                filter: content.filter,
                releases: content.release,
                reconcile,
            };
            let path = path(&baseline);
            let tag = tag(&client, &path).await?;
            let put = |request: reqwest::RequestBuilder| request.header(header::IF_MATCH, tag).json(&edit);
            let view: BaselineView = client.ask(Method::PUT, &path, put).await?;
            output.show(&view, || lines(&view))
        }
        Command::Delete { baseline } => {
            let path = path(&baseline);
            let tag = tag(&client, &path).await?;
            let delete = |request: reqwest::RequestBuilder| request.header(header::IF_MATCH, tag);
            let () = client.ask(Method::DELETE, &path, delete).await?;
            output.show(&json!({ "deleted": baseline }), || vec![format!("{baseline} is gone")])
        }
        Command::Drift { baseline, state } => {
            let state = state.map(|state| shown(&DriftState::from(state)));
            let query: Vec<_> = state.iter().map(|state| ("state", state.as_str())).collect();
            let page = client
                .list::<DriftView>(&format!("{}/drift", path(&baseline)), &query)
                .await?;
            let rows: Vec<_> = page.items.iter().map(drift_row).collect();
            output.show(&page, || {
                Output::table(["DEVICE", "STATE", "RUNS", "IS TO RUN", "PLACE"], &rows)
            })
        }
        Command::Reconcile { baseline } => {
            let path = format!("{}/reconcile", path(&baseline));
            let done: Reconciled = client.post(&path, &json!({})).await?;
            output.show(&done, || reconciled_lines(&done))
        }
        Command::Compliance { csv: true } => {
            let text = client.get_text("/api/v1/compliance?format=csv").await?;
            output.text(&text)
        }
        Command::Compliance { csv: false } => {
            let page: Page<ComplianceView> = client.get("/api/v1/compliance").await?;
            let rows: Vec<_> = page.items.iter().map(compliance_row).collect();
            output.show(&page, || {
                Output::table(
                    [
                        "BASELINE",
                        "DEVICES",
                        "COMPLIANT",
                        "BEHIND",
                        "AHEAD",
                        "UNKNOWN",
                        "NOT COVERED",
                    ],
                    &rows,
                )
            })
        }
    }
}

impl Content {
    fn rules(&self) -> anyhow::Result<Option<Reconciliation>> {
        self.reconcile.as_deref().map(rules).transpose()
    }
}

fn rules(path: &Path) -> anyhow::Result<Reconciliation> {
    let text = String::from_utf8(read_bounded(path, MANIFEST_BYTES_MAX)?)
        .with_context(|| format!("{} is not text", path.display()))?;
    toml::from_str(&text).with_context(|| {
        format!(
            "{} has no such rules (see: firmesh baseline create --help)",
            path.display()
        )
    })
}

fn path(baseline: &GroupId) -> String {
    format!("/api/v1/baselines/{baseline}")
}

/// The baseline's tag as it is now: the change is refused if it is another one by then.
async fn tag(client: &Client, path: &str) -> anyhow::Result<header::HeaderValue> {
    let response = client.send(Method::GET, path, |request| request).await?;
    let tag = response.headers().get(header::ETAG).cloned();
    tag.ok_or_else(|| anyhow::anyhow!("{path} has no ETag: the coordinator is of another version"))
}

/// As the API writes it.
fn shown(state: &DriftState) -> String {
    match json!(state) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn row(view: &BaselineView) -> [String; 3] {
    [
        view.id.to_string(),
        view.releases.len().to_string(),
        view.filter.clone().unwrap_or_else(|| "all devices".to_owned()),
    ]
}

fn lines(view: &BaselineView) -> Vec<String> {
    let devices = view.filter.as_deref().unwrap_or("all devices");
    let mut lines = vec![format!("{}: {devices}", view.id)];
    lines.extend((!view.description.is_empty()).then(|| format!("for      {}", view.description)));
    lines.extend(view.releases.iter().map(|release| format!("release  {release}")));
    lines.extend(
        view.missing
            .iter()
            .map(|release| format!("missing  {release}: nobody signs for it any more")),
    );
    lines.extend(view.reconcile.as_ref().map(|rules| match rules.every_s {
        Some(seconds) => format!("drift    a campaign is drafted, looked after every {seconds} s"),
        None => "drift    a campaign is drafted when asked for (firmesh baseline reconcile)".to_owned(),
    }));
    lines
}

fn drift_row(view: &DriftView) -> [String; 5] {
    [
        view.device.to_string(),
        shown(&view.state),
        view.version.clone().unwrap_or_else(|| "no answer".to_owned()),
        view.wanted.clone().unwrap_or_else(|| "-".to_owned()),
        view.path.to_string(),
    ]
}

fn compliance_row(view: &ComplianceView) -> [String; 7] {
    let count = |state| view.states.get(&state).copied().unwrap_or_default().to_string();
    [
        view.baseline.to_string(),
        view.devices.to_string(),
        count(DriftState::Compliant),
        count(DriftState::Behind),
        count(DriftState::Ahead),
        count(DriftState::Unknown),
        count(DriftState::NotCovered),
    ]
}

fn reconciled_lines(done: &Reconciled) -> Vec<String> {
    let mut lines = vec![format!("{} devices have drifted: {}", done.drifted, done.reason)];
    if let Some(draft) = &done.draft {
        lines.push(format!(
            "draft {}: {} devices in {} waves",
            draft.id, draft.devices, draft.waves
        ));
        lines.push(format!("next: firmesh campaign adopt {}", draft.id));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_in_the_help_has_rules() {
        let text = EXAMPLE.split("\n\n").nth(1).unwrap();
        let rules: Reconciliation = toml::from_str(text).unwrap();
        assert_eq!(
            (rules.every_s, rules.ahead, rules.caps.per_rack),
            (Some(3_600), false, 1)
        );
    }
}
