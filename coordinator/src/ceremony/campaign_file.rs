//! A campaign as an operator writes it: durations as numbers or as ISO 8601 has them, and what is left out of the gate
//! filled in by what suits the strategy. The manifest that is drafted from it says everything.

use firmesh_protocol::{
    approval::ApprovalRule,
    gate::{AbortRule, Sequential},
    health::{HealthInput, HealthLimit, HealthRule},
    ids::{CampaignId, GroupId},
    manifest::{
        CampaignKind, Caps, Constraints, Deadlines, GateRule, Priority, Retries, RetryBudget, RetryRule, Selector,
        Strategy,
    },
    report::FailureClass,
    time::WallTime,
    trust::PublicKey,
    units::BasisPoints,
};
use jiff::{Span, SpanRelativeTo, Unit};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::provisioning_file;

/// Ended attempts that a gate wants to see if the file does not say.
const SAMPLE_MIN: u32 = 10;

/// Success rates in basis points if the file does not say: below the first a wave holds, below the second it goes back.
const ADVANCE: u32 = 9_900;
const ROLLBACK: u32 = 9_500;

/// The same for a pool that is to serve alone.
const ADVANCE_POOL: u32 = 9_950;

/// Batches of a rolling campaign that are under way at once if the file does not say.
const BATCHES_AT_ONCE: u32 = 3;

/// The manifest without what is filled in by machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CampaignFile {
    /// The campaign.
    pub id: CampaignId,
    /// No device starts after this moment.
    pub expires: WallTime,
    /// What it is for: devices one by one, or whole servers (`provisioning`).
    #[serde(default, rename = "type")]
    pub kind: CampaignKind,
    /// Target names of the releases to install.
    #[serde(default)]
    pub releases: Vec<String>,
    /// The baseline whose releases they are, in place of `releases`. Whoever drafts the campaign asks the coordinator for them.
    pub baseline: Option<GroupId>,
    /// Target names of what devices may go back to.
    #[serde(default)]
    pub previous: Vec<String>,
    /// Target names of what devices may go over where a release may not be installed directly; those that are needed.
    #[serde(default)]
    pub hops: Vec<String>,
    /// For which devices; all if empty.
    #[serde(default)]
    pub selector: Selector,
    /// Which devices those are, by a filter, in place of the selector's `devices`: those that match it when the campaign is
    /// drafted; of a provisioning campaign with all of their servers.
    pub filter: Option<String>,
    /// How it widens; of a rolling campaign three batches are under way at once, unless it says otherwise.
    #[serde(deserialize_with = "strategy")]
    pub strategy: Strategy,
    /// How many at once.
    pub caps: Caps,
    /// The test between waves.
    #[serde(default)]
    pub gate: GateFile,
    /// Time limits.
    pub deadlines: DeadlinesFile,
    /// How urgent its images are in the mesh: `background`, `normal` or `emergency`.
    #[serde(default)]
    pub priority: Priority,
    /// What else must hold: windows, blackouts, executors, one-way releases.
    #[serde(default)]
    pub constraints: Constraints,
    /// Whether a failed gate rolls the wave back by itself: yes, unless somebody wants to look first.
    #[serde(default = "yes")]
    pub automatic_rollback: bool,
    /// Whether operators may send devices back without the approvers: no, unless the approvers sign that they may.
    #[serde(default)]
    pub operator_rollback: bool,
    /// Which failed updates are begun again; none if left out.
    pub retries: Option<RetriesFile>,
    /// The coordinators' keys whose permits count, in hexadecimal.
    #[serde(default)]
    pub permit_keys: Vec<PublicKey>,
}

/// Why a campaign file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CampaignFileError {
    /// Not a campaign file.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    /// A file of another type than is asked for.
    #[error("the file has another type than \"provisioning\": draft it with firmesh campaign create")]
    NotProvisioning,
    /// A strategy without what it cannot do without.
    #[error(
        "the strategy blue_green needs two webhooks of the coordinator, `drain` and `switch`, that take traffic from a pool and \
         move it to the other: it is refused rather than pretended. strategy = {{ kind = \"blue_green\", by = \"pool\", order = \
         [\"green\", \"blue\"], switch = \"balancer\", drain = \"balancer\" }}. Without such systems, a canary of two halves comes \
         nearest: strategy = {{ kind = \"canary\", shares = [5000, 10000] }}, gate = {{ advance = 9950, soak = \"PT2H\" }}"
    )]
    BlueGreen,
}

