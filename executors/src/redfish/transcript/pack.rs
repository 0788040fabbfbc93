//! A transcript as it leaves the node: counted, digested and, where it is wanted, small enough to be sent.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use data_encoding::BASE64;
use firmesh_protocol::{
    api::PackedTranscript,
    ids::Sha256,
    limits::{TRANSCRIPT_BYTES_MAX, TRANSCRIPT_PACKED_BYTES_MAX},
};
use flate2::{Compression, write::GzEncoder};
use sha2::Digest as _;

/// What every line of an exchange begins with: [`super::Line`] has its tag first.
const EXCHANGE: &[u8] = b"{\"line\":\"exchange\"";

/// A first line longer than that is none that is written.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Looks at a transcript as it is now: lines that are added meanwhile are not in it. With its words, or the first line and as
/// many of the last ones as may be sent, if they are wanted.
pub fn pack(path: &Path, with_words: bool) -> io::Result<PackedTranscript> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let (exchanges, sha256, head) = survey(Read::take(&mut file, bytes))?;
    let (mut left_out, mut content) = (0, None);
    if with_words {
        let mut tail_max = TRANSCRIPT_BYTES_MAX as u64;
        let packed = loop {
            let (text, left) = cut(&mut file, &head, bytes, tail_max)?;
            let packed = gzip(&text)?;
            if packed.len() <= TRANSCRIPT_PACKED_BYTES_MAX {
                left_out = left;
                break packed;
            }
            tail_max /= 2;
        };
        content = Some(BASE64.encode(&packed));
    }
    Ok(PackedTranscript {
        exchanges,
        bytes,
        sha256,
        left_out,
        content,
    })
}

/// The exchanges, the digest, and the first line.
fn survey(file: impl Read) -> io::Result<(u64, Sha256, Vec<u8>)> {
    let mut reader = BufReader::new(file);
    let (mut hasher, mut exchanges, mut head, mut line) = (sha2::Sha256::new(), 0, None, Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        hasher.update(&line);
        exchanges += u64::from(line.starts_with(EXCHANGE));
        if head.is_none() {
            head = Some(line.clone());
        }
        line.clear();
    }
    let head = head.filter(|head| head.len() <= HEAD_BYTES_MAX).unwrap_or_default();
    Ok((exchanges, Sha256::from(<[u8; 32]>::from(hasher.finalize())), head))
}

/// The whole, or the first line and whole lines of the end; and how many bytes are left out.
fn cut(file: &mut File, head: &[u8], bytes: u64, most: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut text = Vec::new();
    if bytes <= most {
        file.seek(SeekFrom::Start(0))?;
        Read::take(file, bytes).read_to_end(&mut text)?;
        return Ok((text, 0));
    }
    let tail = most.saturating_sub(head.len() as u64);
    file.seek(SeekFrom::Start(bytes - tail))?;
    Read::take(file, tail).read_to_end(&mut text)?;
    let begin = text
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(text.len(), |at| at + 1);
    let text = [head, &text[begin..]].concat();
    let left_out = bytes - text.len() as u64;
    Ok((text, left_out))
}

fn gzip(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flate2::read::GzDecoder;

    use super::*;

    fn unpacked(packed: &PackedTranscript) -> String {
        let gzip = BASE64.decode(packed.content.as_ref().unwrap().as_bytes()).unwrap();
        assert!(gzip.len() <= TRANSCRIPT_PACKED_BYTES_MAX);
        let mut text = String::new();
        GzDecoder::new(&gzip[..]).read_to_string(&mut text).unwrap();
        text
    }

    /// Lines that no compression makes small.
    fn written(exchanges: usize) -> String {
        let mut text = "{\"line\":\"head\",\"device\":\"d1\"}\n".to_owned();
        let mut seed = 7_u64;
        for number in 0..exchanges {
            let mut noise = String::new();
            for _ in 0..64 {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                noise += &format!("{seed:016x}");
            }
            text += &format!("{{\"line\":\"exchange\",\"at_ms\":{number},\"noise\":\"{noise}\"}}\n");
        }
        text
    }

    #[test]
    fn a_transcript_is_packed_whole_or_its_end_behind_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        // The last one is longer than what is ever unpacked.
        for exchanges in [0, 1, 20, 2_000, 5_000] {
            let text = written(exchanges);
            fs::write(&path, &text).unwrap();
            let packed = pack(&path, true).unwrap();
            assert_eq!((packed.exchanges, packed.bytes), (exchanges as u64, text.len() as u64));
            assert_eq!(packed.sha256, Sha256::of(text.as_bytes()));
            let kept = unpacked(&packed);
            assert_eq!(kept.len() as u64 + packed.left_out, packed.bytes);
            assert_eq!(packed.left_out == 0, exchanges <= 20);
            assert!(kept.starts_with("{\"line\":\"head\"") && kept.ends_with('\n'));
            let (head, rest) = kept.split_at(kept.find('\n').unwrap() + 1);
            assert!(text.starts_with(head) && text.ends_with(rest));
            assert!(rest.is_empty() || rest.starts_with("{\"line\":\"exchange\""));
            let short = pack(&path, false).unwrap();
            assert_eq!((short.content, short.left_out, short.sha256), (None, 0, packed.sha256));
        }
    }

    /// A file that ends in the midst of one endless line has a first line and nothing else to show.
    #[test]
    fn a_line_without_an_end_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        let head = "{\"line\":\"head\"}\n";
        fs::write(&path, format!("{head}{}", "x".repeat(TRANSCRIPT_BYTES_MAX))).unwrap();
        let packed = pack(&path, true).unwrap();
        assert_eq!(unpacked(&packed), head);
        assert_eq!(packed.left_out, TRANSCRIPT_BYTES_MAX as u64);
    }
}
