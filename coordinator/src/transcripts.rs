//! Transcripts of attempts and the names of credentials' profiles, as nodes tell them and as they are stored.
//!
//! Invariants: what a node sends is bounded, is what its digest says, and is about a device of its own; of a device the last
//! [`TRANSCRIPTS_MAX`] are kept, their words sealed with the device's key ([`crate::identities`]), and they are gone with the
//! device. Nothing is decided by any of it.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
};

use data_encoding::BASE64;
use firmesh_protocol::{
    api::{PackedTranscript, TranscriptReport, TranscriptView},
    ids::{DeviceId, NodeId, Sha256},
    limits::{TRANSCRIPT_BYTES_MAX, TRANSCRIPT_PACKED_BYTES_MAX, TRANSCRIPTS_MAX},
    report::AttemptState,
};
use flate2::bufread::GzDecoder;
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    identities,
    rows::{NEXT_VERSION, text, unreadable},
    store::{Bulk, RowError, Store, StoreError, Value},
};

/// What a transcript's schema begins with.
const SCHEMA: &str = "firmesh-redfish-transcript/";

/// Why a transcript is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadTranscript {
    /// The attempt goes on.
    #[error("an attempt that is {} is not over", .0.as_str())]
    NotOver(AttemptState),
    /// Not base64.
    #[error("the words are not in base64")]
    Base64(#[source] data_encoding::DecodeError),
    /// More than is taken.
    #[error("the words have {0} bytes gzipped, at most {TRANSCRIPT_PACKED_BYTES_MAX} are taken")]
    TooLong(usize),
    /// Not gzip.
    #[error("the words cannot be unpacked")]
    Gzip(#[source] io::Error),
    /// More than is taken.
    #[error("the words have more than {TRANSCRIPT_BYTES_MAX} bytes unpacked")]
    TooLongUnpacked,
    /// A line of something else.
    #[error("line {line} is none of a transcript")]
    Line {
        /// Counted from 1.
        line: usize,
        /// Why not.
        source: serde_json::Error,
    },
    /// It does not begin as a transcript of this device does.
    #[error("the first line is not that of a transcript of the device {0}")]
    Head(DeviceId),
    /// The numbers are about something else.
    #[error("the words are not those that the length and the SHA-256 are of")]
    Other,
}

/// The first line, as far as it matters here.
#[derive(Deserialize)]
struct Head {
    line: String,
    schema: String,
    device: DeviceId,
}

/// What was found to be in order.
#[derive(Debug)]
pub(crate) struct Checked {
    report: TranscriptReport,
    gzip: Option<Vec<u8>>,
    kept_bytes: u64,
}

impl Checked {
    /// Looks at everything that a node has sent: some milliseconds for the longest.
    pub(crate) fn of(mut report: TranscriptReport) -> Result<Self, BadTranscript> {
        if !report.state.is_terminal() {
            return Err(BadTranscript::NotOver(report.state));
        }
        let Some(content) = report.transcript.content.take() else {
            report.transcript.left_out = 0;
            return Ok(Self {
                report,
                gzip: None,
                kept_bytes: 0,
            });
        };
        let gzip = BASE64.decode(content.as_bytes()).map_err(BadTranscript::Base64)?;
        if gzip.len() > TRANSCRIPT_PACKED_BYTES_MAX {
            return Err(BadTranscript::TooLong(gzip.len()));
        }
        let words = unpacked(&gzip).map_err(BadTranscript::Gzip)?;
        if words.len() > TRANSCRIPT_BYTES_MAX {
            return Err(BadTranscript::TooLongUnpacked);
        }
        check_lines(&words, &report.device)?;
        let PackedTranscript {
            bytes,
            sha256,
            left_out,
            ..
        } = report.transcript;
        let kept_bytes = words.len() as u64;
        let is_it = kept_bytes.checked_add(left_out) == Some(bytes) && (left_out > 0 || Sha256::of(&words) == sha256);
        if !is_it {
            return Err(BadTranscript::Other);
        }
        Ok(Self {
            report,
            gzip: Some(gzip),
            kept_bytes,
        })
    }

    fn view(&self, number: u64, node: &NodeId) -> TranscriptView {
        let TranscriptReport {
            campaign,
            kind,
            state,
            ended,
            transcript,
            ..
        } = &self.report;
        TranscriptView {
            number,
            campaign: campaign.clone(),
            kind: *kind,
            state: *state,
            ended: *ended,
            node: node.clone(),
            exchanges: transcript.exchanges,
            bytes: transcript.bytes,
            sha256: transcript.sha256,
            kept_bytes: self.kept_bytes,
            left_out: transcript.left_out,
        }
    }

    /// Whether this is what was stored already: a node that was not answered tells the same again.
    fn is_known(&self, known: &TranscriptView, node: &NodeId) -> bool {
        self.view(known.number, node) == *known
    }
}

/// At most one byte more than is taken.
fn unpacked(gzip: &[u8]) -> io::Result<Vec<u8>> {
    let mut words = Vec::new();
    let most = TRANSCRIPT_BYTES_MAX as u64 + 1;
    GzDecoder::new(gzip).take(most).read_to_end(&mut words)?;
    Ok(words)
}

/// Every line is JSON, and the first says whose they are. The last one may have been cut off as the node died.
fn check_lines(words: &[u8], device: &DeviceId) -> Result<(), BadTranscript> {
    for (at, line) in words.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let bad = |source| BadTranscript::Line { line: at + 1, source };
        if at == 0 {
            let head: Head = serde_json::from_slice(line).map_err(bad)?;
            if head.line != "head" || !head.schema.starts_with(SCHEMA) || head.device != *device {
                return Err(BadTranscript::Head(device.clone()));
            }
        } else if line.ends_with(b"\n") {
            serde_json::from_slice::<IgnoredAny>(line).map_err(bad)?;
        }
    }
    match words.is_empty() {
        true => Err(BadTranscript::Head(device.clone())),
        false => Ok(()),
    }
}

