//! The executor, the attempt machine and the launcher's core on a real folder: only processes and the clock are played. The images are
//! programs of a few bytes that say a version; what they do as nodes goes by it.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use firmesh_executors_core::{
    Attempt, AttemptRecord, Goal, Image, Input, Observed, Outcome, Output, Slot, SlotContent, Step, launch::NodeSlots,
};
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, DeviceId, Sha256},
    manifest::{Artifact, Deadlines, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility},
    report::{AttemptState, PermitKind},
    time::Timestamp,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use tempfile::TempDir;
use tokio::sync::Notify;

use super::{
    Ended, Launched, Launcher, LauncherInput, LauncherOutput, NodeSelfBackend, NodeSelfConfig, Own, Program,
    SlotsFolder, backend::model,
};
use crate::{
    backend::DeviceBackend,
    config::{DeviceConfig, DeviceConfigError, DeviceSettings, ExecutorConfig, ExecutorSettings},
    image::{ImageError, ImageReader, ImageSource},
};

const OLD: &str = "1.0.0";
const PACKAGED: &str = "1.0.0 (abc)";
/// Works.
const GOOD: &str = "1.1.0";
/// Ends at once when it is started as a node.
const DIES: &str = "1.2.0";
/// Runs, and hears nobody.
const HEARS_NOBODY: &str = "1.3.0";

#[tokio::test]
async fn a_node_is_updated_killed_at_any_boundary_and_runs_the_new_version() {
    let mut kills = 0;
    for die_at in 0.. {
        let mut world = World::new(GOOD);
        world.die_at = Some(die_at);
        let outcome = world.update().await;
        assert_eq!(outcome.state, AttemptState::Success, "killed at {die_at}: {outcome:?}");
        let slots = world.folder.read().unwrap();
        assert_eq!(
            (slots.confirmed, &slots.trial),
            (Some(Slot::A), &None),
            "killed at {die_at}"
        );
        assert_eq!(world.runs, Some(Program::Slot(Slot::A)), "killed at {die_at}");
        assert!(world.folder.is_whole(&slots, Slot::A), "killed at {die_at}");
        if world.die_at.is_some() {
            break;
        }
        kills += 1;
    }
    assert!(kills > 15, "only {kills} boundaries");
}

#[tokio::test]
async fn a_version_that_dies_or_hears_nobody_is_left_by_itself_wherever_the_node_is_killed() {
    for (version, why) in [
        (
            DIES,
            "started 3 times and was not confirmed; the last time, it ended with exit status 1",
        ),
        (HEARS_NOBODY, "it hears nobody"),
    ] {
        for die_at in 0.. {
            let mut world = World::new(version);
            world.die_at = Some(die_at);
            let outcome = world.update().await;
            let told = format!("{version} killed at {die_at}: {outcome:?}");
            assert_eq!(outcome.state, AttemptState::Failed, "{told}");
            assert_eq!(outcome.version.as_deref(), Some(OLD), "{told}");
            assert!(outcome.reason.contains(&format!("runs {OLD}")), "{told}");
            assert_eq!(world.runs, Some(Program::Packaged), "{told}");
            assert_eq!(world.folder.read().unwrap().confirmed, None, "{told}");
            if world.die_at.is_some() {
                assert!(outcome.reason.contains(why), "{told}");
                break;
            }
        }
    }
}

