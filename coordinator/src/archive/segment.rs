//! One file of an archive: a line of JSON for each row, compressed. Records and envelopes stand in it as the exact text that was
//! stored, so that signatures and digests in them hold for ever.

use std::io::{self, BufRead as _, Read as _, Write as _};

use bytes::Bytes;
use firmesh_protocol::{
    api::ArchiveSegment,
    ids::{CampaignId, DeviceId, NodeId, Sha256},
};
use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};

/// Bytes of the lines of one file, after which another begins.
const LINES_BYTES: usize = 8 << 20;

/// No line is longer: a permit names up to some thousand devices.
const LINE_BYTES_MAX: usize = 64 << 20;

/// The longest file.
pub(super) const SEGMENT_BYTES_MAX: u64 = 2 * (LINES_BYTES + LINE_BYTES_MAX) as u64;

/// A row of one of the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "table", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Row {
    Campaigns {
        record: String,
    },
    Attempts {
        device: DeviceId,
        record: String,
    },
    Permits {
        sequence: u64,
        record: String,
    },
    Possession {
        node: NodeId,
        artifact: String,
        record: String,
    },
    Reports {
        node: NodeId,
        sequence: u64,
        envelope: String,
    },
}

/// Lines that become a file.
#[derive(Debug, Default)]
pub(super) struct Lines {
    text: Vec<u8>,
    rows: u64,
    devices: Option<(DeviceId, DeviceId)>,
}

impl Lines {
    pub(super) fn push(&mut self, row: &Row) -> io::Result<()> {
        if let Row::Attempts { device, .. } = row {
            let first = self.devices.take().map_or_else(|| device.clone(), |(first, _)| first);
            self.devices = Some((first, device.clone()));
        }
        serde_json::to_writer(&mut self.text, row)?;
        self.text.push(b'\n');
        self.rows += 1;
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= LINES_BYTES
    }

    /// The file, with its name.
    pub(super) fn finish(self, campaign: &CampaignId, number: usize) -> io::Result<(ArchiveSegment, Bytes)> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&self.text)?;
        let bytes = encoder.finish()?;
        let sha256 = Sha256::of(&bytes);
        let (first_device, last_device) = self.devices.unzip();
        let name = format!("archive/{campaign}/{number:05}-{}.jsonl.gz", &sha256.to_string()[..16]);
        Ok((
            ArchiveSegment {
                name,
                sha256,
                length: bytes.len() as u64,
                rows: self.rows,
                first_device,
                last_device,
            },
            bytes.into(),
        ))
    }
}

/// Reads a file whose digest was compared before.
pub(super) fn rows(bytes: &[u8]) -> impl Iterator<Item = io::Result<Row>> {
    let mut lines = io::BufReader::new(GzDecoder::new(bytes));
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let limit = LINE_BYTES_MAX as u64 + 1;
        match lines.by_ref().take(limit).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(read) if read as u64 == limit => {
                Some(Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long")))
            }
            Ok(_) => Some(serde_json::from_slice(&line).map_err(io::Error::from)),
            Err(error) => Some(Err(error)),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row() -> impl Strategy<Value = Row> {
        let name = || "[a-z][a-z0-9-]{0,10}[a-z0-9]";
        prop_oneof![
            any::<String>().prop_map(|record| Row::Campaigns { record }),
            (name(), any::<String>()).prop_map(|(device, record)| Row::Attempts {
                device: device.parse().unwrap(),
                record
            }),
            (any::<u64>(), any::<String>()).prop_map(|(sequence, record)| Row::Permits { sequence, record }),
            (name(), any::<u64>(), any::<String>()).prop_map(|(node, sequence, envelope)| Row::Reports {
                node: node.parse().unwrap(),
                sequence,
                envelope
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(wanted in proptest::collection::vec(row(), 1..50)) {
            let mut lines = Lines::default();
            for row in &wanted {
                lines.push(row).unwrap();
            }
            let (segment, bytes) = lines.finish(&CampaignId::new("spring").unwrap(), 3).unwrap();
            prop_assert_eq!(segment.sha256, Sha256::of(&bytes));
            prop_assert_eq!(segment.rows as usize, wanted.len());
            let found: Vec<Row> = rows(&bytes).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn strange_bytes_are_an_error_at_most(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            for row in rows(&bytes) {
                if row.is_err() {
                    break;
                }
            }
        }
    }
}
