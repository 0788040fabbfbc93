use firmesh_protocol::{
    audit::{Tiles, Tree, leaf_hash},
    trust::SecretKey,
};

use super::*;

const CA: &[u8] = b"the fleet CA's certificate";

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn now() -> WallTime {
    WallTime::from_unix_seconds(1_800_000_000)
}

/// A coordinator's log: `entries` of them, the last of which say `tale`.
struct Log {
    tree: Tree,
    tiles: Tiles,
    key: SecretKey,
}

impl Log {
    fn new(told: u64, tale: &[u8], entries: u64) -> Self {
        let (mut tree, mut tiles) = (Tree::default(), Tiles::new());
        for index in 0..entries {
            let text = if index < told {
                b"the same for all".as_slice()
            } else {
                tale
            };
            let leaf = leaf_hash(&[text, &index.to_be_bytes()].concat());
            tiles
                .entry(index / firmesh_protocol::audit::TILE_LEAVES)
                .or_default()
                .push(leaf);
            tree.push(leaf);
        }
        Self {
            tree,
            tiles,
            key: key(1),
        }
    }

    fn honest(entries: u64) -> Self {
        Self::new(entries, b"", entries)
    }

    fn signed_by(self, key: SecretKey) -> Self {
        Self { key, ..self }
    }

    fn note(&self) -> String {
        let checkpoint = Checkpoint {
            origin: log_origin(CA),
            size: self.tree.size(),
            root: self.tree.root(),
            at: now(),
        };
        checkpoint.sign(&self.key)
    }

    fn news(&self, seen: &AuditSeen) -> AuditNews {
        let size = self.tree.size();
        let proof = |from: u64| self.tree.consistency(from, size, &self.tiles).unwrap_or_default();
        AuditNews {
            checkpoint: self.note(),
            consistency: proof(seen.size),
            heard: seen.heard.iter().map(|size| proof(*size)).collect(),
        }
    }
}

/// A node, and its folder.
struct Node {
    watch: AuditWatch,
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = AuditWatch::open(&folder.path().join("audit"), CA).unwrap();
        watch.trust(vec![key(1).public()]).unwrap();
        Self { watch, folder }
    }

    fn restart(&mut self) {
        self.watch = AuditWatch::open(&self.folder.path().join("audit"), CA).unwrap();
        self.watch.trust(vec![key(1).public()]).unwrap();
    }

    fn sync(&mut self, log: &Log) -> Result<(), AuditError> {
        let seen = self.watch.ask();
        self.watch.learn(Some(&log.news(&seen)), now())
    }

    fn refuses(&mut self, log: &Log, code: &str) {
        assert_eq!(self.sync(log).unwrap_err().code(), code);
    }
}

#[test]
fn a_log_that_grows_is_followed_over_a_restart() {
    let mut node = Node::new();
    for size in [3, 3, 40] {
        node.sync(&Log::honest(size)).unwrap();
        assert_eq!(node.watch.status().size, size);
    }
    node.restart();
    assert_eq!(node.watch.status().size, 40);
    node.sync(&Log::honest(41)).unwrap();
    assert_eq!(node.watch.status().fork, None);
}

#[test]
fn a_changed_past_is_a_fork_that_a_restart_does_not_forget() {
    let mut node = Node::new();
    node.sync(&Log::honest(40)).unwrap();
    node.refuses(&Log::new(20, b"another tale", 45), "audit_fork");
    // The honest log comes too late: two of its coordinator's words cannot both be true.
    node.refuses(&Log::honest(50), "audit_fork");
    node.restart();
    assert!(node.watch.fork().is_some());
    node.refuses(&Log::honest(50), "audit_fork");
    let evidence = fs::read_to_string(node.folder.path().join("audit/evidence.json")).unwrap();
    let evidence: Evidence = serde_json::from_str(&evidence).unwrap();
    for note in &evidence.notes {
        Checkpoint::open(note.as_bytes(), Some(&log_origin(CA)), &[key(1).public()]).unwrap();
    }
}

#[test]
fn a_log_that_shrinks_or_falls_silent_is_refused() {
    let mut node = Node::new();
    assert!(node.watch.learn(None, now()).is_ok(), "nothing was ever shown");
    node.sync(&Log::honest(40)).unwrap();
    assert_eq!(node.watch.learn(None, now()).unwrap_err().code(), "audit_missing");
    assert_eq!(node.watch.fork(), None, "silence is no evidence");
    node.refuses(&Log::honest(39), "audit_fork");
}