/// The launcher's limit is shorter here than the campaign's.
#[tokio::test]
async fn a_launcher_that_hears_nothing_of_a_trial_ends_it_before_the_attempt_does() {
    let mut world = World::new(HEARS_NOBODY);
    world.works_within_s = 20;
    let outcome = world.update().await;
    assert_eq!(outcome.state, AttemptState::Failed, "{outcome:?}");
    assert!(
        outcome.reason.contains("did not say for 20 s that it works"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn the_next_update_goes_to_the_other_slot_and_a_failed_one_comes_back_to_the_first() {
    let mut world = World::new(GOOD);
    world.update().await;
    world.begin(DIES);
    let outcome = world.update().await;
    assert_eq!(
        (outcome.state, outcome.version.as_deref()),
        (AttemptState::Failed, Some(GOOD))
    );
    assert_eq!(world.runs, Some(Program::Slot(Slot::A)));
    world.begin(HEARS_NOBODY);
    let outcome = world.update().await;
    assert!(outcome.reason.contains("it hears nobody"), "{outcome:?}");
    assert_eq!(world.runs, Some(Program::Slot(Slot::A)));
}

#[tokio::test]
async fn what_is_not_a_node_of_the_release_is_refused_before_it_is_armed() {
    for (bytes, why) in [
        (b"#!/bin/sh\necho firmesh-node 1.1.0\n".to_vec(), "no ELF header"),
        (
            program("firmesh-node 1.0.9 (x)\n", 0),
            "`--version` says \"firmesh-node 1.0.9 (x)\"",
        ),
        (program("nginx version: 1.1.0\n", 0), "says \"nginx version: 1.1.0\""),
        (program("firmesh-node 1.1.0 (x)\n", 1), "it ended with exit status: 1"),
        (program("", 0), "says \"\""),
        (other_machine(), "this machine is"),
    ] {
        let mut world = World::new(GOOD);
        world.image = bytes;
        let outcome = world.update().await;
        assert_eq!(outcome.state, AttemptState::Failed, "{outcome:?}");
        assert!(outcome.reason.contains(why), "{why}: {outcome:?}");
        let slots = world.folder.read().unwrap();
        assert_eq!(
            (&slots.a, &slots.trial, slots.trials),
            (&SlotContent::Writing, &None, 0)
        );
        assert_eq!(world.runs, Some(Program::Packaged));
    }
}

/// A machine without time or memory for it is not the image's fault, and may have some soon.
#[tokio::test]
async fn an_image_that_could_not_answer_is_asked_again_and_one_that_answers_badly_is_not() {
    for (image, why, retry) in [
        (doing(&[0xeb, 0xfe], &[0x1400_0000]), "took longer than 2 s", true),
        (killing_itself(), "it was killed", true),
        (program("firmesh-node 1.1.0 (x)\n", 1), "exit status: 1", false),
        (program("firmesh-node 1.0.9 (x)\n", 0), "`--version` says", false),
    ] {
        let mut world = World::new(GOOD);
        world.image = image;
        let backend = world.backend(OLD, Program::Packaged);
        let error = backend.stage(&world.release(), Some(Slot::A)).await.unwrap_err();
        assert!(error.reason.contains(why) && error.retry == retry, "{why}: {error:?}");
    }
}

#[tokio::test]
async fn power_lost_at_any_write_of_the_slots_file_leaves_something_to_start() {
    let mut survived = 0;
    for writes in 0.. {
        let world = World::new(GOOD);
        let backend = world.backend(OLD, Program::Packaged).losing_power_after(writes);
        let staged = backend.stage(&world.release(), Some(Slot::A)).await.is_ok();
        let armed = staged && backend.activate(Some(Slot::A)).await.is_ok();
        let slots = world.folder.read().unwrap();
        let (program, next) = slots.next(PACKAGED, |slot, _| world.folder.is_whole(&slots, slot));
        if armed {
            assert_eq!(program, Program::Slot(Slot::A));
            break;
        }
        assert!(
            program == Program::Packaged || next.trial.is_some(),
            "after {writes} writes"
        );
        survived += 1;
        let backend = world.backend(OLD, Program::Packaged);
        backend.stage(&world.release(), Some(Slot::A)).await.unwrap();
        backend.activate(Some(Slot::A)).await.unwrap();
    }
    assert!(survived >= 9, "only {survived} writes");
}

#[tokio::test]
async fn slots_in_use_are_never_written_and_what_is_not_on_trial_is_not_confirmed() {
    let world = World::new(GOOD);
    let packaged = world.backend(OLD, Program::Packaged);
    let image = world.release();
    let error = packaged.stage(&image, Some(Slot::B)).await.unwrap_err();
    assert!(error.reason.contains("slot b is in use") && !error.retry, "{error}");
    assert!(
        packaged
            .activate(Some(Slot::A))
            .await
            .unwrap_err()
            .reason
            .contains("no whole program")
    );
    assert!(packaged.confirm().await.unwrap_err().reason.contains("not on trial"));
    packaged.stage(&image, Some(Slot::A)).await.unwrap();
    fs::write(world.folder.program(Slot::A), b"something else").unwrap();
    let error = packaged.activate(Some(Slot::A)).await.unwrap_err();
    assert!(error.reason.contains("does not have the digest"), "{error}");
}

/// Nothing would go back, so nothing is tried.
#[tokio::test]
async fn a_node_without_a_launcher_shows_its_version_and_refuses_images() {
    let world = World::new(GOOD);
    let own = Process {
        launched: None,
        ..Process::of(OLD, Program::Packaged, &world)
    };
    let backend = world.backend_of(Some(Arc::new(own)));
    let Observed::Answering(seen) = backend.observe(None).await else {
        panic!("it does not answer")
    };
    assert_eq!((seen.version.as_deref(), seen.slots), (Some(OLD), None));
    let error = backend.stage(&world.release(), None).await.unwrap_err();
    assert!(error.reason.contains("--launch") && !error.retry, "{error}");
    let Observed::Silent { why } = world.backend_of(None).observe(None).await else {
        panic!("it answers")
    };
    assert!(why.contains("does not run"), "{why}");
}

#[tokio::test]
async fn a_damaged_slots_file_is_told_and_left_alone() {
    let world = World::new(GOOD);
    fs::write(world.folder.file(), b"{").unwrap();
    let backend = world.backend(OLD, Program::Packaged);
    let Observed::Silent { why } = backend.observe(None).await else {
        panic!("it answers")
    };
    assert!(
        why.contains("slots.json") && why.contains("whoever removes it"),
        "{why}"
    );
    assert!(backend.stage(&world.release(), Some(Slot::A)).await.is_err());
    assert_eq!(fs::read(world.folder.file()).unwrap(), b"{");
}

#[test]
fn limits_that_cannot_be_kept_are_refused_by_name() {
    for (more, words) in [
        ("works_within_s = 19", "works_within_s must be 20 to 3600"),
        ("others_within_s = 0", "others_within_s must be 1 to 86400"),
    ] {
        let error = checked(more).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(checked("").is_ok());
}

fn checked(more: &str) -> Result<DeviceSettings, DeviceConfigError> {
    let text = format!("id = \"n1-self\"\ncomponent = \"firmesh-node\"\n[executor]\nkind = \"node-self\"\n{more}\n");
    let config: DeviceConfig = toml::from_str(&text).unwrap();
    assert!(matches!(
        config.executor,
        ExecutorConfig::NodeSelf(NodeSelfConfig { .. })
    ));
    config.check(std::path::Path::new("/"))
}

/// A program that writes a text and ends.
fn program(text: &str, status: u8) -> Vec<u8> {
    const AT: u64 = 0x40_0000;
    const CODE: u64 = 120;
    let mut code = Vec::new();
    let length = u32::try_from(text.len()).unwrap();
    if cfg!(target_arch = "aarch64") {
        let words = [
            0xd280_0020, // mov x0, 1
            0x1000_00e1, // adr x1, text
            0xd280_0002 | length << 5,
            0xd280_0808, // mov x8, write
            0xd400_0001,
            0xd280_0000 | u32::from(status) << 5,
            0xd280_0ba8, // mov x8, exit
            0xd400_0001,
        ];
        code.extend(words.iter().flat_map(|word: &u32| word.to_le_bytes()));
    } else {
        let text_at = u32::try_from(AT + CODE + 34).unwrap();
        for (op, value) in [(0xb8, 1), (0xbf, 1), (0xbe, text_at), (0xba, length)] {
            code.push(op);
            code.extend(value.to_le_bytes());
        }
        code.extend([0x0f, 0x05, 0xb8, 60, 0, 0, 0, 0xbf, status, 0, 0, 0, 0x0f, 0x05]);
    }
    code.extend(text.bytes());
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let total = CODE + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
    elf.extend(machine.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    for value in [AT + CODE, 64, 0] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for value in [0, AT, AT, total, total, 0x1000] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// A program that does this, by the machine it is for.
fn doing(x86_64: &[u8], aarch64: &[u32]) -> Vec<u8> {
    let mut bytes = program("                    ", 0);
    let code: Vec<u8> = match cfg!(target_arch = "aarch64") {
        true => aarch64.iter().flat_map(|word| word.to_le_bytes()).collect(),
        false => x86_64.to_vec(),
    };
    bytes[120..120 + code.len()].copy_from_slice(&code);
    bytes
}

fn killing_itself() -> Vec<u8> {
    let x86_64 = [
        &[0xb8, 39, 0, 0, 0, 0x0f, 0x05][..], // eax = getpid
        &[0x89, 0xc7],                        // edi = eax
        &[0xbe, 9, 0, 0, 0],                  // esi = SIGKILL
        &[0xb8, 62, 0, 0, 0, 0x0f, 0x05],     // kill
    ];
    // x8 = getpid; svc; x1 = SIGKILL; x8 = kill; svc
    let aarch64 = [0xd280_1588, 0xd400_0001, 0xd280_0121, 0xd280_1028, 0xd400_0001];
    doing(&x86_64.concat(), &aarch64)
}

fn other_machine() -> Vec<u8> {
    let mut bytes = program("firmesh-node 1.1.0 (x)\n", 0);
    bytes[18] = 243;
    bytes
}

/// The node's disk, its launcher, and the attempt that goes through all its processes.
struct World {
    dir: TempDir,
    folder: SlotsFolder,
    image: Vec<u8>,
    version: &'static str,
    works_within_s: u32,
    now: Timestamp,
    launcher: Launcher,
    runs: Option<Program>,
    word: Option<Vec<u8>>,
    starts: u32,
    boundaries: usize,
    /// The boundary at which the process is killed; nothing once it was.
    die_at: Option<usize>,
}

/// How a process ended.
enum End {
    Over(Outcome),
    How(&'static str),
}

impl World {
    fn new(version: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = SlotsFolder::new(dir.path().join("self"));
        fs::create_dir_all(folder.path()).unwrap();
        let mut world = Self {
            dir,
            folder,
            image: vec![],
            version,
            works_within_s: 300,
            now: Timestamp::default(),
            launcher: Launcher::new(PACKAGED.to_owned()),
            runs: None,
            word: None,
            starts: 0,
            boundaries: 0,
            die_at: None,
        };
        world.begin(version);
        world.settle();
        world
    }

    /// Another campaign, with another version.
    fn begin(&mut self, version: &'static str) {
        self.image = program(&format!("firmesh-node {version} (def)\n"), 0);
        self.version = version;
        fs::remove_file(self.record()).ok();
    }

    fn record(&self) -> std::path::PathBuf {
        self.dir.path().join("record")
    }

    fn release(&self) -> Image {
        let artifact = Artifact {
            id: ArtifactId::of(&self.image),
            length: self.image.len() as u64,
            sha256: Sha256::of(&self.image),
        };
        let info = ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: artifact.id,
            vendor: "Firmesh".to_owned(),
            models: vec![model()],
            component: Component::new("firmesh-node").unwrap(),
            version: self.version.to_owned(),
            security_epoch: 0,
            from_versions: Vec::new(),
            reversibility: Reversibility::Reversible,
            provenance: None,
            version_scheme: None,
            min_from: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
        };
        Release {
            target: "firmware/firmesh-node".to_owned(),
            artifact,
            info,
        }
    }

    fn backend(&self, version: &str, program: Program) -> NodeSelfBackend {
        self.backend_of(Some(Arc::new(Process::of(version, program, self))))
    }

    fn backend_of(&self, own: Option<Arc<Process>>) -> NodeSelfBackend {
        let ExecutorSettings::NodeSelf(settings) = checked(&format!("works_within_s = {}", self.works_within_s))
            .unwrap()
            .executor
        else {
            panic!("another executor")
        };
        let own = own.map(|own| own as Arc<dyn Own>);
        let component = Component::new("firmesh-node").unwrap();
        NodeSelfBackend::new(settings, component, Arc::new(OneImage(self.image.clone())), own)
    }

    /// Plays processes until the attempt is over.
    async fn update(&mut self) -> Outcome {
        for _ in 0..60 {
            let Some(program) = self.runs else {
                // The launcher waits a moment, or has ended and its service manager starts another.
                match self.launcher.deadline() {
                    Some(at) => {
                        self.now = at;
                        self.tell(LauncherInput::Tick);
                    }
                    None => {
                        self.launcher = Launcher::new(PACKAGED.to_owned());
                        self.settle();
                    }
                }
                continue;
            };
            let version = self.version_in(program);
            let how = match version.as_str() {
                DIES => "it ended with exit status 1",
                _ => match self.process(&version, program).await {
                    End::Over(outcome) => return outcome,
                    End::How(how) => how,
                },
            };
            self.runs = None;
            let how = how.to_owned();
            self.tell(LauncherInput::Ended(Ended { how, status: 1 }));
        }
        panic!("the attempt never ends")
    }

    fn version_in(&self, program: Program) -> String {
        let Program::Slot(slot) = program else {
            return OLD.to_owned();
        };
        let bytes = fs::read(self.folder.program(slot)).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (_, after) = text.split_once("firmesh-node ").unwrap();
        after.split(' ').next().unwrap().to_owned()
    }

    /// Whether the process dies here.
    fn dies(&mut self) -> bool {
        let is_here = self.die_at == Some(self.boundaries);
        self.boundaries += 1;
        if is_here {
            self.die_at = None;
        }
        is_here
    }

    async fn process(&mut self, version: &str, program: Program) -> End {
        const KILLED: End = End::How("it was killed by signal 9");
        let own = Arc::new(Process::of(version, program, self));
        let backend = self.backend_of(Some(Arc::clone(&own)));
        let mut attempt = match fs::read(self.record()) {
            Ok(bytes) => Attempt::resume(AttemptRecord::from_bytes(&bytes).unwrap(), self.now),
            Err(_none) => Attempt::new(self.goal(), self.now),
        };
        loop {
            while let Some(output) = attempt.poll() {
                let input = match output {
                    Output::Persist(record) => {
                        if self.dies() {
                            return KILLED;
                        }
                        fs::write(self.record(), record.to_bytes()).unwrap();
                        if self.dies() {
                            return KILLED;
                        }
                        continue;
                    }
                    Output::Report(_) => continue,
                    Output::Done(outcome) => return End::Over(outcome),
                    Output::Step(Step::Observe { task }) => Input::Observed(backend.observe(task.as_deref()).await),
                    Output::Step(step) => {
                        if self.dies() {
                            return KILLED;
                        }
                        let acted = tokio::select! {
                            biased;
                            acted = act(&backend, step) => acted,
                            () = own.ended.notified() => return End::How("it ended with exit status 0"),
                        };
                        if self.dies() {
                            return KILLED;
                        }
                        acted
                    }
                };
                attempt.handle(self.now, input);
            }
            let word = self.folder.word();
            if word.is_some() && word != self.word {
                self.word = word;
                self.tell(LauncherInput::Works);
            }
            let deadlines = [attempt.deadline(), self.launcher.deadline()];
            self.now = deadlines
                .into_iter()
                .flatten()
                .min()
                .expect("an attempt waits")
                .max(self.now);
            attempt.handle(self.now, Input::Tick);
            self.launcher.handle(self.now, LauncherInput::Tick);
            if self.settle() {
                return End::How("it ended with exit status 0");
            }
        }
    }

    fn goal(&self) -> Goal {
        Goal {
            device: DeviceId::new("n1-self").unwrap(),
            campaign: CampaignId::new("spring").unwrap(),
            manifest_sha256: Sha256::of(b"manifest"),
            wave: 0,
            kind: PermitKind::Update,
            permit_sequence: 1,
            image: self.release(),
            step: None,
            security_epoch_min: 0,
            deadlines: Deadlines {
                attempt_s: 900,
                back_s: 120,
            },
            health: None,
            answers_min: 3,
            answers_apart_ms: None,
            pace_ms: 500,
        }
    }

    fn tell(&mut self, input: LauncherInput) {
        self.launcher.handle(self.now, input);
        self.settle();
    }

    /// Does what the launcher says; whether it asks what runs to end.
    fn settle(&mut self) -> bool {
        let mut stops = false;
        while let Some(output) = self.launcher.poll() {
            let input = match output {
                LauncherOutput::Look => {
                    let slots = self.folder.read();
                    let whole = |slot: &Slot| slots.as_ref().is_ok_and(|slots| self.folder.is_whole(slots, *slot));
                    let whole = [Slot::A, Slot::B].into_iter().filter(whole).collect();
                    let slots = slots.map(Box::new);
                    LauncherInput::Found { slots, whole }
                }
                LauncherOutput::Keep(slots) => {
                    assert_eq!(self.runs, None, "the launcher writes while a node runs");
                    LauncherInput::Kept(self.folder.keep(&slots).map_err(|error| error.to_string()))
                }
                LauncherOutput::Start(program) => {
                    (self.runs, self.starts) = (Some(program), self.starts + 1);
                    self.word = self.folder.word();
                    LauncherInput::Started(Ok(()))
                }
                LauncherOutput::Stop | LauncherOutput::Kill => {
                    stops = true;
                    continue;
                }
                LauncherOutput::Say(_) | LauncherOutput::Exit(_) => continue,
            };
            self.launcher.handle(self.now, input);
        }
        stops
    }
}

async fn act(backend: &NodeSelfBackend, step: Step) -> Input {
    let acted = |result| match result {
        Ok(()) => Input::Acted,
        Err(error) => Input::ActFailed(error),
    };
    match step {
        Step::Stage { image, slot } => match backend.stage(&image, slot).await {
            Ok(task) => Input::Staged { task },
            Err(error) => Input::ActFailed(error),
        },
        Step::Activate { slot } => acted(backend.activate(slot).await),
        Step::Reset(rung) => acted(backend.reset(rung).await),
        Step::Confirm => acted(backend.confirm().await),
        Step::Abort { task } => acted(backend.abort(task.as_deref()).await),
        Step::Observe { .. } => unreachable!("a look is no act"),
    }
}

/// A process of the node.
#[derive(Debug)]
struct Process {
    version: String,
    start_id: String,
    launched: Option<Launched>,
    works: AtomicBool,
    ended: Notify,
}

impl Process {
    fn of(version: &str, program: Program, world: &World) -> Self {
        Self {
            version: format!("{version} (def)"),
            start_id: format!("start-{}", world.starts),
            launched: Some(Launched {
                pid: 1,
                dir: world.folder.path().display().to_string(),
                program,
                packaged: PACKAGED.to_owned(),
            }),
            works: AtomicBool::new(version != HEARS_NOBODY),
            ended: Notify::new(),
        }
    }
}

impl Own for Process {
    fn updates_itself(&self) -> bool {
        true
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn start_id(&self) -> &str {
        &self.start_id
    }

    fn launched(&self) -> Option<&Launched> {
        self.launched.as_ref()
    }

    fn works(&self) -> Result<(), String> {
        match self.works.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("it hears nobody".to_owned()),
        }
    }

    fn restart(&self, _within: Duration, _must: bool) -> BoxFuture<'_, Result<(), String>> {
        self.ended.notify_one();
        std::future::pending().boxed()
    }
}

/// The store, which holds what is asked for.
#[derive(Debug)]
struct OneImage(Vec<u8>);

impl ImageSource for OneImage {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        let reader: ImageReader = Box::pin(std::io::Cursor::new(self.0.clone()));
        std::future::ready(Ok(reader)).boxed()
    }

    fn url(&self, artifact: ArtifactId) -> String {
        format!("https://no-image/{artifact}")
    }
}

#[test]
fn the_slots_of_a_node_that_never_had_any_are_empty() {
    let folder = SlotsFolder::new("/nonexistent/self".into());
    assert_eq!(folder.read().unwrap(), NodeSlots::default());
}
