//! What files are called: in the repository, where names are parts of URLs, and in the store, where they are file names.

/// A name as one segment of a URL or one file name: everything but ASCII letters, digits and `-._~` percent-encoded.
#[must_use]
pub fn quoted(name: &str) -> String {
    encoded(name, "-._~")
}

/// The name a role's metadata has in the store.
pub(super) fn stored_name(role: &str) -> String {
    format!("{}.json", quoted(role))
}

/// A role's metadata in the repository.
pub(super) fn repository_name(role: &str, version: u64, consistent_snapshot: bool) -> String {
    let name = stored_name(role);
    if consistent_snapshot {
        format!("{version}.{name}")
    } else {
        name
    }
}

/// A path with every segment quoted.
pub(super) fn quoted_path(path: &str) -> String {
    encoded(path, "-._~/")
}

fn encoded(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_single_harmless_segments() {
        for (name, expected) in [
            ("releases", "releases.json"),
            ("../delegatedrole", "..%2Fdelegatedrole.json"),
            ("#?%", "%23%3F%25.json"),
            ("é", "%C3%A9.json"),
            (".", "..json"),
        ] {
            assert_eq!(stored_name(name), expected);
        }
        assert_eq!(repository_name("a b", 7, true), "7.a%20b.json");
        assert_eq!(repository_name("a b", 7, false), "a%20b.json");
        assert_eq!(quoted_path("a b/c?.bin"), "a%20b/c%3F.bin");
    }
}
