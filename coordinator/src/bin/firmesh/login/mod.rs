//! `firmesh login`: a token for the commands that follow, kept where only this user can read it.

mod browser;
pub(crate) mod store;

use std::{io::IsTerminal as _, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use firmesh_coordinator::ceremony::load_secret;
use firmesh_protocol::{
    api::{LoginMethods, TokenAnswer, TokenRequest, WhoAmI},
    time::WallTime,
};
use serde_json::json;
use zeroize::Zeroizing;

use self::store::{Credential, Credentials};
use crate::{Global, client::Client, now, output::Output};

/// Logs in at the coordinator: by the identity provider in a browser, by a name and a password, or by an API key.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// By a name of the directory; the password is asked for.
    #[arg(long, conflicts_with_all = ["api_key_file", "browser", "forget"])]
    username: Option<String>,
    /// A file with the password, readable by its owner only. Or FIRMESH_PASSWORD.
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    /// By an API key: a file with it, readable by its owner only.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["browser", "forget"])]
    api_key_file: Option<PathBuf>,
    /// At the identity provider, in a browser on this machine.
    #[arg(long, conflicts_with = "forget")]
    browser: bool,
    /// A file with the client's secret, readable by its owner only: for a provider that wants one beside PKCE.
    #[arg(long, value_name = "FILE", requires = "browser")]
    client_secret_file: Option<PathBuf>,
    /// Forgets the token.
    #[arg(long)]
    forget: bool,
}

pub(crate) async fn run(global: &Global, login: Login, output: &Output) -> anyhow::Result<()> {
    let mut credentials = Credentials::load()?;
    if login.forget {
        credentials.remove(&global.coordinator);
        credentials.save()?;
        return output.show(&json!({ "forgotten": global.coordinator }), || {
            vec![format!("the token for {} is forgotten", global.coordinator)]
        });
    }
    let client = Client::new(&global.coordinator, global.ca_file.as_deref(), None)?;
    let methods: LoginMethods = client.get("/api/v1/auth/methods").await?;
    let by_browser =
        login.browser || (login.username.is_none() && login.api_key_file.is_none() && methods.oidc.is_some());
    let credential = if by_browser {
        let provider = methods
            .oidc
            .context("this coordinator has no identity provider: log in with --username or --api-key-file")?;
        let secret = login.client_secret_file.as_deref().map(load_secret).transpose()?;
        let secret = secret.as_ref().map(|secret| secret.trim());
        browser::log_in(&provider, secret, output).await?
    } else {
        let request = request(&login, &methods)?;
        let answer: TokenAnswer = client.post("/api/v1/auth/token", &request).await?;
        Credential {
            token: answer.access_token,
            expires: WallTime::from_unix_seconds(now().unix_seconds() + answer.expires_in.cast_signed()),
        }
    };
    // Whether the coordinator takes it, too.
    let own = Client::new(
        &global.coordinator,
        global.ca_file.as_deref(),
        Some(credential.token.clone()),
    )?;
    let who: WhoAmI = own.get("/api/v1/auth/whoami").await?;
    let expires = credential.expires;
    credentials.put(&global.coordinator, credential);
    let path = credentials.save()?;
    output.show(
        &json!({ "name": who.name, "grants": who.grants, "expires": expires }),
        || {
            let roles: Vec<_> = who.grants.iter().map(|grant| grant.role.name()).collect();
            let roles = if roles.is_empty() {
                "no role".to_owned()
            } else {
                roles.join(", ")
            };
            vec![
                format!("logged in as {} ({roles}) until {expires}", who.name),
                format!("the token is in {}", path.display()),
            ]
        },
    )
}

fn request(login: &Login, methods: &LoginMethods) -> anyhow::Result<TokenRequest> {
    if let Some(path) = &login.api_key_file {
        return Ok(TokenRequest {
            api_key: Some(load_secret(path)?.trim().to_owned()),
            ..TokenRequest::default()
        });
    }
    let Some(username) = login.username.clone() else {
        bail!(match methods.passwords {
            true => "say who you are: --username NAME, or --api-key-file FILE",
            false => "this coordinator takes API keys: --api-key-file FILE",
        });
    };
    let password = match (&login.password_file, std::env::var("FIRMESH_PASSWORD")) {
        (Some(path), _) => Zeroizing::new(load_secret(path)?.trim_end_matches(['\r', '\n']).to_owned()),
        (None, Ok(password)) => Zeroizing::new(password),
        (None, Err(_)) if std::io::stdin().is_terminal() => {
            Zeroizing::new(rpassword::prompt_password(format!("Password of {username}: "))?)
        }
        (None, Err(_)) => {
            bail!("there is no terminal to ask for the password: use --password-file or FIRMESH_PASSWORD")
        }
    };
    Ok(TokenRequest {
        username: Some(username),
        password: Some(password.to_string()),
        ..TokenRequest::default()
    })
}
