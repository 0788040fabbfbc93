//! `fw_env.config`: where the copies of a U-Boot environment lie, in the lines that `fw_printenv` and `fw_setenv` read.

use crate::uboot_env::{UBOOT_ENV_BYTES_MAX, UBOOT_ENV_BYTES_MIN};

/// Where one copy of the environment lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvCopy {
    /// The file or the device.
    pub path: String,
    /// Where it begins; below 0, that far before the end.
    pub offset: i64,
    /// How long it is.
    pub bytes: usize,
}

/// What is wrong with a `fw_env.config`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FwEnvConfigError {
    /// A line that is none.
    #[error("line {line} {problem}; a line is: path, offset, size in hexadecimal")]
    Line {
        /// Which one, from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// U-Boot has one copy or two.
    #[error("it names {0} copies of the environment, there must be one or two")]
    Copies(usize),
    /// Two copies that cannot be such.
    #[error("its two copies {0}")]
    Pair(&'static str),
}

/// Reads the file. What a line says of sectors is for raw flash, and passed over.
pub fn parse_fw_env_config(text: &str) -> Result<Vec<EnvCopy>, FwEnvConfigError> {
    let mut copies = Vec::new();
    for (at, text) in text.lines().enumerate() {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        copies.push(line(text).map_err(|problem| FwEnvConfigError::Line { line: at + 1, problem })?);
    }
    match &copies[..] {
        [_] => Ok(copies),
        [first, second] => {
            if first.bytes != second.bytes {
                return Err(FwEnvConfigError::Pair("are not equally long"));
            }
            if first.path == second.path && may_overlap(first, second) {
                return Err(FwEnvConfigError::Pair(
                    "overlap: a save of one would damage the other (both offsets must be from the same end)",
                ));
            }
            Ok(copies)
        }
        other => Err(FwEnvConfigError::Copies(other.len())),
    }
}

fn line(text: &str) -> Result<EnvCopy, &'static str> {
    let mut words = text.split_whitespace();
    let (Some(path), Some(offset), Some(size)) = (words.next(), words.next(), words.next()) else {
        return Err("has less than three words");
    };
    if !path.starts_with('/') {
        return Err("has a path that does not begin with '/'");
    }
    let offset = number(offset).ok_or("has an offset that is no number")?;
    // As the tools read it: hexadecimal, whether it says so or not.
    let digits = size
        .strip_prefix("0x")
        .or_else(|| size.strip_prefix("0X"))
        .unwrap_or(size);
    let bytes = usize::from_str_radix(digits, 16).map_err(|_no_number| "has a size that is no hexadecimal number")?;
    if !(UBOOT_ENV_BYTES_MIN..=UBOOT_ENV_BYTES_MAX).contains(&bytes) {
        return Err("has a size below 0x40 or above 0x100000");
    }
    if offset
        .checked_add_unsigned(bytes as u64)
        .is_none_or(|end| offset < 0 && end > 0)
    {
        return Err("has an offset from which the copy would pass the end");
    }
    Ok(EnvCopy {
        path: path.to_owned(),
        offset,
        bytes,
    })
}

/// A number as C reads it: `0x` is hexadecimal, a leading `0` octal.
fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

fn may_overlap(first: &EnvCopy, second: &EnvCopy) -> bool {
    let from_one_end = (first.offset < 0) == (second.offset < 0);
    !from_one_end || first.offset.abs_diff(second.offset) < first.bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn copy(path: &str, offset: i64, bytes: usize) -> EnvCopy {
        EnvCopy {
            path: path.to_owned(),
            offset,
            bytes,
        }
    }

    #[test]
    fn numbers_are_those_that_the_tools_read() {
        let text = "# Block device\n/dev/mmcblk0\t0xc0000 0x20000\n\n/dev/mmcblk0 1048576 20000 # the other\n";
        let read = parse_fw_env_config(text).unwrap();
        let (first, second) = (0xc_0000, 1 << 20);
        assert_eq!(
            read,
            [
                copy("/dev/mmcblk0", first, 0x2_0000),
                copy("/dev/mmcblk0", second, 0x2_0000)
            ]
        );
        let read = parse_fw_env_config("/boot/uboot.env 010 4000").unwrap();
        assert_eq!(read, [copy("/boot/uboot.env", 8, 0x4000)]);
        let read = parse_fw_env_config("/dev/mmcblk0 -0x20000 10000").unwrap();
        assert_eq!(read, [copy("/dev/mmcblk0", -0x2_0000, 0x1_0000)]);
    }

    #[test]
    fn a_line_that_is_none_and_copies_that_cannot_be_are_refused_by_name() {
        for (text, words) in [
            ("", "names 0 copies"),
            ("/a 0 40\n/b 0 40\n/c 0 40", "names 3 copies"),
            ("# here\nuboot: yes", "line 2 has less than three words"),
            ("env 0 40", "does not begin with '/'"),
            ("/env x 40", "an offset that is no number"),
            ("/env 0x+1 40", "an offset that is no number"),
            ("/env 0 4g", "no hexadecimal number"),
            ("/env 0 3f", "below 0x40"),
            ("/env 0 100001", "above 0x100000"),
            ("/env -0x3f 40", "pass the end"),
            ("/env 0x7fffffffffffffff 40", "pass the end"),
            ("/a 0 40\n/b 0 80", "not equally long"),
            ("/a 0 40\n/a 0x3f 40", "overlap"),
            ("/a 0 40\n/a -0x40 40", "from the same end"),
        ] {
            let error = parse_fw_env_config(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "([/a-z#]{0,4}[ \t]?-?(0x)?[0-9a-f]{0,18}[ \t]?[0-9a-fx+-]{0,18}\n?){0,4}") {
            let _checked = parse_fw_env_config(&text);
        }
    }
}
