//! Logging in at the identity provider in a browser: the authorization code flow with PKCE, and a page on loopback that
//! the browser comes back to (RFC 8252).

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use axum::{Router, extract::RawQuery, response::Html, routing::get};
use data_encoding::BASE64URL_NOPAD;
use firmesh_protocol::{api::OidcView, ids::Sha256, time::WallTime};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use url::Url;

use super::store::Credential;
use crate::{client::http_client, output::Output};

/// How long a person may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long the provider may take.
const ANSWER: Duration = Duration::from_secs(15);

/// The longest answer of a provider.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: Url,
    token_endpoint: Url,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: String,
}

#[derive(Deserialize)]
struct Claims {
    exp: i64,
    nonce: Option<String>,
}

pub(super) async fn log_in(provider: &OidcView, secret: Option<&str>, output: &Output) -> anyhow::Result<Credential> {
    let http = http_client(None, provider.issuer.starts_with("https://"), ANSWER)?;
    let issuer = provider.issuer.trim_end_matches('/');
    let place = format!("{issuer}/.well-known/openid-configuration");
    let discovery: Discovery = read(http.get(&place).send().await).await?;
    ensure!(
        discovery.issuer == provider.issuer,
        "{place} is of the issuer {:?}, not {:?}",
        discovery.issuer,
        provider.issuer
    );
    let (verifier, state, nonce) = (random()?, random()?, random()?);
    let challenge = BASE64URL_NOPAD.encode(Sha256::of(verifier.as_bytes()).as_bytes());
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("no port on this machine is free")?;
    let back = format!("http://127.0.0.1:{}/callback", listener.local_addr()?.port());
    let mut page = discovery.authorization_endpoint.clone();
    page.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", &provider.client_id)
        .append_pair("redirect_uri", &back)
        .append_pair("scope", &provider.scopes.join(" "))
        .append_pair("state", &state)
        .append_pair("nonce", &nonce)
        .append_pair("code_challenge", &challenge)
        .append_pair("code_challenge_method", "S256");
    output.warn(&format!("open this page in a browser on this machine:\n{page}"));
    let code = code(listener, state).await?;
    let mut form = vec![
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", &back),
        ("client_id", &provider.client_id),
        ("code_verifier", &verifier),
    ];
    form.extend(secret.map(|secret| ("client_secret", secret)));
    let tokens: Tokens = read(http.post(discovery.token_endpoint).form(&form).send().await).await?;
    // The coordinator verifies it; here it only has to be the answer to this question.
    let payload = tokens
        .id_token
        .split('.')
        .nth(1)
        .context("the identity provider's token is none")?;
    let claims: Claims = serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes())?)?;
    ensure!(
        claims.nonce.as_deref() == Some(&nonce),
        "the identity provider's token answers another login: try again"
    );
    Ok(Credential {
        token: tokens.id_token,
        expires: WallTime::from_unix_seconds(claims.exp),
    })
}

/// Waits for the browser to come back.
async fn code(listener: TcpListener, state: String) -> anyhow::Result<String> {
    let (found, mut finds) = mpsc::channel::<Result<String, String>>(1);
    let state = Arc::new(state);
    let callback = move |RawQuery(query): RawQuery| {
        let (found, state) = (found.clone(), state.clone());
        async move {
            let outcome = outcome(&query.unwrap_or_default(), &state);
            let said = match &outcome {
                Some(Ok(_)) => "You are logged in. This page can be closed.",
                Some(Err(_)) => "The login was refused. See the terminal.",
                None => "This is not the login that was asked for.",
            };
            if let Some(outcome) = outcome {
                // Only the first one counts.
                let _ = found.try_send(outcome);
            }
            Html(format!("<!doctype html><title>Firmesh</title><p>{said}</p>"))
        }
    };
    let server = axum::serve(listener, Router::new().route("/callback", get(callback)));
    let came = tokio::select! {
        ended = server.into_future() => { ended?; None }
        came = timeout(PATIENCE, finds.recv()) => came.context("nobody logged in for five minutes")?,
    };
    match came {
        Some(Ok(code)) => Ok(code),
        Some(Err(why)) => bail!("the identity provider refused: {why}"),
        None => bail!("the page to come back to broke down"),
    }
}

/// What the browser brings, if it belongs to this login.
fn outcome(query: &str, state: &str) -> Option<Result<String, String>> {
    let url = Url::parse(&format!("http://127.0.0.1/?{query}")).ok()?;
    let value = |wanted: &str| {
        url.query_pairs()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.into_owned())
    };
    if value("state")? != state {
        return None;
    }
    match (value("code"), value("error")) {
        (Some(code), None) => Some(Ok(code)),
        (_, Some(error)) => Some(Err(error.chars().take(200).collect())),
        (None, None) => None,
    }
}

async fn read<T: DeserializeOwned>(answer: reqwest::Result<reqwest::Response>) -> anyhow::Result<T> {
    let mut answer = answer.context("the identity provider does not answer")?;
    let (url, status) = (answer.url().clone(), answer.status());
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await? {
        bytes.extend_from_slice(&part);
        ensure!(bytes.len() <= ANSWER_BYTES_MAX, "{url} answers too much");
    }
    if !status.is_success() {
        let said: String = String::from_utf8_lossy(&bytes).chars().take(200).collect();
        bail!("{url} answered {status}: {said}");
    }
    serde_json::from_slice(&bytes).with_context(|| format!("{url} answers something else"))
}

/// 32 random bytes.
fn random() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("this machine gives no randomness")?;
    Ok(BASE64URL_NOPAD.encode(&bytes))
}

#[cfg(test)]
mod tests {
    use super::outcome;

    #[test]
    fn only_the_answer_to_this_login_counts() {
        assert_eq!(outcome("code=a%20b&state=s", "s"), Some(Ok("a b".to_owned())));
        assert_eq!(
            outcome("error=access_denied&state=s", "s"),
            Some(Err("access_denied".to_owned()))
        );
        for other in ["", "code=a", "code=a&state=t", "state=s", "code=a&state="] {
            assert_eq!(outcome(other, "s"), None, "{other}");
        }
    }
}
