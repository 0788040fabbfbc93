//! People prove who they are to directories and providers that others have written: OpenLDAP over TLS, and an independent
//! OpenID Connect provider.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use firmesh_tests::{
    binaries::Program,
    operator::Operator,
    packages::ensure_command,
    process::Process,
    python::{python_with, run},
    setup::{client, start_coordinator},
    wait::{Seen, until},
};
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};

use crate::dashboard::install;

const WITHIN: Duration = Duration::from_secs(60);

/// Two pages with axe in each, on a machine that has other things to do.
const IN_A_BROWSER: Duration = Duration::from_secs(180);

/// Kept between runs, for pip's sake.
const VENVS: &str = env!("CARGO_TARGET_TMPDIR");

/// The file with the secret of the client at the provider.
const CLIENT_SECRET: &str = "client.secret";

const PROVIDER: [&str; 1] = ["oidc-provider-mock==0.3.4"];

#[tokio::test]
async fn people_log_in_at_an_independent_identity_provider() -> Result<()> {
    let python = python_with(Path::new(VENVS), "oidc-provider", &PROVIDER)?;
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    let (mut provider, issuer) = start_provider(&python, root).await?;
    secret(root, CLIENT_SECRET, "the provider takes any, and none without")?;
    fs::write(
        root.join("coordinator-more.toml"),
        format!(
            "[access.oidc]\nissuer = {issuer:?}\nclient_id = \"firmesh\"\nclient_secret = {{ file = {CLIENT_SECRET:?} }}\n\
             [[access.oidc.groups]]\ngroup = \"fleet-ops\"\nrole = \"operator\"\n\
             [[access.oidc.groups]]\ngroup = \"auditors\"\nrole = \"viewer\"\n"
        ),
    )?;
    let (mut coordinator, url) = start_coordinator(root, None, "90d").await?;
    let operator = person(root, &url);

    // In a browser, as people do.
    log_in_by_browser(root, &url, "alice").await?;
    let who = operator.ok(&["access", "whoami"])?;
    ensure!(who["name"] == "oidc:alice" && who["means"] == "oidc", "{who}");
    ensure!(who["grants"][0]["role"] == "operator", "{who}");
    ensure!(who["groups"] == json!(["everybody", "fleet-ops"]), "{who}");
    operator.ok(&["group", "create", "racks", "--filter", "model == \"R1\""])?;
    let refused = operator.refused(3, &["access", "key", "list"])?;
    ensure!(
        refused.contains("access:manage") && refused.contains("oidc:alice"),
        "{refused}"
    );
    let credentials = root.join("config/firmesh/credentials.json");
    ensure!(fs::metadata(&credentials)?.permissions().mode() & 0o777 == 0o600);
    operator.ok(&["login", "--forget"])?;
    operator.refused(3, &["group", "delete", "racks"])?;

    // Who has no group that counts is known, and may nothing.
    log_in_by_browser(root, &url, "eve").await?;
    let who = operator.ok(&["access", "whoami"])?;
    ensure!(
        who["grants"] == json!([]) && who["permissions"] == json!(["api:read"]),
        "{who}"
    );
    operator.refused(3, &["device", "list"])?;

    // On the dashboard, in a real browser.
    let browser = ensure_command("chromium", "chromium")?;
    let scripts = root.join("browser");
    install(&ensure_command("npm", "npm")?, &scripts, "login.mjs")?;
    let mut command = Command::new("node");
    command
        .args(["e2e/login.mjs", "bob", "oidc:bob"])
        .current_dir(&scripts)
        .env("CHROMIUM", &browser)
        .env("FIRMESH_URL", &url);
    let mut story = Process::spawn("the browser's login", command, &scripts.join("log"))?;
    let status = story.wait(IN_A_BROWSER).await?;
    ensure!(status.success(), "{}", story.log());

    // A token of the same provider that is for another client is none for us; nor is a changed one.
    let http = client()?;
    let ask = async |token: &str| -> Result<(StatusCode, String)> {
        let answer = http
            .get(format!("{url}/api/v1/devices"))
            .bearer_auth(token)
            .send()
            .await?;
        Ok((answer.status(), answer.text().await?))
    };
    let own = id_token(&http, &issuer, "firmesh", "bob").await?;
    ensure!(ask(&own).await?.0 == StatusCode::OK);
    let other = id_token(&http, &issuer, "somebody-else", "bob").await?;
    let (status, said) = ask(&other).await?;
    ensure!(
        status == StatusCode::UNAUTHORIZED && said.contains("InvalidAudience"),
        "{said}"
    );
    let (head, signature) = own.rsplit_once('.').context("a token")?;
    let swapped = other.rsplit_once('.').context("a token")?.1;
    ensure!(ask(&format!("{head}.{swapped}")).await?.0 == StatusCode::UNAUTHORIZED);
    ensure!(ask(&format!("{head}.{}", signature.to_lowercase())).await?.0 == StatusCode::UNAUTHORIZED);

    // Keys that were read are good while the provider is away; what was done is in the log, with who did it.
    provider.stop(WITHIN).await?;
    ensure!(ask(&own).await?.0 == StatusCode::OK);
    let log = http
        .get(format!("{url}/api/v1/audit/entries"))
        .send()
        .await?
        .text()
        .await?;
    ensure!(log.contains("oidc:alice") && log.contains("group:write"), "{log}");
    coordinator.stop(WITHIN).await?;
    Ok(())
}

