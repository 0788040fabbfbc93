//! `firmesh mesh top` on a real terminal, and in a pipe.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_tests::{
    binaries::Program,
    setup::{client, start_coordinator},
    wait::{Seen, Turn, until},
};
use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::tcgetattr,
    },
    unistd::Pid,
};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(30);

/// What the terminal is told before and after.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Whoever leaves it, by a key or by a signal, has the terminal as it was before.
#[tokio::test]
async fn the_terminal_is_given_back_however_the_picture_ends() -> Result<()> {
    let _turn = Turn::take().await?;
    let folder = tempfile::tempdir()?;
    client()?;
    let (_coordinator, url) = start_coordinator(folder.path(), None, "90d").await?;
    for end in [
        End::Key(b"q"),
        End::Key(b"\x03"),
        End::Signal(Signal::SIGINT),
        End::Signal(Signal::SIGTERM),
    ] {
        watch(&url, &end).await.with_context(|| format!("{end:?}"))?;
    }

    // In a pipe it is one picture, with nothing for a terminal in it; for a machine, one object a line.
    let piped = Command::new(Program::Operator.path()?)
        .args(["mesh", "top", "--interval", "1", "--coordinator", &url])
        .output()?;
    let text = String::from_utf8(piped.stdout)?;
    ensure!(piped.status.success() && text.contains("0 nodes in 0 racks"), "{text}");
    ensure!(!text.contains('\x1b'), "{text:?}");
    let json = Command::new(Program::Operator.path()?)
        .args([
            "mesh",
            "top",
            "--interval",
            "1",
            "--count",
            "2",
            "--json",
            "--coordinator",
            &url,
        ])
        .output()?;
    let lines = String::from_utf8(json.stdout)?;
    ensure!(lines.lines().count() == 2, "{lines}");
    for line in lines.lines() {
        let picture: Value = serde_json::from_str(line)?;
        ensure!(
            picture["nodes"] == 0 && picture["per_second"]["from_origin"] == 0,
            "{picture}"
        );
    }
    Ok(())
}

#[derive(Debug)]
enum End {
    Key(&'static [u8]),
    Signal(Signal),
}

async fn watch(url: &str, end: &End) -> Result<()> {
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(Some(&size), None)?;
    let before = tcgetattr(&pty.slave)?;
    let side = || pty.slave.try_clone().map(Stdio::from);
    // With a controlling terminal, so that Ctrl-C is a signal.
    let mut command = Command::new("setsid");
    command
        .args(["--ctty", "--wait"])
        .arg(Program::Operator.path()?)
        .args(["mesh", "top", "--interval", "1", "--coordinator", url])
        .stdin(side()?)
        .stdout(side()?)
        .stderr(side()?);
    let mut child = command.spawn().context("setsid (util-linux) is needed")?;
    let mut master = File::from(pty.master.try_clone()?);
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = said.clone();
    // Ends with the terminal.
    std::thread::spawn(move || {
        let mut some = [0; 4_096];
        let mut from = File::from(pty.master);
        while let Ok(count @ 1..) = from.read(&mut some) {
            if let Ok(mut said) = said.lock() {
                said.extend_from_slice(&some[..count]);
            }
        }
    });
    let text = || {
        heard
            .lock()
            .map(|said| String::from_utf8_lossy(&said).into_owned())
            .unwrap_or_default()
    };
    until("the picture", WITHIN, async || {
        let text = text();
        let is_there = text.contains(ENTER) && text.contains("0 nodes in 0 racks") && text.contains("q ends");
        Ok(Seen::when(is_there, || text))
    })
    .await?;
    ensure!(
        tcgetattr(&pty.slave)?.local_flags != before.local_flags,
        "keys are shown"
    );
    match end {
        End::Key(key) => master.write_all(key)?,
        End::Signal(signal) => {
            let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()))?;
            // Where setsid did not have to fork it is the program itself.
            let pid = children
                .split_whitespace()
                .next()
                .map_or_else(|| Ok(child.id()), str::parse)?;
            kill(Pid::from_raw(i32::try_from(pid)?), *signal)?;
        }
    }
    until("the end", WITHIN, async || {
        let ended = child.try_wait()?;
        Ok(ended.map_or_else(|| Seen::NotYet(text()), Seen::Yes))
    })
    .await
    .and_then(|status| {
        ensure!(status.success(), "{status}: {}", text());
        Ok(())
    })?;
    let after = tcgetattr(&pty.slave)?;
    ensure!(after.local_flags == before.local_flags, "{after:?}");
    ensure!(after.control_chars == before.control_chars, "{after:?}");
    until("the screen to be given back", WITHIN, async || {
        let text = text();
        Ok(Seen::when(text.ends_with(LEAVE), || text.clone()))
    })
    .await
}
