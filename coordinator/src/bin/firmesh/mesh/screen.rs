//! The terminal as a whole. Invariant: whatever happens, it is given back as it was.

use std::{
    io::{self, Read as _, Write as _},
    os::fd::AsFd as _,
    time::Instant,
};

use console::Term;
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};

use super::view::View;

/// The other screen, from its beginning, without a cursor; and the one that was there before.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// How long a read waits for a key, in tenths of a second: a thread that reads is soon done.
const KEY_WITHIN: u8 = 2;

/// The terminal while it is ours.
#[derive(Debug)]
pub(super) struct Screen {
    before: Termios,
    size: (u16, u16),
}

/// What whoever watches wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    Redraw,
    End,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut own = before.clone();
        // Keys come one by one and are not shown. What interrupts still does: the signal is waited for.
        own.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        own.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
        own.control_chars[SpecialCharacterIndices::VTIME as usize] = KEY_WITHIN;
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &own)?;
        // From here on it is given back, even if the next step fails.
        let screen = Self { before, size: size() };
        write(ENTER)?;
        Ok(screen)
    }

    pub(super) fn draw(&mut self, view: &View, problem: Option<&str>) -> io::Result<()> {
        self.size = size();
        let (height, width) = self.size;
        let mut lines = view.lines(usize::from(height).saturating_sub(2));
        lines.push(String::new());
        lines.push(problem.map_or_else(
            || "q ends".to_owned(),
            |problem| format!("what stands here is old: {problem}"),
        ));
        write(&picture(&lines, height, width))
    }

    /// Whether the terminal has another size by now.
    pub(super) fn has_changed(&self) -> bool {
        size() != self.size
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody is left to tell if the terminal is gone.
        let _ = write(LEAVE);
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

/// Rows and columns.
fn size() -> (u16, u16) {
    Term::stdout().size()
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Lines over what was there before, each cut and cleared to its end, and nothing below them.
fn picture(lines: &[String], height: u16, width: u16) -> String {
    let mut text = String::from("\x1b[H");
    for (row, line) in lines.iter().take(usize::from(height)).enumerate() {
        if row > 0 {
            text.push_str("\r\n");
        }
        // A name or a problem may hold what a terminal would obey.
        text.extend(line.chars().filter(|c| !c.is_control()).take(usize::from(width)));
        text.push_str("\x1b[K");
    }
    text.push_str("\x1b[J");
    text
}

/// Waits for a key, but not long.
pub(super) async fn asked(screen: &Screen, until: Instant) -> io::Result<Asked> {
    let read = tokio::task::spawn_blocking(|| {
        let mut keys = [0; 16];
        let count = match io::stdin().lock().read(&mut keys) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            read => read?,
        };
        io::Result::Ok(meaning(&keys[..count]))
    });
    let asked = read.await.map_err(io::Error::other)??;
    match asked {
        Asked::Nothing if until > Instant::now() && screen.has_changed() => Ok(Asked::Redraw),
        asked => Ok(asked),
    }
}

fn meaning(keys: &[u8]) -> Asked {
    match keys {
        // q, and Escape by itself: with more behind it, it is another key.
        [b'q' | b'Q', ..] | [0x1b] => Asked::End,
        [b' ' | b'\n' | b'\r', ..] => Asked::Redraw,
        _ => Asked::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_seen_enough_is_let_go() {
        assert_eq!([&b"q"[..], b"Q", b"\x1b"].map(meaning), [Asked::End; 3]);
        // An arrow, and nothing.
        assert_eq!([&b"\x1b[A"[..], b"x", b""].map(meaning), [Asked::Nothing; 3]);
        assert_eq!(meaning(b" "), Asked::Redraw);
    }

    #[test]
    fn a_picture_stays_inside_its_screen_and_obeys_nobody() {
        let lines = ["abcdef".to_owned(), "\x1b[2Jx".to_owned(), "c".to_owned()];
        assert_eq!(picture(&lines, 2, 3), "\x1b[Habc\x1b[K\r\n[2J\x1b[K\x1b[J");
    }
}
