use super::*;

fn check(prepare: &str) -> Result<HostSettings, String> {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [("ca.pem", "x"), ("pw", "s3cret\n"), ("empty", "")] {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let text = format!("name = \"esx-17\"\nprepare = {{ {prepare} }}");
    let config: HostConfig = toml::from_str(&text).map_err(|error| error.to_string())?;
    config.check(folder.path(), None).map_err(|error| error.to_string())
}

#[test]
fn a_script_knows_its_verb_and_keeps_secrets_out_of_its_arguments() {
    let script = |more: &str| check(&format!("kind = \"script\", {more}"));
    let fine = script(
        "run = [\"/bin/aside\", \"{verb}\", \"{host}\"], secret_files = { token = \"pw\" }, env = { T = \"{token}\" }",
    );
    assert!(!format!("{:?}", fine.unwrap()).contains("s3cret"));
    for (more, words) in [
        ("run = []", "names no program"),
        ("run = [\"aside\"]", "does not say {verb}"),
        (
            "run = [\"aside\", \"{verb}\", \"{token}\"], secret_files = { token = \"pw\" }",
            "belongs into env",
        ),
        ("run = [\"a\", \"{verb}\"], env = { T = \"{token}\" }", "says {token}"),
        ("run = [\"a\", \"{verb}\"], limit_s = 0", "limit_s is 0"),
        ("run = [\"a\", \"{verb}\"], state_limit_s = 601", "from 1 to 600"),
        (
            "run = [\"a\", \"{verb}\"], secret_files = { t = \"empty\" }",
            "empty first line",
        ),
        (
            "run = [\"a\", \"{verb}\"], secret_files = { t = \"none\" }",
            "cannot be read",
        ),
        ("run = [\"a\", \"{verb}\"], shell = true", "shell"),
    ] {
        let error = script(more).unwrap_err();
        assert!(error.contains(words), "{more}: {error}");
    }
}

#[test]
fn a_vcenter_is_known_by_its_certificate_and_reached_with_one_account() {
    let print = "AB".repeat(32);
    let vcenter = |more: &str| {
        check(&format!(
            "kind = \"vcenter\", url = \"https://vc.example\", host = \"/DC0/host/C0/h\", {more}"
        ))
    };
    let fine = format!("fingerprint = \"{print}\", username = \"u\", password_file = \"pw\"");
    let settings = vcenter(&fine).unwrap();
    assert!(!format!("{settings:?}").contains("s3cret"));
    let PreparationSettings::Vcenter(settings) = settings.preparation else {
        panic!("a vCenter")
    };
    assert_eq!(
        settings.limits,
        ClusterLimits {
            at_once: 1,
            serving_min: 1
        }
    );
    let account = "username = \"u\", password_file = \"pw\"";
    for (more, words) in [
        (account.to_owned(), "ca_file or fingerprint must be given"),
        (
            format!("ca_file = \"ca.pem\", fingerprint = \"{print}\", {account}"),
            "only one of them",
        ),
        (format!("fingerprint = \"12\", {account}"), "64 hexadecimal digits"),
        (
            "ca_file = \"ca.pem\", username = \"u\"".to_owned(),
            "must be given, and only one",
        ),
        (
            "ca_file = \"ca.pem\", password_file = \"pw\"".to_owned(),
            "username is missing",
        ),
        (
            "ca_file = \"ca.pem\", profile = \"p\"".to_owned(),
            "needs a credentials_file",
        ),
        (
            format!("ca_file = \"ca.pem\", {account}, at_once = 0"),
            "at_once must be",
        ),
    ] {
        let error = vcenter(&more).unwrap_err();
        assert!(error.contains(words), "{more}: {error}");
    }
    let elsewhere = |url: &str| {
        check(&format!(
            "kind = \"vcenter\", url = {url:?}, host = \"h\", ca_file = \"ca.pem\", {account}"
        ))
    };
    assert!(elsewhere("http://127.0.0.1:1").is_ok());
    assert!(elsewhere("http://vc.example").unwrap_err().contains("must be https"));
    assert!(
        elsewhere("https://vc.example/sdk")
            .unwrap_err()
            .contains("without a path")
    );
}
/// Two machines for one host: the one gave it back while an attempt of the other's was at it.
#[test]
fn one_host_under_two_names_is_known_as_one() {
    let is_one = |one: &str, two: &str| {
        let check = |name: &str, prepare: &str| {
            let prepared = check(prepare).unwrap_or_else(|error| panic!("{prepare}: {error}"));
            HostSettings {
                name: name.to_owned(),
                ..prepared
            }
        };
        check("h1", one).is_also(&check("h2", two))
    };
    let vcenter = |url: &str, host: &str| {
        format!(
            "kind = \"vcenter\", url = {url:?}, host = {host:?}, ca_file = \"ca.pem\", username = \"u\", password_file = \"pw\""
        )
    };
    let one = vcenter("https://vc.example", "/DC0/host/C0/h");
    assert!(is_one(&one, &vcenter("https://VC.example:443/", "/DC0/host/C0/h/")));
    assert!(!is_one(&one, &vcenter("https://vc.example", "/DC0/host/C0/h2")));
    assert!(!is_one(&one, &vcenter("https://vc2.example", "/DC0/host/C0/h")));
    let named = |host: &str| vcenter("https://vc.example", host);
    assert!(is_one(&named("esx-1.example"), &named("ESX-1.example")));
    assert!(!is_one(&named("esx-1.example"), &named("esx-2.example")));
    let script = |more: &str| format!("kind = \"script\", {more}");
    // It is not told which host.
    let nameless = script("run = [\"aside\", \"{verb}\"]");
    assert!(is_one(&nameless, &nameless));
    assert!(!is_one(&nameless, &script("run = [\"aside2\", \"{verb}\"]")));
    let by_argument = script("run = [\"aside\", \"{verb}\", \"{host}\"]");
    assert!(!is_one(&by_argument, &by_argument));
    let by_variable = script("run = [\"aside\", \"{verb}\"], env = { H = \"{host}\" }");
    assert!(!is_one(&by_variable, &by_variable));
    assert!(!is_one(&nameless, &one));
}