#[tokio::test]
async fn people_of_a_directory_log_in_with_their_password_over_tls_only() -> Result<()> {
    let slapd = ensure_command("slapd", "slapd")?;
    let ldapadd = ensure_command("ldapadd", "ldap-utils")?;
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    let (mut directory, plain, tls) = start_directory(&slapd, &ldapadd, root).await?;
    let groups = "[[access.ldap.groups]]\ngroup = \"cn=ops,ou=groups,dc=example,dc=com\"\nrole = \"operator\"\n\
         limits = { sites = [\"eu/berlin\"] }\n\
         [[access.ldap.groups]]\ngroup = \"Auditors\"\nrole = \"viewer\"\n";
    let search = "[access.ldap.search]\nbind_dn = \"cn=admin,dc=example,dc=com\"\nbind_password = { file = \"admin.password\" }\n\
         base = \"ou=people,dc=example,dc=com\"\n";
    secret(root, "admin.password", "admin-password")?;
    // LDAPS, searched first; groups as the person's own entry names them (memberOf) and as they name the person.
    fs::write(
        root.join("coordinator-more.toml"),
        format!(
            "[access.ldap]\nurl = \"ldaps://127.0.0.1:{tls}\"\nca_file = \"ca.pem\"\n\
             group_base = \"ou=groups,dc=example,dc=com\"\n{groups}{search}"
        ),
    )?;
    let (mut coordinator, url) = start_coordinator(root, None, "90d").await?;
    let operator = person(root, &url);
    secret(root, "alice", "alice's (secret)*\\")?;
    secret(root, "bob", "bob's")?;
    secret(root, "wrong", "guess")?;
    log_in(&operator, "alice", "alice")?;
    let who = operator.ok(&["access", "whoami"])?;
    ensure!(who["name"] == "ldap:alice" && who["means"] == "ldap", "{who}");
    ensure!(
        who["grants"] == json!([{ "role": "operator", "limits": { "sites": ["eu/berlin"] } }]),
        "{who}"
    );
    // His site is not everywhere.
    let refused = operator.refused(3, &["group", "create", "racks", "--device", "d1"])?;
    ensure!(
        refused.contains("eu/berlin") && refused.contains("everywhere"),
        "{refused}"
    );
    operator.ok(&["device", "list"])?;
    log_in(&operator, "bob", "bob")?;
    let who = operator.ok(&["access", "whoami"])?;
    ensure!(who["grants"] == json!([{ "role": "viewer", "limits": {} }]), "{who}");
    let http = client()?;
    let refused = async |name: &str, password: &str| -> Result<(StatusCode, Value)> {
        let body = json!({ "username": name, "password": password });
        let answer = http.post(format!("{url}/api/v1/auth/token")).json(&body).send().await?;
        Ok((answer.status(), answer.json().await?))
    };
    for (name, password) in [
        ("alice", "guess"),
        ("alice", ""),
        ("nobody", "guess"),
        ("*", "alice's (secret)*\\"),
        ("alice)(uid=*", "alice's (secret)*\\"),
        ("a*", "alice's (secret)*\\"),
        ("alice ", "alice's (secret)*\\"),
        ("", ""),
        ("alice\0", "alice's (secret)*\\"),
    ] {
        let (status, problem) = refused(name, password).await?;
        ensure!(status == StatusCode::UNAUTHORIZED, "{name:?}: {status} {problem}");
        ensure!(!problem.to_string().contains("secret"), "{problem}");
    }
    // Whoever tries and tries is told to wait, and only for the name he tries.
    let mut last = StatusCode::UNAUTHORIZED;
    for _ in 0..12 {
        last = refused("carol", "guess").await?.0;
    }
    ensure!(last == StatusCode::TOO_MANY_REQUESTS, "{last}");
    log_in(&operator, "bob", "bob")?;

    // StartTLS, bound by a template; the name is part of a DN here.
    fs::write(
        root.join("coordinator-more.toml"),
        format!(
            "[access.ldap]\nurl = \"ldap://localhost:{plain}\"\nstarttls = true\nca_file = \"ca.pem\"\n\
             user_dn = \"uid={{user}},ou=people,dc=example,dc=com\"\nmember_of = \"\"\n\
             group_base = \"ou=groups,dc=example,dc=com\"\n{groups}"
        ),
    )?;
    coordinator.stop(WITHIN).await?;
    (coordinator, _) = start_coordinator(root, Some((&url, "127.0.0.1:0")), "90d").await?;
    log_in(&operator, "alice", "alice")?;
    let who = operator.ok(&["access", "whoami"])?;
    ensure!(who["grants"][0]["role"] == "operator", "{who}");
    for name in ["alice,ou=people", "alice+cn=x", "*"] {
        let (status, problem) = refused(name, "alice's (secret)*\\").await?;
        ensure!(status == StatusCode::UNAUTHORIZED, "{name:?}: {status} {problem}");
    }

    // A directory that somebody else's CA speaks for is not told a password, and one that is away is said to be away.
    let text = fs::read_to_string(root.join("coordinator-more.toml"))?;
    fs::write(
        root.join("coordinator-more.toml"),
        text.replace("ca.pem", "other-ca.pem"),
    )?;
    coordinator.stop(WITHIN).await?;
    (coordinator, _) = start_coordinator(root, Some((&url, "127.0.0.1:0")), "90d").await?;
    let (status, problem) = refused("alice", "alice's (secret)*\\").await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status} {problem}");
    fs::write(root.join("coordinator-more.toml"), text)?;
    coordinator.stop(WITHIN).await?;
    (coordinator, _) = start_coordinator(root, Some((&url, "127.0.0.1:0")), "90d").await?;
    directory.kill()?;
    let (status, problem) = refused("alice", "alice's (secret)*\\").await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status} {problem}");
    ensure!(problem["type"] == "urn:firmesh:problem:directory_silent", "{problem}");
    let log = fs::read_to_string(root.join("coordinator.log"))?;
    ensure!(
        log.contains("a login was refused") && !log.contains("secret)*"),
        "{log}"
    );
    coordinator.stop(WITHIN).await?;
    Ok(())
}