impl Store {
    /// Keeps a transcript as the newest of its device's, and drops those that are too many. Nothing is kept of an erased device.
    pub(crate) async fn keep_transcript(&self, node: &NodeId, checked: &Checked) -> Result<(), StoreError> {
        let device = &checked.report.device;
        let mut transaction = self.begin().await?;
        // Who removes or erases it meanwhile waits for its row, or has taken it.
        let kept = sqlx::query("UPDATE devices SET device = device WHERE device = $1").bind(device.as_str());
        let kept = kept.execute(&mut *transaction).await.map_err(StoreError::written)?;
        let erased = sqlx::query("SELECT device FROM erased_devices WHERE device = $1").bind(device.as_str());
        let erased = erased.fetch_optional(&mut *transaction).await;
        if kept.rows_affected() == 0 || erased.map_err(StoreError::read)?.is_some() {
            return Ok(());
        }
        let records = sqlx::query_scalar("SELECT record FROM transcripts WHERE device = $1 ORDER BY number");
        let records = records.bind(device.as_str()).fetch_all(&mut *transaction).await;
        let known = views(records.map_err(StoreError::read)?)?;
        if known.iter().any(|known| checked.is_known(known, node)) {
            return Ok(());
        }
        let number = known.last().map_or(1, |newest| newest.number + 1);
        let words = match &checked.gzip {
            Some(gzip) => identities::seal(&mut transaction, device, gzip).await?,
            None => None,
        };
        sqlx::query("INSERT INTO transcripts (device, number, record, words) VALUES ($1, $2, $3, $4)")
            .bind(device.as_str())
            .bind(number.cast_signed())
            .bind(text(&checked.view(number, node)))
            .bind(words)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        sqlx::query("DELETE FROM transcripts WHERE device = $1 AND number <= $2")
            .bind(device.as_str())
            .bind(number.saturating_sub(TRANSCRIPTS_MAX as u64).cast_signed())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        transaction.commit().await.map_err(StoreError::written)
    }

    /// The transcripts of a device, the newest first.
    pub(crate) async fn transcripts_of(&self, device: &DeviceId) -> Result<Vec<TranscriptView>, StoreError> {
        let records = sqlx::query_scalar("SELECT record FROM transcripts WHERE device = $1 ORDER BY number DESC");
        let records = records.bind(device.as_str()).fetch_all(self.reader()).await;
        views(records.map_err(StoreError::read)?)
    }

