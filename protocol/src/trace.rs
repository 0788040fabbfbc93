//! Which trace a piece of work belongs to, as it travels between processes: the `traceparent` of W3C Trace Context.
//!
//! Hints, and no more: they are not signed, anybody may have made them up, and nothing is decided by them. What is malformed
//! is taken for absent, so that a hint never makes a message fail that carries it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::CampaignId;

/// The longest `traceparent` that is looked at: the first version has 55 bytes, and later ones may go on after that.
pub const TRACEPARENT_BYTES_MAX: usize = 256;

/// Hints that one message carries at most: more campaigns than run at a time.
pub const TRACE_HINTS_MAX: usize = 128;

/// A trace, and the span in it under which something is done.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    /// Whether spans of this trace are sent anywhere.
    pub sampled: bool,
}

impl TraceContext {
    /// Of random bytes, which the caller has. Ids of zeros only mean nothing: they become others.
    #[must_use]
    pub fn new(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Self {
        let trace = u128::from_be_bytes(trace).max(1).to_be_bytes();
        let span = u64::from_be_bytes(span).max(1).to_be_bytes();
        Self { trace, span, sampled }
    }

    /// Reads a `traceparent`. Later versions of it may go on after the flags.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > TRACEPARENT_BYTES_MAX {
            return None;
        }
        let mut parts = text.splitn(5, '-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version = bytes::<1>(version)?;
        if version == [0xff] || (version == [0] && parts.next().is_some()) {
            return None;
        }
        let (trace, span, [flags]) = (bytes(trace)?, bytes(parent)?, bytes(flags)?);
        let means_something = trace != [0; 16] && span != [0; 8];
        means_something.then_some(Self {
            trace,
            span,
            sampled: flags & 1 == 1,
        })
    }

    /// The trace's id.
    #[must_use]
    pub fn trace(&self) -> [u8; 16] {
        self.trace
    }

    /// The span's id.
    #[must_use]
    pub fn span(&self) -> [u8; 8] {
        self.span
    }

    /// The trace's id as logs have it.
    #[must_use]
    pub fn trace_hex(&self) -> String {
        hex::encode(self.trace)
    }

    /// The span below this one that these names belong to. Whoever was told of this span finds the same one, before and after
    /// a crash.
    #[must_use]
    pub fn below(&self, names: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(b"firmesh trace span")
            .update(&self.trace)
            .update(&self.span);
        for name in names {
            hasher
                .update(&(name.len() as u64).to_le_bytes())
                .update(name.as_bytes());
        }
        let mut span = [0; 8];
        hasher.finalize_xof().fill(&mut span);
        Self::new(self.trace, span, self.sampled)
    }

    /// Whether `name` is one of the `share` of 10,000 that is looked at in this trace; whoever asks gets the same answer.
    #[must_use]
    pub fn picks(&self, name: &str, share: u16) -> bool {
        let picked = self.below(&["sample", name]).span;
        u64::from_be_bytes(picked) % 10_000 < u64::from(share)
    }
}

/// As a `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(
            f,
            "00-{}-{}-{flags:02x}",
            hex::encode(self.trace),
            hex::encode(self.span)
        )
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceContext({self})")
    }
}

/// Lower-case hexadecimal digits, exactly as many as there have to be.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let mut bytes = [0; N];
    (text.bytes().all(is_digit) && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

/// Which trace a campaign belongs to: what the coordinator tells its nodes, and nodes each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHint {
    /// The campaign.
    pub campaign: CampaignId,
    /// The span that it was started in. As it was sent: it may be malformed.
    pub traceparent: String,
}

impl TraceHint {
    /// Where it points, if that is anywhere.
    #[must_use]
    pub fn context(&self) -> Option<TraceContext> {
        TraceContext::parse(&self.traceparent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_taken_as_the_standard_has_it_or_not_at_all() {
        let found = TraceContext::parse(GOOD).unwrap();
        assert_eq!(found.trace_hex(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(found.sampled && !TraceContext::parse(&GOOD.replace("-01", "-00")).unwrap().sampled);
        assert_eq!(
            TraceContext::parse(&format!("{}-more", GOOD.replacen("00", "01", 1))),
            Some(found)
        );
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            format!("{GOOD}-more"),
            GOOD.replacen("00", "ff", 1),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16)),
            GOOD[..52].to_owned(),
            GOOD.replacen("4bf", "4bfx", 1),
            GOOD.replacen("4bf", "+bf", 1),
            format!(
                "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-{}",
                "x".repeat(300)
            ),
        ] {
            assert_eq!(TraceContext::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn spans_below_are_found_again_and_are_not_mixed_up() {
        let root = TraceContext::parse(GOOD).unwrap();
        let below = root.below(&["a", "bc"]);
        assert_eq!(below, root.below(&["a", "bc"]));
        assert_eq!((below.trace(), below.sampled), (root.trace(), root.sampled));
        assert!(![root.below(&["ab", "c"]), root.below(&["a"]), root].contains(&below));
    }

    #[test]
    fn a_share_of_the_devices_is_picked() {
        let root = TraceContext::parse(GOOD).unwrap();
        let picked = (0..10_000)
            .filter(|n| root.picks(&format!("device-{n}"), 1_000))
            .count();
        assert!((800..1_200).contains(&picked), "{picked}");
        assert!(root.picks("any", 10_000) && !root.picks("any", 0));
    }

    /// An older coordinator does not know of hints, and a newer one may send what is none.
    #[test]
    fn a_hint_that_is_none_does_not_spoil_what_carries_it() {
        let hint: TraceHint = serde_json::from_str(r#"{"campaign": "spring", "traceparent": "?", "more": 1}"#).unwrap();
        assert_eq!(hint.context(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace: [u8; 16], span: [u8; 8], sampled: bool) {
            let context = TraceContext::new(trace, span, sampled);
            prop_assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
        }

        #[test]
        fn foreign_text_never_panics(text in ".{0,300}") {
            let _ = TraceContext::parse(&text);
        }
    }
}