fn person(root: &Path, url: &str) -> Operator {
    let config = root.join("config").display().to_string();
    Operator::offline(root)
        .with_variable("XDG_CONFIG_HOME", &config)
        .with_login_at(url)
}

fn log_in(operator: &Operator, name: &str, file: &str) -> Result<()> {
    operator.ok(&["login", "--username", name, "--password-file", file])?;
    let refused = operator.refused(3, &["login", "--username", name, "--password-file", "wrong"])?;
    ensure!(refused.contains("password is wrong"), "{refused}");
    Ok(())
}

fn secret(root: &Path, name: &str, text: &str) -> Result<()> {
    let path = root.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// `firmesh login --browser`, and a browser in which `sub` logs in.
async fn log_in_by_browser(root: &Path, url: &str, sub: &str) -> Result<()> {
    let log = root.join(format!("login-{sub}.log"));
    let mut command = Command::new(Program::Operator.path()?);
    command
        .args([
            "login",
            "--browser",
            "--client-secret-file",
            CLIENT_SECRET,
            "--coordinator",
            url,
        ])
        .current_dir(root)
        .env("XDG_CONFIG_HOME", root.join("config"));
    let mut login = Process::spawn("login", command, &log)?;
    let page = until("the page to open", WITHIN, async || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let page = text
            .lines()
            .find(|line| line.starts_with("http://") && line.contains("code_challenge="));
        Ok(page.map_or_else(|| Seen::NotYet(text.clone()), |page| Seen::Yes(page.to_owned())))
    })
    .await?;
    let answer = client()?.post(page).form(&[("sub", sub)]).send().await?;
    let text = answer.text().await?;
    ensure!(text.contains("You are logged in"), "{text}");
    let status = login.wait(WITHIN).await?;
    ensure!(status.success(), "{status}: {}", login.log());
    Ok(())
}

