//! The client against servers that are honest, mistaken and malicious.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, body::Body, extract::State, http::Uri};
use firmesh_protocol::{
    ids::Sha256,
    time::WallTime,
    trust::{Ceremony, Repository, SecretKey, Signers},
};
use tempfile::TempDir;

use super::*;

const IMAGE: &[u8] = b"firmware image";
const NAME: &str = "firmware/acme bmc-1.bin";

/// Files by their path, and what was asked for.
#[derive(Debug, Default)]
struct Served {
    files: BTreeMap<String, Vec<u8>>,
    asked: Vec<String>,
}

type Shared = Arc<Mutex<Served>>;

async fn answer(State(served): State<Shared>, uri: Uri) -> Result<Body, StatusCode> {
    let path = uri.path().to_owned();
    if path.ends_with("/endless/timestamp.json") {
        let spaces = futures_util::stream::repeat_with(|| Ok::<_, Infallible>([b' '; 4_096].as_slice()));
        return Ok(Body::from_stream(spaces));
    }
    if path.ends_with("/slow/timestamp.json") {
        let clock = tokio::time::interval(Duration::from_millis(100));
        let drops = futures_util::stream::unfold(clock, |mut clock| async {
            clock.tick().await;
            Some((Ok::<_, Infallible>(b" ".as_slice()), clock))
        });
        return Ok(Body::from_stream(drops));
    }
    let mut served = served.lock().unwrap_or_else(PoisonError::into_inner);
    served.asked.push(path.clone());
    served
        .files
        .get(&path)
        .map(|bytes| Body::from(bytes.clone()))
        .ok_or(StatusCode::NOT_FOUND)
}

/// A repository with one release behind a server, and the folder of a client.
struct Story {
    served: Shared,
    url: String,
    folder: TempDir,
}

impl Story {
    async fn begin() -> Self {
        let key = |number| SecretKey::from_seed(&[number; 32]);
        let signers = |number| Signers {
            keys: vec![key(number).public()],
            threshold: 1,
        };
        let expires = WallTime::from_unix_seconds(4_000_000_000);
        let ceremony = Ceremony {
            root: signers(1),
            releases: signers(2),
            campaigns: signers(3),
            online: signers(4),
            expires,
        };
        let mut repository = Repository::create(&ceremony).unwrap();
        let image = Target::new(IMAGE.len() as u64, Sha256::of(IMAGE), None);
        repository.set_release(NAME, image, expires).unwrap();
        for number in 1..=3 {
            for file in repository.signable(&key(number).public()).unwrap() {
                repository.sign(&file.file, &key(number)).unwrap();
            }
        }
        let published = repository
            .publish(&StoredMetadata::new(), now(), expires, &[&key(4)])
            .unwrap();
        let files = published
            .files
            .into_iter()
            .map(|(name, bytes)| (format!("/metadata/{name}"), bytes));
        let served = Shared::default();
        served.lock().unwrap().files = files.collect();
        let path = format!("/targets/firmware/{}.acme%20bmc-1.bin", Sha256::of(IMAGE));
        served.lock().unwrap().files.insert(path, IMAGE.to_vec());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(served.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        let folder = tempfile::tempdir().unwrap();
        let story = Self { served, url, folder };
        let root = story.served.lock().unwrap().files["/metadata/1.root.json"].clone();
        fs::write(story.folder.path().join("pinned.json"), root).unwrap();
        story.run(&["init", "PINNED"]).await.unwrap();
        story
    }

    /// Runs a command; `PINNED` is the pinned root, and later options win over those given here.
    async fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let mut line: Vec<String> = ["firmesh", "tuf", "--timeout", "1"].map(str::to_owned).into();
        let is_given = |option: &str| words.contains(&option);
        for (option, value) in [
            ("--metadata-dir", path("metadata")),
            ("--metadata-url", format!("{}/metadata/", self.url)),
            ("--target-base-url", format!("{}/targets", self.url)),
            ("--target-dir", path("targets")),
        ] {
            if !is_given(option) {
                line.extend([option.to_owned(), value]);
            }
        }
        line.extend(words.iter().map(|&word| {
            if word == "PINNED" {
                path("pinned.json")
            } else {
                word.to_owned()
            }
        }));
        let crate::Cli { global, command } = clap::Parser::try_parse_from(line)?;
        let crate::Command::Tuf(tuf) = command else {
            bail!("another command")
        };
        run(&global, tuf, &Output::new(true)).await
    }

