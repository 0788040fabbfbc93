use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{Errand, Invocation, ToolError, ask};

/// A run of a program: as text for an interpreter, because a file that was just written cannot always be executed.
fn program(folder: &Path, text: &str) -> Invocation {
    let path = folder.join("tool");
    fs::write(&path, text).unwrap();
    Invocation {
        program: "sh".to_owned(),
        args: vec![path.display().to_string()],
        env: BTreeMap::new(),
        folder: folder.to_owned(),
        limit: Duration::from_secs(20),
        output_bytes_max: 1_000,
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the process runs whose number is in this file.
fn lives(folder: &Path, file: &str) -> bool {
    let pid = fs::read_to_string(folder.join(file)).unwrap();
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A zombie has ended, and waits for whoever is to reap it.
    !state.is_empty() && !state.contains(") Z ")
}

#[tokio::test]
async fn a_program_gets_its_arguments_as_they_are_and_nothing_of_our_environment() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = program(
        folder.path(),
        "printf '%s|' \"$@\"; pwd; env | cut -d= -f1 | sort | tr '\\n' ' '; exit 7",
    );
    run.args.extend(["a b", "$(id)", "*", ""].map(str::to_owned));
    run.env.insert("OURS".to_owned(), "1".to_owned());
    let ended = ask(&run).await.unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(said.starts_with("a b|$(id)|*||"), "{said}");
    assert!(
        said.contains(folder.path().file_name().unwrap().to_str().unwrap()),
        "{said}"
    );
    assert!(said.ends_with("HOME LC_ALL OURS PATH PWD "), "{said}");
    assert_eq!(ended.status.code(), Some(7));
}

#[tokio::test]
async fn a_program_past_its_limit_or_given_up_ends_with_everything_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = program(
        folder.path(),
        "sh -c 'echo $$ > child; exec sleep 300' & echo $! > first; wait",
    );
    run.limit = Duration::from_millis(500);
    let error = ask(&run).await.unwrap_err();
    assert!(matches!(error, ToolError::Limit { .. }), "{error}");
    until("the child's end", || !lives(folder.path(), "child")).await;

    fs::remove_file(folder.path().join("child")).unwrap();
    run.limit = Duration::from_secs(60);
    let asked = tokio::spawn(async move { ask(&run).await.map(drop) });
    until("the child", || {
        fs::read(folder.path().join("child")).is_ok_and(|pid| !pid.is_empty())
    })
    .await;
    asked.abort();
    until("the child's end", || !lives(folder.path(), "child")).await;
}

#[tokio::test]
async fn a_program_that_says_too_much_is_ended_and_one_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = ask(&program(folder.path(), "yes")).await.unwrap_err();
    assert!(matches!(error, ToolError::TooMuch { bytes_max: 1_000, .. }), "{error}");
    let mut absent = program(folder.path(), "");
    absent.program = "a-program-nobody-made".to_owned();
    let error = ask(&absent).await.unwrap_err();
    assert!(
        error.to_string().contains("a-program-nobody-made could not be started"),
        "{error}"
    );
    assert!(!error.retry());
}

#[tokio::test]
async fn an_errand_goes_on_without_us_is_found_again_and_can_be_ended_whole() {
    let folder = tempfile::tempdir().unwrap();
    let errand = Errand::new(folder.path().join("errand"));
    errand.prepare().unwrap();
    assert!(!errand.is_running().unwrap());
    let run = program(
        folder.path(),
        "sh -c 'echo $$ > child; exec sleep 300' & echo $$ > leader; echo begun; sleep 300",
    );
    let place = errand.path("");
    let waiting = tokio::spawn(async move { Errand::new(place).run(&run).await.map(drop) });
    for file in ["child", "leader"] {
        let path = folder.path().join(file);
        until(file, || fs::read(&path).is_ok_and(|pid| !pid.is_empty())).await;
    }
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert!(errand.is_running().unwrap());
    assert!(lives(folder.path(), "child") && lives(folder.path(), "leader"));
    assert_eq!(errand.said().unwrap(), b"begun\n");
    errand.end().await.unwrap();
    assert!(!errand.is_running().unwrap());
    until("the end of both", || {
        !lives(folder.path(), "child") && !lives(folder.path(), "leader")
    })
    .await;
}

#[tokio::test]
async fn an_errand_past_its_limit_is_ended_and_only_one_runs_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let errand = Errand::new(folder.path().join("errand"));
    errand.prepare().unwrap();
    let mut run = program(
        folder.path(),
        "trap '' TERM; echo $$ > leader; while :; do sleep 0.1; done",
    );
    run.limit = Duration::from_millis(300);
    let (ended, second) = tokio::join!(errand.run(&run), async {
        until("the leader", || folder.path().join("leader").exists()).await;
        errand.run(&run).await
    });
    assert!(matches!(ended, Err(ToolError::Limit { .. })), "{ended:?}");
    let second = second.unwrap_err();
    assert!(matches!(second, ToolError::NotStarted { .. }), "{second}");
    assert!(!lives(folder.path(), "leader"));
    let ended = errand
        .run(&program(folder.path(), "echo all is well; exit 3"))
        .await
        .unwrap();
    assert_eq!(
        (ended.status.code(), ended.words().as_str()),
        (Some(3), ": all is well")
    );
}

#[tokio::test]
async fn a_note_outlives_its_writer_and_a_torn_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let errand = Errand::new(folder.path().to_owned());
    assert_eq!(errand.note::<String>().unwrap(), None);
    errand.write_note(&"begun").unwrap();
    assert_eq!(errand.note::<String>().unwrap().as_deref(), Some("begun"));
    errand.forget().unwrap();
    errand.forget().unwrap();
    assert_eq!(errand.note::<String>().unwrap(), None);
    fs::write(errand.path("note.json"), "{").unwrap();
    assert!(errand.note::<String>().unwrap_err().to_string().contains("note.json"));
}
