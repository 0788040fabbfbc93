//! Where images come from: OpenSSL and GnuPG sign, the real command line and the real coordinator judge.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::{About, Problem};
use firmesh_tests::{
    binaries::{Program, workspace},
    operator::{Operator, key_file},
    packages::ensure_command,
    process::Process,
    setup::{VENDOR, client, get},
    wait::{Seen, Turn, until},
};
use serde_json::{Value, json};

/// Any key will do for metadata that nobody publishes.
const ONLINE_KEY: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";

/// What is refused, by which of the policy's signers it is presented to, and under which name.
const BAD: [(&str, &str, &str); 29] = [
    ("rsa", "rsa-stranger.sig", "wrong_key"),
    ("rsa", "rsa-other.sig", "other_content"),
    ("rsa", "rsa-sha1.sig", "weak_digest"),
    ("rsa", "rsa-md5.sig", "weak_digest"),
    ("rsa", "rsa-garbage.sig", "bad_padding"),
    ("rsa", "rsa-e3-forged.sig", "bad_padding"),
    ("cms", "expired.cms.der", "certificate_expired"),
    ("cms", "by-old.cms.der", "unknown_issuer"),
    ("cms", "future.cms.der", "certificate_not_yet_valid"),
    ("cms", "tls.cms.der", "wrong_usage"),
    ("cms", "plain.cms.der", "wrong_usage"),
    ("cms", "encrypt.cms.der", "wrong_usage"),
    ("cms", "stranger.cms.der", "unknown_issuer"),
    ("cms", "rsa-no-chain.cms.der", "unknown_issuer"),
    ("cms", "weak.cms.der", "weak_key"),
    ("cms", "sha1.cms.der", "weak_digest"),
    ("cms", "no-attributes.cms.der", "no_signed_attributes"),
    ("cms", "no-certificate.cms.der", "no_certificate"),
    ("cms", "attached.cms.der", "not_detached"),
    ("cms", "other.cms.der", "other_content"),
    ("openpgp", "pgp-stranger.sig", "unknown_key"),
    ("openpgp", "pgp-expired.sig", "key_expired"),
    ("openpgp", "pgp-revoked.sig", "key_revoked"),
    ("openpgp", "pgp-weak.sig", "weak_key"),
    ("openpgp", "pgp-sha1.sig", "weak_digest"),
    ("openpgp", "pgp-text.sig", "wrong_type"),
    ("openpgp", "pgp-other.sig", "bad_signature"),
    ("openpgp", "pgp-short.sig", "signature_expired"),
    ("openpgp", "pgp-future.sig", "signed_in_the_future"),
];

const GOOD: [(&str, &str); 9] = [
    ("rsa", "rsa.sig"),
    ("cms", "rsa.cms.der"),
    ("cms", "rsa.cms.pem"),
    ("cms", "leaf-p256.cms.der"),
    ("cms", "p384-sha384.cms.der"),
    ("openpgp", "pgp-rsa.asc"),
    ("openpgp", "pgp-rsa.sig"),
    ("openpgp", "pgp-ed25519.sig"),
    ("openpgp", "pgp-subkey.sig"),
];