    async fn download(&self) -> anyhow::Result<()> {
        self.run(&["download", "--target-name", NAME]).await
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.served.lock().unwrap().asked)
    }

    fn serve(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) {
        change(&mut self.served.lock().unwrap().files);
    }

    /// The names and bytes of a folder's files.
    fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let Ok(entries) = fs::read_dir(self.folder.path().join(folder)) else {
            return BTreeMap::new();
        };
        let entries = entries.map(|entry| entry.unwrap());
        entries
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    fs::read(entry.path()).unwrap(),
                )
            })
            .collect()
    }
}

#[tokio::test]
async fn a_target_is_downloaded_once_and_again_when_its_file_is_not_right() {
    let story = Story::begin().await;
    story.download().await.unwrap();
    let file = quoted(NAME);
    assert_eq!(story.files("targets"), BTreeMap::from([(file.clone(), IMAGE.to_vec())]));
    let stored: Vec<_> = story.files("metadata").into_keys().collect();
    // Nobody asked for campaigns, so their file is not there.
    let expected = [
        ".lock",
        "releases.json",
        "root.json",
        "snapshot.json",
        "targets.json",
        "timestamp.json",
    ];
    assert_eq!(stored, expected);
    story.asked();
    story.download().await.unwrap();
    assert_eq!(story.asked(), ["/metadata/2.root.json", "/metadata/timestamp.json"]);
    fs::write(story.folder.path().join("targets").join(&file), b"f1rmware image").unwrap();
    story.download().await.unwrap();
    assert_eq!(story.files("targets")[&file], IMAGE);
}

#[tokio::test]
async fn bytes_that_are_not_the_target_are_refused_by_name_and_leave_nothing() {
    let story = Story::begin().await;
    for (bytes, code) in [
        (&b"f1rmware image"[..], "hash_mismatch"),
        (b"firmware", "length_mismatch"),
        (b"firmware image and more", "too_large"),
    ] {
        story.serve(|files| {
            let target = files
                .iter_mut()
                .find(|(path, _)| path.starts_with("/targets/"))
                .unwrap();
            *target.1 = bytes.to_vec();
        });
        let error = story.download().await.unwrap_err();
        assert_eq!(refusal_code(&error), Some(code), "{error:#}");
        assert!(story.files("targets").is_empty(), "{:?}", story.files("targets"));
    }
    let error = story
        .run(&["download", "--target-name", "firmware/absent"])
        .await
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("\"firmware/absent\" is not downloaded: no role"),
        "{error:#}"
    );
    for name in ["../escape", "", "firmware/../../x"] {
        assert!(story.run(&["download", "--target-name", name]).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn endless_and_slow_answers_end_and_what_was_trusted_stays() {
    let story = Story::begin().await;
    story.run(&["refresh"]).await.unwrap();
    let before = story.files("metadata");
    for (server, code, said) in [
        ("endless", "too_large", "at most"),
        ("slow", "fetch_failed", "bytes per second"),
    ] {
        let url = format!("{}/{server}", story.url);
        let error = story.run(&["refresh", "--metadata-url", &url]).await.unwrap_err();
        assert_eq!(refusal_code(&error), Some(code), "{error:#}");
        assert!(format!("{error:#}").contains(said), "{error:#}");
        assert_eq!(story.files("metadata"), before);
    }
    let error = story
        .run(&["refresh", "--metadata-url", "http://127.0.0.1:1"])
        .await
        .unwrap_err();
    assert_eq!(refusal_code(&error), Some("fetch_failed"), "{error:#}");
    assert_eq!(story.files("metadata"), before);
}

#[tokio::test]
async fn a_root_is_pinned_once_and_only_if_it_vouches_for_itself() {
    let story = Story::begin().await;
    story.run(&["init", "PINNED"]).await.unwrap();
    let pinned = story.folder.path().join("pinned.json");
    let mut bytes = fs::read(&pinned).unwrap();
    bytes.push(b'\n');
    fs::write(&pinned, &bytes).unwrap();
    let error = story.run(&["init", "PINNED"]).await.unwrap_err();
    assert!(error.to_string().contains("holds another root"), "{error:#}");
    fs::write(&pinned, b"{\"signed\": {}, \"signatures\": []}").unwrap();
    let error = story.run(&["init", "PINNED"]).await.unwrap_err();
    assert_eq!(refusal_code(&error), Some("malformed"), "{error:#}");
    let nowhere = story.folder.path().join("nowhere").display().to_string();
    let error = story.run(&["refresh", "--metadata-dir", &nowhere]).await.unwrap_err();
    assert!(error.to_string().contains("firmesh tuf init"), "{error:#}");
}
