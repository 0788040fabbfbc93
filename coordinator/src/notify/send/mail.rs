//! Mail over SMTP: STARTTLS or TLS from the first byte, and nothing in the clear but to this machine.

use std::time::SystemTime;

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message as Letter, Tokio1Executor,
    message::header::{ContentType, HeaderName, HeaderValue},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
    },
};

use super::{ATTEMPT_MAX, SendError, authorities};
use crate::{
    notify::{
        config::{Mail, MailTls},
        course::Outcome,
        notice::Message,
        template::{self, Escape},
    },
    telemetry::chain,
};

/// Subjects are read in lists.
const SUBJECT_CHARS_MAX: usize = 200;

/// Whether a connection can be prepared.
pub(super) fn check(mail: &Mail) -> Result<(), SendError> {
    transport(mail).map(drop)
}

pub(super) async fn send(mail: &Mail, message: &Message) -> Result<Outcome, SendError> {
    let letter = letter(mail, message)?;
    let sent = transport(mail)?.send(letter).await;
    Ok(match sent {
        Ok(_) => Outcome::Delivered,
        Err(error) if error.is_permanent() => Outcome::Refused(chain(&error)),
        Err(error) => Outcome::failed(chain(&error)),
    })
}

/// A new connection for every mail: they are few and far between.
fn transport(mail: &Mail) -> Result<AsyncSmtpTransport<Tokio1Executor>, SendError> {
    let parameters = || {
        let mut builder = TlsParameters::builder(mail.host.clone());
        if let Some(path) = &mail.ca_file {
            let certificate = Certificate::from_pem(&authorities(path)?)?;
            builder = builder
                .certificate_store(CertificateStore::None)
                .add_root_certificate(certificate);
        }
        Ok::<_, SendError>(builder.build()?)
    };
    let tls = match mail.tls {
        MailTls::Starttls => Tls::Required(parameters()?),
        MailTls::Implicit => Tls::Wrapper(parameters()?),
        MailTls::None => Tls::None,
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(mail.host.clone())
        .port(mail.port)
        .tls(tls)
        .timeout(Some(ATTEMPT_MAX));
    if let Some((username, password)) = &mail.login {
        builder = builder.credentials(Credentials::new(username.clone(), password.read()?.to_string()));
    }
    Ok(builder.build())
}

fn letter(mail: &Mail, message: &Message) -> Result<Letter, SendError> {
    let subject = template::render(&mail.subject, Escape::None, message)?;
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let subject: String = subject.chars().map(plain).take(SUBJECT_CHARS_MAX).collect();
    let header = |name, text: &str| HeaderValue::new(HeaderName::new_from_ascii_str(name), text.to_owned());
    let mut builder = Letter::builder()
        .message_id(Some(format!("<{}@{}>", message.id, mail.from.email.domain())))
        .date(SystemTime::now())
        .from(mail.from.clone())
        .subject(subject)
        // So that nobody's holiday answers.
        .raw_header(header("Auto-Submitted", "auto-generated"))
        .header(ContentType::TEXT_PLAIN);
    for recipient in &mail.to {
        builder = builder.to(recipient.clone());
    }
    Ok(builder.body(template::render(&mail.body, Escape::None, message)?)?)
}