#[test]
fn nobody_signs_a_release_whose_vendor_did_not_and_everybody_is_told_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let desk = Desk::set_up(folder.path(), ONLINE_KEY)?;
    let releases = folder.path().join("trust/releases.json");
    let untouched = fs::read(&releases)?;
    for (kind, file, code) in BAD {
        let said = desk
            .operator
            .refused(3, &desk.create("1.1.0", "image.bin", &[(kind, file)], None))?;
        ensure!(said.contains(&format!("{code}: ")), "{file}: {said}");
        ensure!(fs::read(&releases)? == untouched, "{file} was refused, and staged");
    }
    let said = desk
        .operator
        .refused(3, &desk.create("1.1.0", "image.bin", &[], None))?;
    ensure!(said.contains("signature_missing"), "{said}");
    // A key that is too short is not even listed.
    fs::write(
        folder.path().join("weak.toml"),
        policy("signers_min = 1").replace("rsa.pub", "rsa-1024.pub"),
    )?;
    let mut weak = desk.create("1.1.0", "image.bin", &[("rsa", "rsa.sig")], None);
    exchange_policy(&mut weak, "weak.toml")?;
    let said = desk.operator.refused(1, &weak)?;
    ensure!(said.contains("weak_key: the RSA key has 1024 bits"), "{said}");

    // One byte of the image.
    let mut bytes = fs::read(folder.path().join("image.bin"))?;
    bytes[1_000] ^= 1;
    fs::write(folder.path().join("changed.bin"), bytes)?;
    for (kind, file) in GOOD {
        let said = desk
            .operator
            .refused(3, &desk.create("1.1.0", "changed.bin", &[(kind, file)], None))?;
        ensure!(
            said.contains("other_content: ") || said.contains("bad_signature: "),
            "{file}: {said}"
        );
    }
    ensure!(fs::read(&releases)? == untouched);

    for (at, (kind, file)) in GOOD.into_iter().enumerate() {
        let version = format!("2.{at}.0");
        let staged = desk
            .operator
            .ok(&desk.create(&version, "image.bin", &[(kind, file)], None))?;
        let name = staged["target"].as_str().context("no target")?;
        let shown = desk.operator.ok(&["release", "show", name])?;
        let told = &shown["verdict"]["signatures"][0];
        ensure!(shown["verdict"]["accepted"] == true, "{shown:#}");
        ensure!(
            told["kind"] == kind && told["signed_by"]["fingerprint"].is_string(),
            "{shown:#}"
        );
        ensure!(told["signed_by"]["signer"] == format!("acme-{kind}"), "{shown:#}");
        let people = desk.operator.run(&["release", "show", name])?;
        ensure!(people.stdout.contains("signature: acme-"), "{people:?}");
    }
    Ok(())
}

#[test]
fn signing_judges_again_and_a_record_that_was_tampered_with_stops_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let desk = Desk::set_up(folder.path(), ONLINE_KEY)?;
    let signed = [("rsa", "rsa.sig"), ("openpgp", "pgp-rsa.asc")];
    let staged = desk
        .operator
        .ok(&desk.create("1.1.0", "image.bin", &signed, Some("cyclonedx.json")))?;
    let sign = |more: &[&'static str]| {
        let mut words = vec![
            "release",
            "sign",
            "--key",
            leak(&key_file("release", 1)),
            "--policy",
            "policy.toml",
        ];
        words.extend(more);
        words
    };
    // Without the image the signature over more than its SHA-256 is taken from the record, and that is said.
    let answer = desk.operator.run(&sign(&["--dry-run"]))?;
    ensure!(answer.code == 0 && answer.stdout.contains("as_recorded"), "{answer:?}");
    let answer = desk.operator.run(&sign(&["--dry-run", "--image", "image.bin"]))?;
    ensure!(answer.code == 0 && !answer.stdout.contains("as_recorded"), "{answer:?}");

    // Another policy at the next signer's machine: it has its own word.
    fs::write(folder.path().join("strict.toml"), policy("require_kinds = [\"cms\"]"))?;
    let said = desk.operator.refused(
        3,
        &[
            "release",
            "sign",
            "--key",
            &key_file("release", 1),
            "--policy",
            "strict.toml",
        ],
    )?;
    ensure!(said.contains("there is no good cms signature"), "{said}");
    // The bypass by the other command that signs.
    let said = desk.operator.refused(
        3,
        &[
            "trust",
            "sign",
            "--key",
            &key_file("release", 1),
            "--policy",
            "strict.toml",
        ],
    )?;
    ensure!(said.contains("there is no good cms signature"), "{said}");

    let record = staged["info"]["provenance"]["verdict"]["sha256"]
        .as_str()
        .context("no record")?;
    let path = folder.path().join("trust/provenance").join(record);
    let good = fs::read(&path)?;
    fs::write(&path, String::from_utf8(good.clone())?.replace("acme-rsa", "acme-rsb"))?;
    let said = desk.operator.refused(3, &sign(&[]))?;
    ensure!(said.contains("evidence_changed"), "{said}");
    fs::remove_file(&path)?;
    let said = desk.operator.refused(3, &sign(&[]))?;
    ensure!(said.contains("evidence_missing"), "{said}");
    fs::write(&path, good)?;
    desk.operator.ok(&sign(&[]))?;
    Ok(())
}

