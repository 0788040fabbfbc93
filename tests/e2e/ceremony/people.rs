//! The ceremony as people hold it: three of them, three folders, three kinds of key, one file that goes round.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_tests::{
    operator::Operator,
    packages::{ensure_command, ensure_file},
};
use serde_json::Value;
use tempfile::TempDir;

const MODULES: [&str; 2] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
];
const PASSPHRASE: &str = "correct horse battery";
const PIN: &str = "271828";

/// Anna's keys are encrypted files, Ben's are in his environment, Carl's are in a token.
struct People {
    anna: Operator,
    ben: Operator,
    carl: Operator,
    module: String,
    folder: TempDir,
}

impl People {
    fn gather() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let person = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path)?;
            anyhow::Ok(Operator::offline(&path))
        };
        let (anna, ben, carl) = (person("anna")?, person("ben")?, person("carl")?);
        let module = ensure_file(&MODULES, "softhsm2")?.display().to_string();
        let config = token_of(&folder.path().join("carl"))?;
        let people = Self {
            anna: anna.with_variable("FIRMESH_PASSPHRASE", PASSPHRASE),
            ben,
            carl: carl
                .with_variable("SOFTHSM2_CONF", &config)
                .with_variable("FIRMESH_PKCS11_MODULE", &module)
                .with_variable("FIRMESH_PIN", PIN),
            module,
            folder,
        };
        people.make_keys()
    }

    /// Each of the three has a key for each group; the public halves go to Anna, who draws up the metadata.
    fn make_keys(mut self) -> Result<Self> {
        for group in ["root", "release", "approver"] {
            self.anna.ok(&["key", "generate", group])?;
            self.ben.ok(&["key", "generate", "--unencrypted", group])?;
            let pem = fs::read_to_string(self.ben.folder().join(group))?;
            fs::remove_file(self.ben.folder().join(group))?;
            self.ben = self
                .ben
                .clone()
                .with_variable(&format!("{}_KEY", group.to_uppercase()), &pem);
            self.carl
                .ok(&["key", "generate", &token(group), "--public", &format!("{group}.pub")])?;
        }
        self.anna.ok(&["key", "generate", "--unencrypted", "online"])?;
        Ok(self)
    }

    fn all(&self) -> [&Operator; 3] {
        [&self.anna, &self.ben, &self.carl]
    }

    fn draw_up(&self) -> Result<()> {
        let mut words = vec![
            "trust".to_owned(),
            "init".to_owned(),
            "--online-key".to_owned(),
            "online.pub".to_owned(),
        ];
        for group in ["root", "release", "approver"] {
            for person in self.all() {
                let file = person.folder().join(format!("{group}.pub")).display().to_string();
                words.extend([format!("--{group}-key"), file]);
            }
        }
        self.anna.ok(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(())
    }

    /// The round goes from one to the next.
    fn pass(&self, from: &Operator, to: &Operator) -> Result<Value> {
        let file = self.folder.path().join("round.json").display().to_string();
        from.ok(&["trust", "export", &file])?;
        to.ok(&["trust", "import", &file])
    }
}

/// A token that is Carl's, in his folder; answers the path of its configuration.
fn token_of(folder: &Path) -> Result<String> {
    let tokens = folder.join("tokens");
    fs::create_dir(&tokens)?;
    let config = folder.join("softhsm2.conf");
    fs::write(
        &config,
        format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()),
    )?;
    let tool = ensure_command("softhsm2-util", "softhsm2")?;
    let made = Command::new(tool)
        .args([
            "--init-token",
            "--free",
            "--label",
            "Carl's safe",
            "--pin",
            PIN,
            "--so-pin",
            "314159",
        ])
        .env("SOFTHSM2_CONF", &config)
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    Ok(config.display().to_string())
}

fn token(name: &str) -> String {
    format!("pkcs11:token=Carl%27s%20safe;object={name}")
}

fn digests(of: &Operator) -> Result<Vec<(String, String)>> {
    let shown = of.ok(&["trust", "show"])?;
    let files = shown.as_array().context("a list of files")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(files
        .iter()
        .map(|file| (text(&file["file"]), text(&file["signed_sha256"])))
        .collect())
}

fn complete(of: &Operator) -> Result<bool> {
    let shown = of.ok(&["trust", "show"])?;
    Ok(shown
        .as_array()
        .is_some_and(|files| files.iter().all(|file| file["complete"] == true)))
}