impl CampaignFile {
    /// Reads a campaign file.
    pub fn from_toml(text: &str) -> Result<Self, CampaignFileError> {
        match toml::from_str::<toml::Table>(text) {
            Ok(file) if provisioning_file::is_provisioning(&file) => Self::from_table(file),
            _ => Self::from_text(text),
        }
    }

    /// Reads a campaign file that is of the type `provisioning`, whether it says so or not.
    pub fn provisioning_from_toml(text: &str) -> Result<Self, CampaignFileError> {
        let mut file: toml::Table = toml::from_str(text)?;
        provisioning_file::claim(&mut file);
        match provisioning_file::is_provisioning(&file) {
            true => Self::from_table(file),
            false => Err(CampaignFileError::NotProvisioning),
        }
    }

    fn from_table(mut file: toml::Table) -> Result<Self, CampaignFileError> {
        provisioning_file::fill_in(&mut file)?;
        Self::from_text(&file.to_string())
    }

    fn from_text(text: &str) -> Result<Self, CampaignFileError> {
        let kind = |file: &toml::Table| Some(file.get("strategy")?.get("kind")?.as_str()?.replace('-', "_"));
        let is_blue_green = || toml::from_str(text).is_ok_and(|file| kind(&file).as_deref() == Some("blue_green"));
        let read: Self = match toml::from_str(text) {
            Err(_) if is_blue_green() => return Err(CampaignFileError::BlueGreen),
            read => read?,
        };
        match &read.strategy {
            Strategy::BlueGreen { switch, drain, .. } if switch.is_empty() || drain.is_empty() => {
                Err(CampaignFileError::BlueGreen)
            }
            _ => Ok(read),
        }
    }
}

fn yes() -> bool {
    true
}

/// A strategy, with what is left out of it. What is signed says it, or means one batch after the other.
fn strategy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Strategy, D::Error> {
    let mut table = toml::Table::deserialize(deserializer)?;
    if table.get("kind").and_then(toml::Value::as_str) == Some("rolling") {
        let at_once = || toml::Value::Integer(BATCHES_AT_ONCE.into());
        table.entry("max_concurrent_batches").or_insert_with(at_once);
    }
    table.try_into().map_err(D::Error::custom)
}

/// A gate of which anything may be left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateFile {
    /// See [`GateRule::advance`]; 99 % if left out, of a pool 99.5 %.
    pub advance: Option<BasisPoints>,
    /// See [`GateRule::rollback`]; 95 % if left out, or `advance` if that is lower.
    pub rollback: Option<BasisPoints>,
    /// See [`GateRule::sample_min`]; 10 if left out.
    pub sample_min: Option<u32>,
    /// See [`GateRule::soak_s`]; what [`GateFile::rule`] says if left out.
    #[serde(alias = "soak")]
    pub soak_s: Option<Seconds>,
    /// See [`GateRule::sequential`].
    pub sequential: Option<Sequential>,
    /// See [`GateRule::abort`].
    #[serde(default)]
    pub abort: Vec<AbortRule>,
    /// See [`GateRule::health`]; devices are not watched if left out.
    pub health: Option<HealthFile>,
    /// See [`GateRule::approval`]; nobody is asked between waves if left out.
    pub approval: Option<ApprovalRule>,
    /// See [`GateRule::webhooks`].
    #[serde(default)]
    pub webhooks: Vec<String>,
}

/// A health rule of which anything may be left out: the hard stops take its place.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthFile {
    /// See [`HealthRule::watch_s`]; ten minutes if left out.
    #[serde(alias = "watch")]
    pub watch_s: Option<Seconds>,
    /// See [`HealthRule::offline_s`]; two minutes if left out.
    #[serde(alias = "offline")]
    pub offline_s: Option<Seconds>,
    /// See [`HealthRule::limits`]; if left out: processors above 95 % or memory above 90 % for five minutes, application
    /// errors above 10 %.
    pub limits: Option<Vec<HealthLimit>>,
    /// See [`HealthRule::required`].
    #[serde(default)]
    pub required: Vec<HealthInput>,
}

impl HealthFile {
    fn rule(&self) -> HealthRule {
        let stops = HealthRule::hard_stops();
        HealthRule {
            watch_s: self.watch_s.map_or(stops.watch_s, |Seconds(watch_s)| watch_s),
            offline_s: self.offline_s.map_or(stops.offline_s, |Seconds(offline_s)| offline_s),
            limits: self.limits.clone().unwrap_or(stops.limits),
            required: self.required.clone(),
        }
    }
}

impl From<HealthRule> for HealthFile {
    fn from(rule: HealthRule) -> Self {
        Self {
            watch_s: Some(Seconds(rule.watch_s)),
            offline_s: Some(Seconds(rule.offline_s)),
            limits: Some(rule.limits),
            required: rule.required,
        }
    }
}