#[test]
fn an_sbom_is_asked_for_and_known_vulnerabilities_block() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let desk = Desk::set_up(folder.path(), ONLINE_KEY)?;
    let rules = |text: &str| {
        fs::write(
            folder.path().join("policy.toml"),
            format!("advisories = [\"osv.json\"]\n{}", policy(text)),
        )
    };
    let create = |sbom| desk.create("1.1.0", "image.bin", &[("rsa", "rsa.sig")], sbom);
    rules("sbom = \"required\"")?;
    let said = desk.operator.refused(3, &create(None))?;
    ensure!(said.contains("sbom_missing"), "{said}");
    let said = desk.operator.refused(3, &create(Some("cyclonedx.json")))?;
    ensure!(said.contains("BUSYBOX-1 (critical): busybox 1.36.1"), "{said}");
    fs::write(
        folder.path().join("broken.json"),
        "{\"bomFormat\": \"CycloneDX\", \"specVersion\": \"1.6\", \"components\": [{}]}",
    )?;
    let said = desk.operator.refused(3, &create(Some("broken.json")))?;
    ensure!(said.contains("sbom_malformed"), "{said}");
    let other = fs::read_to_string(folder.path().join("spdx.json"))?;
    let own = firmesh_protocol::ids::Sha256::of(&fs::read(folder.path().join("image.bin"))?).to_string();
    fs::write(folder.path().join("other.json"), other.replace(&own, &"0".repeat(64)))?;
    let said = desk.operator.refused(3, &create(Some("other.json")))?;
    ensure!(said.contains("sbom_other_image"), "{said}");

    rules("sbom = \"required\"\naccept_advisory = [{ id = \"CVE-2026-0001\", reason = \"not reachable\" }]")?;
    let staged = desk.operator.ok(&create(Some("spdx.json")))?;
    let shown = desk
        .operator
        .ok(&["release", "show", staged["target"].as_str().context("no target")?])?;
    let matched = shown["verdict"]["advisories"].as_array().context("no advisories")?;
    ensure!(
        matched.len() == 2 && shown["verdict"]["sbom"]["spec_version"] == "SPDX-2.3",
        "{shown:#}"
    );
    ensure!(
        shown["verdict"]["findings"][0]["code"] == "advisory_accepted",
        "{shown:#}"
    );
    Ok(())
}

