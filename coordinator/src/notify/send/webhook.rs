//! Webhooks: CloudEvents 1.0 in structured JSON, signed as the Standard Webhooks specification has it.

use data_encoding::BASE64;
use firmesh_protocol::time::WallTime;
use reqwest::{RequestBuilder, header};
use ring::hmac;
use serde_json::json;
use zeroize::Zeroizing;

use super::SendError;
use crate::notify::{notice::Message, secret::Secret};

/// What a secret begins with.
const PREFIX: &str = "whsec_";

/// The event as a receiver reads it. The same bytes at every attempt.
fn cloud_event(message: &Message) -> Vec<u8> {
    let event = json!({
        "specversion": "1.0",
        "id": message.id,
        "source": message.source,
        "type": message.kind(),
        "subject": message.notice.subject(),
        "time": message.at,
        "datacontenttype": "application/json",
        "data": message.facts(),
    });
    event.to_string().into_bytes()
}

/// Puts event and signatures into a request: one signature for each secret, so that a receiver may hold either.
pub(super) fn dress(
    request: RequestBuilder,
    message: &Message,
    now: WallTime,
    secrets: &[Secret],
) -> Result<RequestBuilder, SendError> {
    let body = cloud_event(message);
    let (timestamp, signatures) = signatures(secrets, &message.id, now, &body)?;
    Ok(request
        .header(header::CONTENT_TYPE, "application/cloudevents+json; charset=utf-8")
        .header("webhook-id", message.id.as_str())
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signatures)
        .body(body))
}

/// The headers `webhook-timestamp` and `webhook-signature` of a body.
pub(in crate::notify) fn signatures(
    secrets: &[Secret],
    id: &str,
    now: WallTime,
    body: &[u8],
) -> Result<(i64, String), SendError> {
    let timestamp = now.unix_seconds();
    let mut signatures = Vec::new();
    for secret in secrets {
        signatures.push(sign(&webhook_key(secret)?, id, timestamp, body));
    }
    Ok((timestamp, signatures.join(" ")))
}

/// The key in a secret.
pub(in crate::notify) fn webhook_key(secret: &Secret) -> Result<hmac::Key, SendError> {
    let text = secret.read()?;
    let encoded = text.strip_prefix(PREFIX).ok_or(SendError::WebhookSecret)?;
    let bytes = BASE64.decode(encoded.as_bytes()).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| SendError::WebhookSecret)?;
    match (24..=64).contains(&bytes.len()) {
        true => Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)),
        false => Err(SendError::WebhookSecret),
    }
}

fn sign(key: &hmac::Key, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    format!("v1,{}", BASE64.encode(context.sign().as_ref()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn secret(folder: &std::path::Path, text: &str, mode: u32) -> Secret {
        let path = folder.join(format!("secret-{mode:o}"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Secret::File(path)
    }

    /// The vector that the specification's reference libraries publish.
    #[test]
    fn signs_as_the_standard_says() {
        let folder = tempfile::tempdir().unwrap();
        let key = webhook_key(&secret(
            folder.path(),
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n",
            0o600,
        ))
        .unwrap();
        let signed = sign(
            &key,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_that_is_weak_or_open_to_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for text in [
            "",
            "whsec_",
            "whsec_c2hvcnQ=",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_???",
        ] {
            assert!(webhook_key(&secret(folder.path(), text, 0o600)).is_err(), "{text:?}");
        }
        let open = secret(folder.path(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 0o644);
        let error = crate::telemetry::chain(&webhook_key(&open).unwrap_err());
        assert!(error.contains("mode 0644"), "{error}");
    }
}