impl GateFile {
    /// The rule, with what is left out as suits the strategy. Waves are watched for an hour in a canary, half an hour
    /// between places, two hours between pools, a quarter of an hour between batches. Where several batches are under way at
    /// once, this is also how long after one the next opens.
    #[must_use]
    pub fn rule(&self, strategy: &Strategy) -> GateRule {
        let soak_s = match strategy {
            Strategy::Direct {} => 0,
            Strategy::Canary { .. } => 3_600,
            Strategy::Regional { .. } => 1_800,
            Strategy::BlueGreen { .. } => 7_200,
            Strategy::Rolling { .. } | Strategy::Growing { .. } => 900,
        };
        let share = |basis_points| BasisPoints::new(basis_points).unwrap_or(BasisPoints::WHOLE);
        let advance = self.advance.unwrap_or_else(|| match strategy {
            Strategy::BlueGreen { .. } => share(ADVANCE_POOL),
            _ => share(ADVANCE),
        });
        GateRule {
            advance,
            rollback: self.rollback.unwrap_or_else(|| share(ROLLBACK).min(advance)),
            sample_min: self.sample_min.unwrap_or(SAMPLE_MIN),
            soak_s: self.soak_s.map_or(soak_s, |Seconds(soak_s)| soak_s),
            sequential: self.sequential,
            abort: self.abort.clone(),
            health: self.health.as_ref().map(HealthFile::rule),
            approval: self.approval.clone(),
            webhooks: self.webhooks.clone(),
        }
    }
}

impl From<GateRule> for GateFile {
    fn from(rule: GateRule) -> Self {
        Self {
            advance: Some(rule.advance),
            rollback: Some(rule.rollback),
            sample_min: Some(rule.sample_min),
            soak_s: Some(Seconds(rule.soak_s)),
            sequential: rule.sequential,
            abort: rule.abort,
            health: rule.health.map(HealthFile::from),
            approval: rule.approval,
            webhooks: rule.webhooks,
        }
    }
}

/// See [`Retries`]: `retries = { rules = [{ class = "install", times = 2, pause = "PT10M" }], budget = { share = 500 } }`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetriesFile {
    /// See [`Retries::rules`].
    pub rules: Vec<RetryRuleFile>,
    /// See [`Retries::budget`]; one device of a wave in twenty if left out.
    #[serde(default)]
    pub budget: RetryBudget,
}

/// See [`RetryRule`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryRuleFile {
    /// See [`RetryRule::class`].
    pub class: FailureClass,
    /// See [`RetryRule::times`]; once if left out.
    pub times: Option<u32>,
    /// See [`RetryRule::pause_s`]; ten minutes if left out.
    #[serde(alias = "pause")]
    pub pause_s: Option<Seconds>,
}

impl RetriesFile {
    /// The rules, with what is left out.
    #[must_use]
    pub fn rules(self) -> Retries {
        let rule = |file: RetryRuleFile| RetryRule {
            class: file.class,
            times: file.times.unwrap_or(RetryRule::TIMES),
            pause_s: file.pause_s.map_or(RetryRule::PAUSE_S, |Seconds(pause_s)| pause_s),
        };
        Retries {
            rules: self.rules.into_iter().map(rule).collect(),
            budget: self.budget,
        }
    }
}

/// See [`Deadlines`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the manifest's type says it")]
pub struct DeadlinesFile {
    #[serde(alias = "attempt")]
    pub attempt_s: Seconds,
    #[serde(alias = "back")]
    pub back_s: Seconds,
}

impl From<DeadlinesFile> for Deadlines {
    fn from(file: DeadlinesFile) -> Self {
        Self {
            attempt_s: file.attempt_s.0,
            back_s: file.back_s.0,
        }
    }
}

impl From<Deadlines> for DeadlinesFile {
    fn from(deadlines: Deadlines) -> Self {
        Self {
            attempt_s: Seconds(deadlines.attempt_s),
            back_s: Seconds(deadlines.back_s),
        }
    }
}