/// The provider, and its issuer.
async fn start_provider(python: &Path, root: &Path) -> Result<(Process, String)> {
    let log = root.join("provider.log");
    let mut command = Command::new(python);
    command.args(["-m", "oidc_provider_mock", "--port", "0", "--user", "eve"]);
    for (user, groups) in [
        ("alice", ["everybody", "fleet-ops"]),
        ("bob", ["everybody", "auditors"]),
    ] {
        command
            .arg("--user-claims")
            .arg(json!({ "sub": user, "groups": groups }).to_string());
    }
    command.env("NO_COLOR", "1");
    let mut provider = Process::spawn("provider", command, &log)?;
    let issuer = until("the provider to listen", WITHIN, async || {
        if let Some(status) = provider.ended()? {
            bail!("the provider ended: {status}: {}", provider.log());
        }
        let text = fs::read_to_string(&log).unwrap_or_default();
        let found = text
            .split("running on ")
            .nth(1)
            .and_then(|rest| rest.split([' ', '"']).next());
        Ok(found.map_or_else(|| Seen::NotYet(text.clone()), |found| Seen::Yes(found.to_owned())))
    })
    .await?;
    Ok((provider, issuer))
}

/// What a client of the provider is given for a person, without PKCE, as some other client does it.
async fn id_token(http: &reqwest::Client, issuer: &str, client_id: &str, sub: &str) -> Result<String> {
    let back = "http://127.0.0.1:9/callback";
    let mut page = Url::parse(&format!("{issuer}/oauth2/authorize"))?;
    page.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", client_id)
        .append_pair("redirect_uri", back)
        .append_pair("scope", "openid profile")
        .append_pair("nonce", &format!("{client_id}-{sub}"))
        .append_pair("state", "s");
    let stay = reqwest::Client::builder()
        .tls_certs_only([])
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let answer = stay.post(page).form(&[("sub", sub)]).send().await?;
    let place = answer.headers().get("location").context("no redirection")?.to_str()?;
    let place = Url::parse(place)?;
    let code = place
        .query_pairs()
        .find(|(name, _)| name == "code")
        .context("no code")?
        .1
        .into_owned();
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", back),
        ("client_id", client_id),
        ("client_secret", "any"),
    ];
    let answer = http.post(format!("{issuer}/oauth2/token")).form(&form).send().await?;
    let tokens: Value = answer.json().await?;
    Ok(tokens["id_token"]
        .as_str()
        .with_context(|| tokens.to_string())?
        .to_owned())
}

