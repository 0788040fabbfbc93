//! Where spans go, and how many of them. Off unless somebody says where.

use serde::Deserialize;

/// In place of `otlp`, as every OpenTelemetry program has it.
const VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where a collector takes spans.
const PATH: &str = "/v1/traces";

/// Everything, in ten-thousandths.
const ALL: u16 = 10_000;

/// Traces, as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// The collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`. Default: what `OTEL_EXPORTER_OTLP_ENDPOINT`
    /// says, and if that says nothing, nobody is told anything.
    pub otlp: Option<String>,
    /// How much is traced, in ten-thousandths: of the campaigns at a coordinator, of the devices of a campaign at a node.
    /// Default: 10000, all. A fleet of a hundred thousand devices does well with 100.
    pub sample: u16,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp: None,
            sample: ALL,
        }
    }
}

/// Traces, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Where spans are sent.
    pub endpoint: String,
    /// How much is traced, in ten-thousandths.
    pub sample: u16,
}

/// Why what was written makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct TelemetryProblem {
    /// The setting.
    pub field: &'static str,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

impl TelemetryConfig {
    /// Checks it, with what the environment says.
    pub fn check(&self) -> Result<Option<TelemetrySettings>, TelemetryProblem> {
        self.check_with(std::env::var(VARIABLE).ok())
    }

    fn check_with(&self, variable: Option<String>) -> Result<Option<TelemetrySettings>, TelemetryProblem> {
        if self.sample > ALL {
            let problem = format!("is {}, and {ALL} ten-thousandths are all there is", self.sample);
            return Err(TelemetryProblem {
                field: "telemetry.sample",
                problem,
            });
        }
        let (field, text) = match (&self.otlp, variable.filter(|text| !text.is_empty())) {
            (Some(text), _) => ("telemetry.otlp", text.clone()),
            (None, Some(text)) => (VARIABLE, text),
            (None, None) => return Ok(None),
        };
        let problem = |problem: &str| TelemetryProblem {
            field,
            problem: format!("is {text:?}, {problem}"),
        };
        let url =
            reqwest::Url::parse(&text).map_err(|_| problem("which is no address such as http://127.0.0.1:4318"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(problem(
                "which is not one of OTLP over HTTP: write http:// or https://, a host and a port",
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(problem(
                "which holds a password: put it into OTEL_EXPORTER_OTLP_HEADERS",
            ));
        }
        let base = url.as_str().trim_end_matches('/');
        let endpoint = match base.ends_with(PATH) {
            true => base.to_owned(),
            false => format!("{base}{PATH}"),
        };
        Ok(Some(TelemetrySettings {
            endpoint,
            sample: self.sample,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(otlp: Option<&str>, variable: Option<&str>) -> Result<Option<String>, String> {
        let config = TelemetryConfig {
            otlp: otlp.map(str::to_owned),
            ..TelemetryConfig::default()
        };
        let checked = config.check_with(variable.map(str::to_owned));
        checked
            .map(|settings| settings.map(|settings| settings.endpoint))
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn traces_are_off_until_somebody_says_where_they_go_and_the_file_says_it_first() {
        assert_eq!(checked(None, None), Ok(None));
        assert_eq!(checked(None, Some("")), Ok(None));
        let to = |url: &str| Ok(Some(url.to_owned()));
        assert_eq!(checked(None, Some("http://c:4318")), to("http://c:4318/v1/traces"));
        assert_eq!(
            checked(Some("https://d/otlp/"), Some("http://c:4318")),
            to("https://d/otlp/v1/traces")
        );
        assert_eq!(
            checked(Some("http://c:4318/v1/traces"), None),
            to("http://c:4318/v1/traces")
        );
    }

    #[test]
    fn what_is_no_collector_is_refused_by_name() {
        for bad in ["collector:4318", "grpc://c:4317", "http://", "http://me:secret@c:4318"] {
            let refused = checked(None, Some(bad)).unwrap_err();
            assert!(refused.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT is "), "{refused}");
        }
        let config = TelemetryConfig {
            sample: 10_001,
            ..TelemetryConfig::default()
        };
        assert_eq!(config.check_with(None).unwrap_err().field, "telemetry.sample");
    }
}