/// Seconds, written as a number or as an ISO 8601 duration such as `PT1H30M`; a day has 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub u32);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "seconds as a whole number, or an ISO 8601 duration such as \"PT30M\""
        )]
        enum Written {
            Number(u32),
            Duration(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(seconds) => return Ok(Self(seconds)),
            Written::Duration(text) => text,
        };
        let read = || -> Result<f64, jiff::Error> {
            text.parse::<Span>()?
                .total((Unit::Second, SpanRelativeTo::days_are_24_hours()))
        };
        let shown = || text.chars().take(40).collect::<String>();
        let seconds = read().map_err(|error| D::Error::custom(format!("{:?} is no duration: {error}", shown())))?;
        if seconds.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&seconds) {
            return Err(D::Error::custom(format!(
                "{:?} is not a whole number of seconds",
                shown()
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "looked at just above"
        )]
        Ok(Self(seconds as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_text(strategy: &str, gate: &str) -> String {
        format!(
            "id = \"spring\"\nexpires = \"2027-02-01T00:00:00Z\"\nreleases = []\nstrategy = {strategy}\n\
             caps = {{ per_rack = 1, total = 10 }}\n{gate}\ndeadlines = {{ attempt = \"PT10M\", back_s = 60 }}"
        )
    }

    fn file(strategy: &str, gate: &str) -> Result<GateRule, toml::de::Error> {
        let file: CampaignFile = toml::from_str(&file_text(strategy, gate))?;
        assert_eq!(Deadlines::from(file.deadlines).attempt_s, 600);
        Ok(file.gate.rule(&file.strategy))
    }

    #[test]
    fn a_gate_that_is_left_out_is_the_strategys() {
        let soak_of = |strategy: &str| file(strategy, "").unwrap().soak_s;
        assert_eq!(soak_of(r#"{ kind = "direct" }"#), 0);
        assert_eq!(soak_of(r#"{ kind = "canary" }"#), 3_600);
        assert_eq!(soak_of(r#"{ kind = "regional", order = ["us", "eu"] }"#), 1_800);
        assert_eq!(soak_of(r#"{ kind = "rolling" }"#), 900);
        assert_eq!(soak_of(r#"{ kind = "growing", first = 1, percent = 200 }"#), 900);
        let rule = file(r#"{ kind = "rolling", batch = 7 }"#, "").unwrap();
        assert_eq!(
            (rule.advance.get(), rule.rollback.get(), rule.sample_min),
            (9_900, 9_500, 10)
        );
    }

    /// Approvers sign what the file leaves out, too: a manifest that does not say it has one batch after the other.
    #[test]
    fn three_batches_are_under_way_at_once_unless_the_file_says_otherwise() {
        let strategy = |text: &str| {
            let file: Result<CampaignFile, _> = toml::from_str(&file_text(text, ""));
            file.map(|file| file.strategy)
        };
        let rolling = |batch, max_concurrent_batches| Strategy::Rolling {
            batch,
            max_concurrent_batches,
        };
        assert_eq!(strategy(r#"{ kind = "rolling" }"#).unwrap(), rolling(100, 3));
        let two = r#"{ kind = "rolling", batch = 7, max_concurrent_batches = 2 }"#;
        assert_eq!(strategy(two).unwrap(), rolling(7, 2));
        let one = strategy(r#"{ kind = "rolling", max_concurrent_batches = 1 }"#).unwrap();
        assert_eq!(one, Strategy::rolling(100));
        let refused = strategy(r#"{ kind = "rolling", max_concurrent_batches = "three" }"#).unwrap_err();
        assert!(refused.to_string().contains("invalid type"), "{refused}");
        let refused = strategy(r#"{ kind = "canary", max_concurrent_batches = 3 }"#).unwrap_err();
        assert!(refused.to_string().contains("unknown field"), "{refused}");
    }

    #[test]
    fn what_the_file_says_counts() {
        let rule = file(
            r#"{ kind = "canary" }"#,
            r#"gate = { advance = 9000, soak = "P1DT30M" }"#,
        )
        .unwrap();
        assert_eq!(
            (rule.advance.get(), rule.rollback.get(), rule.soak_s),
            (9_000, 9_000, 88_200)
        );
        let rule = file(r#"{ kind = "canary" }"#, "gate = { soak_s = 5 }").unwrap();
        assert_eq!((rule.soak_s, rule.health), (5, None));
        let gate = r#"
[gate]
sequential = { good = 100, bad = 1000, alpha = 500, beta = 1000 }
abort = [{ class = "boot", count = 2 }, { class = "unreachable", share = 300 }]
health = { watch = "PT5M", required = ["cpu"] }
[[constraints.windows]]
zone = "Europe/Berlin"
duration_s = 14400
recurs = { dtstart = "2026-01-13T23:00:00", rrule = "FREQ=MONTHLY;BYDAY=2TU", exdate = ["2026-03-10T23:00:00"] }
only = { paths = ["eu"] }
[[constraints.blackout_calendars]]
name = "year's end"
zone = "Europe/Berlin"
duration_s = 1728000
recurs = { dtstart = "2026-12-18T00:00:00", rrule = "FREQ=YEARLY" }
"#;
        let text =
            file_text(r#"{ kind = "canary" }"#, "").replace(" back_s = 60 }", &format!(" back_s = 60 }}\n{gate}"));
        let file: CampaignFile = toml::from_str(&text).unwrap();
        let rule = file.gate.rule(&file.strategy);
        assert_eq!((rule.sequential.unwrap().alpha.get(), rule.abort.len()), (500, 2));
        let health = rule.health.unwrap();
        assert_eq!((health.watch_s, health.offline_s, health.limits.len()), (300, 120, 3));
        let windows = &file.constraints.windows;
        assert_eq!((windows.len(), windows[0].problem()), (1, None));
        assert_eq!(file.constraints.blackout_calendars[0].problem(), None);
    }

    #[test]
    fn retries_may_be_left_out_in_part_or_whole() {
        let retries = |text: &str| {
            let text = format!("{}\n{text}", file_text(r#"{ kind = "direct" }"#, ""));
            let file = CampaignFile::from_toml(&text).unwrap();
            file.retries.map(RetriesFile::rules)
        };
        assert_eq!(retries(""), None);
        let found = retries(
            r#"retries = { rules = [{ class = "install", times = 2, pause = "PT5M" }, { class = "boot" }], budget = { count = 3 } }"#,
        );
        let rules = vec![
            RetryRule {
                class: FailureClass::Install,
                times: 2,
                pause_s: 300,
            },
            RetryRule {
                class: FailureClass::Boot,
                times: 1,
                pause_s: 600,
            },
        ];
        let budget = RetryBudget::Count(3);
        assert_eq!(found, Some(Retries { rules, budget }));
        let found = retries(r#"retries = { rules = [{ class = "timeout" }] }"#).unwrap();
        assert_eq!(found.budget, RetryBudget::default());
    }

    #[test]
    fn blue_green_without_hooks_is_refused_with_what_comes_nearest() {
        let file = |strategy: &str| {
            CampaignFile::from_toml(&format!(
                "id = \"spring\"\nexpires = \"2027-02-01T00:00:00Z\"\nreleases = []\nstrategy = {strategy}\n\
                 deadlines = {{ attempt = 600, back = 60 }}\n[caps]\nper_rack = 1\ntotal = 10\n\
                 [[caps.domains]]\nby = \"power_feed\"\nat_most = {{ below_percent = 1 }}\n\
                 [[caps.never_together]]\nby = \"power_feed\"\nwithin = \"site\"\n\
                 [[constraints.sequence]]\nvendor = \"Acme\"\norder = [\"bios\", \"bmc\"]\n"
            ))
        };
        let refused = file(r#"{ kind = "blue_green", pools = ["blue", "green"] }"#).unwrap_err();
        assert!(matches!(refused, CampaignFileError::BlueGreen), "{refused}");
        let hookless = r#"{ kind = "blue_green", by = "pool", order = ["green", "blue"], drain = "balancer" }"#;
        let refused = file(hookless).unwrap_err();
        assert!(matches!(refused, CampaignFileError::BlueGreen), "{refused}");
        let hooked = hookless.replace("drain =", "switch = \"mover\", drain =");
        let read = file(&hooked).unwrap();
        let rule = read.gate.rule(&read.strategy);
        assert_eq!((rule.advance.get(), rule.soak_s), (9_950, 7_200));
        let unknown = file(r#"{ kind = "purple" }"#).unwrap_err();
        assert!(unknown.to_string().contains("unknown variant `purple`"), "{unknown}");
        let read = file(r#"{ kind = "canary", shares = [5000, 10000] }"#).unwrap();
        assert_eq!((read.caps.domains.len(), read.caps.never_together.len()), (1, 1));
        assert_eq!(read.constraints.sequence[0].order.len(), 2);
    }

    #[test]
    fn what_is_no_duration_is_refused_by_name() {
        for (wrong, why) in [
            ("\"soon\"", "\"soon\" is no duration"),
            ("\"P1M\"", "is no duration"),
            ("\"-PT1S\"", "is not a whole number of seconds"),
            ("\"PT0.5S\"", "is not a whole number of seconds"),
            ("\"P99999W\"", "is no"),
            ("-1", "ISO 8601"),
            ("true", "ISO 8601"),
        ] {
            let error = file(r#"{ kind = "canary" }"#, &format!("gate = {{ soak = {wrong} }}")).unwrap_err();
            assert!(error.to_string().contains(why), "{wrong}: {error}");
        }
    }
}