#[tokio::test]
async fn a_coordinator_with_a_policy_distributes_nothing_that_does_not_meet_it() -> Result<()> {
    let _turn = Turn::take().await?;
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    materials(root)?;
    fs::write(root.join("coordinator-policy.toml"), policy("signers_min = 1"))?;
    fs::write(
        root.join("coordinator.toml"),
        "state_dir = \"coordinator\"\n[operators]\nlisten = \"127.0.0.1:0\"\n[nodes]\nlisten = \"127.0.0.1:0\"\n\
         [provenance]\npolicy = \"coordinator-policy.toml\"\n",
    )?;
    let config = root.join("coordinator.toml");
    let args = ["--config".as_ref(), config.as_os_str()];
    let coordinator = Process::start(Program::Coordinator, args, &root.join("coordinator.log"), |_| ())?;
    let addresses = root.join("coordinator/addresses.json");
    let found: Value = until("the coordinator", Duration::from_secs(60), async || {
        Ok(Seen::Yes(serde_json::from_slice(&fs::read(&addresses)?)?))
    })
    .await?;
    let url = found["operator_url"]
        .as_str()
        .context("no address")?
        .trim_end_matches('/')
        .to_owned();
    let http = client()?;
    let about: About = get(&http, &format!("{url}/api/v1/about")).await?;
    let desk = Desk::set_up(root, &about.online_key)?;
    let operator = desk
        .operator
        .clone()
        .with_coordinator(&url, &root.join("coordinator/operator.token"));
    operator.ok(&["artifact", "add", "image.bin"])?;
    let sign = || {
        operator.sign("release")?;
        operator.sign("approver")
    };

    // Staged on a machine without a policy: nothing is shown for it.
    let bare = [
        "release",
        "create",
        "--file",
        "image.bin",
        "--vendor",
        VENDOR,
        "--model",
        "R1",
        "--component",
        "bmc",
        "--release-version",
        "1.0.0",
    ];
    operator.ok(&bare)?;
    sign()?;
    let said = operator.refused(3, &["trust", "publish"])?;
    ensure!(
        said.contains("firmware/acme-r1-bmc-1.0.0") && said.contains("signature_missing"),
        "{said}"
    );
    ensure!(operator.ok(&["release", "list"])?["items"] == json!([]));

    // The release engineer's own policy knows another key: the coordinator does not.
    fs::write(
        root.join("lax.toml"),
        policy("signers_min = 1").replace("\"ca.pem\"", "\"stranger-ca.pem\""),
    )?;
    let mut stranger = desk.create("1.0.0", "image.bin", &[("cms", "stranger.cms.der")], None);
    exchange_policy(&mut stranger, "lax.toml")?;
    operator.ok(&stranger)?;
    sign()?;
    let said = operator.refused(3, &["trust", "publish", "--json"])?;
    ensure!(said.contains("unknown_issuer"), "{said}");
    // The same over the API, without the evidence: a problem with a name.
    let token = fs::read_to_string(root.join("coordinator/operator.token"))?;
    let mut metadata = serde_json::Map::new();
    for name in ["1.root.json", "targets.json", "releases.json", "campaigns.json"] {
        metadata.insert(
            name.to_owned(),
            fs::read_to_string(root.join("trust").join(name))?.into(),
        );
    }
    let send = async || -> Result<Problem> {
        let request = http.post(format!("{url}/api/v1/metadata")).bearer_auth(token.trim());
        let answer = request.json(&json!({ "metadata": metadata })).send().await?;
        serde_json::from_str(&answer.text().await?).context("not a problem")
    };
    let problem = send().await?;
    ensure!(
        problem.kind.ends_with(":provenance_refused") && problem.refused && problem.status == 422,
        "{problem:?}"
    );
    ensure!(operator.ok(&["release", "list"])?["items"] == json!([]));

    // Good evidence: it goes through, and the coordinator keeps a verdict of its own.
    operator.ok(&desk.create(
        "1.0.0",
        "image.bin",
        &[("openpgp", "pgp-ed25519.sig"), ("rsa", "rsa.sig")],
        Some("cyclonedx.json"),
    ))?;
    sign()?;
    operator.ok(&["trust", "publish"])?;
    let listed = operator.ok(&["release", "list"])?;
    let release = &listed["items"][0]["release"];
    let image = release["artifact"]["sha256"].as_str().context("no digest")?;
    let verdict: Value = get(&http, &format!("{url}/api/v1/verdicts/{image}")).await?;
    ensure!(
        verdict["accepted"] == true && verdict["signatures"][1]["signed_by"]["signer"] == "acme-rsa",
        "{verdict:#}"
    );
    let sbom = release["info"]["provenance"]["sbom"]["sha256"]
        .as_str()
        .context("no SBOM")?;
    let stored: Value = get(&http, &format!("{url}/api/v1/evidence/{sbom}")).await?;
    ensure!(stored["bomFormat"] == "CycloneDX");

    // What is in force stays in force when the policy has become stricter; what is new has to meet it.
    fs::write(
        root.join("coordinator-policy.toml"),
        policy("require_kinds = [\"cms\"]"),
    )?;
    operator.ok(&["trust", "publish"])?;
    operator.ok(&desk.create("1.2.0", "image.bin", &[("rsa", "rsa.sig")], None))?;
    sign()?;
    let said = operator.refused(3, &["trust", "publish"])?;
    ensure!(
        said.contains("1.2.0") && said.contains("there is no good cms signature"),
        "{said}"
    );
    ensure!(
        operator.ok(&["release", "list"])?["items"]
            .as_array()
            .is_some_and(|items| items.len() == 1)
    );
    ensure!(!coordinator.log().contains("panicked"), "{}", coordinator.log());
    Ok(())
}

