//! Which of two versions is the later one.

use std::cmp::Ordering;

/// Compares by semantic versioning where both are such versions and `semver` is asked for or nothing better is known;
/// otherwise as Debian does (deb-version(7)), which orders `1.1.1k` before `1.1.1l` and `1.0~rc1` before `1.0`, too.
#[must_use]
pub(super) fn compare(a: &str, b: &str, is_debian: bool) -> Ordering {
    if !is_debian && let (Some(a), Some(b)) = (semantic(a), semantic(b)) {
        return a.cmp_precedence(&b);
    }
    debian(a, b)
}

/// A semantic version, with the leading `v` and the missing zeros that people leave in and out.
fn semantic(text: &str) -> Option<semver::Version> {
    let text = text.strip_prefix('v').unwrap_or(text);
    if let Ok(version) = semver::Version::parse(text) {
        return Some(version);
    }
    let is_short = text.split('.').count() < 3 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let padded = match text.split('.').count() {
        1 => format!("{text}.0.0"),
        _ => format!("{text}.0"),
    };
    is_short.then(|| semver::Version::parse(&padded).ok()).flatten()
}

fn debian(a: &str, b: &str) -> Ordering {
    let ((epoch_a, a), (epoch_b, b)) = (epoch(a), epoch(b));
    let ((up_a, rev_a), (up_b, rev_b)) = (revision(a), revision(b));
    digits(epoch_a, epoch_b)
        .then_with(|| parts(up_a, up_b))
        .then_with(|| parts(rev_a, rev_b))
}

fn revision(text: &str) -> (&str, &str) {
    text.rsplit_once('-').unwrap_or((text, "0"))
}

fn epoch(text: &str) -> (&str, &str) {
    match text.split_once(':') {
        Some((epoch, rest)) if epoch.bytes().all(|b| b.is_ascii_digit()) => (epoch, rest),
        _ => ("0", text),
    }
}

/// Alternately the longest stretch without digits, then the longest of digits.
fn parts(mut a: &str, mut b: &str) -> Ordering {
    loop {
        if a.is_empty() && b.is_empty() {
            return Ordering::Equal;
        }
        let cut = |text: &str| text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
        let ((word_a, rest_a), (word_b, rest_b)) = (a.split_at(cut(a)), b.split_at(cut(b)));
        let order = words(word_a, word_b);
        let cut = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let ((number_a, rest_a), (number_b, rest_b)) = (rest_a.split_at(cut(rest_a)), rest_b.split_at(cut(rest_b)));
        match order.then_with(|| digits(number_a, number_b)) {
            Ordering::Equal => (a, b) = (rest_a, rest_b),
            order => return order,
        }
    }
}

/// A tilde sorts before the end, the end before letters, letters before everything else.
fn words(a: &str, b: &str) -> Ordering {
    let rank = |c: Option<char>| match c {
        Some('~') => (0, 0),
        None => (1, 0),
        Some(c) if c.is_ascii_alphabetic() => (2, c as u32),
        Some(c) => (3, c as u32),
    };
    let (mut a, mut b) = (a.chars(), b.chars());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) if a == b => {}
            (a, b) => return rank(a).cmp(&rank(b)),
        }
    }
}

/// Numbers of any length.
fn digits(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_their_makers_mean_it() {
        for (earlier, later, is_debian) in [
            ("1.2.3", "1.2.10", false),
            ("1.0.0-rc.1", "1.0.0", false),
            ("v1.9", "1.10.0", false),
            ("1.1.1k", "1.1.1l", false),
            ("1.1.1", "1.1.1a", false),
            ("2.36", "2.36.1", false),
            ("1.0~rc1", "1.0", true),
            ("3.0.11-1~deb12u2", "3.0.15-1~deb12u1", true),
            ("3.0.15-1~deb12u1", "3.0.15-1", true),
            ("9.9", "1:0.1", true),
            ("1.0-1", "1.0-1.1", true),
            ("1.0", "1.0+b1", true),
            ("2024.9", "2024.10", true),
        ] {
            assert_eq!(compare(earlier, later, is_debian), Ordering::Less, "{earlier} {later}");
            assert_eq!(
                compare(later, earlier, is_debian),
                Ordering::Greater,
                "{later} {earlier}"
            );
        }
        for (a, b, is_debian) in [
            ("1.2", "1.2.0", false),
            ("1.0.0+a", "1.0.0+b", false),
            ("1.0", "1.0-0", true),
            ("0:1", "1", true),
        ] {
            assert_eq!(compare(a, b, is_debian), Ordering::Equal, "{a} {b}");
        }
    }
}
