//! Images on their way here, and what they are for: uploads in parts, drafts, the catalogue, mirrors.

use std::sync::{Arc, Mutex};

use axum::{Router, extract::Path, http::HeaderMap, response::IntoResponse as _, routing::get};
use data_encoding::BASE64;
use firmesh_protocol::{
    api::{
        CatalogueEntry, CollectedImages, FirmwarePublication, FirmwareState, FirmwareView, OperationState,
        OperationView, Page, PlanRequest, PlanResponse, UploadView,
    },
    ids::Sha256,
    manifest::Artifact,
};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::fleet::{Fleet, IMAGE};

async fn tus(fleet: &Fleet, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Response {
    let mut request = fleet
        .client()
        .request(method.parse().unwrap(), fleet.url(path))
        .bearer_auth(fleet.token());
    for (name, value) in [("tus-resumable", "1.0.0")].iter().chain(headers) {
        request = request.header(*name, *value);
    }
    request.body(body).send().await.unwrap()
}

async fn begun(fleet: &Fleet, image: &[u8], sha256: Sha256) -> String {
    let metadata = format!(
        "filename {},sha256 {}",
        BASE64.encode(b"new.bin"),
        BASE64.encode(sha256.to_string().as_bytes())
    );
    let length = image.len().to_string();
    let headers = [("upload-length", &*length), ("upload-metadata", &*metadata)];
    let begun = tus(fleet, "POST", "/api/v1/uploads", &headers, Vec::new()).await;
    assert_eq!(begun.status(), StatusCode::CREATED);
    begun.headers()["location"].to_str().unwrap().to_owned()
}

async fn part(fleet: &Fleet, place: &str, offset: usize, bytes: &[u8]) -> Response {
    let (offset, kind) = (offset.to_string(), "application/offset+octet-stream");
    let headers = [("upload-offset", &*offset), ("content-type", kind)];
    tus(fleet, "PATCH", place, &headers, bytes.to_vec()).await
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stands_and_is_an_image_only_if_all_of_it_is_right() {
    let mut fleet = Fleet::start().await;
    let place = begun(&fleet, IMAGE, Sha256::of(IMAGE)).await;
    let first = part(&fleet, &place, 0, &IMAGE[..30_000]).await;
    assert_eq!(
        (first.status(), first.headers()["upload-offset"].as_bytes()),
        (StatusCode::NO_CONTENT, b"30000".as_slice())
    );
    let late = part(&fleet, &place, 0, &IMAGE[..1]).await;
    assert_eq!(
        late.status(),
        StatusCode::CONFLICT,
        "somebody who has not asked where it stands"
    );
    let too_much = part(&fleet, &place, 30_000, &vec![0; 70_000]).await;
    assert_eq!(too_much.status(), StatusCode::PAYLOAD_TOO_LARGE);

    fleet.restart().await;
    let stands = tus(&fleet, "HEAD", &place, &[], Vec::new()).await;
    assert_eq!(
        (
            stands.headers()["upload-offset"].as_bytes(),
            stands.headers()["upload-length"].as_bytes()
        ),
        (b"30000".as_slice(), b"70000".as_slice())
    );
    let last = part(&fleet, &place, 30_000, &IMAGE[30_000..]).await;
    assert_eq!(last.status(), StatusCode::NO_CONTENT);
    let whole: UploadView = fleet.get(&place).await;
    let artifact = whole.artifact.unwrap();
    assert_eq!(artifact.sha256, Sha256::of(IMAGE));
    assert_eq!(
        fleet
            .get::<Artifact>(&format!("/api/v1/artifacts/{}", artifact.id))
            .await,
        artifact
    );
    // Asked once more to end, it has.
    assert_eq!(part(&fleet, &place, 70_000, b"").await.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        tus(&fleet, "DELETE", &place, &[], Vec::new()).await.status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(fleet.status(&place).await, StatusCode::NOT_FOUND);

    let other = begun(&fleet, b"an image", Sha256::of(b"another image")).await;
    let wrong = part(&fleet, &other, 0, b"an image").await;
    assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        fleet.status(&other).await,
        StatusCode::NOT_FOUND,
        "nobody knows which part was wrong"
    );
    let options = tus(&fleet, "OPTIONS", "/api/v1/uploads", &[], Vec::new()).await;
    assert_eq!(
        options.headers()["tus-extension"].as_bytes(),
        b"creation,expiration,termination"
    );
    for (headers, status) in [
        (vec![("tus-resumable", "0.2.1")], 412),
        (vec![("tus-resumable", "1.0.0")], 400),
        (
            vec![
                ("tus-resumable", "1.0.0"),
                ("upload-length", "5"),
                ("upload-metadata", "sha256 !"),
            ],
            400,
        ),
    ] {
        let mut request = fleet
            .client()
            .post(fleet.url("/api/v1/uploads"))
            .bearer_auth(fleet.token());
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        assert_eq!(request.send().await.unwrap().status().as_u16(), status, "{headers:?}");
    }
    let long = fleet
        .ask(Method::GET, "/api/v1/uploads/..%2F..%2Foperator.token", &[], None)
        .await;
    assert_eq!(long.status(), StatusCode::NOT_FOUND);
    // All that an upload says stands in its headers: another image is another request, whatever its key says.
    let asked = async |image: &[u8]| {
        let metadata = format!("sha256 {}", BASE64.encode(Sha256::of(image).to_string().as_bytes()));
        let headers = [
            ("upload-length", "9"),
            ("upload-metadata", &*metadata),
            ("idempotency-key", "k"),
        ];
        tus(&fleet, "POST", "/api/v1/uploads", &headers, Vec::new())
            .await
            .status()
    };
    assert_eq!(asked(b"one image").await, StatusCode::CREATED);
    assert_eq!(asked(b"one image").await, StatusCode::CREATED);
    assert_eq!(asked(b"two image").await, StatusCode::UNPROCESSABLE_ENTITY);
    fleet.stop().await;
}

fn new(image: &[u8], version: &str) -> Value {
    json!({ "sha256": Sha256::of(image), "vendor": "Acme", "models": ["R1", "R2"], "component": "bmc", "version": version,
            "release_notes": "quieter fans" })
}

#[tokio::test]
async fn firmware_is_drafted_here_signed_elsewhere_and_deprecated_without_a_signature() {
    let mut fleet = Fleet::start().await;
    let image: &[u8] = b"a newer image";
    let token = fleet.token();
    let mut new_bios = new(b"a newer image", "2.0");
    new_bios["component"] = "bios".into();
    new_bios["version_scheme"] = "dotted".into();
    new_bios["min_from"] = "1.5".into();
    new_bios["security_epoch"] = 3.into();
    new_bios["requires"] = json!([{ "component": "bmc", "min_version": "1.1", "version_scheme": "dotted" }]);
    let missing = fleet
        .refused_by_operators("POST", "/api/v1/firmware", Some(&token), &new(image, "1.2").to_string())
        .await;
    assert_eq!(
        (missing.status, &*missing.kind),
        (422, "urn:firmesh:problem:artifact_missing")
    );
    fleet.upload(b"a newer image").await;
    let drafted: FirmwareView = fleet.post("/api/v1/firmware", &new(image, "1.2")).await;
    assert_eq!(
        (&*drafted.name, drafted.state),
        ("acme-r1-bmc-1.2", FirmwareState::Draft)
    );
    let waiting: FirmwarePublication = fleet.post("/api/v1/firmware/acme-r1-bmc-1.2/publish", &()).await;
    assert!(
        !waiting.published && waiting.signers.is_none() && waiting.next[0].contains("--release-version '1.2'"),
        "{waiting:?}"
    );

    // What it goes with is drafted with it, and part of what is to be signed.
    let bios: FirmwareView = fleet.post("/api/v1/firmware", &new_bios).await;
    assert_eq!(bios.release.info.min_from.as_deref(), Some("1.5"));
    assert_eq!(bios.release.info.requires.len(), 1);
    let steps: FirmwarePublication = fleet
        .post(&format!("/api/v1/firmware/{}/publish", bios.name), &())
        .await;
    let said = steps.next.join("\n");
    for part in [
        "min_from = \"1.5\"",
        "[[requires]]",
        "--compatibility",
        "--security-epoch 3",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let gone = fleet
        .ask(Method::DELETE, &format!("/api/v1/firmware/{}", bios.name), &[], None)
        .await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    let mut odd = new_bios.clone();
    odd["min_from"] = "".into();
    let odd = fleet
        .refused_by_operators("POST", "/api/v1/firmware", Some(&token), &odd.to_string())
        .await;
    assert_eq!(odd.status, 400);

    // Releases come signed: a version of theirs is taken, for any of the models.
    fleet.found().await;
    for (body, kind) in [
        (new(image, "1.2"), "exists"),
        (new(image, "1.1"), "exists"),
        (
            json!({ "name": "../x", "sha256": Sha256::of(image), "vendor": "A", "models": ["M"], "component": "bmc", "version": "9" }),
            "bad_request",
        ),
    ] {
        let problem = fleet
            .refused_by_operators("POST", "/api/v1/firmware", Some(&token), &body.to_string())
            .await;
        assert_eq!(problem.kind, format!("urn:firmesh:problem:{kind}"), "{body}");
    }
    let waiting: FirmwarePublication = fleet.post("/api/v1/firmware/acme-r1-bmc-1.2/publish", &()).await;
    assert_eq!(waiting.signers.unwrap().threshold, 2);
    let signed: FirmwarePublication = fleet.post("/api/v1/firmware/new.bin/publish", &()).await;
    assert!(signed.published && signed.next.is_empty());
    let all: Page<FirmwareView> = fleet.get("/api/v1/firmware").await;
    let states: Vec<_> = all.items.iter().map(|view| (view.name.as_str(), view.state)).collect();
    let [draft, approved] = [FirmwareState::Draft, FirmwareState::Approved];
    assert_eq!(
        states,
        [("acme-r1-bmc-1.2", draft), ("new.bin", approved), ("old.bin", approved)]
    );
    let catalogue: Page<CatalogueEntry> = fleet.get("/api/v1/catalogue?model=R1").await;
    let versions: Vec<_> = catalogue.items[0]
        .versions
        .iter()
        .map(|version| version.version.as_str())
        .collect();
    assert_eq!((catalogue.items.len(), versions), (1, vec!["1.0", "1.1", "1.2"]));

    // Deprecated: nothing new is planned with it, unless somebody says so.
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    let marked: FirmwareView = fleet
        .post(
            "/api/v1/firmware/new.bin/deprecate",
            &json!({ "reason": "leaks memory" }),
        )
        .await;
    assert_eq!(
        (marked.state, marked.reason.as_deref()),
        (FirmwareState::Deprecated, Some("leaks memory"))
    );
    let request = PlanRequest {
        manifest: fleet.draft("spring"),
    };
    let body = serde_json::to_string(&request).unwrap();
    let refused = fleet
        .refused_by_operators("POST", "/api/v1/plans", Some(&token), &body)
        .await;
    assert!(
        refused.refused && refused.detail.contains("leaks memory"),
        "{refused:?}"
    );
    fleet
        .post::<PlanResponse>("/api/v1/plans?allow_deprecated=true", &request)
        .await;
    let again: FirmwareView = fleet.post("/api/v1/firmware/new.bin/deprecate", &json!({})).await;
    assert_eq!(again.state, FirmwareState::Approved);

    let signed = fleet.ask(Method::DELETE, "/api/v1/firmware/new.bin", &[], None).await;
    assert_eq!(signed.status(), StatusCode::CONFLICT);
    let drafted = fleet
        .ask(Method::DELETE, "/api/v1/firmware/acme-r1-bmc-1.2", &[], None)
        .await;
    assert_eq!(drafted.status(), StatusCode::NO_CONTENT);
    fleet.post::<FirmwareView>("/api/v1/firmware", &new(image, "1.2")).await;
    fleet.stop().await;
}

/// A vendor's server: the catalogue, and images of which the first request for `slow.bin` gets a half.
async fn vendor(images: Vec<(&'static str, &'static [u8])>) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let listed: Vec<_> = images
        .iter()
        .map(|(name, image)| {
            let version = name.trim_end_matches(".bin");
            json!({ "url": format!("images/{name}"), "length": image.len(), "firmware": {
                "sha256": if version == "wrong" { Sha256::of(b"other") } else { Sha256::of(image) },
                "vendor": "Acme", "models": ["R1"], "component": "bmc", "version": version } })
        })
        .collect();
    let catalogue = json!({ "schema": "firmesh-catalogue/1", "images": listed }).to_string();
    let seen = asked.clone();
    let image = move |Path(name): Path<String>, headers: HeaderMap| async move {
        let range = headers
            .get("range")
            .map_or("", |range| range.to_str().unwrap())
            .to_owned();
        seen.lock().unwrap().push(format!("{name} {range}"));
        let (_, image) = images.into_iter().find(|(known, _)| *known == name).unwrap();
        let first: usize = range
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap_or(0);
        if name == "slow.bin" && first == 0 {
            return image[..image.len() / 2].into_response();
        }
        match first {
            0 => image.into_response(),
            first => {
                let range = format!("bytes {first}-{}/{}", image.len() - 1, image.len());
                (
                    axum::http::StatusCode::PARTIAL_CONTENT,
                    [("content-range", range)],
                    image[first..].to_vec(),
                )
                    .into_response()
            }
        }
    };
    let router = Router::new()
        .route("/fw/catalogue.json", get(move || async move { catalogue }))
        .route("/fw/images/{name}", get(image));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/fw/catalogue.json", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, asked)
}

async fn synced(fleet: &Fleet, path: &str, url: &str) -> OperationView {
    let begun = fleet.ask(Method::POST, path, &[], Some(json!({ "url": url }))).await;
    assert_eq!(
        (begun.status(), begun.headers()["retry-after"].as_bytes()),
        (StatusCode::ACCEPTED, b"1".as_slice())
    );
    let place = begun.headers()["location"].to_str().unwrap().to_owned();
    let ended = async {
        loop {
            let operation: OperationView = fleet.get(&place).await;
            if operation.state != OperationState::Running {
                return operation;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), ended)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_catalogue_is_mirrored_as_drafts_and_a_sync_goes_on_where_the_last_one_broke_off() {
    let images: Vec<(&str, &[u8])> = vec![("7.10.bin", IMAGE), ("slow.bin", &[7; 50_000]), ("wrong.bin", b"wrong")];
    let (url, asked) = vendor(images).await;
    let source = url.trim_end_matches("catalogue.json");
    let fleet = Fleet::start_with(&format!(
        "[repository]\nsources = [{source:?}, \"http://127.0.0.1:1\"]\n"
    ))
    .await;
    let first = synced(&fleet, "/api/v1/repository/sync", &url).await;
    let result = first.result.unwrap();
    assert_eq!(
        (first.state, result.listed, result.fetched, result.drafted),
        (OperationState::Succeeded, 3, 1, 1)
    );
    let failed: Vec<_> = result.failed.iter().map(|failure| failure.url.as_str()).collect();
    assert_eq!(failed, ["images/slow.bin", "images/wrong.bin"], "{result:?}");

    let second = synced(&fleet, "/api/firmware/repository/sync", &url)
        .await
        .result
        .unwrap();
    assert_eq!(
        (second.fetched, second.unchanged, second.drafted, second.failed.len()),
        (1, 1, 1, 1),
        "{second:?}"
    );
    let log = asked;
    let asked = log.lock().unwrap().clone();
    let resumed = asked.iter().find(|line| line.starts_with("slow.bin bytes=")).unwrap();
    let from: u64 = resumed
        .trim_start_matches("slow.bin bytes=")
        .trim_end_matches('-')
        .parse()
        .unwrap();
    assert_eq!(second.bytes, 50_000 - from, "{asked:?}");
    assert_eq!(asked.iter().filter(|line| line.starts_with("7.10.bin")).count(), 1);
    let drafts: Page<FirmwareView> = fleet.get("/api/v1/firmware").await;
    assert!(
        drafts
            .items
            .iter()
            .all(|view| view.state == FirmwareState::Draft && view.source.is_some() && view.stored)
    );
    assert_eq!(drafts.items.len(), 2);
    let operations: Page<OperationView> = fleet.get("/api/v1/operations").await;
    assert_eq!(operations.items.len(), 2);
    let nobody = synced(&fleet, "/api/v1/repository/sync", "http://127.0.0.1:1/catalogue.json").await;
    assert_eq!((nobody.state, nobody.result), (OperationState::Failed, None));
    let token = fleet.token();
    for bad in ["file:///etc/passwd", "ftp://x/", "x"] {
        let body = json!({ "url": bad }).to_string();
        let problem = fleet
            .refused_by_operators("POST", "/api/v1/repository/sync", Some(&token), &body)
            .await;
        assert_eq!(problem.status, 400, "{bad}");
    }
    // What the configuration does not name is not asked, whoever wants it.
    let count = asked.len();
    for other in [
        url.replace("/fw/", "/other/"),
        url.replace("127.0.0.1", "localhost"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ] {
        let body = json!({ "url": other }).to_string();
        let problem = fleet
            .refused_by_operators("POST", "/api/v1/repository/sync", Some(&token), &body)
            .await;
        assert_eq!((problem.status, problem.refused), (422, true), "{other}");
        assert!(problem.detail.contains("[repository]"), "{problem:?}");
    }
    assert_eq!(log.lock().unwrap().len(), count);
    fleet.stop().await;
}

/// All bytes were on the disk, and the coordinator died before it had made an image of them: clients that are told that all is
/// here never come back.
#[tokio::test]
async fn the_last_byte_counts_only_once_there_is_an_image() {
    let mut fleet = Fleet::start().await;
    let place = begun(&fleet, IMAGE, Sha256::of(IMAGE)).await;
    let id = place.rsplit('/').next().unwrap().to_owned();
    std::fs::write(fleet.state_dir().join(format!("uploads/{id}.bytes")), IMAGE).unwrap();
    fleet.restart().await;
    let stands = tus(&fleet, "HEAD", &place, &[], Vec::new()).await;
    assert_eq!(stands.headers()["upload-offset"].as_bytes(), b"69999");
    let last = part(&fleet, &place, 69_999, &IMAGE[69_999..]).await;
    assert_eq!(last.status(), StatusCode::NO_CONTENT);
    let artifact = fleet.get::<UploadView>(&place).await.artifact.unwrap();
    assert_eq!(artifact.sha256, Sha256::of(IMAGE));
    // What two have written to at once is nothing.
    let other = begun(&fleet, b"an image", Sha256::of(b"an image")).await;
    let id = other.rsplit('/').next().unwrap().to_owned();
    std::fs::write(
        fleet.state_dir().join(format!("uploads/{id}.bytes")),
        b"an image and more",
    )
    .unwrap();
    assert_eq!(fleet.status(&other).await, StatusCode::NOT_FOUND);
    fleet.stop().await;
}

#[tokio::test]
async fn an_image_goes_only_when_nothing_names_it_and_it_is_old_enough() {
    let mut fleet = Fleet::start().await;
    let released = fleet.found().await;
    static SPARE: [u8; 2_000_000] = [7; 2_000_000];
    let spare = fleet.upload(&SPARE).await;
    let place = begun(&fleet, b"on its way here", Sha256::of(b"on its way here")).await;
    static COMING: &[u8] = b"on its way here";
    let coming = fleet.upload(COMING).await;
    let folder = fleet.state_dir().join("artifacts");
    std::fs::write(folder.join("left-behind"), "by a crash").unwrap();
    let files = || std::fs::read_dir(&folder).unwrap().count();
    let collect = "/api/v1/artifacts/collect";

    let young: CollectedImages = fleet.post(collect, &json!({})).await;
    assert_eq!((young.files, young.images.len(), young.kept), (0, 0, 4));
    let told: CollectedImages = fleet
        .post(collect, &json!({ "older_than_s": 0, "dry_run": true }))
        .await;
    // The image, its tree, its recipe with a tree and a name, and what a crash has left.
    assert_eq!((&told.images[..], told.files, told.kept), (&[spare.clone()][..], 6, 3));
    let before = files();
    let done: CollectedImages = fleet.post(collect, &json!({ "older_than_s": 0 })).await;
    assert_eq!((&done.images, done.files, done.bytes), (&told.images, 6, told.bytes));
    assert_eq!(files(), before - 6);
    assert_eq!(
        fleet.status(&format!("/api/v1/artifacts/{}", spare.id)).await,
        StatusCode::NOT_FOUND
    );
    for artifact in [&released, &coming] {
        assert_eq!(
            fleet
                .get::<Artifact>(&format!("/api/v1/artifacts/{}", artifact.id))
                .await,
            *artifact
        );
        assert!(folder.join(format!("{}.bin", artifact.id)).exists());
    }
    // It may come again; and what nobody sends any more is not waited for.
    assert_eq!(fleet.upload(&SPARE).await, spare);
    tus(&fleet, "DELETE", &place, &[], Vec::new()).await;
    let done: CollectedImages = fleet.post(collect, &json!({ "older_than_s": 0 })).await;
    assert_eq!((done.images.len(), done.kept), (2, 2));
    fleet.stop().await;
}

#[tokio::test]
async fn an_image_on_its_way_is_not_collected() {
    let fleet = Fleet::start().await;
    let (sender, chunks) = tokio::sync::mpsc::channel::<Result<&'static [u8], std::io::Error>>(1);
    let slow = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(chunks));
    sender.send(Ok(&IMAGE[..100])).await.unwrap();
    let mut upload = Box::pin(fleet.send_bytes("/api/v1/artifacts", &[], slow));
    let images = fleet.state_dir().join("artifacts");
    let collected = async {
        while std::fs::read_dir(&images).unwrap().count() == 0 {
            tokio::task::yield_now().await;
        }
        let asked = json!({ "older_than_s": 0 });
        fleet.post::<CollectedImages>("/api/v1/artifacts/collect", &asked).await
    };
    let collected = tokio::select! {
        early = &mut upload => panic!("the upload ended before its body: {early:?}"),
        collected = tokio::time::timeout(std::time::Duration::from_secs(20), collected) => collected.unwrap(),
    };
    assert_eq!(collected.files, 0);
    sender.send(Ok(&IMAGE[100..])).await.unwrap();
    drop(sender);
    let stored = upload.await;
    assert_eq!(stored.status(), StatusCode::OK, "{}", stored.text().await.unwrap());
    fleet.stop().await;
}