#[test]
fn a_ceremony_goes_round_between_an_encrypted_file_an_environment_and_a_token() -> Result<()> {
    let people = People::gather()?;
    let People { anna, ben, carl, .. } = &people;
    people.draw_up()?;
    let founded = people.pass(anna, ben)?;
    ensure!(founded["founded"] == true, "{founded:#}");
    people.pass(ben, carl)?;
    ensure!(
        digests(anna)? == digests(ben)? && digests(ben)? == digests(carl)?,
        "they see different digests"
    );

    // What is signed is what was agreed upon by telephone.
    let (_, root) = digests(ben)?
        .into_iter()
        .find(|(file, _)| file == "1.root.json")
        .context("a root")?;
    let said = ben.refused(
        3,
        &["trust", "sign", "--key", "env:ROOT_KEY", "--digest", &"0".repeat(64)],
    )?;
    ensure!(said.contains("has the digest"), "{said}");
    let signed = ben.ok(&["trust", "sign", "--key", "env:ROOT_KEY", "--digest", &root])?;
    ensure!(
        signed
            .as_array()
            .is_some_and(|files| files.len() == 1 && files[0]["file"] == "1.root.json"),
        "{signed:#}"
    );
    for group in ["ROOT", "RELEASE", "APPROVER"] {
        ben.ok(&["trust", "sign", "--key", &format!("env:{group}_KEY")])?;
    }
    for group in ["root", "release", "approver"] {
        carl.ok(&["trust", "sign", "--key", &token(group)])?;
    }
    // Two came back to Anna, from two sides; a third signature is welcome and not needed.
    let taken = people.pass(ben, anna)?;
    ensure!(taken.to_string().contains("signatures"), "{taken:#}");
    ensure!(!complete(anna)?);
    people.pass(carl, anna)?;
    ensure!(complete(anna)?, "{:#}", anna.ok(&["trust", "show"])?);
    people.pass(anna, ben)?;
    people.pass(anna, carl)?;
    ensure!(complete(ben)? && complete(carl)?);

    // Anna's encrypted key counts as well as theirs, and a new version says what it changes.
    ben.ok(&["trust", "signers", "releases", "--threshold", "3"])?;
    let shown = people.pass(ben, anna).and_then(|_| anna.ok(&["trust", "show"]))?;
    ensure!(shown.to_string().contains("releases: threshold 2 -> 3"), "{shown:#}");
    anna.ok(&["trust", "sign", "--key", "root"])?;
    anna.ok(&["trust", "sign", "--key", "release"])?;
    people.pass(anna, carl)?;
    carl.ok(&["trust", "sign", "--key", &token("root")])?;
    carl.ok(&["trust", "sign", "--key", &token("release")])?;
    people.pass(carl, ben)?;
    ensure!(!complete(ben)?, "releases.json needs three now");
    ben.ok(&["trust", "sign", "--key", "env:RELEASE_KEY"])?;
    ensure!(complete(ben)?);
    Ok(())
}

