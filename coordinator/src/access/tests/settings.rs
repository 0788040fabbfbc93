//! What is wrong with settings of access is said by field.

use super::super::{AccessConfig, AccessSettings};

fn check(text: &str) -> Result<AccessSettings, String> {
    let config: AccessConfig = toml::from_str(text).map_err(|error| error.to_string())?;
    let seconds = |text: &str| {
        let count = text.strip_suffix('s').and_then(|count| count.parse().ok());
        count
            .map(std::time::Duration::from_secs)
            .ok_or_else(|| format!("is {text:?}"))
    };
    config
        .check(seconds)
        .map_err(|(field, problem)| format!("{field} {problem}"))
}

const LDAP: &str = "token_ttl = '60s'\n[ldap]\nuser_dn = 'uid={user},dc=x'\n";
const OIDC: &str = "token_ttl = '60s'\n[oidc]\nissuer = 'https://id.example.com'\nclient_id = 'firmesh'\n";

#[test]
fn good_settings_are_taken() {
    for good in [
        "token_ttl = '60s'".to_owned(),
        "token_ttl = '60s'\nenvironments = { eu = 'production', 'eu/lab' = 'staging' }".to_owned(),
        format!("{LDAP}url = 'ldaps://ldap.example.com'"),
        format!("{LDAP}url = 'ldap://ldap.example.com'\nstarttls = true\ntimeout = '3s'"),
        format!("{LDAP}url = 'ldap://127.0.0.1:3389'"),
        format!("{LDAP}url = 'ldap://[::1]'"),
        format!("{OIDC}groups = [{{ group = 'ops', role = 'operator', limits = {{ sites = ['eu/berlin'] }} }}]"),
        OIDC.replace("https://id.example.com", "http://localhost:9000/realm"),
    ] {
        check(&good).unwrap_or_else(|problem| panic!("{good}: {problem}"));
    }
}

#[test]
fn passwords_and_tokens_do_not_go_over_open_wires_and_slips_are_named() {
    for (bad, said) in [
        (format!("{LDAP}url = 'ldap://ldap.example.com'"), "access.ldap.url"),
        (format!("{LDAP}url = 'ldap://127.0.0.1.example.com'"), "access.ldap.url"),
        (format!("{LDAP}url = 'ldaps://x'\nstarttls = true"), "starttls"),
        (format!("{LDAP}url = 'http://x'"), "access.ldap.url"),
        (
            format!("{LDAP}url = 'ldaps://x'\ntimeout = '60s'"),
            "access.ldap.timeout",
        ),
        (
            format!("{LDAP}url = 'ldaps://x'\nsearch = {{ base = 'dc=x' }}"),
            "not both",
        ),
        (
            LDAP.replace("{user}", "user") + "url = 'ldaps://x'",
            "access.ldap.user_dn",
        ),
        (
            "token_ttl = '60s'\n[ldap]\nurl = 'ldaps://x'\nsearch = { base = 'dc=x', bind_dn = 'cn=x' }".to_owned(),
            "bind_password",
        ),
        (
            "token_ttl = '60s'\n[ldap]\nurl = 'ldaps://x'\nsearch = { base = 'dc=x', user_filter = '(uid={user}' }"
                .to_owned(),
            "user_filter",
        ),
        (
            format!("{LDAP}url = 'ldaps://x'\ngroup_filter = '(member={{dn}}'"),
            "group_filter",
        ),
        (
            format!("{LDAP}url = 'ldaps://x'\ngroups = [{{ group = 'g', role = 'device' }}]"),
            "role device",
        ),
        (
            format!("{LDAP}url = 'ldaps://x'\ngroups = [{{ group = 'g', role = 'king' }}]"),
            "king",
        ),
        (OIDC.replace("https", "http"), "access.oidc.issuer"),
        (OIDC.replace("'firmesh'", "''"), "access.oidc.client_id"),
        (
            format!("{OIDC}groups = [{{ group = 'g', role = 'admin', limits = {{ sites = ['berlin'] }} }}]"),
            "access.oidc.groups",
        ),
        (format!("{OIDC}grups = []"), "grups"),
        ("token_ttl = '86400s'".to_owned(), "access.token_ttl"),
        (
            "token_ttl = '60s'\nenvironments = { 'a b' = 'x' }".to_owned(),
            "access.environments",
        ),
    ] {
        let problem = check(&bad).expect_err(&bad);
        assert!(problem.contains(said), "{bad}: {problem}");
    }
}