/// Where a release engineer sits: keys, trust folder, policy, and what the vendor sent.
struct Desk {
    operator: Operator,
}

impl Desk {
    fn set_up(folder: &Path, online_key: &str) -> Result<Self> {
        materials(folder)?;
        let operator = Operator::offline(folder);
        operator.hold_ceremony(online_key)?;
        Ok(Self { operator })
    }

    fn create(
        &self,
        version: &str,
        image: &'static str,
        signatures: &[(&str, &str)],
        sbom: Option<&'static str>,
    ) -> Vec<&'static str> {
        let mut words = vec![
            "release",
            "create",
            "--file",
            image,
            "--vendor",
            VENDOR,
            "--model",
            "R1",
            "--component",
            "bmc",
            "--policy",
            "policy.toml",
            "--release-version",
            leak(version),
        ];
        for (kind, file) in signatures {
            words.extend(["--signature", leak(&format!("{kind}:{file}"))]);
        }
        if let Some(sbom) = sbom {
            words.extend(["--sbom", sbom]);
        }
        words
    }
}

fn exchange_policy(words: &mut [&str], policy: &'static str) -> Result<()> {
    let at = words
        .iter()
        .position(|word| *word == "policy.toml")
        .context("no policy")?;
    words[at] = policy;
    Ok(())
}

/// Words of a command line live as long as the test does.
fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

/// Lets OpenSSL and GnuPG make keys and signatures, dated around now, once per folder.
fn materials(folder: &Path) -> Result<()> {
    if folder.join("policy.toml").exists() {
        return Ok(());
    }
    for (command, package) in [("openssl", "openssl"), ("gpg", "gnupg"), ("python3", "python3-minimal")] {
        ensure_command(command, package)?;
    }
    let golden: PathBuf = Path::new(workspace()).join("coordinator/tests/golden/provenance");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let made = Command::new("sh")
        .arg(golden.join("make.sh"))
        .args([folder.as_os_str(), now.to_string().as_ref()])
        .output()
        .context("sh cannot be started")?;
    ensure!(
        made.status.success(),
        "make.sh: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    for name in ["cyclonedx.json", "spdx.json", "osv.json"] {
        fs::copy(golden.join(name), folder.join(name))?;
    }
    Ok(fs::write(folder.join("policy.toml"), policy("signers_min = 1"))?)
}

/// A policy for our vendor with a signer of every kind.
fn policy(rules: &str) -> String {
    let signer = |kind: &str, file: &str| {
        format!("[[vendor.signer]]\nname = \"acme-{kind}\"\nkind = \"{kind}\"\nfile = \"{file}\"\n")
    };
    let forged = "[[vendor.signer]]\nname = \"acme-e3\"\nkind = \"rsa\"\nfile = \"rsa-e3.pub\"\n";
    format!(
        "schema = \"firmesh-provenance-policy/1\"\n[[vendor]]\nname = {VENDOR:?}\n{rules}\n{}{}{}{forged}",
        signer("rsa", "rsa.pub"),
        signer("cms", "ca.pem"),
        signer("openpgp", "pgp.asc"),
    )
}