#[test]
fn a_locked_key_opens_with_its_own_secret_and_no_other_way() -> Result<()> {
    let people = People::gather()?;
    let People { anna, ben, carl, .. } = &people;
    people.draw_up()?;
    let sign = ["trust", "sign", "--key", "root"];
    let pem = fs::read_to_string(anna.folder().join("root"))?;
    ensure!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{pem}");
    let wrong = anna.clone().with_variable("FIRMESH_PASSPHRASE", "incorrect donkey");
    let said = wrong.refused(1, &sign)?;
    ensure!(said.contains("passphrase is wrong"), "{said}");
    let said = Operator::offline(anna.folder()).refused(1, &sign)?;
    ensure!(said.contains("FIRMESH_PASSPHRASE_FILE"), "{said}");
    let file = anna.folder().join("passphrase");
    fs::write(&file, format!("{PASSPHRASE}\n"))?;
    let from_file = [&sign[..], &["--passphrase-file", "passphrase"]].concat();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    let said = Operator::offline(anna.folder()).refused(1, &from_file)?;
    ensure!(said.contains("chmod 600"), "{said}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    Operator::offline(anna.folder()).ok(&from_file)?;

    // Another passphrase, for an encrypted file as for an open one; and other people's tools read it.
    fs::write(anna.folder().join("new"), "another one\n")?;
    fs::set_permissions(anna.folder().join("new"), fs::Permissions::from_mode(0o600))?;
    anna.ok(&["key", "passphrase", "root", "--new-passphrase-file", "new"])?;
    anna.refused(1, &["trust", "sign", "--key", "root", "--dry-run"])?;
    let public = anna.ok(&["key", "show", "root.pub"])?;
    let openssl = ensure_command("openssl", "openssl")?;
    let shown = Command::new(openssl)
        .args([
            "pkey", "-in", "root", "-passin", "file:new", "-pubout", "-outform", "DER",
        ])
        .current_dir(anna.folder())
        .output()?;
    ensure!(shown.status.success(), "{shown:?}");
    let ends = hex::encode(&shown.stdout[shown.stdout.len().saturating_sub(32)..]);
    ensure!(public["public_key"] == ends.as_str(), "{public} {ends}");

    // The token: its PIN, one key of a name, nothing in the open.
    people.pass(anna, carl)?;
    let said = carl
        .clone()
        .with_variable("FIRMESH_PIN", "000000")
        .refused(1, &["trust", "sign", "--key", &token("root")])?;
    ensure!(said.contains("refuses the PIN"), "{said}");
    let said = carl.refused(1, &["trust", "sign", "--key", &token("nobody")])?;
    ensure!(said.contains("0 ed25519") && said.contains("Carl's safe"), "{said}");
    let said = carl.refused(
        1,
        &["trust", "sign", "--key", &format!("{}?pin-value={PIN}", token("root"))],
    )?;
    ensure!(said.contains("pin-source"), "{said}");
    let said = carl.refused(1, &["key", "generate", &token("root")])?;
    ensure!(said.contains("holds a key of this name"), "{said}");
    let elsewhere = format!("pkcs11:token=Ben;object=root?module-path={}", people.module);
    let said = carl.refused(1, &["key", "show", &elsewhere])?;
    ensure!(said.contains("0 tokens fit") && said.contains("Carl's safe"), "{said}");
    // The public half needs no PIN.
    let shown = carl
        .clone()
        .with_variable("FIRMESH_PIN", "")
        .ok(&["key", "show", &token("root")])?;
    let public = fs::read_to_string(carl.folder().join("root.pub"))?;
    ensure!(shown["public_key"] == public.trim(), "{shown} {public}");
    let said = ben.refused(1, &["key", "show", "env:NOT_THERE"])?;
    ensure!(said.contains("NOT_THERE"), "{said}");
    Ok(())
}

#[test]
fn one_command_at_a_time_changes_a_trust_folder_and_the_doctor_says_what_is_weak() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let operator = Operator::offline(folder.path());
    operator.hold_ceremony("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c")?;
    let lock = File::open(folder.path().join("trust/.lock"))?;
    lock.lock()?;
    let said = operator.refused(1, &["trust", "renew", "root"])?;
    ensure!(said.contains("being changed by another firmesh"), "{said}");
    operator.ok(&["trust", "show"])?;
    drop(lock);
    operator.ok(&["trust", "renew", "root", "--expires-days", "200"])?;

    // Two people renew the root: a chain of two, the old keys under the new root too.
    for key in ["keys/root-1", "keys/root-2"] {
        operator.ok(&["trust", "sign", "--key", key])?;
    }
    for group in ["release", "approver"] {
        operator.sign(group)?;
    }
    let healthy = operator.ok(&["trust", "doctor"])?;
    ensure!(
        !healthy.to_string().contains("failure") && !healthy.to_string().contains("warning"),
        "{healthy:#}"
    );
    ensure!(healthy.to_string().contains("2.root.json version 2"), "{healthy:#}");

    let found = |operator: &Operator, more: &[&str]| {
        let answer = operator.run(&[&["trust", "doctor", "--json"], more].concat())?;
        let findings: Value = answer.json()?;
        let one = |what: &str, subject: &str| {
            let all = findings.as_array().into_iter().flatten();
            all.filter(|finding| {
                finding["what"] == what && finding["subject"].as_str().is_some_and(|s| s.contains(subject))
            })
            .map(|finding| finding["level"].as_str().unwrap_or_default().to_owned())
            .next()
            .unwrap_or_default()
        };
        let levels = (
            one("expiry", "targets.json"),
            one("threshold", "root"),
            one("key", "root-1"),
            one("threshold", "releases"),
        );
        anyhow::Ok((answer.code, levels))
    };
    let level = |text: &str| text.to_owned();
    let (code, levels) = found(&operator, &["--within-days", "100", "--without", "keys/root-3.pub"])?;
    ensure!(
        code == 0 && levels == (level("warning"), level("warning"), String::new(), level("ok")),
        "{code} {levels:?}"
    );
    let (code, levels) = found(
        &operator,
        &["--without", "keys/root-3.pub", "--without", "keys/root-1.pub"],
    )?;
    ensure!(code == 1 && levels.1 == "failure", "{code} {levels:?}");
    let (code, levels) = found(&operator, &["--secret-key", "keys"])?;
    ensure!(code == 0 && levels.2 == "warning", "{code} {levels:?}");
    let (code, _) = found(&operator, &["--secret-key", "keys", "--strict"])?;
    ensure!(code == 1);
    fs::set_permissions(folder.path().join("keys/root-1"), fs::Permissions::from_mode(0o640))?;
    let (code, levels) = found(&operator, &["--secret-key", "keys"])?;
    ensure!(code == 1 && levels.2 == "failure", "{code} {levels:?}");
    operator.ok(&["trust", "signers", "releases", "--threshold", "1"])?;
    let (code, levels) = found(&operator, &[])?;
    ensure!(code == 0 && levels.3 == "warning", "{code} {levels:?}");
    let said = operator.refused(3, &["trust", "signers", "releases", "--add", "keys/approver-1.pub"])?;
    ensure!(said.contains("must be separate"), "{said}");
    let said = operator.refused(3, &["trust", "signers", "root", "--threshold", "4"])?;
    ensure!(said.contains("cannot meet"), "{said}");
    Ok(())
}