    /// The words of a transcript, if there is one of this number: nothing in it where they are not kept, or where their key is gone.
    pub(crate) async fn words_of(&self, device: &DeviceId, number: u64) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        let query = "SELECT words, key FROM transcripts LEFT JOIN identity_keys ON identity_keys.device = transcripts.device \
                     WHERE transcripts.device = $1 AND number = $2";
        let query = sqlx::query_as(query).bind(device.as_str()).bind(number.cast_signed());
        let row: Option<identities::Rows> = query.fetch_optional(self.reader()).await.map_err(StoreError::read)?;
        let Some(sealed) = row else {
            return Ok(None);
        };
        let read = || -> Result<Option<Vec<u8>>, RowError> {
            let gzip = identities::unsealed(device, sealed)?;
            Ok(gzip.map(|gzip| unpacked(&gzip)).transpose()?)
        };
        read().map(Some).map_err(unreadable("transcripts"))
    }

    /// The profiles of a node's devices from now on.
    pub(crate) async fn put_profiles(
        &self,
        node: &NodeId,
        profiles: &BTreeMap<DeviceId, String>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        // Who erases a device meanwhile waits for the same row.
        sqlx::query(NEXT_VERSION)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        sqlx::query("DELETE FROM credential_profiles WHERE node = $1")
            .bind(node.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        let row = |(device, profile): (&DeviceId, &String)| {
            [
                Value::Text(device.to_string()),
                Value::Text(node.to_string()),
                Value::Text(profile.clone()),
            ]
        };
        let rows = profiles.iter().map(row);
        Bulk::of("INSERT INTO credential_profiles (device, node, profile)", "", rows)
            .insert(&mut transaction)
            .await
            .map_err(StoreError::written)?;
        let erased =
            "DELETE FROM credential_profiles WHERE node = $1 AND device IN (SELECT device FROM erased_devices)";
        sqlx::query(erased)
            .bind(node.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        transaction.commit().await.map_err(StoreError::written)
    }

    /// The profile of a device's credentials, by the word of the node that looks after it.
    pub(crate) async fn profile_of(&self, device: &DeviceId, node: &NodeId) -> Result<Option<String>, StoreError> {
        let query = "SELECT profile FROM credential_profiles WHERE device = $1 AND node = $2";
        let query = sqlx::query_scalar(query).bind(device.as_str()).bind(node.as_str());
        query.fetch_optional(self.reader()).await.map_err(StoreError::read)
    }
}

fn views(records: Vec<String>) -> Result<Vec<TranscriptView>, StoreError> {
    let read = |record: &String| serde_json::from_str(record).map_err(|error| unreadable("transcripts")(error.into()));
    records.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use firmesh_protocol::{ids::CampaignId, report::PermitKind, time::WallTime};
    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const HEAD: &str = r#"{"line":"head","schema":"firmesh-redfish-transcript/1","device":"d1","component":"bmc"}"#;

    fn packed(words: &[u8]) -> String {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(words).unwrap();
        BASE64.encode(&encoder.finish().unwrap())
    }

    fn report(words: &str) -> TranscriptReport {
        TranscriptReport {
            device: DeviceId::new("d1").unwrap(),
            campaign: CampaignId::new("spring").unwrap(),
            kind: PermitKind::Update,
            state: AttemptState::Failed,
            ended: WallTime::from_unix_seconds(5),
            transcript: PackedTranscript {
                exchanges: 1,
                bytes: words.len() as u64,
                sha256: Sha256::of(words.as_bytes()),
                left_out: 0,
                content: Some(packed(words.as_bytes())),
            },
        }
    }

    fn good() -> TranscriptReport {
        report(&format!("{HEAD}\n{{\"line\":\"full\"}}\n"))
    }

    /// A node is nobody's friend: whatever it sends is a transcript of its device, of the size it says, or is not taken.
    #[test]
    fn what_is_no_transcript_of_the_device_is_not_taken() {
        Checked::of(good()).unwrap();
        let refused = |change: &dyn Fn(&mut TranscriptReport)| {
            let mut report = good();
            change(&mut report);
            Checked::of(report).unwrap_err()
        };
        use BadTranscript as Bad;
        assert!(matches!(
            refused(&|r| r.state = AttemptState::Rebooting),
            Bad::NotOver(_)
        ));
        assert!(matches!(
            refused(&|r| r.device = DeviceId::new("d2").unwrap()),
            Bad::Head(_)
        ));
        assert!(matches!(refused(&|r| r.transcript.bytes += 1), Bad::Other));
        assert!(matches!(
            refused(&|r| r.transcript.sha256 = Sha256::of(b"")),
            Bad::Other
        ));
        assert!(matches!(refused(&|r| r.transcript.left_out = u64::MAX), Bad::Other));
        let sent = |content: String| refused(&|r| r.transcript.content = Some(content.clone()));
        assert!(matches!(sent("*".to_owned()), Bad::Base64(_)));
        assert!(matches!(sent(BASE64.encode(b"hello")), Bad::Gzip(_)));
        assert!(matches!(sent(packed(b"")), Bad::Head(_)));
        assert!(matches!(sent(packed(b"{}\n")), Bad::Line { line: 1, .. }));
        assert!(matches!(
            sent(packed(format!("{HEAD}\nhello\n").as_bytes())),
            Bad::Line { line: 2, .. }
        ));
        let bytes = vec![b' '; TRANSCRIPT_BYTES_MAX + 1];
        assert!(matches!(sent(packed(&bytes)), Bad::TooLongUnpacked));
        let long = BASE64.encode(&vec![0; TRANSCRIPT_PACKED_BYTES_MAX + 1]);
        assert!(matches!(sent(long), Bad::TooLong(_)));
    }

    #[test]
    fn a_transcript_without_its_middle_is_as_long_as_it_says() {
        let mut cut = good();
        cut.transcript.bytes += 1_000;
        cut.transcript.left_out = 1_000;
        cut.transcript.sha256 = Sha256::of(b"of all of it");
        let checked = Checked::of(cut).unwrap();
        assert_eq!(checked.kept_bytes + 1_000, checked.report.transcript.bytes);
    }
}