/// OpenLDAP with three people and two groups; its plain port and its TLS port.
async fn start_directory(slapd: &Path, ldapadd: &Path, root: &Path) -> Result<(Process, u16, u16)> {
    certificates(root)?;
    let at = root.display();
    fs::create_dir(root.join("ldap"))?;
    fs::write(
        root.join("slapd.conf"),
        format!(
            "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/inetorgperson.schema\n\
             modulepath /usr/lib/ldap\nmoduleload back_mdb\nmoduleload memberof\npidfile {at}/slapd.pid\n\
             TLSCACertificateFile {at}/ca.pem\nTLSCertificateFile {at}/ldap.pem\nTLSCertificateKeyFile {at}/ldap.key\n\
             database mdb\nsuffix \"dc=example,dc=com\"\nrootdn \"cn=admin,dc=example,dc=com\"\nrootpw admin-password\n\
             directory {at}/ldap\noverlay memberof\n\
             access to attrs=userPassword by anonymous auth by * none\naccess to * by users read by * none\n"
        ),
    )?;
    let (plain, tls) = (free_port()?, free_port()?);
    let mut command = Command::new(slapd);
    command
        .arg("-f")
        .arg(root.join("slapd.conf"))
        .args(["-d", "0", "-h"])
        .arg(format!("ldap://127.0.0.1:{plain} ldaps://127.0.0.1:{tls}"));
    let mut directory = Process::spawn("slapd", command, &root.join("slapd.log"))?;
    let person = |uid: &str, password: &str| {
        format!(
            "dn: uid={uid},ou=people,dc=example,dc=com\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {uid}\nsn: {uid}\n\
             userPassword: {password}\n\n"
        )
    };
    let ldif = format!(
        "dn: dc=example,dc=com\nobjectClass: dcObject\nobjectClass: organization\no: Example\ndc: example\n\n\
         dn: ou=people,dc=example,dc=com\nobjectClass: organizationalUnit\nou: people\n\n\
         dn: ou=groups,dc=example,dc=com\nobjectClass: organizationalUnit\nou: groups\n\n{}{}{}\
         dn: cn=ops,ou=groups,dc=example,dc=com\nobjectClass: groupOfNames\ncn: ops\n\
         member: uid=alice,ou=people,dc=example,dc=com\n\n\
         dn: cn=auditors,ou=groups,dc=example,dc=com\nobjectClass: groupOfNames\ncn: auditors\n\
         member: uid=bob,ou=people,dc=example,dc=com\n",
        person("alice", "alice's (secret)*\\"),
        person("bob", "bob's"),
        person("carol", "carol's"),
    );
    fs::write(root.join("people.ldif"), ldif)?;
    let file = root.join("people.ldif").display().to_string();
    let url = format!("ldap://127.0.0.1:{plain}");
    until("the directory to take people", WITHIN, async || {
        if let Some(status) = directory.ended()? {
            bail!("slapd ended: {status}: {}", directory.log());
        }
        let args = [
            "-x",
            "-H",
            &url,
            "-D",
            "cn=admin,dc=example,dc=com",
            "-w",
            "admin-password",
            "-f",
            &file,
        ];
        Ok(match run(ldapadd, args) {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(error.to_string()),
        })
    })
    .await?;
    Ok((directory, plain, tls))
}

/// A CA, a certificate of the directory, and a CA of somebody else.
fn certificates(root: &Path) -> Result<()> {
    let authority = |name: &str| -> Result<_> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key)?;
        Ok((certificate.pem(), rcgen::Issuer::new(params, key)))
    };
    let (pem, issuer) = authority("Directory CA")?;
    fs::write(root.join("ca.pem"), pem)?;
    fs::write(root.join("other-ca.pem"), authority("Somebody else's CA")?.0)?;
    let key = rcgen::KeyPair::generate()?;
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    fs::write(root.join("ldap.pem"), params.signed_by(&key, &issuer)?.pem())?;
    fs::write(root.join("ldap.key"), key.serialize_pem())?;
    Ok(())
}

/// A port that was free a moment ago: the directory cannot be given an open socket.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