#[test]
fn a_checkpoint_of_another_key_or_fleet_changes_nothing() {
    let mut node = Node::new();
    node.sync(&Log::honest(4)).unwrap();
    node.refuses(&Log::honest(5).signed_by(key(2)), "audit_signature");
    let foreign = Checkpoint {
        origin: log_origin(b"another CA"),
        size: 9,
        root: Sha256::of(b""),
        at: now(),
    };
    let error = node.watch.hear(foreign.sign(&key(1)).as_bytes(), now()).unwrap_err();
    assert_eq!(error.code(), "audit_origin");
    assert!(node.watch.hear(b"noise", now()).is_err());
    assert_eq!(node.watch.status().size, 4);
    assert_eq!(node.watch.fork(), None);
}

/// The coordinator shows two nodes two logs: their gossip finds it out, whatever the sizes.
#[test]
fn a_split_view_is_found_by_gossip() {
    // The same size: at once.
    let (ours, theirs) = (Log::honest(40), Log::new(39, b"another tale", 40));
    let mut node = Node::new();
    node.sync(&ours).unwrap();
    let error = node.watch.hear(theirs.note().as_bytes(), now()).unwrap_err();
    assert_eq!(error.code(), "audit_fork");
    // Everybody is told both, so that everybody finds it out.
    assert_eq!(
        node.watch.announcements(Instant::now())[..2],
        [ours.note(), theirs.note()]
    );

    // A size this node passed by: at once too, if it was a checkpoint of its own.
    let mut node = Node::new();
    node.sync(&ours).unwrap();
    node.sync(&Log::honest(50)).unwrap();
    assert_eq!(
        node.watch.hear(theirs.note().as_bytes(), now()).unwrap_err().code(),
        "audit_fork"
    );

    // Another size: as soon as the coordinator has to prove it.
    for size in [30, 45] {
        let mut node = Node::new();
        node.sync(&ours).unwrap();
        node.watch
            .hear(Log::new(20, b"another tale", size).note().as_bytes(), now())
            .unwrap();
        assert_eq!(node.watch.fork(), None);
        node.refuses(&Log::honest(60), "audit_fork");
    }
}

#[test]
fn what_neighbours_heard_of_the_same_log_is_proven_and_forgotten() {
    let mut node = Node::new();
    node.sync(&Log::honest(10)).unwrap();
    for size in 1..60 {
        node.watch.hear(Log::honest(size).note().as_bytes(), now()).unwrap();
    }
    assert_eq!(node.watch.ask().heard.len(), AUDIT_HEARD_MAX);
    node.sync(&Log::honest(60)).unwrap();
    assert_eq!(node.watch.ask().heard, [0; 0]);
    assert_eq!(node.watch.fork(), None);
}

#[test]
fn a_new_key_in_the_root_ends_a_fork_and_goes_on_with_a_log_that_was_not_forked() {
    let mut node = Node::new();
    node.sync(&Log::honest(10)).unwrap();
    node.watch.trust(vec![key(2).public()]).unwrap();
    node.sync(&Log::honest(12).signed_by(key(2))).unwrap();
    node.refuses(&Log::honest(5).signed_by(key(2)), "audit_fork");
    node.watch.trust(vec![key(2).public()]).unwrap();
    assert!(node.watch.fork().is_some(), "the key that forked it is still there");

    node.watch.trust(vec![key(3).public()]).unwrap();
    assert_eq!(node.watch.fork(), None);
    node.sync(&Log::honest(5).signed_by(key(3))).unwrap();
    assert_eq!(node.watch.status().size, 5);
    let kept = fs::read_dir(node.folder.path().join("audit")).unwrap();
    let names: Vec<_> = kept
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("evidence-")), "{names:?}");
}

#[test]
fn a_checkpoint_is_told_when_it_is_new_and_now_and_then() {
    let mut node = Node::new();
    let start = Instant::now();
    assert!(node.watch.announcements(start).is_empty());
    node.sync(&Log::honest(1)).unwrap();
    assert_eq!(node.watch.announcements(start), [Log::honest(1).note()]);
    node.sync(&Log::honest(2)).unwrap();
    assert!(node.watch.announcements(start + TELL_GAP / 2).is_empty());
    assert_eq!(node.watch.announcements(start + TELL_GAP).len(), 1);
    assert!(node.watch.announcements(start + TELL_GAP * 3).is_empty());
    assert_eq!(node.watch.announcements(start + TELL_GAP + TELL_AGAIN).len(), 1);
}
